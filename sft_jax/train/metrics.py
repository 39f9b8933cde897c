"""Token-weighted metrics: one JSON object per step in metrics.jsonl; TensorBoard gets the same numbers."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_jax.model.architecture import Architecture, model_flops

MetricsRow = dict[str, Any]

METRICS = "metrics.jsonl"
"""File name in a workdir."""


def training_row(
    sums: Mapping[str, float],
    *,
    step: int,
    step_seconds: float,
    data_wait_seconds: float,
    architecture: Architecture,
    peak_flops: float | None,
) -> MetricsRow:
    """One step's row, from sums over all devices and micro-batches of the batch.

    Args:
      sums: host numbers from the update: loss_sum, weight_sum, correct, entropy, tokens, target_tokens, pairs,
        grad_norm, learning_rate.
      peak_flops: total over all devices; None (unknown chip, CPU) makes `mfu` null.
    """
    weight = sums["weight_sum"]
    mean = {
        "loss": sums["loss_sum"] / weight if weight else None,
        "accuracy": sums["correct"] / weight if weight else None,
        "entropy": sums["entropy"] / weight if weight else None,
    }
    if weight and "reward_margin" in sums:
        mean["reward_margin"] = sums["reward_margin"] / weight
    flops = model_flops(architecture, sums["tokens"], sums["target_tokens"], sums["pairs"])
    return {
        "step": step,
        **mean,
        "grad_norm": sums["grad_norm"],
        "learning_rate": sums["learning_rate"],
        "tokens": int(sums["tokens"]),
        "target_tokens": int(sums["target_tokens"]),
        "step_seconds": step_seconds,
        "tokens_per_second": sums["tokens"] / step_seconds,
        "target_tokens_per_second": sums["target_tokens"] / step_seconds,
        "mfu": flops / step_seconds / peak_flops if peak_flops else None,
        "data_wait_seconds": data_wait_seconds,
    }


def evaluation_row(batches: Iterable[Mapping[str, float]], step: int) -> MetricsRow:
    """Held-out metrics over all batches: sums are accumulated and divided once."""
    total: dict[str, float] = {}
    for sums in batches:
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value
    weight = total["weight_sum"]
    loss = total["loss_sum"] / weight
    more = {"eval/reward_margin": total["reward_margin"] / weight} if "reward_margin" in total else {}
    return {
        "step": step,
        "eval/loss": loss,
        "eval/perplexity": math.exp(loss) if loss < 700 else None,
        "eval/accuracy": total["correct"] / weight,
        "eval/entropy": total["entropy"] / weight,
        "eval/target_tokens": int(total["target_tokens"]),
        **more,
    }


_LIKELIHOOD = {"loss", "perplexity", "accuracy", "entropy", "target_tokens", "reward_margin"}


def scores_of(row: MetricsRow) -> dict[str, float]:
    """Mean scores of generated answers (`train.eval_samples`) in a held-out row, by name."""
    names = (name.removeprefix("eval/") for name in row if name.startswith("eval/"))
    return {name: row[f"eval/{name}"] for name in names if name not in _LIKELIHOOD}


def has_evaluation(workdir: str | Path, step: int) -> bool:
    """Whether metrics.jsonl contains the held-out row of `step`."""
    path = Path(workdir) / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return any(row["step"] == step and "eval/loss" in row for row in map(json.loads, lines))


def truncate_after(path: Path, step: int) -> None:
    """Drop rows of a metrics.jsonl after `step`, and a last line truncated by a kill."""
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8")
    kept = []
    for line in before.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # only the last line can be truncated: rows are flushed one by one
        if row["step"] <= step:
            kept.append(line + "\n")
    if "".join(kept) == before:  # do not rewrite the file of a finished run
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
