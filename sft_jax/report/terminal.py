"""Progress on the terminal: loss, rate and time left; a bar where there is a screen, lines where there is a log."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sft_jax.train.metrics import scores_of

_log = logging.getLogger(__name__)
WORTH_TELLING_SECONDS = 1.0
LINE_SECONDS = 10.0
"""A log file gets a line at most this often, and always the first two, the last and the evaluations."""


def clock(seconds: float) -> str:
    """75.2 -> '1:15'."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Stages:
    """Says what a command is busy with before it has anything to show, and how long that took."""

    def __init__(self, console: Console, shown: Callable[[], bool] = lambda: True):
        """
        Args:
          shown: whether this process is the one that speaks.
        """
        self._console, self._shown = console, shown

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Print `what` now, and again with its seconds when it is done, unless that was at once."""
        began = time.monotonic()
        if self._shown():
            self._console.print(f"{what} ...", markup=False)
        yield
        seconds = time.monotonic() - began
        if seconds >= WORTH_TELLING_SECONDS and self._shown():
            self._console.print(f"{what}: {seconds:.1f} s", markup=False)


class TrainingProgress:
    """Shows metrics rows as they come; use as a context manager."""

    def __init__(self, console: Console, first: int, steps: int):
        self._console, self._first, self._steps = console, first, steps
        self._spent, self._shown, self._done = 0.0, 0.0, first
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("compiling the step", total=steps, completed=first)

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl."""
        if "eval/loss" in row:
            self._line(
                f"step {row['step']}: held-out loss {row['eval/loss']:.4f}, accuracy {row['eval/accuracy']:.1%} "
                f"over {row['eval/target_tokens']:,} tokens"
                + "".join(f", {name} {value:.3g}" for name, value in scores_of(row).items()),
                over_the_bar=True,
            )
            return
        # The first step includes compilation and would spoil the estimate.
        if self._done > self._first:
            self._spent += row["step_seconds"]
        self._done = row["step"]
        measured = self._done - self._first - 1
        left = clock(self._spent / measured * (self._steps - self._done)) if measured else "?"
        loss = "no target" if row["loss"] is None else f"{row['loss']:.4f}"
        text = f"loss {loss}  {row['tokens_per_second']:,.0f} tokens/s  {left} left"
        if self._bar:
            self._bar.update(self._task, completed=row["step"], description=text)
        now = time.monotonic()
        if measured <= 1 or row["step"] == self._steps or now - self._shown >= LINE_SECONDS:
            self._shown = now
            self._line(f"step {row['step']}/{self._steps}  {text}", over_the_bar=False)

    def _line(self, text: str, over_the_bar: bool) -> None:
        _log.info("%s", text)
        if over_the_bar or not self._bar:
            self._console.print(text, markup=False)


def rows_progress(console: Console, seconds: float = 2.0) -> Callable[[int], None]:
    """(rows tokenised so far) -> prints them with their rate, at most every `seconds`."""
    began = shown = time.monotonic()

    def show(rows: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= seconds:
            shown = now
            console.print(f"tokenised {rows:,} rows, {rows / (now - began):,.0f} rows per second")

    return show


def count_progress(console: Console, what: str, seconds: float = 5.0) -> Callable[[int, int], None]:
    """(done, of how many) -> prints both with `what`, at most every `seconds`."""
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done < total and now - shown >= seconds:
            shown = now
            console.print(f"{done:,} of {total:,} {what}")

    return show
