import tracemalloc

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


def test_rows_that_one_side_says_nothing_of_are_left_out_of_both():
    a, b = [1.0, None, 3.0, 9.0], [0.0, 7.0, 1.0, None]
    assert paired_difference(a, b) == paired_difference([1.0, 3.0], [0.0, 1.0])
    weighted = paired_difference(a, b, [1, 5, 3, 5], [1, 5, 3, 5])
    assert weighted.value == pytest.approx(4 / 4 - 1 / 4) and weighted.n == 2


def test_a_lower_level_is_narrower_and_resamples_are_counted():
    values = np.random.default_rng(4).random(200)
    wide, narrow = mean_interval(values), mean_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert mean_interval(values, resamples=1).low == mean_interval(values, resamples=1).high


def test_rows_drawn_without_any_weight_have_no_mean():
    interval = mean_interval([0.0, 4.0], [0.0, 2.0])  # a quarter of the drawings hold the first row alone
    assert (interval.value, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_memory_stays_small_with_many_rows():
    tracemalloc.start()
    mean_interval(np.zeros(100_000), resamples=100)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6


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
