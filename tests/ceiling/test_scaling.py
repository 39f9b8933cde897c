import numpy as np
import pytest

from sft_jax.ceiling.scaling import fit_power_law, measure_scaling

SIZES = np.array([100, 200, 400, 800, 1600])


def test_the_law_that_made_the_losses_is_found_again():
    truth = [(0.7, 5.0, 0.5), (0.0, 2.0, 0.2), (1.3, 40.0, 1.0)]
    losses = np.array([e + a * SIZES**-b for e, a, b in truth])
    for found, wanted in zip(np.transpose(fit_power_law(SIZES, losses)), truth, strict=True):
        assert found == pytest.approx(wanted, rel=0.05, abs=0.01)


def test_floor_and_scale_are_never_negative():
    rising, concave = np.linspace(1, 2, 5), np.array([5.0, 4.0, 3.0, 2.0, 0.5])
    floor, scale, _ = fit_power_law(SIZES, np.stack([rising, concave]))
    assert (floor >= 0).all() and (scale >= 0).all()
    assert scale[0] == 0 and floor[0] == pytest.approx(1.5)


def _measured(floor: float, scale: float, documents: int = 400, noise: float = 0.02):
    random = np.random.default_rng(0)
    weights = random.integers(1, 6, documents).astype(float)
    common = random.normal(0, 0.5, documents)
    nll = [
        (floor + scale * n**-0.5 + common + random.normal(0, noise, (2, documents))) * weights for n in SIZES.tolist()
    ]
    return measure_scaling(SIZES.tolist(), nll, weights, resamples=300)


def test_a_falling_curve_says_what_twice_as_many_would_buy():
    found = _measured(0.5, 8.0)
    truth = 8.0 * (1600**-0.5 - 3200**-0.5)
    assert found.gain.value == pytest.approx(truth, rel=0.2)
    assert 0 < found.gain.low < truth < found.gain.high
    # The documents' own difficulty blurs the level and not the fall.
    assert found.losses[0].high - found.losses[0].low > 5 * (found.gain.high - found.gain.low)
    assert found.band[-1][0] == 3200 and found.sizes == tuple(SIZES)


def test_a_flat_curve_promises_nothing():
    found = _measured(0.5, 0.0)
    assert found.gain.high < 0.01 and abs(found.last_gain.value) < 0.01
