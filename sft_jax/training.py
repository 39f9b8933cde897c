"""A whole run from its config: what `sft-jax train` does, and what other commands do several times."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.using import agree_on_options

if TYPE_CHECKING:
    import jax

    from sft_jax.config import RunConfig
    from sft_jax.model.architecture import Architecture
    from sft_jax.train.inputs import Inputs
    from sft_jax.train.step import TrainState


def run_training(config: "RunConfig") -> "tuple[Inputs, Architecture, TrainState, jax.sharding.Mesh]":
    """A whole run from its config: inputs, devices, state, loop, report. Returns what came of it.

    Raises:
      BadInput, NonFinite, Preempted: see `main` for the exit status of each.
    """
    from rich.console import Console

    from sft_jax.parallel.start import start
    from sft_jax.report.terminal import TrainingProgress, rows_progress
    from sft_jax.train.inputs import claim_workdir, read_inputs

    start(config.distributed)
    agree_on_options(config)

    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from sft_jax.data.batches import PreparedRows
    from sft_jax.parallel.agree import agreed
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import layout
    from sft_jax.plan.chips import peak_flops
    from sft_jax.report.page import REPORT, write_page
    from sft_jax.train.loop import Callables, Schedule
    from sft_jax.train.loop import train as run_loop
    from sft_jax.train.metrics import MetricsWriter, has_evaluation
    from sft_jax.train.preemption import watch_for_preemption
    from sft_jax.train.pretrained import padded
    from sft_jax.train.setup import assemble, check_layout

    first_process = jax.process_index() == 0
    console = Console(stderr=True, quiet=not first_process, soft_wrap=True, highlight=False)
    inputs = agreed(
        "data",
        lambda: read_inputs(config, first_process, rows_progress(console)),
        lambda inputs: {"steps": inputs.config.train.steps, "capacity": inputs.source.targets_per_row, **inputs.record},
        "Every process must see the same files.",
        config.distributed.timeout_seconds,
    )
    mesh = make_mesh(config.mesh)
    check_layout(inputs, mesh)
    architecture = padded(inputs.pretrained.architecture, config, mesh)
    if first_process:
        claim_workdir(inputs)
    config = inputs.config
    for note in inputs.notes:
        console.print(note)
    with layout(mesh, config.sharding), contextlib.ExitStack() as stack:
        poll = stack.enter_context(watch_for_preemption())
        assembled = assemble(inputs, mesh, poll)
        begin = int(assembled.state.step)
        if begin >= config.train.steps:
            console.print(f"{config.workdir}: already at step {begin} of {config.train.steps}; nothing to do")
            if first_process and not (Path(config.workdir) / REPORT).exists():  # a kill came right before it
                write_page(Path(config.workdir))
            return inputs, architecture, assembled.state, mesh
        if begin:
            console.print(f"continuing {config.workdir} after step {begin} of {config.train.steps}")
        source = inputs.source
        if not isinstance(source, PreparedRows):
            stack.callback(lambda: [console.print(f"streamed: {line}") for line in source.account()])
        show = stack.enter_context(TrainingProgress(console, begin, config.train.steps)).show
        writer = None
        if first_process:
            writer = MetricsWriter(config.workdir, begin, config.train.tensorboard)
            stack.callback(writer.close)

        def report(row: dict[str, Any]) -> None:
            if writer is not None:
                writer.write(row)
            show(row)

        eval_every = config.train.eval_every
        due = bool(begin and eval_every and begin % eval_every == 0)
        missed = due and first_process and not has_evaluation(config.workdir, begin)
        evaluate_first = bool(multihost_utils.broadcast_one_to_all(np.int32(missed)))
        peak = peak_flops(jax.devices()[0].device_kind)
        state = run_loop(
            assembled.state,
            assembled.frozen,
            source,
            assembled.shapes,
            assembled.shardings,
            Callables(assembled.update, assembled.evaluate, report, poll),
            Schedule(config.train.steps, eval_every, config.train.save_every, evaluate_first),
            assembled.manager,
            inputs.record,
            architecture,
            peak * jax.device_count() if peak else None,
        )
    if first_process:
        write_page(Path(config.workdir))
        console.print(f"done: {config.workdir} (metrics.jsonl, checkpoints/, report.html)")
    return inputs, architecture, state, mesh
