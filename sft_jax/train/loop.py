"""The training loop. It dispatches step n before reading the metrics of step n-1; nothing in it blocks the device."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp

from sft_jax.data.pack.batches import Batch
from sft_jax.errors import NonFinite, Preempted
from sft_jax.model.architecture import Architecture
from sft_jax.train import checkpoint
from sft_jax.train.feed import Source, feed, whole_state
from sft_jax.train.metrics import MetricsRow, training_row
from sft_jax.train.step import Parameters, TrainState

Update = Callable[[TrainState, Parameters, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Callables:
    """What the loop calls and does not know: composed by the command line."""

    update: Update
    """The jitted step; donates the state."""
    evaluate: Callable[[TrainState, int, bool], MetricsRow | None]
    """(state, step, may it be given up) -> a row of `eval/...` metrics; None when preemption was noticed meanwhile."""
    report: Callable[[MetricsRow], None]
    """Called with every row, in order of steps: file, TensorBoard, terminal."""
    preempted: Callable[[], bool]
    """Polled once a step by every process."""
    saving: Callable[[], None]
    """Called before a checkpoint is saved: what was reported until then must not be lost when it is restored."""


@dataclass(frozen=True)
class Schedule:
    """When things happen; intervals in steps, 0 for never."""

    steps: int
    eval_every: int
    save_every: int
    evaluate_first: bool = False
    """The run was stopped at a step that was to be evaluated: do it before the next one."""


def train(
    state: TrainState,
    frozen: Parameters,
    source: Source,
    shapes: Batch,
    shardings: Batch,
    calls: Callables,
    schedule: Schedule,
    manager: ocp.CheckpointManager,
    record: Mapping[str, Any],
    architecture: Architecture,
    peak_flops: float | None,
) -> TrainState:
    """Run from `state.step` to `schedule.steps` and return the last state, saved.

    Args:
      shapes, shardings: of the global batch, as `feed` takes them.
      record: saved beside each checkpoint (config and data fingerprints), with the source's state.
      peak_flops: of all devices together, for `mfu`; None where unknown.

    Raises:
      NonFinite: the loss or a gradient of a step is NaN or infinite; that step changed nothing.
      Preempted: SIGTERM came; a checkpoint of the last finished step is committed.
    """
    first = int(state.step)
    pending: _Pending | None = None
    saved = first

    def settle() -> None:
        """Read the metrics of the step in flight and report them."""
        nonlocal pending
        finished, pending = pending, None
        if finished is not None:
            calls.report(finished.row(source, architecture, peak_flops))

    def save(step: int) -> None:
        nonlocal saved
        if saved != step:
            calls.saving()
            checkpoint.save(manager, state, {**record, "source": whole_state(source, step)})
            saved = step

    if schedule.evaluate_first and (row := calls.evaluate(state, first, False)):
        calls.report(row)
    clock = _Clock()
    try:
        for step, batch, waited in feed(source, range(first, schedule.steps), shapes, shardings):
            state, metrics = calls.update(state, frozen, batch)
            in_flight = _Pending(step, metrics, waited, clock)
            settle()
            pending = in_flight
            done = step + 1
            last = done == schedule.steps
            stop = calls.preempted() and not last
            evaluation_due = bool(schedule.eval_every) and (last or done % schedule.eval_every == 0)
            if stop or last or evaluation_due or (schedule.save_every and done % schedule.save_every == 0):
                # A bad step must be known before anything is saved beyond it.
                settle()
            if evaluation_due and not stop:
                row = calls.evaluate(state, done, not last)
                stop = row is None
                if row is not None:
                    calls.report(row)
                clock.restart()
            if stop or last or (schedule.save_every and done % schedule.save_every == 0):
                save(done)
            if stop:
                manager.wait_until_finished()
                raise Preempted(f"stopped after step {done} of {schedule.steps}; run the same command to continue")
    finally:
        try:
            settle()  # also when the source or the user ends the run: the step in flight was made
        finally:
            # A save that goes on is finished first; a process that fails alone cannot wait for the others' part in it.
            if jax.process_count() == 1:
                manager.wait_until_finished()
    manager.wait_until_finished()
    manager.check_for_errors()
    return state


class _Clock:
    """Seconds between the ends of consecutive steps, as the host sees them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(frozen=True)
class _Pending:
    """A dispatched step whose metrics have not been read."""

    step: int
    metrics: Mapping[str, jax.Array]
    waited: float
    clock: _Clock

    def row(self, source: Source, architecture: Architecture, peak_flops: float | None) -> MetricsRow:
        sums = checkpoint.to_host(self.metrics)
        if not sums["finite"]:
            rows = source.rows_of(self.step)
            shown = ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
            raise NonFinite(
                f"step {self.step + 1}: loss {sums['loss_sum']}, gradient norm {sums['grad_norm']}: not finite. "
                f"The step changed nothing and the run stops. Its rows: {shown}. Lower optimizer.learning_rate or "
                f"look at these rows."
            )
        return training_row(
            sums,
            step=self.step + 1,
            step_seconds=self.clock.lap(),
            data_wait_seconds=self.waited,
            architecture=architecture,
            peak_flops=peak_flops,
        )
