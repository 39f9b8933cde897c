"""Percentile bootstrap (Efron 1979) in numpy: means, weighted means and paired differences with their intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 2_000_000
"""Drawn numbers held at once: 16 MB, and as much again as floats."""


class Interval(NamedTuple):
    """A value and where it would lie, in `level` of the cases, had other rows of the same kind been measured."""

    value: float
    low: float
    high: float
    n: int
    """Rows it is taken over."""


def mean_interval(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The mean, or sum(values) / sum(weights) where weights are given: rows are drawn with both.

    Args:
      values: [n] numbers.
      weights: [n] numbers >= 0, such as each document's trained tokens beside its summed loss.
      seed: of the drawing; the same gives the same interval.
      resamples: how often n rows are drawn, with replacement.
      level: share of the resampled means that lie in the interval.

    Raises:
      ValueError: no rows, or weights that sum to 0.
    """
    return _interval([(values, weights)], seed, resamples, level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    weights_a: ArrayLike | None = None,
    weights_b: ArrayLike | None = None,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The mean of a less that of b over the same rows, which are drawn together: what they share cancels.

    A row that is None in a or in b is left out of both; arguments otherwise as `mean_interval`.

    Raises:
      ValueError: no rows, or not as many of each.
    """
    return _interval([(a, weights_a), (b, weights_b)], seed, resamples, level)


def _interval(
    columns: Sequence[tuple[ArrayLike, ArrayLike | None]], seed: int, resamples: int, level: float
) -> Interval:
    """Of the first column's ratio less the second's, if there is one."""
    sums = [np.asarray(values, object) for values, _ in columns]
    n = len(sums[0])
    if not n or any(len(column) != n for column in sums):
        raise ValueError(f"columns of {', '.join(str(len(column)) for column in sums)} rows, expected as many, not 0")
    weights = [np.ones(n) if w is None else np.asarray(w, np.float64) for _, w in columns]
    known = np.array([all(column[i] is not None for column in sums) for i in range(n)])
    sums = [column[known].astype(np.float64) for column in sums]
    weights = [column[known] for column in weights]
    n = int(known.sum())
    if not all(column.sum() > 0 for column in weights):
        raise ValueError("the weights sum to 0, so the mean is undefined")

    def estimate(counts: np.ndarray) -> np.ndarray:
        """[resamples] from how often each row was drawn, [resamples, n]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [counts @ s / (counts @ w) for s, w in zip(sums, weights, strict=True)]
        return ratios[0] - ratios[1] if len(ratios) == 2 else ratios[0]

    random = np.random.default_rng(seed)
    at_once = max(1, _CELLS // n)
    drawn = [
        estimate(random.multinomial(n, np.full(n, 1 / n), min(at_once, resamples - done)).astype(np.float64))
        for done in range(0, resamples, at_once)
    ]
    estimates = np.concatenate(drawn)
    estimates = estimates[np.isfinite(estimates)]  # rows drawn whose weights are all 0 have no mean
    low, high = np.percentile(estimates, (50 * (1 - level), 50 * (1 + level)))
    return Interval(float(estimate(np.ones((1, n)))[0]), float(low), float(high), n)
