"""Percentile bootstrap (Efron 1979) in numpy: means, weighted means and paired differences with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 2_000_000
"""Random numbers held at a time: 16 MB, and the same again as floats."""


class Interval(NamedTuple):
    """A value and its bootstrap confidence interval over rows."""

    value: float
    low: float
    high: float
    n: int
    """Number of rows."""


def mean_interval(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The mean, or sum(values) / sum(weights) if weights are given, with its interval.

    Args:
      values: [n] numbers.
      weights: [n] numbers >= 0, resampled together with the values, such as each document's number of trained tokens.
      seed: random seed; the same seed gives the same interval.
      resamples: number of bootstrap samples.
      level: confidence level.

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
    """mean(a) - mean(b) over the same rows, which are resampled together so that shared variation cancels.

    Rows that are None in a or b are dropped from both; other arguments as `mean_interval`.

    Raises:
      ValueError: no rows, or a and b differ in length.
    """
    return _interval([(a, weights_a), (b, weights_b)], seed, resamples, level)


def _interval(
    columns: Sequence[tuple[ArrayLike, ArrayLike | None]], seed: int, resamples: int, level: float
) -> Interval:
    """Interval of the first column's ratio, minus the second's if there is one."""
    sums = [np.asarray(values, object) for values, _ in columns]
    n = len(sums[0])
    if not n or any(len(column) != n for column in sums):
        raise ValueError(f"columns have {', '.join(str(len(column)) for column in sums)} rows, expected equal, not 0")
    weights = [np.ones(n) if w is None else np.asarray(w, np.float64) for _, w in columns]
    known = np.array([all(column[i] is not None for column in sums) for i in range(n)])
    sums = [column[known].astype(np.float64) for column in sums]
    weights = [column[known] for column in weights]
    n = int(known.sum())
    if not all(column.sum() > 0 for column in weights):
        raise ValueError("the weights sum to 0, so the mean is undefined")

    def estimate(counts: np.ndarray) -> np.ndarray:
        """Estimates [resamples] from the counts of each row, [resamples, n]."""
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
    estimates = estimates[np.isfinite(estimates)]  # a sample whose weights are all 0 has no mean
    low, high = np.percentile(estimates, (50 * (1 - level), 50 * (1 + level)))
    return Interval(float(estimate(np.ones((1, n)))[0]), float(low), float(high), n)
