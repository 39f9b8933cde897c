"""Tokenised examples on disk: a TFDS dataset (ArrayRecord) that `tfds.builder_from_directory` can read.

A split is written in atomic parts, so that an interrupted preparation can resume. An index of (length, targets) is
stored next to the examples: packing doesn't read the examples, and a million of them open at once.

    DIR/dataset_info.json, features.json, metadata.json    TFDS's description; metadata.json is ours, by split
    DIR/demonstrations-train.array_record-00000-of-00003   the examples, in source order
    DIR/train.index.npz                                    int32 lengths and targets of every example
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_jax.errors import BadInput, nearest
from sft_jax.storage.atomic import write_atomic, write_json
from sft_jax.storage.location import Location, as_location

NAME = "demonstrations"
_TOKENS, _WEIGHTS = np.dtype("<i4"), np.dtype("<f4")
INFO, METADATA = "dataset_info.json", "metadata.json"


class Example(NamedTuple):
    """One document, ready to pack."""

    id: str
    """The record's `id`, or else file:line."""
    source: str
    line: int
    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; weights[0] is 0, since the first token has no context."""

    @property
    def where(self) -> str:
        """`demos.jsonl:17`."""
        return f"{self.source}:{self.line}"

    @property
    def targets(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.weights))


def features() -> Any:
    """TFDS features of an example. Arrays are stored as bytes: lists of int64 decode three times slower."""
    import tensorflow_datasets as tfds

    def array(dtype: type) -> Any:
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "tokens": array(np.int32),
            "weights": array(np.float32),
            "id": tfds.features.Text(),
            "source": tfds.features.Text(),
            "line": tfds.features.Scalar(dtype=np.int64),
        }
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def write_part(stem: Path, examples: Sequence[Example], about: dict[str, Any]) -> None:
    """Write one part: `stem.array_record`, `stem.npz` (lengths, targets), and `stem.json`, which completes it.

    Args:
      about: JSON, kept with the part; "examples", "bytes" and "sha256" (of tokens and weights) are added.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    written = 0
    partial = stem.with_name(f"{stem.name}.{os.getpid()}.partial")  # another process may be writing the same part
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for e in examples:
        record = serialise(e)
        writer.write(record)
        written += len(record)
    writer.close()
    os.replace(partial, stem.with_suffix(".array_record"))
    lengths, targets = sizes(examples)
    write_atomic(stem.with_suffix(".npz"), lambda file: np.savez(file, lengths=lengths, targets=targets))
    about = {**about, "examples": len(examples), "bytes": written, "sha256": fingerprint(examples)}
    write_json(stem.with_suffix(".json"), about)


def serialise(example: Example) -> bytes:
    """Serialise as `features().serialize_example` does, but seven times faster; a test compares the two."""
    record = _messages().Example()
    field = record.features.feature
    field["tokens"].bytes_list.value.append(example.tokens.astype(_TOKENS, copy=False).tobytes())
    field["weights"].bytes_list.value.append(example.weights.astype(_WEIGHTS, copy=False).tobytes())
    field["id"].bytes_list.value.append(example.id.encode())
    field["source"].bytes_list.value.append(example.source.encode())
    field["line"].int64_list.value.append(example.line)
    return record.SerializeToString(deterministic=True)


def parse(record: bytes) -> Example:
    """Inverse of `serialise`; TFDS's own decoding takes as long as the read."""
    field = _messages().Example.FromString(record).features.feature
    return Example(
        field["id"].bytes_list.value[0].decode(),
        field["source"].bytes_list.value[0].decode(),
        field["line"].int64_list.value[0],
        np.frombuffer(field["tokens"].bytes_list.value[0], _TOKENS),
        np.frombuffer(field["weights"].bytes_list.value[0], _WEIGHTS),
    )


@cache
def _messages() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2  # its classes are created at import, so type checkers don't see them


def finish_split(directory: Path, split: str, parts: Sequence[Path], about: dict[str, Any]) -> dict[str, Any]:
    """Turn the parts (stems, in order) into a split of the dataset in `directory`; returns the split's description.

    It is only readable once `finish` has written the dataset's description.
    """
    found = [json.loads(part.with_suffix(".json").read_text(encoding="utf-8")) for part in parts]
    kept = [(part, one) for part, one in zip(parts, found, strict=True) if one["examples"]]
    for number, (part, _) in enumerate(kept):
        name = f"{NAME}-{split}.array_record-{number:05d}-of-{len(kept):05d}"
        os.replace(part.with_suffix(".array_record"), directory / name)
    indexes = [np.load(part.with_suffix(".npz")) for part, _ in kept]
    lengths, targets = (np.concatenate([index[key] for index in indexes]) for key in ("lengths", "targets"))
    write_atomic(directory / f"{split}.index.npz", lambda file: np.savez(file, lengths=lengths, targets=targets))
    digest = hashlib.sha256("".join(one["sha256"] for one in found).encode()).hexdigest()
    shards = {"shard_lengths": [one["examples"] for _, one in kept], "bytes": sum(one["bytes"] for one in found)}
    return {**about, **shards, "fingerprint": digest}


