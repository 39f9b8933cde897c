import numpy as np
import pytest

from sft_jax.evaluate.bootstrap import mean_interval, paired_difference


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_rows():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    interval = mean_interval(values)
    error = values.std() / np.sqrt(2000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert interval.n == 2000


def test_the_interval_holds_the_truth_in_about_95_of_100_experiments():
    random = np.random.default_rng(1)
    held = [low <= 0.3 <= high for _, low, high, _ in (mean_interval(random.random(80) < 0.3) for _ in range(200))]
    assert 0.89 <= np.mean(held) <= 0.99


def test_with_weights_the_sums_are_divided_once():
    assert mean_interval([2.0, 9.0], [1.0, 9.0]).value == pytest.approx(11 / 10)


def test_what_two_models_share_cancels_in_their_difference():
    rows = np.random.default_rng(2).normal(0, 10, 300)
    difference = paired_difference(rows + 1.0, rows)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    assert mean_interval(rows).high - mean_interval(rows).low > 1


def test_a_seed_gives_the_same_interval_again_and_another_one_another():
    values = np.random.default_rng(3).random(50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_no_rows_or_no_weight_are_refused():
    with pytest.raises(ValueError, match="not 0"):
        mean_interval([])
    with pytest.raises(ValueError, match="2, 1 rows"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="weights sum to 0"):
        mean_interval([0.0], [0.0])
