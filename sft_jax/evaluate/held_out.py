"""Held-out likelihood: the loss of held-out demonstrations by document, turn and source."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sft_jax.data.pack.store import Example
from sft_jax.evaluate.bootstrap import Interval, mean_interval
from sft_jax.model.architecture import Architecture
from sft_jax.model.layers import Compute
from sft_jax.sample.score import score_targets


@dataclass(frozen=True)
class DocumentLoss:
    """The loss of one document. Sums are float64, in nats, weighted by the tokens' loss weights."""

    id: str
    source: str
    turns: tuple[tuple[float, float], ...]
    """(sum of weight * nll, sum of weight) of each run of trained tokens, in order: the turns of a conversation."""

    @property
    def nll(self) -> float:
        return math.fsum(nll for nll, _ in self.turns)

    @property
    def weight(self) -> float:
        return math.fsum(weight for _, weight in self.turns)


def document_losses(
    architecture: Architecture,
    compute: Compute,
    parameters: Mapping[str, jax.Array],
    examples: Sequence[Example],
    batch_size: int = 8,
) -> list[DocumentLoss]:
    """The loss of each document, in order."""
    # Rows of a batch are padded to the longest, so sort by length and restore the order afterwards.
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].tokens))
    chosen = [examples[number] for number in order]
    found: dict[int, DocumentLoss] = {}
    scores = score_targets(architecture, compute, parameters, chosen, batch_size)
    for number, example, log_p in zip(order, chosen, scores, strict=True):
        found[number] = DocumentLoss(example.id, example.source, _turns(example.weights, log_p))
    return [found[number] for number in range(len(examples))]


def _turns(weights: np.ndarray, log_p: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Sums over each run of trained tokens.

    Args:
      weights: of all tokens.
      log_p: of the tokens with a nonzero weight.
    """
    trained = np.flatnonzero(weights)
    if not len(trained):
        return ()
    each = weights[trained].astype(np.float64)
    nll = -log_p.astype(np.float64) * each
    ends = [*(np.flatnonzero(np.diff(trained) > 1) + 1).tolist(), len(trained)]
    starts = [0, *ends[:-1]]
    return tuple((float(nll[a:b].sum()), float(each[a:b].sum())) for a, b in zip(starts, ends, strict=True))


def loss_interval(losses: Sequence[DocumentLoss], seed: int = 0) -> Interval:
    """Nats per trained token (ratio of sums), with a bootstrap interval over documents."""
    return mean_interval([one.nll for one in losses], [one.weight for one in losses], seed=seed)


def summarise_losses(losses: Sequence[DocumentLoss], seed: int = 0) -> dict[str, Any]:
    """`loss`, `perplexity` (also of the interval's ends), and the loss `by_turn` and `by_source`.

    `by_turn` numbers a conversation's trained turns from 1. All losses are per trained token (ratios of sums).
    """
    whole = loss_interval(losses, seed)
    by_turn: dict[int, list[tuple[float, float]]] = {}
    by_source: dict[str, list[tuple[float, float]]] = {}
    for one in losses:
        for number, turn in enumerate(one.turns, start=1):
            by_turn.setdefault(number, []).append(turn)
        by_source.setdefault(one.source, []).append((one.nll, one.weight))
    return {
        "loss": whole,
        "perplexity": Interval(_exp(whole.value), _exp(whole.low), _exp(whole.high), whole.n),
        "target_tokens": sum(one.weight for one in losses),
        "documents": len(losses),
        "by_turn": {str(number): _ratio(turns) for number, turns in sorted(by_turn.items())},
        "by_source": {name: _ratio(each) for name, each in by_source.items()},
    }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _ratio(sums: Sequence[tuple[float, float]]) -> float:
    return math.fsum(nll for nll, _ in sums) / math.fsum(weight for _, weight in sums)
