"""A training run: created from a config, stepped by hand or run to the end."""

import contextlib
import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import sft_jax
from sft_jax.api.held_out import answer_held_out
from sft_jax.api.model import Model
from sft_jax.config import RunConfig, load_config, validate, with_overrides
from sft_jax.data.chat.rendering import render_options_of
from sft_jax.data.pack.batches import PreparedRows
from sft_jax.distributed import start as starting
from sft_jax.distributed.agree import agree_on_options, agreed
from sft_jax.distributed.watchdog import ExitProcess, log_exit, wait_for_watchdog
from sft_jax.errors import BadInput
from sft_jax.handoff.artefact import describe_handoff, write_handoff
from sft_jax.parallel.mesh import make_mesh
from sft_jax.plan.chips import peak_flops
from sft_jax.report.process_log import LOG, process_log
from sft_jax.report.run import RunReport
from sft_jax.storage.location import Location
from sft_jax.train import checkpoint
from sft_jax.train.evaluation import make_held_out
from sft_jax.train.inputs import Inputs, Locate, read_inputs
from sft_jax.train.loop import Hooks, Intervals, Loop, Stage
from sft_jax.train.metrics import MetricsRow, has_evaluation
from sft_jax.train.program import TrainProgram, activations_of, make_initial_state, make_program
from sft_jax.train.sharding import batch_shapes_of, check_batch
from sft_jax.train.sinks import Sink, open_sinks
from sft_jax.train.step import TrainState
from sft_jax.train.workdir import claim_workdir
from sft_jax.weights.fingerprint import weights_fingerprint
from sft_jax.weights.pretrained import MODEL_FILES, Pretrained, check_base
from sft_jax.weights.restore import newest_step

Preemption = Callable[[], contextlib.AbstractContextManager[Callable[[], bool]]]

OnEvaluation = Callable[["Run", int], Mapping[str, Any]]
"""(run, step) -> numbers for the evaluation's row of metrics.jsonl; every process calls it."""


