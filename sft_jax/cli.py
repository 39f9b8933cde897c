"""The command line: one sub-command, one function. It composes the rooms; heavy imports wait until they are needed.

Exit status: 0 done, 1 failed, 2 bad input (one clear message), 42 preempted after a committed checkpoint.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax import commands, data_commands, plan_commands
from sft_jax.arguments import resolve_config
from sft_jax.commands import agree_on_options
from sft_jax.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_PREEMPTED,
    BadInput,
    NonFinite,
    Preempted,
    nearest,
)

if TYPE_CHECKING:
    import jax

    from sft_jax.config import RunConfig
    from sft_jax.model.architecture import Architecture
    from sft_jax.train.inputs import Inputs
    from sft_jax.train.step import TrainState

LAST_TO_LEAVE_SECONDS = 3.0
"""How long a failed process 0 stays for the others; see `_leave_the_others`."""

USAGE = """\
sft-jax: supervised fine-tuning in JAX

  sft-jax train CONFIG [--section.field value ...]     fine-tune; running it again continues
  sft-jax data audit|prepare|dump CONFIG [...]         what is trained and what is not; tokenise once for many runs
  sft-jax plan CONFIG --show sharding|memory           how it lies on a mesh, also on TPUs that are not here
  sft-jax sample MODEL --prompts F --out F             completions of prompts
  sft-jax score MODEL --data F --out F                 log p of every token of examples
  sft-jax export MODEL --out DIR                       a Hugging Face directory

MODEL is a Hugging Face directory, a .gguf file, a run's workdir (newest checkpoint), or hf://org/name.
`sft-jax COMMAND --help` lists every option with its default.
"""


def train(arguments: Sequence[str]) -> int:
    """sft-jax train CONFIG [--section.field value ...]"""
    run_training(resolve_config(arguments, "sft-jax train"))
    return EXIT_DONE


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


# --- dispatch ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "data": data_commands.data,
    "plan": plan_commands.plan,
    "sample": commands.sample,
    "score": commands.score,
    "export": commands.export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    status = EXIT_FAILED
    try:
        status = run_command(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        if status in (EXIT_FAILED, EXIT_BAD_INPUT):
            _leave_the_others(status)
    sys.exit(status)


def _leave_the_others(status: int) -> None:
    """End a failed process of several at once: JAX's exit hook waits minutes for the others, and aborts with 134."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    if error := sys.exception():
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        # Process 0 serves the others; where all fail alike, they shall end with their own status first.
        time.sleep(LAST_TO_LEAVE_SECONDS)
    os._exit(status)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    return exit_status(_dispatch, arguments)


def _dispatch(arguments: Sequence[str]) -> int:
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise BadInput(f"sft-jax: unknown command {name!r}. {nearest(name, tuple(COMMANDS))}")
    return COMMANDS[name](rest)


def exit_status(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run `command`; an expected failure becomes one message on stderr and its status."""
    try:
        return command(arguments)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except NonFinite as error:
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Preempted as error:
        print(f"preempted: {error}", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_FAILED
