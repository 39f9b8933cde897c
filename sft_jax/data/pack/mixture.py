"""Mixes several sources in fixed proportions: the source of each row is a pure function of the row number."""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.pack.batches import Batches, PreparedRows, check_batch_size
from sft_jax.data.pack.store import Example

PERIOD = 2**16
"""Rows after which the pattern of sources repeats; shares are exact to 1 / PERIOD."""


class Mixture(PreparedRows):
    """Batches whose rows come from several sources. Each row holds documents of one source.

    Each source has its own epochs, each in a new order, at a rate given by its share.
    """

    def __init__(
        self,
        sources: Sequence[Batches],
        shares: np.ndarray,
        batch_size: int,
        accumulation: int = 1,
        total_rows: int | None = None,
    ):
        """
        Args:
          sources: with equal T and M, and no end.
          shares: float64 [sources], share of the rows; see `row_shares`.
          batch_size, accumulation, total_rows: as in `Batches`.
        """
        check_batch_size(batch_size, accumulation)
        self.sources, self.pairs = tuple(sources), sources[0].pairs
        self.batch_size, self.accumulation, self.total_rows = batch_size, accumulation, total_rows
        self.tokens_per_row, self.targets_per_row = sources[0].tokens_per_row, sources[0].targets_per_row
        self.rows_per_epoch = sum(source.rows_per_epoch for source in sources)
        self._source_of, self._rank, self._counts = pattern(shares)

    def documents_of(self, row: int) -> list[Example]:
        """The documents in a row of the endless sequence; none beyond the end of the run."""
        if self.total_rows is not None and row >= self.total_rows:
            return []
        period, within = divmod(row, PERIOD)
        source = int(self._source_of[within])
        return self.sources[source].documents_of(period * int(self._counts[source]) + int(self._rank[within]))

    def rows_taken(self, rows: int) -> np.ndarray:
        """int64 [sources]: how many of the first `rows` rows come from each source."""
        periods, rest = divmod(rows, PERIOD)
        return periods * self._counts + np.bincount(self._source_of[:rest], minlength=len(self.sources))


def row_shares(sources: Sequence[Batches], weights: Sequence[float], count: str) -> np.ndarray:
    """float64 [sources]: shares of the rows for which examples or target tokens have the proportions `weights`.

    Args:
      weights: positive; they need not sum to 1.
      count: "examples" or "target_tokens".
    """
    totals = [source.plan.targets if count == "target_tokens" else len(source.examples) for source in sources]
    per_row = np.asarray(totals, np.float64) / [source.plan.rows for source in sources]
    shares = np.asarray(weights, np.float64) / per_row
    return shares / shares.sum()


def pattern(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sources of PERIOD rows, spread evenly.

    Returns:
      int64 [PERIOD]: the source of each row; int64 [PERIOD]: how many rows of that source come before it in the
      period; int64 [sources]: rows of each source in a period, at least 1.
    """
    counts = np.maximum(1, np.floor(shares * PERIOD).astype(np.int64))
    while counts.sum() != PERIOD:  # largest remainders first; the largest source pays for sources raised to 1
        missing = PERIOD - counts.sum()
        remainder = shares * PERIOD - counts
        if missing > 0:
            counts[np.argmax(remainder)] += 1
        else:
            counts[np.argmax(counts)] -= 1
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(PERIOD) - np.repeat(np.cumsum(counts) - counts, counts)
    # The k-th of n rows is due in the middle of the k-th of n equal parts of the period.
    order = np.argsort((rank + 0.5) / counts[source], kind="stable")
    return source[order], rank[order], counts
