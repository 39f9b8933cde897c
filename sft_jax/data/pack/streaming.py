"""Streams demonstrations from files, for corpora too large to prepare, with Grain pipelines whose state is saved.

Rows are shuffled within a window, encoded in background threads that prefetch, and packed first-fit with the same two
capacities as prepared data. A run has `data.streams` pipelines; stream j reads the rows with index j modulo that number
and fills a fixed share of every batch. So the number of processes may change on resume, as long as each has whole
streams.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sft_jax.config import Data
from sft_jax.data.forms.detect import columns_read
from sft_jax.data.pack.batches import Batch, check_batch_size, empty_batch
from sft_jax.data.pack.prepare import Counts, Dropped, add, check_ids, describe_counts, encode_rows
from sft_jax.data.pack.store import Example
from sft_jax.data.read.readers import read_rows
from sft_jax.data.read.rows import Row
from sft_jax.data.read.sources import find_files
from sft_jax.errors import BadInput

WINDOW = 1024
"""Shuffle window of a stream, in rows (data.shuffle)."""
OPEN_ROWS = 16
"""Rows of a stream being packed at a time; more rows fill better but need more memory."""
AHEAD = 256
"""Documents of a stream that are encoded ahead."""
_DROPPED_KEPT = 20
_STATES_KEPT = 8
"""Number of recent states to keep, since batches are built ahead of the saved step."""


class Streamed:
    """Batches from files read during the run (the Source protocol); steps must be requested in order."""

    def __init__(self, data: Data, tokenizer: Any, vocab: int, seed: int, batch_size: int, accumulation: int = 1):
        """
        Args:
          vocab: number of embeddings.

        Raises:
          BadInput: no such file, or data.streams does not divide the rows of a micro-batch.
        """
        check_batch_size(batch_size, accumulation)
        columns = batch_size // accumulation
        if columns % data.streams:
            raise BadInput(
                f"data.streams {data.streams} does not divide the {columns} rows of a micro-batch (train.batch_size "
                f"{batch_size} in {accumulation})"
            )
        self.batch_size, self.accumulation, self.streams = batch_size, accumulation, data.streams
        self.tokens_per_row = data.sequence_length
        self.targets_per_row = data.target_capacity or data.sequence_length
        self._encoders: list[_Encode] = []
        files = find_files(data.train)
        self.fingerprint = _fingerprint(files)
        self._pipelines = [
            self._pipeline(data, files, tokenizer, vocab, seed, number) for number in range(data.streams)
        ]
        self._iterators: dict[int, Any] = {}
        self._restored: dict[str, Any] = {}
        self._next = 0
        self._states: dict[int, dict[str, Any]] = {}
        self._where: dict[int, list[str]] = {}

    def _pipeline(self, data: Data, files: list[str], tokenizer: Any, vocab: int, seed: int, number: int) -> Any:
        dataset: Any = _Rows(files, number, data.streams, columns_read(data))
        if data.shuffle:
            dataset = grain.experimental.WindowShuffleIterDataset(dataset, window_size=WINDOW, seed=seed + number)
        encode = _Encode(data, tokenizer, vocab, self.targets_per_row)
        self._encoders.append(encode)
        dataset = grain.experimental.FlatMapIterDataset(dataset, encode)
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=AHEAD)
        lengths = {"tokens": self.tokens_per_row, **dict.fromkeys(_TARGETS, self.targets_per_row)}
        return grain.experimental.FirstFitPackIterDataset(
            dataset,
            length_struct=lengths,
            num_packing_bins=OPEN_ROWS,
            meta_features=("where",),
            shuffle_bins=data.shuffle,
            seed=seed + number,
        )

    def batch(self, step: int, row_slice: slice = slice(None)) -> Batch:
        """The rows of the next step; `row_slice` selects columns of the [A, B/A] layout: whole streams.

        Raises:
          BadInput: a bad row, or a `row_slice` that splits a stream.
          RuntimeError: steps out of order.
        """
        if step != self._next:
            raise RuntimeError(f"streamed data must be read in order: expected step {self._next}, got {step}")
        columns = self.batch_size // self.accumulation
        each = columns // self.streams
        low, high, _ = row_slice.indices(columns)
        if low % each or high % each:
            raise BadInput(
                f"this process has rows {low} to {high} of {columns}, but a stream fills {each}: set data.streams to a "
                "multiple of the number of processes"
            )
        batch = empty_batch((self.accumulation, high - low), self.tokens_per_row, self.targets_per_row)
        where: list[str] = []
        for number in range(low // each, high // each):
            rows = self._iterator(number)
            for part in range(self.accumulation):
                for column in range(number * each - low, (number + 1) * each - low):
                    packed = next(rows)
                    where += packed["where"]
                    _fill(Batch(*(field[part, column] for field in batch)), packed)
        self._next += 1
        self._states[self._next] = {str(number): rows.get_state() for number, rows in self._iterators.items()}
        self._where[step] = where
        for kept in (self._states, self._where):
            for old in sorted(kept)[:-_STATES_KEPT]:
                del kept[old]
        return batch

    def _iterator(self, number: int) -> Any:
        if number not in self._iterators:
            self._iterators[number] = iter(self._pipelines[number])
            if self._restored:
                self._iterators[number].set_state(self._restored[str(number)])
        return self._iterators[number]

    def rows_of(self, step: int) -> list[str]:
        """`demos.jsonl:17` of every document on this process in one of the latest steps."""
        return self._where[step]

    def account(self) -> list[str]:
        """Lines for the log about the rows read by this process since it started, including prefetched ones: what was
        used, what was dropped and why."""
        dropped = [row for encode in self._encoders for row in encode.dropped]
        return describe_counts(add(encode.counts for encode in self._encoders), dropped)

    def close(self) -> None:
        """Stop the prefetch threads."""
        for rows in self._iterators.values():
            rows.close()

    def state(self, step: int) -> dict[str, Any]:
        """The state for `restore` after `step` steps: JSON, stream index -> pipeline state, for the streams of this
        process."""
        return self._states.get(step, {})

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Resume after `step` steps.

        Raises:
          BadInput: the state has a different number of streams.
        """
        if sorted(state) != sorted(str(number) for number in range(self.streams)):
            raise BadInput(f"the checkpoint has the streams {sorted(state)}, but data.streams is {self.streams}")
        self._restored, self._next, self._iterators = state, step, {}


