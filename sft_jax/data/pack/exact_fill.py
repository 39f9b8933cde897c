"""Fills rows to the last token if possible, for documents so long that best fit leaves gaps.

Best-fit decreasing fills its first rows with long documents only, and the remaining gap is shorter than any document.
Here a row takes the longest documents only while two more still fit, and is closed by the pair that fills it best.
Among documents of one length, it prefers those whose targets keep the row at the data's average, so that the second
capacity rarely binds. Rows with the same contents are built at once.

Closing a bin by search is the idea of minimum bin slack (Gupta and Ho, 1999), applied here to classes.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class _Shelf:
    """The remaining documents of one length: parallel lists, by ascending targets."""

    targets: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


class _Stock:
    """The documents not yet placed, by length."""

    def __init__(self, class_length: np.ndarray, class_targets: np.ndarray, class_counts: np.ndarray, capacity: int):
        self.shelves: dict[int, _Shelf] = {}
        for c in np.lexsort((class_targets, class_length)).tolist():
            shelf = self.shelves.setdefault(int(class_length[c]), _Shelf())
            shelf.targets.append(int(class_targets[c]))
            shelf.classes.append(c)
            shelf.counts.append(int(class_counts[c]))
        self.left = {length: sum(shelf.counts) for length, shelf in self.shelves.items()}
        self.lengths = np.asarray(sorted(self.left), np.int64)
        self.floor = self.lengths[np.searchsorted(self.lengths, np.arange(capacity + 1), side="right") - 1]
        """[capacity + 1]: the largest remaining length <= index; 0 if there is none."""
        self.floor[: self.lengths[0]] = 0
        self.tokens = int((class_length * class_counts).sum())
        self.targets = int((class_targets * class_counts).sum())

    def largest(self, room: int, used: Counter[int]) -> int:
        """The largest length that fits and is not used up; 0 if there is none."""
        length = int(self.floor[room])
        while length and self.left[length] <= used[length]:
            length = int(self.floor[length - 1])
        return length

    def remove(self, need: dict[tuple[int, int], int], copies: int) -> None:
        """Remove `copies` rows, each with need[length, place on its shelf] documents."""
        for (length, place), number in need.items():
            shelf = self.shelves[length]
            shelf.counts[place] -= number * copies
            self.left[length] -= number * copies
            self.tokens -= length * number * copies
            self.targets -= shelf.targets[place] * number * copies
        for length in {length for length, _ in need}:
            shelf = self.shelves[length]
            kept = [k for k, count in enumerate(shelf.counts) if count]
            if len(kept) < len(shelf.counts):
                columns = (shelf.targets, shelf.classes, shelf.counts)
                self.shelves[length] = _Shelf(*([column[k] for k in kept] for column in columns))
            if not kept:
                self._forget(length)

    def _forget(self, length: int) -> None:
        place = int(np.searchsorted(self.lengths, length))
        below = self.lengths[place - 1] if place else 0
        above = self.lengths[place + 1] if place + 1 < len(self.lengths) else len(self.floor)
        self.floor[length:above] = below
        self.lengths = np.delete(self.lengths, place)


def fill_exactly(
    class_length: np.ndarray, class_targets: np.ndarray, class_counts: np.ndarray, capacity: int, target_capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (offsets int64 [rows + 1], class of each slot int32 [slots]) of at most `capacity` tokens and
    `target_capacity` targets.

    Args:
      class_length, class_targets, class_counts: int64 [classes]: tokens and targets per document, number of documents.
    """
    stock = _Stock(class_length, class_targets, class_counts, capacity)
    patterns: list[list[int]] = []
    times: list[int] = []
    while len(stock.lengths):
        row = _choose_documents(stock, _choose_lengths(stock, capacity), target_capacity)
        need = Counter(row)
        copies = min(stock.shelves[length].counts[place] // number for (length, place), number in need.items())
        patterns.append([stock.shelves[length].classes[place] for length, place in row])
        times.append(copies)
        stock.remove(need, copies)
    sizes = np.repeat([len(pattern) for pattern in patterns], times)
    slots = np.concatenate([np.tile(pattern, number) for pattern, number in zip(patterns, times, strict=True)])
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), slots.astype(np.int32)


def _choose_lengths(stock: _Stock, capacity: int) -> list[int]:
    """The lengths of one row, the longest first; at least one."""
    chosen: list[int] = []
    used: Counter[int] = Counter()
    room = capacity
    while top := stock.largest(room, used):
        taken = (top,) if room > 2 * top else _closing(stock, room, top, used)
        for length in taken:
            chosen.append(length)
            used[length] += 1
            room -= length
    return chosen


def _closing(stock: _Stock, room: int, top: int, used: Counter[int]) -> tuple[int, ...]:
    """The one or two lengths that fill `room` best; among equal pairs, the most even one."""
    low, high = np.searchsorted(stock.lengths, [room - top, room // 2 + 1])
    shorter = stock.lengths[low:high]
    longer = stock.floor[room - shorter]
    sums = shorter + longer
    gone = [length for length, number in used.items() if stock.left[length] <= number]
    if gone:
        sums = np.where(np.isin(shorter, gone) | np.isin(longer, gone), 0, sums)
    for k in np.flatnonzero(shorter == longer).tolist():  # a pair of equal lengths needs two documents
        if stock.left[int(shorter[k])] < used[int(shorter[k])] + 2:
            sums[k] = 0
    if not len(sums) or sums.max() <= top:
        return (top,)
    best = len(sums) - 1 - int(np.argmax(sums[::-1]))
    return int(longer[best]), int(shorter[best])


def _choose_documents(stock: _Stock, lengths: list[int], target_capacity: int) -> list[tuple[int, int]]:
    """A document of each length, as (length, place on its shelf), within the target capacity. A length is skipped if
    even its document with the fewest targets doesn't fit.

    For the first two lengths, the longest, the documents with the most targets are chosen, since they are hard to
    place. The others bring the row back to the average of the remaining documents.
    """
    average = stock.targets / stock.tokens
    fewest = [stock.shelves[length].targets[0] for length in lengths]
    least = [*np.cumsum(fewest[::-1])[::-1].tolist(), 0]
    used: Counter[tuple[int, int]] = Counter()
    row: list[tuple[int, int]] = []
    tokens = spent = 0
    for k, length in enumerate(lengths):
        shelf = stock.shelves[length]
        tokens += length
        most = target_capacity - spent - least[k + 1]
        wanted = most if k < 2 else min(average * tokens - spent, most)
        near = bisect_left(shelf.targets, wanted)
        places = sorted(range(len(shelf.targets)), key=lambda place, near=near: abs(place - near))
        for place in places:
            if shelf.counts[place] > used[length, place] and spent + shelf.targets[place] <= target_capacity:
                used[length, place] += 1
                row.append((length, place))
                spent += shelf.targets[place]
                break
    return row
