"""Demonstrations streamed from their files, for corpora too large to prepare: Grain pipelines whose state is saved.

Rows are shuffled within a window, encoded as they come, in threads that run ahead of the batches, and packed first-fit
under the same two capacities as prepared data. A run has `data.streams` pipelines; stream j reads every row whose
number is j modulo their number, and fills the same share of every batch. So the number of processes may change on
resume, as long as each holds whole streams.
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
"""Rows of a stream that are shuffled among each other (data.shuffle)."""
OPEN_ROWS = 16
"""Packed rows of a stream that are open at a time; more fill better and hold more documents in memory."""
AHEAD = 256
"""Documents of a stream that are encoded before a batch asks for them."""
_DROPPED_KEPT = 20
_STATES_KEPT = 8
"""States of the newest steps: batches are made ahead of the step that is saved."""


class Streamed:
    """Batches from files that are read as the run goes on (the Source protocol); steps must be asked for in order."""

    def __init__(self, data: Data, tokenizer: Any, vocab: int, seed: int, batch_size: int, accumulation: int = 1):
        """
        Args:
          vocab: ids below this have an embedding.

        Raises:
          BadInput: no such file, or rows a micro-batch that the streams do not divide.
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
          BadInput: a bad row in the files, or a share of rows that cuts a stream.
          RuntimeError: steps out of order.
        """
        if step != self._next:
            raise RuntimeError(f"streamed data gives step {self._next} next, asked for {step}")
        columns = self.batch_size // self.accumulation
        each = columns // self.streams
        low, high, _ = row_slice.indices(columns)
        if low % each or high % each:
            raise BadInput(
                f"this process holds rows {low} to {high} of each {columns}, and a stream fills {each}: set "
                "data.streams to a multiple of the number of processes"
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
        """`demos.jsonl:17` of every document of one of the newest steps that this process holds."""
        return self._where[step]

    def account(self) -> list[str]:
        """Lines about the rows that this process has read since it started, some of them ahead of the newest step: what
        was used, what was not and why."""
        dropped = [row for encode in self._encoders for row in encode.dropped]
        return describe_counts(add(encode.counts for encode in self._encoders), dropped)

    def close(self) -> None:
        """End the threads that read ahead."""
        for rows in self._iterators.values():
            rows.close()

    def state(self, step: int) -> dict[str, Any]:
        """What `restore` needs to go on after `step` steps: JSON, stream number -> its pipeline's state; of the
        streams that this process holds."""
        return self._states.get(step, {})

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on after `step` steps.

        Raises:
          BadInput: the state is of another number of streams.
        """
        if sorted(state) != sorted(str(number) for number in range(self.streams)):
            raise BadInput(f"the checkpoint holds the streams {sorted(state)}, data.streams is {self.streams}")
        self._restored, self._next, self._iterators = state, step, {}


def _fingerprint(files: list[str]) -> str:
    """SHA-256 (hex) of the names and, where they are local files, sizes: contents are too large to be read for it."""
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
    """A raw row -> the documents that it holds, ready to pack; none where it does not train."""

    max_fan_out = 2**31

    def __init__(self, data: Data, tokenizer: Any, vocab: int, targets_per_row: int):
        self.data, self.tokenizer, self.vocab, self.targets_per_row = data, tokenizer, vocab, targets_per_row
        self.counts = Counts()
        self.dropped: list[Dropped] = []
        """The first rows that do not train."""

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
    """The rows of one stream, over and over."""

    def __init__(self, files: list[str], number: int, streams: int, wanted: Collection[str] | None):
        super().__init__()
        self._of = files, number, streams, wanted

    def __iter__(self) -> "_RowsIterator":
        return _RowsIterator(*self._of)


class _RowsIterator(grain.DatasetIterator[Row]):
    """Knows where it is by file and row, so that going on skips whole files."""

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
                # Files of one row each would all begin with stream 0.
                if (place["row"] - 1 + place["file"]) % self._streams == self._number:
                    place["given"] += 1
                    return row
            self._open = None
            place.update(file=1, row=-place["row"])
            if place["file"] == len(self._files):
                if not place["given"]:
                    raise BadInput(
                        f"{', '.join(self._files[:3])}: no row for stream {self._number} of {self._streams}: lower "
                        "data.streams"
                    )
                place.update(epoch=1, file=-place["file"], given=-place["given"])

    def get_state(self) -> dict[str, int]:
        return dict(self._place)

    def set_state(self, state: dict[str, int]) -> None:
        self._place, self._open = Counter(state), None
