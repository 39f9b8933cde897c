"""Has imitation hit its ceiling? A verdict that follows from the measurements by explicit rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sft_jax.ceiling.scaling import Scaling
from sft_jax.evaluate.bootstrap import Interval, paired_difference

WORTH = 0.02
"""Twice the demonstrations (or a larger model) pay off if they lower the held-out loss by at least this fraction."""
MARGIN = 0.05
"""Scores in [0, 1] that differ by less count as equal."""

Advice = Literal["more data", "better data", "larger model", "preferences", "nothing left", "inconclusive"]


@dataclass(frozen=True)
class Quality:
    """Scores in [0, 1] of the demonstrations and of the model on held-out prompts."""

    demonstrations: Interval
    greedy: Interval
    sampled: Interval
    """Mean over samples at temperature 1."""
    best_of: tuple[tuple[int, Interval], ...]
    """(k, best of k samples by the same score): what ranking could reach."""
    above_model: Interval
    """Demonstrations minus the better of greedy and sampled, on the same prompts."""
    headroom: Interval
    """Best of all samples minus greedy, on the same prompts: what ranking could gain."""


@dataclass(frozen=True)
class Verdict:
    """The advice, its explanation, and the supporting numbers."""

    answer: Advice
    words: str
    evidence: tuple[str, ...]


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """Expected best of k samples drawn without replacement from n, [prompts] from [prompts, n].

    In increasing order, the i-th sample (from 1) is the best of k in C(i-1, k-1) of C(n, k) draws. For scores of 0 and
    1 this is pass@k (Chen et al. 2021, arXiv:2107.03374).
    """
    n = scores.shape[1]
    # C(i-1, k-1) / C(n, k) without large numbers: going down, each is the one above times (i - k + 1) / i.
    share = np.zeros(n)
    share[n - 1] = k / n
    for i in range(n - 1, k - 1, -1):
        share[i - 1] = share[i] * (i - k + 1) / i
    return np.sort(scores, axis=1) @ share


def measure_quality(demonstrations: np.ndarray, greedy: np.ndarray, sampled: np.ndarray, seed: int = 0) -> Quality:
    """Means and paired differences with bootstrap intervals over prompts.

    Args:
      demonstrations, greedy: scores [prompts].
      sampled: scores [prompts, n].
    """
    n = sampled.shape[1]
    nobody = np.zeros(len(greedy))

    def mean(scores: np.ndarray) -> Interval:
        return paired_difference(scores, nobody, seed=seed)

    average = sampled.mean(axis=1)
    model = greedy if greedy.mean() >= average.mean() else average
    counts = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < n] + [n]
    return Quality(
        mean(demonstrations),
        mean(greedy),
        mean(average),
        tuple((k, mean(best_of(sampled, k))) for k in counts),
        paired_difference(demonstrations, model, seed=seed),
        paired_difference(best_of(sampled, n), greedy, seed=seed),
    )


def reach_verdict(
    scaling: Scaling, quality: Quality | None, training_loss: float | None = None, larger: Interval | None = None
) -> Verdict:
    """The verdict, by these rules in order.

    1. Greedy answers are already right: nothing is left that this score could measure.
    2. The model scores as well as its demonstrators or better, so more of the same demonstrations cannot help.
       Preferences if the best of several samples beats the greedy answer; otherwise better data, since ranking cannot
       find what is never sampled.
    3. It scores below them (or there are no scores). More data if twice the demonstrations pay off, where the low end
       of the interval must also reach half of WORTH. A larger model if they do not pay off and the demonstrations
       score above the model, or if a larger one was trained, pays off, and gains more than twice the demonstrations
       could.
    4. Otherwise inconclusive; the words say what is missing.

    Args:
      training_loss: loss per trained token of the largest run at its end.
      larger: held-out loss of the model minus that of a larger one trained the same way.
    """
    now = scaling.losses[-1].value
    gain, low, high = (100 * x / now for x in (scaling.gain.value, scaling.gain.low, scaling.gain.high))
    worth = 100 * WORTH
    evidence = [
        f"twice the {scaling.sizes[-1]:,} demonstrations would lower the held-out loss of {now:.4f} by {gain:.1f} % "
        f"[{low:.1f}, {high:.1f}]; the floor of the fit is {_show(scaling.floor)}"
    ]
    if training_loss is not None:
        evidence.append(f"the loss on its own demonstrations is {training_loss:.4f} at the end of training")
    if quality is not None:
        k, best = quality.best_of[-1]
        evidence.append(
            f"scores: demonstrations {_show(quality.demonstrations)}, sampled {_show(quality.sampled)}, greedy "
            f"{_show(quality.greedy)}, best of {k} {_show(best)}"
        )
    if larger is not None:
        evidence.append(f"a larger model's held-out loss is lower by {_show(larger)}")
    larger_pays = larger is not None and (
        larger.value >= WORTH * now and larger.low >= max(WORTH / 2 * now, scaling.gain.high)
    )
    answer, words = _answer(quality, gain >= worth and low >= worth / 2, high < worth, larger_pays)
    return Verdict(answer, words, tuple(evidence))


def _answer(quality: Quality | None, pays: bool, does_not_pay: bool, larger_pays: bool) -> tuple[Advice, str]:
    if quality is not None and quality.greedy.low >= 1 - MARGIN:
        return "nothing left", "Greedy answers are right as far as this score can tell, whoever demonstrated them."
    if quality is not None and quality.above_model.high <= MARGIN:
        if quality.headroom.low > MARGIN:
            return "preferences", (
                "The model does as well as its demonstrators and often samples better answers than its greedy one: "
                "ranking samples can reach what imitation cannot."
            )
        return "better data", (
            "The model does as well as its demonstrators, and its samples contain nothing much better to rank: only "
            "better demonstrations would help."
        )
    if pays:
        return "more data", "More demonstrations of the same kind still lower the held-out loss."
    if larger_pays:
        return "larger model", (
            "A larger model learns more from the same demonstrations than twice as many could teach this one."
        )
    if not does_not_pay:
        return "inconclusive", (
            "These runs do not show whether more demonstrations would help: use more seeds or documents."
        )
    if quality is not None and quality.above_model.low > MARGIN:
        return "larger model", (
            "More demonstrations do not help, and the model scores below them: the model is the limit."
        )
    if quality is None:
        return "inconclusive", (
            "More demonstrations do not help. To find out whether the demonstrations or the model are the limit, add "
            "scores (--check, --scorer) or a larger model (--larger)."
        )
    return "inconclusive", "Too few held-out prompts to tell whether the model does as well as its demonstrators."


def _show(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def check_scores(scores: Sequence[float]) -> None:
    """Raises ValueError if a score is outside [0, 1], the scale of the rules' margins."""
    bad = next((score for score in scores if not 0 <= score <= 1), None)
    if bad is not None:
        raise ValueError(f"a score is {bad}, expected 0 to 1")
