"""The training loop. It dispatches step n before reading the metrics of step n-1, so it never stalls the device."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp

from sft_jax.errors import NonFinite, Preempted
from sft_jax.train import checkpoint
from sft_jax.train.feed import Source, feed, gather_source_state
from sft_jax.train.metrics import MetricsRow, training_row
from sft_jax.train.program import TrainProgram
from sft_jax.train.sharding import batch_shapes_of
from sft_jax.train.step import Parameters, TrainState

Stage = Callable[[str], contextlib.AbstractContextManager[None]]
"""(what is being done) -> a context that lasts as long."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop."""

    report: Callable[[MetricsRow], None]
    """Called with every row, in order of steps."""
    evaluate: Callable[[TrainState, int, bool], MetricsRow | None]
    """(state, step, may_abort) -> a row of `eval/...` metrics; None if aborted by preemption."""
    preempted: Callable[[], bool] = lambda: False
    """Polled once per step by every process."""
    before_save: Callable[[], None] = lambda: None
    """Called before each save: everything reported so far must survive a restore of the checkpoint."""
    stage: Stage = lambda what: contextlib.nullcontext()
    """Told of what takes long and shows nothing: compilation."""


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps; 0 means never."""

    steps: int
    """Length of the whole run."""
    eval_every: int
    save_every: int


class Loop:
    """A run in progress."""

    def __init__(
        self,
        program: TrainProgram,
        state: TrainState,
        frozen: Parameters,
        source: Source,
        manager: ocp.CheckpointManager,
        record: Mapping[str, Any],
        intervals: Intervals,
        hooks: Hooks,
    ):
        """
        Args:
          record: saved with each checkpoint (fingerprints of data, plan and base), together with the source's state.
        """
        self.program, self.state, self.frozen, self.source = program, state, frozen, source
        self.manager, self.record, self.intervals, self.hooks = manager, record, intervals, hooks
        self.peak_flops: float | None = None
        """Total over all devices, for `mfu`; None if unknown."""
        self.done = self.saved = int(state.step)
        self._pending: _Pending | None = None
        self._compiled = False

    def run(self, until: int) -> None:
        """Train until step `until`.

        Raises:
          NonFinite: the loss or a gradient of a step is NaN or infinite; that step was not applied.
          Preempted: stopped by preemption, after committing a checkpoint of the last finished step.
        """
        clock, shapes = _Clock(), batch_shapes_of(self.source)  # type: ignore[arg-type]
        try:
            for step, batch, waited in feed(self.source, range(self.done, until), shapes, self.program.batch_layout):
                with contextlib.nullcontext() if self._compiled else self.hooks.stage("compiling the training step"):
                    self.state, metrics = self.program.update(self.state, self.frozen, batch)
                self._compiled = True
                in_flight = _Pending(step, metrics, waited, clock)
                self._report_pending()
                self._pending, self.done = in_flight, step + 1
                self._after_step(clock)
        finally:
            try:
                self._report_pending()  # also on an exception: the step in flight has been dispatched
            finally:
                # Finish a save in progress, except with several processes: one that fails alone would hang.
                if jax.process_count() == 1:
                    self.manager.wait_until_finished()

    def _after_step(self, clock: "_Clock") -> None:
        """Evaluate, save and stop when due."""
        at, done = self.intervals, self.done
        last = done == at.steps
        stop = self.hooks.preempted() and not last
        evaluation_due = bool(at.eval_every) and (last or done % at.eval_every == 0)
        save_due = last or bool(at.save_every and done % at.save_every == 0)
        if stop or evaluation_due or save_due:
            self._report_pending()  # detect a non-finite step before saving anything after it
        if evaluation_due and not stop:
            row = self.hooks.evaluate(self.state, done, not last)
            stop = row is None
            if row is not None:
                self.hooks.report(row)
            clock.restart()
        if stop or save_due:
            self.save()
        if stop:
            self.manager.wait_until_finished()
            raise Preempted(f"stopped after step {done} of {at.steps}; run the same command to continue")

    def evaluate_first(self) -> None:
        """Run the evaluation that was due when the run was stopped."""
        if row := self.hooks.evaluate(self.state, self.done, False):
            self.hooks.report(row)

    def save(self) -> None:
        """Start an asynchronous save unless this step is already saved; `wait` for the commit."""
        if self.saved != self.done:
            self.hooks.before_save()
            source = gather_source_state(self.source, self.done)
            checkpoint.save(self.manager, self.state, {**self.record, "source": source})
            self.saved = self.done

    def wait(self) -> None:
        """Block until the last save is committed."""
        self.manager.wait_until_finished()
        self.manager.check_for_errors()

    def _report_pending(self) -> None:
        """Read the metrics of the step in flight and report them."""
        finished, self._pending = self._pending, None
        if finished is not None:
            self.hooks.report(finished.row(self.source, self.program, self.peak_flops))


class _Clock:
    """Seconds between the ends of consecutive steps, measured on the host."""

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
    """A dispatched step whose metrics have not been read yet."""

    step: int
    metrics: Mapping[str, jax.Array]
    waited: float
    clock: _Clock

    def row(self, source: Source, program: TrainProgram, peak_flops: float | None) -> MetricsRow:
        sums = checkpoint.to_host(self.metrics)
        if not sums["finite"]:
            rows = source.rows_of(self.step)
            shown = ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
            raise NonFinite(
                f"step {self.step + 1}: loss {sums['loss_sum']}, gradient norm {sums['grad_norm']}: not finite. "
                f"The step was not applied and the run stops. Its rows: {shown}. Lower optimizer.learning_rate or "
                f"inspect these rows."
            )
        return training_row(
            sums,
            step=self.step + 1,
            step_seconds=self.clock.lap(),
            data_wait_seconds=self.waited,
            architecture=program.architecture,
            peak_flops=peak_flops,
        )
