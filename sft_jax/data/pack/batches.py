"""Batches as a pure function of (seed, step): the resume state is one integer, and any number of hosts works."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sft_jax.data.pack.packing import Plan, epoch_rows
from sft_jax.data.pack.store import Example
from sft_jax.errors import BadInput

Array = Any
"""numpy on the host, jax inside the step; trees of shapes or shardings have the same fields."""


class Batch(NamedTuple):
    """A micro-batches of b rows; a row has T tokens from several documents and M target slots."""

    tokens: Array
    """int32 [A, b, T]; 0 where segment_ids is 0."""
    segment_ids: Array
    """int32 [A, b, T]: 0 is padding, the documents of a row are 1, 2, …"""
    positions: Array
    """int32 [A, b, T]: restarts at 0 in each document."""
    target_index: Array
    """int32 [A, b, M]: position of the hidden state that predicts the target; padding is 0."""
    target_tokens: Array
    """int32 [A, b, M]: the token that follows position target_index."""
    target_weights: Array
    """float32 [A, b, M]: loss weight; padding is 0."""


class PreparedRows:
    """Batches of a run over prepared examples (the Source protocol).

    The rows of all epochs form one endless sequence. Step s takes rows s·B .. s·B + B − 1, laid out as [A, B/A] in
    order, so accumulation changes how they are split, not which they are. Batches may straddle epochs.
    """

    batch_size: int
    accumulation: int
    tokens_per_row: int
    targets_per_row: int
    rows_per_epoch: int
    pairs: bool = False
    """Whether examples are pairs of documents to compare; see `fill_pairs`."""

    def batch(self, step: int, row_slice: slice = slice(None)) -> Batch:
        """The rows of one step; `row_slice` selects columns of the [A, B/A] layout, this process's share."""
        grid = np.arange(step * self.batch_size, (step + 1) * self.batch_size).reshape(self.accumulation, -1)
        mine = grid[:, row_slice]
        documents = [self.documents_of(int(row)) for row in mine.flat]  # interleaving reading and filling is 10% slower
        batch = empty_batch(mine.shape, self.tokens_per_row, self.targets_per_row)
        fill = fill_pairs if self.pairs else fill_row
        for cell, of_row in zip(np.ndindex(*mine.shape), documents, strict=True):
            fill(Batch(*(part[cell] for part in batch)), of_row)
        return batch

    def steps_for(self, epochs: int) -> int:
        """Number of steps for `epochs` epochs; the last batch may contain padding rows."""
        return -(-epochs * self.rows_per_epoch // self.batch_size)

    def rows_of(self, step: int) -> list[str]:
        """`demos.jsonl:17` of every example in a step, in row order; for error messages."""
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [example.where for row in rows for example in self.documents_of(row)]

    def state(self, step: int) -> dict[str, Any]:
        """Empty: prepared data has no state beyond the step."""
        del step
        return {}

    def documents_of(self, row: int) -> list[Example]:
        """The documents in a row of the endless sequence; none beyond the end of the run."""
        raise NotImplementedError


class Batches(PreparedRows):
    """Packed examples as batches, epoch after epoch."""

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Plan,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        shuffle: bool = True,
        total_rows: int | None = None,
        pairs: bool = False,
    ):
        """
        Args:
          plan: from `plan_packing` with these examples' lengths and target counts.
          batch_size: rows per step, over all processes and micro-batches (B).
          accumulation: micro-batches (A); divides batch_size.
          total_rows: rows of the whole run; later rows are padding with weight 0. None: no end.
          pairs: the examples are pairs of documents to compare.

        Raises:
          BadInput: the plan is for other examples, or batch_size is not divisible.
        """
        if len(plan.members) != len(examples):
            raise BadInput(
                f"the packing plan is for {len(plan.members):,} documents, the dataset has {len(examples):,}"
            )
        check_batch_size(batch_size, accumulation)
        self.examples, self.plan, self.seed, self.shuffle, self.pairs = examples, plan, seed, shuffle, pairs
        self.batch_size, self.accumulation, self.total_rows = batch_size, accumulation, total_rows
        self.tokens_per_row, self.targets_per_row = plan.tokens_per_row, plan.targets_per_row
        self.rows_per_epoch = plan.rows
        # Two epochs, since a batch may straddle them. lru_cache is thread-safe: the feed and the loop both call this.
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_rows(plan, seed, epoch, shuffle))

    def documents_of(self, row: int) -> list[Example]:
        """The documents in a row of the endless sequence; none beyond the end of the run."""
        return [self.examples[i] for i in self.numbers_of(row)]

    def numbers_of(self, row: int) -> list[int]:
        """Indices of the examples in a row of the endless sequence."""
        if self.total_rows is not None and row >= self.total_rows:
            return []
        epoch, within = divmod(row, self.plan.rows)
        offsets, example_of_slot = self._order(epoch)
        return example_of_slot[offsets[within] : offsets[within + 1]].tolist()


