"""Tokenised examples on disk: what TFDS reads of them, random access, parts, damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.data.pack.store import (
    Example,
    Joined,
    Store,
    features,
    fingerprint,
    finish,
    finish_split,
    is_store,
    serialise,
    write_part,
)
from sft_jax.errors import BadInput


def made(number: int, seed: int = 0) -> list[Example]:
    generator = np.random.default_rng(seed)
    examples = []
    for i in range(number):
        length = int(generator.integers(2, 30))
        weights = (generator.random(length) < 0.5).astype(np.float32) * np.float32(0.5)
        tokens = generator.integers(0, 50_000, length).astype(np.int32)
        examples.append(Example(f"grüße-{i}", f"dir/ä {seed}.jsonl", i + 1, tokens, weights))
    return examples


def write(directory: Path, splits: dict[str, list[list[Example]]], licence: str = "") -> None:
    found = {}
    directory.mkdir(parents=True)
    for split, parts in splits.items():
        stems = [directory / f"{split}-{number}" for number in range(len(parts))]
        for stem, examples in zip(stems, parts, strict=True):
            write_part(stem, examples, {"anything": 1})
        found[split] = finish_split(directory, split, stems, {"counts": {}, "note": "ours"})
    finish(directory, found, "what it is", licence)


def same(one: Example, other: Example) -> bool:
    fields = (one.id, one.source, one.line) == (other.id, other.source, other.line)
    arrays = zip((one.tokens, one.weights), (other.tokens, other.weights), strict=True)
    return fields and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def test_examples_come_back_as_they_were_at_random_and_in_order(tmp_path: Path):
    parts = [made(7), [], made(5, seed=1)]
    write(tmp_path / "set", {"train": parts, "eval": [made(3, seed=2)]})
    wanted = [*parts[0], *parts[2]]
    store = Store(tmp_path / "set")
    assert len(store) == 12 and all(same(a, b) for a, b in zip(store, wanted, strict=True))
    assert all(same(store[i], wanted[i]) for i in (11, 0, 6, 7))
    assert store.lengths.tolist() == [len(e.tokens) for e in wanted]
    assert store.targets.tolist() == [e.targets for e in wanted]
    assert len(Store(tmp_path / "set", "eval")) == 3
    assert store.about["note"] == "ours"


def test_a_record_is_what_tfds_writes():
    from tensorflow_datasets.proto import tf_example_pb2

    read: Any = tf_example_pb2
    for e in made(5):
        fields = {"tokens": e.tokens, "weights": e.weights, "id": e.id, "source": e.source, "line": e.line}
        theirs = features().serialize_example(fields)
        assert read.Example.FromString(serialise(e)) == read.Example.FromString(theirs)


def test_tfds_reads_it_without_us_and_without_tensorflow(tmp_path: Path):
    import sys

    import tensorflow_datasets as tfds

    examples = made(9)
    write(tmp_path / "set", {"train": [examples[:4], examples[4:]]}, licence="MIT")
    builder = tfds.builder_from_directory(tmp_path / "set")
    assert builder.info.description == "what it is"
    assert builder.info.redistribution_info.license == "MIT"
    assert builder.info.metadata["train"]["note"] == "ours"
    assert builder.info.splits["train"].shard_lengths == [4, 5]
    for theirs, example in zip(builder.as_data_source("train"), examples, strict=True):
        assert theirs["id"].decode() == example.id and theirs["source"].decode() == example.source
        assert theirs["line"] == example.line
        np.testing.assert_array_equal(theirs["tokens"], example.tokens)
        np.testing.assert_array_equal(theirs["weights"], example.weights)
        assert theirs["tokens"].dtype == np.int32 and theirs["weights"].dtype == np.float32
    assert "tensorflow" not in sys.modules


def test_a_data_set_counts_only_once_it_is_described(tmp_path: Path):
    directory = tmp_path / "set"
    directory.mkdir()
    write_part(directory / "p0", made(2), {})
    about = finish_split(directory, "train", [directory / "p0"], {})
    assert not is_store(directory)
    with pytest.raises(BadInput, match="not a prepared dataset"):
        Store(directory)
    finish(directory, {"train": about}, "", "")
    assert is_store(directory) and len(Store(directory)) == 2


def test_the_fingerprint_sees_tokens_weights_and_order(tmp_path: Path):
    examples = made(6)
    changed = [*examples[:5], Example("x", "y", 1, examples[5].tokens, examples[5].weights + np.float32(1))]
    prints = set()
    for name, parts in {"a": [examples], "b": [examples[::-1]], "c": [changed], "d": [examples[:5]]}.items():
        write(tmp_path / name, {"train": parts})
        prints.add(Store(tmp_path / name).fingerprint)
    assert len(prints) == 4
    renamed = [Example("other", "file", 7, e.tokens, e.weights) for e in examples]
    assert fingerprint(renamed) == fingerprint(examples)


def test_joined_stores_are_one_sequence(tmp_path: Path):
    write(tmp_path / "a", {"train": [made(3)]})
    write(tmp_path / "b", {"train": [made(4, seed=1)]})
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    joined = Joined([a, b])
    assert len(joined) == 7
    assert [e.id for e in joined] == [e.id for e in (*a, *b)]
    assert joined[3].source == b[0].source and joined[2].source == a[2].source
    assert joined.lengths.tolist() == [*a.lengths, *b.lengths]
    assert Joined([a]).fingerprint == a.fingerprint
    assert len({joined.fingerprint, Joined([b, a]).fingerprint, a.fingerprint}) == 3


def test_a_damaged_data_set_is_refused_by_name(tmp_path: Path):
    write(tmp_path / "set", {"train": [made(3), made(2, seed=1)]})
    with pytest.raises(BadInput, match=r"no split 'evil'.*train"):
        Store(tmp_path / "set", "evil")
    metadata = tmp_path / "set" / "metadata.json"
    about = json.loads(metadata.read_text())
    about["train"]["shard_lengths"] = [3, 1]
    metadata.write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r"has 5 examples, metadata\.json says 4"):
        Store(tmp_path / "set")
    shard = next((tmp_path / "set").glob("*-00001-of-00002"))
    shard.unlink()
    with pytest.raises(BadInput, match="00001-of-00002: missing"):
        Store(tmp_path / "set")


def test_a_part_that_was_being_written_does_not_count(tmp_path: Path, monkeypatch):
    """`stem.json` comes last: a kill at any earlier moment leaves none."""
    import sft_jax.data.pack.store as module

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path / "p0", made(2), {})
    assert not (tmp_path / "p0.json").exists()