class Run:
    """A run in its workdir: resumes the run that started there, or starts a new one.

    Creating it reads the data, loads the model or the newest checkpoint, and writes config.json; nothing trains yet. It
    prints nothing and installs no signal handlers; callers pass in what they want of that.
    """

    def __init__(
        self,
        config: RunConfig | str | Path,
        *,
        say: Callable[[str], None] = lambda text: None,
        stage: Stage = lambda what: contextlib.nullcontext(),
        progress: Callable[[int], None] | None = None,
        preemption: Preemption | None = None,
        exit_process: ExitProcess = log_exit,
        on_evaluation: Sequence[OnEvaluation] = (),
        locate: Locate = Location,
        **overrides: Any,
    ):
        """
        Args:
          config: a config, a config file, or a run's config.json.
          say: takes lines about the run: the model and its devices, counts of the data, what is resumed.
          stage: told of what takes long: a context around reading, loading and compiling.
          progress: takes the number of rows tokenised so far.
          preemption: `train.preemption.watch_for_preemption`, or another context that gives a poll: every process asks
            it once per step and evaluation batch, and True saves and raises Preempted.
          exit_process: called to end this process when another process of the run is lost.
          on_evaluation: what else is measured at each evaluation.
          locate: gives the same Location for a name again where several runs share what they copy from a bucket.
          overrides: dotted names of fields, `**{"optimizer.learning_rate": 1e-4}`.

        Raises:
          BadInput: anything wrong with the config, the model, the data, the layout or the workdir.
        """
        config = with_overrides(config if isinstance(config, RunConfig) else load_config(config), overrides)
        validate(config)
        starting.start(config.distributed, exit_process)
        agree_on_options(config)
        self.workdir = Location(config.workdir)
        """As the config names it; `workdir.local()` is the directory, or the copy of a bucket's."""
        self._on_row: Callable[[MetricsRow], None] = lambda row: None
        with contextlib.ExitStack() as stack:  # closes what is open where the rest cannot be opened
            stack.callback(self.workdir.discard_copy)
            self._open(stack, config, say, stage, progress, preemption, on_evaluation, locate)
            self._stack = stack.pop_all()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """As resolved: with steps, target capacity and the template's date written in."""
        return self.inputs.config

    @property
    def steps_done(self) -> int:
        """Batches consumed."""
        return self._loop.done

    @property
    def state(self) -> TrainState:
        """Counters, trainable parameters and optimizer state; the next step donates it."""
        return self._loop.state

    @property
    def model(self) -> Model:
        """The model with the live parameters: it changes with every step."""
        compute = dataclasses.replace(self.program.compute, remat="none")
        pretrained = dataclasses.replace(self.inputs.pretrained, data=self.config.data)
        return Model(pretrained, self.program.architecture, self._parameters, compute)

    def _parameters(self) -> dict[str, jax.Array]:
        return {**self._loop.state.trainable, **self._loop.frozen}

    # --- what it does -------------------------------------------------------------------------------------------------

    def step(self, n: int = 1) -> list[MetricsRow]:
        """Take `n` steps, or as many as are left, and return their rows of metrics.jsonl.

        Evaluations and checkpoints happen when due, as in `fit`.

        Raises:
          NonFinite, Preempted: as `fit`.
        """
        rows: list[MetricsRow] = []
        self._go_on(min(self.steps_done + n, self.config.train.steps), rows.append)
        return rows

    def fit(self, on_row: Callable[[MetricsRow], None] = lambda row: None) -> Model:
        """Train to the end; then write handoff.json, which the RL stage starts from, and report.html.

        Args:
          on_row: called with every row of metrics.jsonl as it is written.

        Raises:
          NonFinite: the loss or a gradient of a step is NaN or infinite; that step changed nothing.
          Preempted: the run was told to stop, and a checkpoint is committed.
        """
        if self.steps_done < self.config.train.steps:
            self._go_on(self.config.train.steps, on_row)
            self._loop.wait()
        self._finish()
        return self.model

    def evaluate(self) -> MetricsRow:
        """Compute the held-out metrics now; they are returned, not logged.

        Raises:
          BadInput: the config names no held-out rows.
        """
        if self._held_out is None:
            raise BadInput("data.eval is empty: name held-out files to evaluate on")
        row = self._evaluate(self.state, self.steps_done, False)
        assert row is not None
        return row

    def save(self) -> None:
        """Save a checkpoint of the current state; returns once it is committed."""
        self._loop.save()
        self._loop.wait()

    def close(self) -> None:
        """Wait for pending saves, and close the files. A run that is never closed ends with the process."""
        self._stack.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}: step {self.steps_done} of {self.config.train.steps})"

    # --- how it is made -----------------------------------------------------------------------------------------------

    def _open(
        self, stack: contextlib.ExitStack, config, say, stage, progress, preemption, on_evaluation, locate
    ) -> None:
        is_first = jax.process_index() == 0
        with stage("reading the data"):
            self.inputs = _read(config, self.workdir, progress, locate)
        mesh = make_mesh(config.mesh)
        self.program = _checked_program(self.inputs, mesh)
        if is_first:
            claim_workdir(self.inputs)
        config = self.config
        stack.enter_context(self.workdir.publishing())
        path = self.workdir.local_file(LOG.format(jax.process_index()))
        log = stack.enter_context(process_log(path, is_ephemeral=self.workdir.is_remote))
        stack.push(_verdict_before_the_log_closes)
        if starting.watch is not None:
            starting.watch.before_exit = self.workdir.publish_results

        def tell(text: str) -> None:
            say(text)
            log.info("%s", text)

        log.info("%s", where_it_runs())
        for note in self.inputs.notes:
            tell(note)
        tell(_what_trains(self.program, self.inputs.pretrained, config, mesh))
        preempted = stack.enter_context(preemption()) if preemption else lambda: False
        manager = checkpoint.open_checkpoints(self.workdir, config.train.keep_last, config.train.keep_every)
        resumed = newest_step(manager)
        with stage("loading the weights" if resumed is None else f"restoring the checkpoint of step {resumed}"):
            state, frozen, base = _initial(self.inputs, self.program, manager, resumed)
        self._held_out = None
        if self.inputs.evaluation is not None:
            self._held_out = make_held_out(self.inputs.evaluation, config, self.program, frozen, preempted)
        begin, steps = int(state.step), config.train.steps
        self._sinks: list[Sink] = []
        if is_first:
            folder = self.workdir.local()
            self._report_page = RunReport(folder)
            sinks = open_sinks(folder, begin, config.train.tensorboard, config.train.sinks)
            self._sinks = [*sinks, self._report_page]
            for sink in self._sinks:
                stack.callback(sink.close)
        intervals = Intervals(steps, config.train.eval_every, config.train.save_every)
        hooks = Hooks(self._report, self._evaluate, preempted, self.workdir.publish_results, stage)
        record = {**self.inputs.record, **base}
        self._loop = Loop(self.program, state, frozen, self.inputs.source, manager, record, intervals, hooks)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._loop.peak_flops = peak * jax.device_count() if peak else None
        if begin >= steps:
            tell(f"{self.workdir}: already at step {begin} of {steps}; nothing to do")
        elif begin:
            tell(f"continuing {self.workdir} after step {begin} of {steps}")
        answers = (answer_held_out(self),) if config.train.eval_samples else ()
        self._on_evaluation: tuple[OnEvaluation, ...] = (*on_evaluation, *answers)
        self._missed_evaluation = begin < steps and self._missed(begin, is_first)
        source = self.inputs.source
        if not isinstance(source, PreparedRows):
            stack.callback(source.close)
            stack.callback(lambda: [tell(f"streamed: {line}") for line in source.account()])

    def _missed(self, begin: int, is_first: bool) -> bool:
        """Whether the run was stopped at a step before the evaluation that was due there."""
        every = self.config.train.eval_every
        due = bool(begin and every and begin % every == 0)
        missed = due and is_first and not has_evaluation(self.workdir.local(), begin)
        return bool(multihost_utils.broadcast_one_to_all(np.int32(missed)))

    def _go_on(self, until: int, on_row: Callable[[MetricsRow], None]) -> None:
        self._on_row = on_row
        try:
            if self._missed_evaluation:
                self._missed_evaluation = False
                self._loop.evaluate_first()
            self._loop.run(until)
        finally:
            self._on_row = lambda row: None

    def _report(self, row: MetricsRow) -> None:
        for sink in self._sinks:
            sink.write(row)
        self._on_row(row)

    def _evaluate(self, state: TrainState, step: int, may_abort: bool) -> MetricsRow | None:
        assert self._held_out is not None, "validate refuses eval_every without data.eval"
        row = self._held_out(state, step, may_abort)
        if row is not None:
            for measure in self._on_evaluation:
                row.update(measure(self, step))
        return row

    def _finish(self) -> None:
        """handoff.json and report.html; every process takes part."""
        fingerprint = weights_fingerprint(self._parameters())
        if jax.process_index() == 0:
            pretrained, folder = self.inputs.pretrained, self.workdir.local()
            policy, rendering = f"checkpoints/{self.steps_done}", render_options_of(self.config.data)
            about = describe_handoff(
                pretrained.tokenizer, pretrained.stop_ids, fingerprint, policy, MODEL_FILES, rendering
            )
            write_handoff(folder, about)
            self._report_page.wait()
            self._report_page.write_now()


