"""Preparation on disk: the same whatever the workers, resumable, done once, refused where settings differ."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.pack import dataset as module
from sft_jax.data.pack.dataset import account, open_entry, prepare_entry, prepare_split
from sft_jax.data.pack.prepare import prepare
from sft_jax.data.pack.store import Store, finish, is_store
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

ROWS: list[dict[str, Any]] = [
    {"prompt": "hello", "completion": " world", "id": "named"},
    {"text": "the capital of France"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Paris"}]},
    {"prompt": "long " * 40, "completion": " world"},
    {"messages": [{"role": "user", "content": "nobody answers"}]},
]
MANY = [{"prompt": f"question {i}", "completion": f" answer {i}"} for i in range(60)]


def made(data: Data, tokenizer: Any, directory: Path) -> Store:
    finish(directory, {"train": prepare_split(data, tokenizer, data.train, directory, "train")}, "", "")
    return Store(directory)


def opened(data: Data, tokenizer: Any, cache: Path) -> Store:
    [entry], place = data.train, Location(cache)
    return open_entry(data, tokenizer, entry, place, prepare_entry(data, tokenizer, entry, place))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 16)


def test_a_prepared_set_holds_what_preparing_in_memory_gives(make_tokenizer, jsonl, tmp_path: Path):
    data = Data(train=(jsonl(ROWS),), sequence_length=16)
    memory, store = prepare(data, make_tokenizer()), made(data, make_tokenizer(), tmp_path / "set")
    assert len(store) == len(memory.examples) == 2
    for one, other in zip(store, memory.examples, strict=True):
        assert (one.id, one.source, one.line) == (other.id, other.source, other.line)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.weights, other.weights)
    counts, dropped = account([store])
    assert counts == memory.counts and tuple(dropped) == memory.dropped
    assert not list((tmp_path / "set").glob("parts-*"))


@pytest.mark.usefixtures("small_parts")
def test_the_result_does_not_depend_on_the_number_of_workers(make_tokenizer, jsonl, tmp_path: Path):
    data = Data(train=(jsonl(MANY),))
    one = made(replace(data, workers=1), make_tokenizer(), tmp_path / "one")
    two = made(replace(data, workers=2), make_tokenizer(), tmp_path / "two")
    assert one.about == two.about and one.about["shard_lengths"] == [16, 16, 16, 12]
    assert [e.id for e in one] == [e.id for e in two]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]


@pytest.mark.usefixtures("small_parts")
def test_a_bad_row_is_told_from_a_worker(make_tokenizer, jsonl, tmp_path: Path):
    path = jsonl([*MANY, {"messages": [{"role": "robot", "content": "x"}]}])
    with pytest.raises(BadInput, match=r"demos\.jsonl:61: .*robot"):
        made(Data(train=(path,), workers=2), make_tokenizer(), tmp_path / "set")
    assert not is_store(tmp_path / "set")


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_preparation_goes_on_where_it_stopped(make_tokenizer, jsonl, tmp_path: Path, monkeypatch):
    data = Data(train=(jsonl(MANY),), workers=1)
    whole = made(data, make_tokenizer(), tmp_path / "whole")
    make_part, done = module._make_part, []

    def interrupted(stem: Path, rows: list) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(stem)
        make_part(stem, rows)

    monkeypatch.setattr(module, "_make_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(data, make_tokenizer(), tmp_path / "set")
    assert not is_store(tmp_path / "set")
    again = []
    monkeypatch.setattr(module, "_make_part", lambda stem, rows: (again.append(stem), make_part(stem, rows)))
    assert made(data, make_tokenizer(), tmp_path / "set").about == whole.about
    assert [stem.name for stem in again] == ["000002", "000003"], "the first two parts were kept"


def test_the_rows_of_one_part_are_all_that_is_held(make_tokenizer, jsonl, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(module, "PART_BYTES", 100)
    store = made(Data(train=(jsonl(MANY),), workers=1), make_tokenizer(), tmp_path / "set")
    assert sum(store.about["shard_lengths"]) == 60 and max(store.about["shard_lengths"]) <= 2


def test_files_are_read_and_prepared_once(make_tokenizer, jsonl, tmp_path: Path, monkeypatch):
    data = Data(train=(jsonl(ROWS),), sequence_length=16)
    digests: list[str] = []
    digest = module.content_digest
    monkeypatch.setattr(
        module, "content_digest", lambda name, keep_alive: digests.append(name) or digest(name, keep_alive)
    )
    store = opened(data, make_tokenizer(), tmp_path / "cache")
    assert digests == list(data.train) and len(store) == 2
    monkeypatch.setattr(module, "prepare_split", lambda *_: pytest.fail("prepared again"))
    assert opened(data, make_tokenizer(), tmp_path / "cache").fingerprint == store.fingerprint


def test_other_data_settings_or_tokenizers_are_prepared_anew(make_tokenizer, jsonl, templates, tmp_path: Path):
    path = jsonl(ROWS)

    def sets(data: Data, tokenizer: Any) -> int:
        opened(data, tokenizer, tmp_path / "cache")
        return len(list((tmp_path / "cache").iterdir()))

    data = Data(train=(path,))
    assert sets(data, make_tokenizer()) == 1
    assert sets(replace(data, packing="none", shuffle=False, workers=2), make_tokenizer()) == 1
    assert sets(replace(data, train_on="all"), make_tokenizer()) == 2
    assert sets(replace(data, sequence_length=512), make_tokenizer()) == 3
    assert sets(data, make_tokenizer(templates.DROPS_CALLS)) == 4
    jsonl(ROWS[:3])
    assert sets(data, make_tokenizer()) == 5


def test_a_changed_function_is_prepared_anew(make_tokenizer, jsonl, tmp_path: Path):
    data = Data(train=(jsonl(ROWS),), function=f"{tmp_path / 'mine.py'}:f")
    for number, text in enumerate(("one", "two"), start=1):
        (tmp_path / "mine.py").write_text(f"def f(record):\n    return {{'text': '{text}'}}\n")
        opened(data, make_tokenizer(), tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == number


def test_what_is_refused_leaves_nothing_and_mended_data_are_read(make_tokenizer, jsonl, tmp_path: Path):
    data = Data(train=(jsonl([{"messages": [{"role": "robot", "content": "x"}]}]),))
    with pytest.raises(BadInput, match="robot"):
        opened(data, make_tokenizer(), tmp_path / "cache")
    jsonl(ROWS)
    assert len(opened(data, make_tokenizer(), tmp_path / "cache"))


def test_a_prepared_directory_is_a_source_by_itself(make_tokenizer, jsonl, tmp_path: Path):
    data = Data(train=(jsonl(MANY),))
    store = made(data, make_tokenizer(), tmp_path / "set")
    for entry in (str(tmp_path / "set"), f"{tmp_path / 'set'}:train"):
        found = opened(replace(data, train=(entry,)), make_tokenizer(), tmp_path / "cache")
        assert found.fingerprint == store.fingerprint
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BadInput, match=r"no split 'eval'. .*train"):
        opened(replace(data, train=(f"{tmp_path / 'set'}:eval",)), make_tokenizer(), tmp_path / "cache")


def test_policies_that_no_row_called_for_may_differ_from_those_of_a_prepared_set(make_tokenizer, jsonl, tmp_path):
    """An audit skips bad rows and drops long ones, whatever the set was prepared with."""
    data = Data(train=(jsonl(MANY),), bad_rows="error", over_length="error")
    made(data, make_tokenizer(), tmp_path / "set")
    other = replace(data, train=(str(tmp_path / "set"),), bad_rows="skip", over_length="drop")
    assert len(opened(other, make_tokenizer(), tmp_path))
    made(
        replace(data, train=(jsonl([*MANY, {"text": "a " * 2000}], "long.jsonl"),), over_length="drop"),
        make_tokenizer(),
        tmp_path / "cut",
    )
    with pytest.raises(BadInput, match=r"data\.over_length: prepared with 'drop', the config says 'truncate'"):
        opened(replace(other, train=(str(tmp_path / "cut"),), over_length="truncate"), make_tokenizer(), tmp_path)


def test_a_set_that_was_prepared_otherwise_is_refused_setting_by_setting(make_tokenizer, jsonl, templates, tmp_path):
    data = Data(train=(jsonl(MANY),))
    made(data, make_tokenizer(), tmp_path / "set")
    entry = str(tmp_path / "set")
    other = replace(data, train=(entry,), sequence_length=64, train_on="all")
    with pytest.raises(BadInput) as caught:
        opened(other, make_tokenizer(templates.DROPS_CALLS), tmp_path)
    message = str(caught.value)
    assert "data.train_on: prepared with 'assistant', the config says 'all'" in message
    assert "data.sequence_length: prepared with 1024, the config says 64" in message
    assert "the tokenizer or its chat template differs" in message


def test_rows_are_reported_while_they_are_tokenised(make_tokenizer, jsonl, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 16)
    seen: list[int] = []
    data = Data(train=(jsonl(MANY),), workers=1)
    prepare_split(data, make_tokenizer(), data.train, tmp_path / "set", "train", seen.append)
    assert seen == [16, 32, 48, 60]


def test_a_directory_that_cannot_be_written_is_refused(make_tokenizer, jsonl, tmp_path: Path):
    (tmp_path / "file").write_text("")
    data = Data(train=(jsonl(MANY),))
    with pytest.raises(BadInput, match="cannot be written"):
        prepare_split(data, make_tokenizer(), data.train, tmp_path / "file" / "set", "train")


def test_a_directory_that_another_process_has_finished_meanwhile_is_told(make_tokenizer, jsonl, tmp_path, monkeypatch):
    write_part = module.write_part

    def finished_meanwhile(stem: Path, *rest: Any) -> None:
        shutil.rmtree(stem.parent)
        write_part(stem, *rest)

    monkeypatch.setattr(module, "write_part", finished_meanwhile)
    data = Data(train=(jsonl(ROWS),), sequence_length=128)
    with pytest.raises(BadInput, match=r"another process prepared the same data .*Run this command again"):
        prepare_split(data, make_tokenizer(), data.train, tmp_path / "set", "train")
