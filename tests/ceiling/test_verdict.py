import numpy as np
import pytest

from sft_jax.ceiling.scaling import Scaling
from sft_jax.ceiling.verdict import best_of, check_scores, measure_quality, reach_verdict
from sft_jax.evaluate.bootstrap import Interval


def _scaling(gain: tuple[float, float, float], loss: float = 1.0) -> Scaling:
    loss_now = Interval(loss, loss, loss, 100)
    interval = Interval(*gain, 100)
    return Scaling((50, 100), (loss_now, loss_now), loss_now, 1.0, interval, interval, interval, ())


def _quality(demonstrations: float, greedy: float, sampled: float, prompts: int = 1000, samples: int = 16):
    """Each prompt's greedy answer is right with one probability, its samples with another."""
    random = np.random.default_rng(0)
    return measure_quality(
        (random.random(prompts) < demonstrations).astype(float),
        (random.random(prompts) < greedy).astype(float),
        (random.random((prompts, samples)) < sampled).astype(float),
    )


HALF = np.repeat([1.0, 0.0], 250)
"""Prompts that are always answered right, and prompts that never are."""
FLAT, STEEP, UNCLEAR = _scaling((0.0, 0.0, 0.005)), _scaling((0.1, 0.05, 0.2)), _scaling((0.03, 0.0, 0.1))


def test_the_expected_best_of_k_is_pass_at_k_for_right_and_wrong():
    scores = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], float)
    assert best_of(scores, 1) == pytest.approx([0.25, 0.5, 0])
    assert best_of(scores, 2) == pytest.approx([1 - 3 / 6, 1 - 1 / 6, 0])  # 1 - C(wrong, k) / C(n, k)
    assert best_of(scores, 4) == pytest.approx([1, 1, 0])
    assert best_of(np.array([[0.2, 0.6, 1.0]]), 2) == pytest.approx([(0.6 + 1.0 + 1.0) / 3])


@pytest.mark.parametrize(
    ("scaling", "quality", "answer"),
    [
        (STEEP, _quality(1.0, 0.5, 0.5), "more data"),
        (STEEP, None, "more data"),
        (UNCLEAR, _quality(0.9, 0.5, 0.5), "inconclusive"),
        (UNCLEAR, _quality(0.6, 0.5, 0.6), "preferences"),
        (STEEP, _quality(0.6, 0.5, 0.6), "preferences"),
        (FLAT, _quality(1.0, 0.5, 0.4), "larger model"),
        (FLAT, _quality(0.6, 0.5, 0.6), "preferences"),
        (FLAT, measure_quality(HALF, HALF, np.repeat(HALF[:, None], 4, 1)), "better data"),
        (FLAT, _quality(0.6, 1.0, 0.6), "nothing left"),
        (STEEP, _quality(0.6, 1.0, 0.6), "nothing left"),
        (FLAT, _quality(0.9, 0.7, 0.7, prompts=8), "inconclusive"),
        (FLAT, None, "inconclusive"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_evidence(scaling, quality, answer):
    verdict = reach_verdict(scaling, quality)
    assert verdict.answer == answer and verdict.words
    assert "twice the 100 demonstrations" in verdict.evidence[0]


@pytest.mark.parametrize(
    ("scaling", "larger", "answer"),
    [
        (FLAT, (0.1, 0.08, 0.12), "larger model"),
        (FLAT, (0.001, 0.0, 0.002), "inconclusive"),
        (UNCLEAR, (0.2, 0.15, 0.25), "larger model"),
        (UNCLEAR, (0.2, 0.08, 0.25), "inconclusive"),  # twice the demonstrations might take off as much
        (STEEP, (0.4, 0.3, 0.5), "more data"),
    ],
)
@pytest.mark.parametrize("quality", [None, _quality(0.9, 0.7, 0.7, prompts=8)])
def test_a_larger_model_that_takes_off_more_than_twice_the_demonstrations_decides(quality, scaling, larger, answer):
    assert reach_verdict(scaling, quality, larger=Interval(*larger, 100)).answer == answer


def test_scores_beyond_one_are_refused():
    with pytest.raises(ValueError, match="a score is 3"):
        check_scores([0.5, 3.0])