def _fingerprint(files: list[str]) -> str:
    """SHA-256 (hex) of the names and, for local files, sizes; the contents are too large to hash."""
    parts = [(name, Path(name).stat().st_size if Path(name).is_file() else None) for name in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


_TARGETS = ("target_index", "target_tokens", "target_weights")


def _fill(row: Batch, packed: dict[str, np.ndarray]) -> None:
    """One packed row into views [T] and [M]; Grain pads with zeros and numbers the documents from 1, as we do."""
    segments = packed["tokens_segment_ids"]
    row.tokens[:], row.segment_ids[:], row.positions[:] = packed["tokens"], segments, packed["tokens_positions"]
    starts = np.flatnonzero(np.diff(segments, prepend=0) > 0)
    of_target = packed["target_index_segment_ids"]
    real = of_target > 0
    row.target_index[real] = packed["target_index"][real] + starts[of_target[real] - 1]
    row.target_tokens[:], row.target_weights[:] = packed["target_tokens"], packed["target_weights"]


class _Encode(grain.experimental.FlatMapTransform):
    """Encode a raw row into documents ready to pack; none if it doesn't train."""

    max_fan_out = 2**31

    def __init__(self, data: Data, tokenizer: Any, vocab: int, targets_per_row: int):
        self.data, self.tokenizer, self.vocab, self.targets_per_row = data, tokenizer, vocab, targets_per_row
        self.counts = Counts()
        self.dropped: list[Dropped] = []
        """The first dropped rows."""

    def flat_map(self, element: Row) -> list[dict[str, Any]]:
        prepared = encode_rows([element], self.data, self.tokenizer)
        self.counts = add([self.counts, prepared.counts])
        self.dropped += prepared.dropped[: _DROPPED_KEPT - len(self.dropped)]
        for example in prepared.examples:
            check_ids(example.where, example.tokens, self.vocab, "the model")
            if example.targets > self.targets_per_row:
                raise BadInput(
                    f"{example.where}: {example.targets:,} trained tokens, a row holds {self.targets_per_row:,} "
                    "(data.target_capacity)"
                )
        return [_document(example) for example in prepared.examples]


def _document(example: Example) -> dict[str, Any]:
    trained = np.flatnonzero(example.weights)
    return {
        "tokens": example.tokens,
        "target_index": (trained - 1).astype(np.int32),
        "target_tokens": example.tokens[trained],
        "target_weights": example.weights[trained],
        "where": example.where,
    }


class _Rows(grain.IterDataset[Row]):
    """The rows of one stream, repeated endlessly."""

    def __init__(self, files: list[str], number: int, streams: int, wanted: Collection[str] | None):
        super().__init__()
        self._of = files, number, streams, wanted

    def __iter__(self) -> "_RowsIterator":
        return _RowsIterator(*self._of)


class _RowsIterator(grain.DatasetIterator[Row]):
    """Tracks file and row, so that resuming skips whole files."""

    def __init__(self, files: list[str], number: int, streams: int, wanted: Collection[str] | None):
        super().__init__()
        self._files, self._number, self._streams, self._wanted = files, number, streams, wanted
        self._place = Counter(epoch=0, file=0, row=0, given=0)
        self._open: Iterator[Row] | None = None

    def __next__(self) -> Row:
        place = self._place
        while True:
            if self._open is None:
                self._open = read_rows((self._files[place["file"]],), place["row"], self._wanted)
            for row in self._open:
                place["row"] += 1
                # Offset by file: otherwise files with one row would all go to stream 0.
                if (place["row"] - 1 + place["file"]) % self._streams == self._number:
                    place["given"] += 1
                    return row
            self._open = None
            place.update(file=1, row=-place["row"])
            if place["file"] == len(self._files):
                if not place["given"]:
                    raise BadInput(
                        f"{', '.join(self._files[:3])}: no rows for stream {self._number} of {self._streams}. Lower "
                        "data.streams"
                    )
                place.update(epoch=1, file=-place["file"], given=-place["given"])

    def get_state(self) -> dict[str, int]:
        return dict(self._place)

    def set_state(self, state: dict[str, int]) -> None:
        self._place, self._open = Counter(state), None