def finish(directory: Path, splits: dict[str, dict[str, Any]], description: str, licence: str) -> None:
    """Write the dataset's description, which makes it readable.

    Args:
      splits: name -> what `finish_split` returned.
      licence: of the demonstrations; may be empty.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(directory),
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=NAME,
        filetype_suffix="array_record",
    )
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=about["shard_lengths"],
            num_bytes=about["bytes"],
            filename_template=template.replace(split=name),
        )
        for name, about in splits.items()
    ]
    write_json(directory / METADATA, splits)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(),
        split_infos=infos,
        filename_template=template,
        check_data=False,  # it would read with TensorFlow
        description=description,
        license=licence or None,
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def is_store(path: Location | str | Path) -> bool:
    """Whether `path` is a prepared dataset, local or in a bucket."""
    location = as_location(path)
    return (location / INFO).exists() and (location / METADATA).exists()


class Store(Sequence[Example]):
    """The examples of one split, with random access; only the index is in memory."""

    def __init__(self, directory: Location | str | Path, split: str = "train"):
        """
        Raises:
          BadInput: not a prepared dataset, no such split, or files that don't match its description.
        """
        location = as_location(directory)
        if not is_store(location):
            raise BadInput(f"{directory}: not a prepared dataset: {INFO} or {METADATA} is missing")
        self.name, self.directory, self.split = str(directory), location.local(), split
        splits = json.loads((self.directory / METADATA).read_text(encoding="utf-8"))
        if split not in splits:
            raise BadInput(f"{directory}: no split {split!r}. {nearest(split, list(splits))}")
        self.about: dict[str, Any] = splits[split]
        shards = self.about["shard_lengths"]
        for number in range(len(shards)):
            path = self.directory / f"{NAME}-{split}.array_record-{number:05d}-of-{len(shards):05d}"
            if not path.is_file():
                raise BadInput(f"{location / path.name}: missing; prepare the dataset again")
        with np.load(self.directory / f"{split}.index.npz") as index:
            self.lengths, self.targets = index["lengths"], index["targets"]
        if len(self.lengths) != sum(shards):
            raise BadInput(
                f"{directory}: {split}.index.npz has {len(self.lengths):,} examples, {METADATA} says {sum(shards):,}; "
                "prepare the dataset again"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokens and weights."""
        return self.about["fingerprint"]

    @cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split=self.split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self.lengths)

    def raw(self, i: int) -> bytes:
        """The serialised record."""
        return self._records[int(i)]

    def __getitem__(self, i: Any) -> Example:
        return parse(self.raw(i))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))


class Joined(Sequence[Example]):
    """Several stores, concatenated."""

    def __init__(self, stores: Sequence[Store]):
        self.stores = tuple(stores)
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.targets = np.concatenate([store.targets for store in stores])
        self._ends = np.cumsum([len(store) for store in stores])

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the stores' fingerprints; for one store, its fingerprint."""
        prints = [store.fingerprint for store in self.stores]
        return prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: Any) -> Example:
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self.stores[which][i - (self._ends[which - 1] if which else 0)]


class Chosen(Sequence[Example]):
    """A subset of `whole`: the examples with indices `numbers`, in this order."""

    def __init__(self, whole: Joined, numbers: np.ndarray):
        self.whole, self.numbers = whole, numbers
        self.lengths, self.targets = whole.lengths[numbers], whole.targets[numbers]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the fingerprint of `whole` and the indices."""
        return hashlib.sha256(self.whole.fingerprint.encode() + self.numbers.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> Example:
        return self.whole[self.numbers[i]]


def sizes(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Length and number of trained tokens of each example, int32 [examples]."""
    lengths = np.array([len(example.tokens) for example in examples], np.int32)
    return lengths, np.array([example.targets for example in examples], np.int32)


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 (hex) over every example's tokens and weights, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.tokens).to_bytes(8, "little"))
        digest.update(example.tokens.astype("<i4").tobytes())
        digest.update(example.weights.astype("<f4").tobytes())
    return digest.hexdigest()
