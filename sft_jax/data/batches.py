"""The batch of a step as a pure function of (seed, step): resuming is one integer, and the number of hosts is free."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sft_jax.data.packing import Plan, epoch_rows
from sft_jax.data.prepare import Example
from sft_jax.errors import BadInput

Array = Any
"""numpy on the host, jax inside the step; a tree of shapes or shardings has the same six fields."""


class Batch(NamedTuple):
    """A micro-batches of b rows; a row has T tokens of several documents and M places that train."""

    tokens: Array
    """int32 [A, b, T]; 0 where segment_ids is 0."""
    segment_ids: Array
    """int32 [A, b, T]: 0 is padding, the documents of a row are 1, 2, …"""
    positions: Array
    """int32 [A, b, T]: restarts at 0 in each document."""
    target_index: Array
    """int32 [A, b, M]: where in the row the hidden state is read that must predict the target; padding is 0."""
    target_tokens: Array
    """int32 [A, b, M]: the token that follows position target_index."""
    target_weights: Array
    """float32 [A, b, M]: how much it counts; padding is 0."""


class Batches:
    """Packed examples as batches (the Source protocol).

    The rows of all epochs form one endless sequence, epoch after epoch. Step s has its rows s·B .. s·B + B − 1, laid
    out as [A, B/A] in order: accumulation changes how they are cut, not which they are. Batches may straddle epochs.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Plan,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        shuffle: bool = True,
        total_rows: int | None = None,
    ):
        """
        Args:
          plan: `plan_packing` of these examples' lengths and target counts.
          batch_size: rows a step, over all processes and micro-batches (B).
          accumulation: micro-batches (A); divides batch_size.
          total_rows: rows of the whole run; those beyond it are padding of weight 0. None: there is no end.

        Raises:
          BadInput: the plan is of other examples, or batch_size is not divisible.
        """
        if len(plan.members) != len(examples):
            raise BadInput(
                f"the packing plan is of {len(plan.members):,} documents, the data set has {len(examples):,}"
            )
        if batch_size < 1 or accumulation < 1 or batch_size % accumulation:
            raise BadInput(f"train.batch_size {batch_size} is not divisible by train.accumulation {accumulation}")
        self.examples, self.plan, self.seed, self.shuffle = examples, plan, seed, shuffle
        self.batch_size, self.accumulation, self.total_rows = batch_size, accumulation, total_rows
        # A batch may straddle two epochs. The feed's thread and the loop's both ask, so no shared dict is edited.
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_rows(plan, seed, epoch, shuffle))

    def batch(self, step: int, row_slice: slice = slice(None)) -> Batch:
        """The rows of one step; `row_slice` selects columns of the [A, B/A] layout, this process's share."""
        grid = np.arange(step * self.batch_size, (step + 1) * self.batch_size).reshape(self.accumulation, -1)
        mine = grid[:, row_slice]
        tokens = np.zeros((*mine.shape, self.plan.tokens_per_row), np.int32)
        places = np.zeros((*mine.shape, self.plan.targets_per_row), np.int32)
        batch = Batch(
            tokens, np.zeros_like(tokens), np.zeros_like(tokens), places, places.copy(), places.astype(np.float32)
        )
        for cell in np.ndindex(*mine.shape):
            self._fill(Batch(*(part[cell] for part in batch)), self._examples_of(int(mine[cell])))
        return batch

    def steps_for(self, epochs: int) -> int:
        """Steps that `epochs` passes take; the last batch may hold padding rows (see total_rows)."""
        return -(-epochs * self.plan.rows // self.batch_size)

    def rows_of(self, step: int) -> list[str]:
        """`demos.jsonl:17` of every example in a step, in the order of its rows; for error messages."""
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.examples[i].where for row in rows for i in self._examples_of(row)]

    def state(self) -> dict[str, Any]:
        """Nothing: prepared data has no state beyond the step."""
        return {}

    def _examples_of(self, row: int) -> list[int]:
        """Example numbers in a row of the endless sequence; none beyond the end of the run."""
        if self.total_rows is not None and row >= self.total_rows:
            return []
        epoch, within = divmod(row, self.plan.rows)
        offsets, example_of_slot = self._order(epoch)
        return example_of_slot[offsets[within] : offsets[within + 1]].tolist()

    def _fill(self, row: Batch, numbers: list[int]) -> None:
        """Write documents one after the other into one row of zeros, given as views [T] and [M]."""
        offset = used = 0
        for segment, number in enumerate(numbers, start=1):
            example = self.examples[number]
            end = offset + len(example.tokens)
            row.tokens[offset:end] = example.tokens
            row.segment_ids[offset:end] = segment
            row.positions[offset:end] = np.arange(end - offset)
            trained = np.flatnonzero(example.weights)
            places = slice(used, used + len(trained))
            row.target_index[places] = offset + trained - 1
            row.target_tokens[places] = example.tokens[trained]
            row.target_weights[places] = example.weights[trained]
            offset, used = end, places.stop


def batches_of(examples: Sequence[Example], plan: Plan, batch_size: int, accumulation: int = 1) -> Batches:
    """Batches that visit every example once, in the plan's order, padded at the end: for evaluation."""
    return Batches(examples, plan, 0, batch_size, accumulation, shuffle=False, total_rows=plan.rows)