def check_batch_size(batch_size: int, accumulation: int) -> None:
    """Raises BadInput if the micro-batches would be unequal."""
    if batch_size < 1 or accumulation < 1 or batch_size % accumulation:
        raise BadInput(f"train.batch_size {batch_size} is not divisible by train.accumulation {accumulation}")


def empty_batch(rows: tuple[int, ...], tokens_per_row: int, targets_per_row: int) -> Batch:
    """A batch of padding with shapes [*rows, T] and [*rows, M]."""
    tokens, places = np.zeros((*rows, tokens_per_row), np.int32), np.zeros((*rows, targets_per_row), np.int32)
    return Batch(tokens, np.zeros_like(tokens), np.zeros_like(tokens), places, places.copy(), places.astype(np.float32))


def fill_row(row: Batch, documents: Sequence[Example]) -> None:
    """Write documents consecutively into one row of zeros, given as views [T] and [M]."""
    if not documents:
        return
    lengths = np.array([len(example.tokens) for example in documents])
    end, starts = int(lengths.sum()), np.cumsum(lengths) - lengths
    tokens = row.tokens[:end]
    np.concatenate([example.tokens for example in documents], out=tokens)
    row.segment_ids[:end] = np.repeat(np.arange(1, len(documents) + 1, dtype=np.int32), lengths)
    np.subtract(np.arange(end, dtype=np.int32), np.repeat(starts.astype(np.int32), lengths), out=row.positions[:end])
    weights = np.concatenate([example.weights for example in documents])
    trained = np.flatnonzero(weights != 0)
    row.target_index[: len(trained)] = (
        trained - 1
    )  # a document's first token never trains, so this stays within the document
    row.target_tokens[: len(trained)] = tokens[trained]
    row.target_weights[: len(trained)] = weights[trained]


def fill_pairs(row: Batch, pairs: Sequence[Example]) -> None:
    """Write pairs of documents into one row of zeros, given as views [T] and [M].

    The documents of a pair are packed as separate documents. Slots 2k and 2k + 1 are the last tokens of pair k's
    chosen and rejected document, where the reward is read; their weights are those of the example: the pair's, and the
    same plus the margin.
    """
    documents = []
    for pair in pairs:
        end = int(np.flatnonzero(pair.weights)[0]) + 1
        for part in (slice(0, end), slice(end, None)):
            documents.append(pair._replace(tokens=pair.tokens[part], weights=pair.weights[part]))
    fill_row(row, documents)
    used = 2 * len(pairs)
    row.target_index[:used] += 1  # at the token itself, not the one before
    row.target_tokens[:used] = 0


def batches_of(
    examples: Sequence[Example], plan: Plan, batch_size: int, accumulation: int = 1, pairs: bool = False
) -> Batches:
    """Batches that visit every example once, in the plan's order, padded at the end: for evaluation."""
    return Batches(examples, plan, 0, batch_size, accumulation, shuffle=False, total_rows=plan.rows, pairs=pairs)
