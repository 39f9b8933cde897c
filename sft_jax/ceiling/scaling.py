"""Held-out loss by number of demonstrations: the fit E + A n^-alpha, and the gain from twice as many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sft_jax.evaluate.bootstrap import Interval

EXPONENTS = np.linspace(0.05, 2.0, 79)
"""Grid of exponents; for each, floor and scale have a closed-form least-squares solution."""


@dataclass(frozen=True)
class Scaling:
    """The measured and fitted curve. Losses in nats per trained token; intervals contain 95 % of the resamples."""

    sizes: tuple[int, ...]
    """Demonstrations trained on."""
    losses: tuple[Interval, ...]
    """Held-out loss at each size, averaged over seeds."""
    floor: Interval
    """E: the loss with infinitely many of the same demonstrations, if the law holds."""
    scale: float
    """A."""
    exponent: Interval
    """alpha; undetermined (a wide interval) if the curve is flat."""
    gain: Interval
    """Predicted decrease of the loss with twice as many demonstrations."""
    last_gain: Interval
    """Measured decrease of the loss from the second largest to the largest size."""
    band: tuple[tuple[int, Interval], ...]
    """The fitted curve at sizes up to twice the largest, for plots."""


def fit_power_law(sizes: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of E + A n^-alpha with E, A >= 0 (the form of Hestness et al. 2017, arXiv:1712.00409).

    Args:
      sizes: [N], at least three distinct values for a determined fit.
      losses: [R, N], each row fitted independently.

    Returns:
      floor, scale and exponent, float64 [R].
    """
    relative = np.asarray(sizes, np.float64) / np.max(sizes)  # keeps n^-alpha near 1
    best = np.full(len(losses), np.inf)
    found = np.zeros((3, len(losses)))
    for exponent in EXPONENTS:
        x = relative**-exponent
        centred = x - x.mean()
        scale = losses @ centred / (centred @ centred)
        floor = losses.mean(axis=1) - scale * x.mean()
        no_fall, no_floor = scale < 0, floor < 0
        scale = np.where(no_fall, 0.0, np.where(no_floor, losses @ x / (x @ x), scale))
        floor = np.where(no_fall, losses.mean(axis=1), np.where(no_floor, 0.0, floor))
        error = np.square(losses - floor[:, None] - scale[:, None] * x).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        found = np.where(better, np.stack([floor, scale, np.full_like(scale, exponent)]), found)
    floor, scale, exponent = found
    return floor, scale * np.max(sizes).astype(np.float64) ** exponent, exponent


def measure_scaling(
    sizes: Sequence[int], nll: Sequence[np.ndarray], weights: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Scaling:
    """Fit the measured losses, with bootstrap intervals over held-out documents and seeds.

    Args:
      sizes: numbers of demonstrations, increasing.
      nll: for each size float64 [seeds, documents], the summed nll of each held-out document.
      weights: [documents], the summed weight of each.
    """
    random = np.random.default_rng(seed)
    documents = len(weights)
    drawn = np.empty((resamples, len(sizes)))
    for row in range(resamples):
        # Draw the same documents at every size, so that shared variation cancels in differences.
        chosen = random.integers(0, documents, documents)
        total = weights[chosen].sum()
        for column, of_size in enumerate(nll):
            of_seeds = random.integers(0, len(of_size), len(of_size))
            drawn[row, column] = of_size[of_seeds][:, chosen].sum(axis=1).mean() / total
    measured = np.array([[of_size.sum(axis=1).mean() / weights.sum() for of_size in nll]])
    largest = float(sizes[-1])
    n = np.asarray(sizes)
    value, resampled = fit_power_law(n, measured), fit_power_law(n, drawn)

    def interval(of_measured: np.ndarray, of_drawn: np.ndarray) -> Interval:
        low, high = np.percentile(of_drawn, (2.5, 97.5))
        return Interval(float(of_measured[0]), float(low), float(high), documents)

    def law(fit: tuple[np.ndarray, ...], size: float) -> np.ndarray:
        floor, scale, exponent = fit
        return floor + scale * size**-exponent

    def of_law(size: float) -> Interval:
        return interval(law(value, size), law(resampled, size))

    grid = np.unique(np.geomspace(sizes[0], 2 * largest, 25).round().astype(int))
    return Scaling(
        tuple(sizes),
        tuple(interval(measured[:, k], drawn[:, k]) for k in range(len(sizes))),
        interval(value[0], resampled[0]),
        float(value[1][0]),
        interval(value[2], resampled[2]),
        interval(*(law(fit, largest) - law(fit, 2 * largest) for fit in (value, resampled))),
        interval(*(losses[:, -2] - losses[:, -1] for losses in (measured, drawn))),
        tuple((int(size), of_law(float(size))) for size in grid),
    )
