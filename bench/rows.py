"""The rows that both sides train on: made from numbers alone, so that every process makes the same ones."""

from typing import NamedTuple

import numpy as np

SHORTEST = 32
"""Tokens of the shortest document of a packed row, where the row has as many."""


class Rows(NamedTuple):
    """Documents of random tokens that fill every row; nothing is padding."""

    tokens: np.ndarray
    """int32 [b, T]."""
    segments: np.ndarray
    """int32 [b, T]: the documents of a row are 1, 2, …"""
    positions: np.ndarray
    """int32 [b, T]: restarts at 0 in each document."""

    @property
    def trained(self) -> np.ndarray:
        """bool [b, T]: whether the next token is of the same document, and so a target."""
        following = np.zeros_like(self.segments)
        following[:, :-1] = self.segments[:, 1:]
        return following == self.segments

    @property
    def following(self) -> np.ndarray:
        """int32 [b, T]: the next token; only those that are `trained` mean anything."""
        return np.roll(self.tokens, -1, axis=1)

    @property
    def pairs(self) -> float:
        """(query, key) pairs that see each other."""
        return float((self.positions.astype(np.int64) + 1).sum())


def make_rows(rows: int, length: int, vocab: int, packed: bool, seed: int = 0) -> Rows:
    """Rows of one document each, or of several whose lengths are drawn evenly between SHORTEST and half a row."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, vocab, (rows, length), dtype=np.int32)
    segments, positions = np.ones((2, rows, length), np.int32)
    positions[:] = np.arange(length)
    if packed:
        for row in range(rows):
            starts = _starts(draw, length)
            begins = np.zeros(length, np.int32)
            begins[starts] = 1
            segments[row] = np.cumsum(begins)
            positions[row] -= starts[segments[row] - 1]
    return Rows(tokens, segments, positions)


def _starts(draw: np.random.Generator, length: int) -> np.ndarray:
    """Where the documents of a row begin."""
    longest = max(2, length // 2)
    starts = [0]
    while starts[-1] < length:
        starts.append(starts[-1] + int(draw.integers(min(SHORTEST, longest - 1), longest + 1)))
    return np.array(starts[:-1], np.int32)
