"""Metric sinks: metrics.jsonl always, TensorBoard by default, and any registered sink.

To add one, put its settings in `config/kinds.py` (`SINKS.kind`) and add a class with `write` and `close` here
(`SINKS.maker`). On the command line: `--train.sinks NAME`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sft_jax.config import SINKS
from sft_jax.config.kinds import TensorBoard
from sft_jax.train.metrics import METRICS, MetricsRow, truncate_after

EVENTS_FLUSH_SECONDS = 10
"""Flush interval of TensorBoard events: a kill loses at most this much. metrics.jsonl loses nothing."""


class Sink(Protocol):
    """Receives rows of metrics in order of steps; exists on process 0 only."""

    def write(self, row: MetricsRow) -> None: ...

    def close(self) -> None: ...


def open_sinks(workdir: Path, start_step: int, tensorboard: bool, names: Sequence[str]) -> list[Sink]:
    """Open metrics.jsonl and the configured sinks.

    Args:
      start_step: later rows, written after the restored checkpoint, are dropped, so that each step appears once.

    Raises:
      BadInput: an unknown sink.
    """
    wanted = dict.fromkeys((*(("tensorboard",) if tensorboard else ()), *names))
    for name in wanted:  # before anything is opened
        SINKS.settings_type(name)
    return [JsonLines(workdir, start_step), *(SINKS.make(name, None, workdir, start_step) for name in wanted)]


class JsonLines:
    """workdir/metrics.jsonl, flushed after every row, so that a kill loses nothing."""

    def __init__(self, workdir: Path, start_step: int):
        path = workdir / METRICS
        truncate_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: MetricsRow) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Events:
    """TensorBoard events in workdir/tensorboard."""

    def __init__(self, workdir: Path, start_step: int):
        from tensorboardX import SummaryWriter

        folder = str(workdir / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=start_step + 1, flush_secs=EVENTS_FLUSH_SECONDS)

    def write(self, row: MetricsRow) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name if "/" in name else f"train/{name}", value, row["step"])

    def close(self) -> None:
        self._events.close()


@SINKS.maker("tensorboard")
def events(own: TensorBoard, workdir: Path, start_step: int) -> Events:
    return Events(workdir, start_step)
