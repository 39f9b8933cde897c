"""report.html: one self-contained page with a run's numbers, curves and config."""

import json
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sft_jax.report.plots import MAX_POINTS, Point, Series, downsample, plot
from sft_jax.report.render import render
from sft_jax.report.terminal import clock
from sft_jax.storage.atomic import write_atomic
from sft_jax.train.metrics import MetricsRow, scores_of

REPORT = "report.html"
"""File name in a workdir."""

CURVES = (
    ("Loss per trained token", "loss", "eval/loss"),
    ("Accuracy on trained tokens", "accuracy", "eval/accuracy"),
    ("Reward margin", "reward_margin", "eval/reward_margin"),
    ("Entropy per trained token", "entropy", "eval/entropy"),
    ("Gradient norm", "grad_norm", ""),
    ("Learning rate", "learning_rate", ""),
    ("Tokens per second", "tokens_per_second", ""),
    ("Model FLOPs utilization", "mfu", ""),
    ("Seconds waiting for data, per step", "data_wait_seconds", ""),
)
"""(heading, field of the training rows, field of the held-out rows); curves without data are omitted."""


class RunReport:
    """Keeps workdir/report.html up to date: a sink of metrics, so process 0 alone has one."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        # Reading 100,000 rows takes two seconds, in which the loop goes on.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="report.html")
        self._writing: Future[None] | None = None

    def write(self, row: MetricsRow) -> None:
        """Rewrite the page after an evaluation, unless the one before is still being written."""
        if "eval/loss" in row and (self._writing is None or self._writing.done()):
            self.wait()
            self._writing = self._writer.submit(self.write_now)

    def write_now(self) -> None:
        """The page of what metrics.jsonl holds."""
        write_atomic(self._workdir / REPORT, lambda file: file.write(run_page(self._workdir).encode()))

    def wait(self) -> None:
        """Until no page is being written; raises what went wrong with the last one."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        self._writer.shutdown()
        self.wait()


def run_page(workdir: Path) -> str:
    """Render the page from the workdir's metrics.jsonl and config.json."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "eval/loss" in row]
    scores = sorted({name for row in held_out for name in scores_of(row)})
    wanted = [*CURVES[:3], *((f"Answers to held-out prompts: {name}", "", f"eval/{name}") for name in scores)]
    curves = [_curve(training, held_out, *names) for names in (*wanted, *CURVES[3:])]
    return render(
        "run.html.jinja",
        title=workdir.name,
        numbers=_numbers(training, held_out),
        thinned=math.ceil(len(training) / MAX_POINTS) if len(training) > MAX_POINTS else 0,
        curves=[curve for curve in curves if curve],
        config=(workdir / "config.json").read_text(encoding="utf-8"),
    )


def _numbers(training: Sequence[MetricsRow], held_out: Sequence[MetricsRow]) -> list[tuple[str, str]]:
    """The table above the curves."""
    seconds = sum(row["step_seconds"] for row in training)
    numbers = [
        ("steps", f"{training[-1]['step']:,}" if training else "0"),
        ("tokens", f"{sum(row['tokens'] for row in training):,}"),
        ("trained tokens", f"{sum(row['target_tokens'] for row in training):,}"),
        ("time in steps", f"{clock(seconds)} ({seconds:,.0f} s)"),
    ]
    if training:
        speed = statistics.median(row["tokens_per_second"] for row in training)
        numbers.append(("tokens per second, median", f"{speed:,.0f}"))
    if held_out:
        for name in ("loss", "accuracy"):
            first, last = held_out[0][f"eval/{name}"], held_out[-1][f"eval/{name}"]
            numbers.append((f"held-out {name}, first and last", f"{first:.4f} → {last:.4f}"))
        best = min(held_out, key=lambda row: row["eval/loss"])
        numbers.append(("held-out loss, lowest", f"{best['eval/loss']:.4f} at step {best['step']:,}"))
    return numbers


def _curve(
    training: Sequence[MetricsRow], held_out: Sequence[MetricsRow], heading: str, field: str, held_out_field: str
) -> str:
    """Training and held-out curve over steps; empty if neither was measured."""
    trained, measured = _points(training, field), _points(held_out, held_out_field)
    series = [Series("training", downsample(trained), "line")] if trained else []
    series += [Series("held out", measured, "joined")] if measured else []
    return plot(series, "step", heading) if series else ""


def _points(rows: Sequence[MetricsRow], field: str) -> list[Point]:
    return [Point(row["step"], row[field]) for row in rows if row.get(field) is not None]