def _verdict_before_the_log_closes(kind: Any, error: BaseException | None, trace: Any) -> None:
    """Lets the log name the process that was lost, not only the collective that failed."""
    if starting.watch is not None and error is not None:
        wait_for_watchdog(starting.watch, error)


def _read(config: RunConfig, workdir: Location, progress: Any, locate: Locate) -> Inputs:
    """The same inputs on every process, or the same error."""
    return agreed(
        "data",
        lambda: read_inputs(config, workdir, progress, locate),
        lambda inputs: {"steps": inputs.config.train.steps, "capacity": inputs.source.targets_per_row, **inputs.record},
        "Every process must see the same files.",
        config.distributed.timeout_seconds,
    )


def _checked_program(inputs: Inputs, mesh: jax.sharding.Mesh) -> TrainProgram:
    """The run's programs. A layout that does not fit is refused before anything is written or any weight is read.

    Raises:
      BadInput: a parameter, batch or activation that the mesh does not divide, or whose axes collide.
    """
    config, shapes = inputs.config, batch_shapes_of(inputs.source)
    program = make_program(config, inputs.pretrained.architecture, shapes, mesh)
    activations_of(program.objective, {**program.state.trainable, **program.frozen}, shapes)
    if inputs.evaluation is not None:
        check_batch(config, batch_shapes_of(inputs.evaluation), mesh)
    return program


def _initial(inputs: Inputs, program: TrainProgram, manager: Any, step: int | None) -> tuple[TrainState, dict, dict]:
    """(state, frozen parameters, their entry in the record), from the checkpoint of `step` or the pretrained weights.

    Raises:
      BadInput: a checkpoint or weights that do not fit, or a base other than the one the run started from.
    """
    architecture = program.architecture
    wanted = dict(program.frozen_layout) if step is not None else program.parameter_layout
    loaded = inputs.pretrained.load(architecture, wanted) if wanted else {}
    frozen = {name: loaded[name] for name in program.frozen}
    path = inputs.config.model.path
    base = {"base": {"path": path, "fingerprint": weights_fingerprint(frozen)}} if frozen else {}
    if step is None:
        trainable = {name: loaded[name] for name in program.state.trainable}
        return make_initial_state(program)(trainable), frozen, base
    state, record = checkpoint.restore(manager, step, program.state, program.state_layout, architecture.vocab)
    if base:
        check_base(inputs.config.workdir, path, record, frozen)
    if not isinstance(inputs.source, PreparedRows):
        inputs.source.restore(record["source"], step)
    return state, frozen, base


def _what_trains(program: TrainProgram, pretrained: Pretrained, config: RunConfig, mesh: jax.sharding.Mesh) -> str:
    """One line: the model, its size and dtype, the devices and their mesh, the workdir."""
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.state.trainable))
    frozen = sum(leaf.size for leaf in jax.tree.leaves(program.frozen))
    size = f"{(trained + frozen) / 1e6:,.1f} M parameters" + (f", {trained / 1e6:,.2f} M trained" if frozen else "")
    axes = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1) or "one device"
    device = jax.devices()[0].device_kind
    return (
        f"model: {pretrained.origin}, {size}, {config.model.dtype}; devices: {jax.device_count()} x {device} "
        f"({axes}); workdir: {config.workdir}"
    )


def where_it_runs() -> str:
    """One line about this process, its machine and its devices."""
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return (
        f"sft_jax {sft_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}: process "
        f"{jax.process_index()} of {jax.process_count()} on {platform.node()} (pid {os.getpid()}), "
        f"{jax.local_device_count()} of {jax.device_count()} devices: {', '.join(kinds)}"
    )
