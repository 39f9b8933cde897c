"""Packs documents into rows: best-fit decreasing with two capacities, tokens and trained tokens.

The plan packs the *multiset* of classes (length, targets): a row is a list of classes, and the documents of a class are
assigned to its slots anew in each epoch. So every epoch has the same number of rows, the number of steps is known at
step 0, and documents of one class are packed by counting, not one by one.
"""

import hashlib
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sft_jax.data.pack.exact_fill import fill_exactly
from sft_jax.errors import BadInput

_MOST_CLASSES = 150_000
"""Beyond this many distinct (length, targets) pairs, targets are rounded up before packing, to bound the time."""
_WELL_FILLED = 0.995
"""Token fill at which best fit is good enough; large datasets always reach it."""
_MOST_CLASSES_SEARCHED = 20_000
"""Beyond this many classes the search would take seconds, and best fit finds enough small documents."""
ENOUGH = 0.99
"""Target token fill, if the documents allow it."""


@dataclass(frozen=True)
class Plan:
    """Rows as lists of classes. All arrays are int64 unless noted."""

    tokens_per_row: int
    targets_per_row: int
    row_offsets: np.ndarray
    """[rows + 1]: row r holds the slots row_offsets[r] .. row_offsets[r + 1]."""
    class_of_slot: np.ndarray
    """int32 [slots]."""
    class_length: np.ndarray
    """[classes]: tokens of a document of the class."""
    class_targets: np.ndarray
    """[classes]: maximum trained tokens of a document of the class; 0 if M >= T, where they never bind."""
    class_offsets: np.ndarray
    """[classes + 1]: the members of class c are members[class_offsets[c] .. class_offsets[c + 1]]."""
    members: np.ndarray
    """int32 [examples]: example indices by class, in file order within each class."""
    tokens: int
    """Tokens of all documents."""
    targets: int
    """Trained tokens of all documents."""
    hash: str
    """SHA-256 (hex) of the rows, the classes and both capacities."""

    @property
    def rows(self) -> int:
        """Rows per epoch."""
        return len(self.row_offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the token slots that hold a token."""
        return self.tokens / (self.rows * self.tokens_per_row)

    @property
    def target_fill(self) -> float:
        """Share of the target slots that hold a trained token."""
        return self.targets / (self.rows * self.targets_per_row)

    def summary(self, batch_size: int = 0) -> str:
        """One line for the log; with `batch_size` (rows per step) also the contents of a step and an epoch."""
        line = (
            f"{len(self.members):,} documents in {self.rows:,} rows of {self.tokens_per_row:,} tokens ({self.fill:.1%} "
            f"full) and {self.targets_per_row:,} targets ({self.target_fill:.1%} full)"
        )
        if not batch_size:
            return line
        slots = self.rows * self.tokens_per_row
        per_step = (batch_size * number / self.rows for number in (self.tokens, self.targets, slots - self.tokens))
        tokens, targets, padding = (f"{round(number):,}" for number in per_step)
        return (
            f"{line}; a step: {tokens} tokens, {targets} targets, {padding} padding; an epoch: "
            f"{-(-self.rows // batch_size):,} steps, {self.tokens:,} tokens, {self.targets:,} targets, "
            f"{slots - self.tokens:,} padding"
        )


def plan_packing(
    lengths: np.ndarray,
    target_counts: np.ndarray,
    tokens_per_row: int,
    targets_per_row: int,
    packing: Literal["best_fit", "none"] = "best_fit",
) -> Plan:
    """Pack documents into rows of `tokens_per_row` tokens and `targets_per_row` trained tokens.

    Documents are placed longest first, each into the row with the least remaining room that fits it. If that leaves
    gaps and `exact_fill` needs fewer rows, its rows are used. "none" gives each document its own row, in file order.

    Args:
      lengths, target_counts: integers [examples].

    Raises:
      BadInput: no documents, or one that exceeds a capacity.
    """
    lengths, target_counts = np.asarray(lengths, np.int64), np.asarray(target_counts, np.int64)
    if not len(lengths):
        raise BadInput("no documents to pack: the dataset is empty")
    if lengths.max() > tokens_per_row:
        raise BadInput(
            f"a document has {lengths.max():,} tokens, a row holds {tokens_per_row:,} (data.sequence_length)"
        )
    if target_counts.max() > targets_per_row:
        raise BadInput(
            f"a document has {target_counts.max():,} trained tokens, a row holds {targets_per_row:,} "
            "(data.target_capacity; 0 chooses it)"
        )
    totals = int(lengths.sum()), int(target_counts.sum())
    capacities = tokens_per_row, targets_per_row
    if packing == "none":
        numbers = np.arange(len(lengths), dtype=np.int32)
        offsets = np.arange(len(lengths) + 1, dtype=np.int64)
        return _plan(totals, capacities, (lengths, target_counts), (offsets, numbers), (offsets, numbers))
    bounds = np.zeros_like(target_counts) if targets_per_row >= tokens_per_row else target_counts
    # One class per target count is exact; with too many classes, target counts are rounded up.
    quantum = 1
    while True:
        key = lengths * (targets_per_row + 1) + np.minimum(-(-bounds // quantum) * quantum, targets_per_row)
        members = np.argsort(-key, kind="stable").astype(np.int32)
        ordered = key[members]
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
        if len(firsts) <= _MOST_CLASSES or quantum > targets_per_row:
            break
        quantum *= 2
    class_offsets = np.append(firsts, len(lengths))
    class_length, class_targets = np.divmod(ordered[firsts], targets_per_row + 1)
    classes = class_length, class_targets, np.diff(class_offsets)
    rows = _best_fit(*classes, tokens_per_row, targets_per_row)
    if totals[0] < _WELL_FILLED * (len(rows[0]) - 1) * tokens_per_row and len(firsts) <= _MOST_CLASSES_SEARCHED:
        filled = fill_exactly(*classes, tokens_per_row, targets_per_row)
        rows = filled if len(filled[0]) < len(rows[0]) else rows
    return _plan(totals, capacities, (class_length, class_targets), rows, (class_offsets, members))


def _plan(
    totals: tuple[int, int],
    capacities: tuple[int, int],
    classes: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    members: tuple[np.ndarray, np.ndarray],
) -> Plan:
    digest = hashlib.sha256(f"{capacities[0]} {capacities[1]}".encode())
    for part in (*rows, *classes):
        digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return Plan(*capacities, *rows, *classes, *members, *totals, digest.hexdigest())


def _best_fit(
    class_length: np.ndarray, class_targets: np.ndarray, class_counts: np.ndarray, capacity: int, target_capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (offsets, class of each slot) of best-fit decreasing; classes must be sorted longest first.

    Rows with the same contents are one *pattern* with a row count. A document goes into the row with the least room
    that fits it. That row then still has the least room and takes the next document of the class while it fits, so
    whole patterns advance at once, by division.
    """
    parent, added, copies, rows = [-1], [0], [0], [0]  # per pattern: parent, added class, copies, rows
    most = np.full(capacity + 1, -1, np.int32)  # room for tokens -> largest room for targets
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]  # room for tokens -> rooms for targets, ascending
    open_patterns: dict[tuple[int, int], list[int]] = {}

    def grow(base: int, c: int, times: int, number: int, room: int, target_room: int) -> None:
        parent.append(base)
        added.append(c)
        copies.append(times)
        rows.append(number)
        stack = open_patterns.get((room, target_room))
        if stack:
            stack.append(len(rows) - 1)
            return
        open_patterns[room, target_room] = [len(rows) - 1]
        insort(rooms[room], target_room)
        most[room] = rooms[room][-1]

    for c, (length, targets, count) in enumerate(
        zip(class_length.tolist(), class_targets.tolist(), class_counts.tolist(), strict=True)
    ):
        while count:
            takes = most[length:] >= targets
            nearest = int(takes.argmax())
            fits = bool(takes[nearest])
            room, target_room, base, available = capacity, target_capacity, 0, count
            if fits:
                room = length + nearest
                target_room = rooms[room][bisect_left(rooms[room], targets)]
                base = open_patterns[room, target_room][-1]
                available = rows[base]
            times = room // length if not targets else min(room // length, target_room // targets)
            full = min(available, count // times)
            used = full
            if full:
                grow(base, c, times, full, room - times * length, target_room - times * targets)
                count -= full * times
            if count and count < times and used < available:
                grow(base, c, count, 1, room - count * length, target_room - count * targets)
                count, used = 0, used + 1
            if fits:
                rows[base] -= used
                if not rows[base]:
                    stack = open_patterns[room, target_room]
                    stack.pop()
                    if not stack:
                        del open_patterns[room, target_room]
                        del rooms[room][bisect_left(rooms[room], target_room)]
                        most[room] = rooms[room][-1] if rooms[room] else -1
    return _expand(*(np.asarray(column, np.int64) for column in (parent, added, copies, rows)))


def _expand(
    parent: np.ndarray, added: np.ndarray, copies: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expand patterns and their row counts to (row_offsets [rows + 1], class_of_slot int32 [slots])."""
    kept = np.flatnonzero(rows)
    chain, steps = kept, []
    while chain.any():  # from each pattern back to the empty row, all patterns in parallel
        steps.append(chain)
        chain = np.where(chain > 0, parent[chain], 0)
    path = np.stack(steps[::-1], axis=1)  # [patterns, steps], the first documents first
    pattern_slots = copies[path].sum(axis=1)
    per_pattern = np.repeat(added[path].ravel(), copies[path].ravel())
    starts = np.cumsum(pattern_slots) - pattern_slots
    which = np.repeat(np.arange(len(kept)), rows[kept])  # [rows]: pattern of each row
    row_offsets = np.concatenate([[0], np.cumsum(pattern_slots[which])])
    within = np.arange(row_offsets[-1]) - np.repeat(row_offsets[:-1], pattern_slots[which])
    return row_offsets, per_pattern[np.repeat(starts[which], pattern_slots[which]) + within].astype(np.int32)


def choose_target_capacity(
    lengths: np.ndarray,
    target_counts: np.ndarray,
    tokens_per_row: int,
    packing: Literal["best_fit", "none"] = "best_fit",
    multiple: int = 128,
) -> int:
    """The smallest target capacity (M): a multiple of `multiple` whose plan fills 99% of the token slots while the next
    smaller multiple does not; found by bisection. If even M = T doesn't fill 99%, 1% more rows than with M = T are
    allowed.

    Never below the largest document's targets, never above `tokens_per_row` (even if that is smaller than `multiple`).
    """
    largest = int(np.max(target_counts))
    if packing == "none" or tokens_per_row < multiple:
        return min(tokens_per_row, -(-largest // multiple) * multiple)
    rows = plan_packing(lengths, target_counts, tokens_per_row, tokens_per_row).rows
    enough = int(np.sum(lengths, dtype=np.int64)) / (ENOUGH * tokens_per_row)
    allowed = enough if rows <= enough else rows * 1.01
    least = max(largest, int(np.ceil(np.sum(target_counts) / allowed)))
    low, high = -(-least // multiple), -(-tokens_per_row // multiple)
    while low < high:
        middle = (low + high) // 2
        capacity = min(middle * multiple, tokens_per_row)
        if plan_packing(lengths, target_counts, tokens_per_row, capacity).rows <= allowed:
            high = middle
        else:
            low = middle + 1
    return min(high * multiple, tokens_per_row)


def epoch_rows(plan: Plan, seed: int, epoch: int, shuffle: bool) -> tuple[np.ndarray, np.ndarray]:
    """Assign examples to the slots of one epoch: (row_offsets [rows + 1], example_of_slot int32 [slots]).

    Members are permuted within their class, then rows are permuted; the rows of epoch `epoch` in order are
    `example_of_slot[row_offsets[r] : row_offsets[r + 1]]`. Without `shuffle`: file order and the plan's row order.
    """
    members, slots = plan.members, np.argsort(plan.class_of_slot, kind="stable")
    if shuffle:
        classes = np.repeat(np.arange(len(plan.class_length), dtype=np.int32), np.diff(plan.class_offsets))
        order = permutation(seed, 2 * epoch, len(members))
        members = members[order[np.argsort(classes[order], kind="stable")]]
    example_of_slot = np.empty_like(plan.members)
    example_of_slot[slots] = members
    if not shuffle:
        return plan.row_offsets, example_of_slot
    rows = permutation(seed, 2 * epoch + 1, plan.rows)
    sizes = np.diff(plan.row_offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    return offsets, example_of_slot[np.repeat(plan.row_offsets[:-1][rows], sizes) + within]


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """A permutation of range(count), int64: a stable sort by our own hash, since library generators change."""
    start = _mix(_mix(np.asarray([seed], np.uint64)) ^ np.asarray([stream], np.uint64))
    return np.argsort(_mix(start + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's output function on uint64 arrays, which wrap around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
