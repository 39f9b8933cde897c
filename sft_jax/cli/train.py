"""sft-jax train CONFIG [--section.field value ...]"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import sft_jax
from sft_jax.cli.arguments import resolve_config
from sft_jax.config import RunConfig
from sft_jax.errors import EXIT_DONE

if TYPE_CHECKING:
    from rich.console import Console

    from sft_jax.api.run import Run


USUAL = (
    "model.path", "model.dtype", "model.remat",
    "data.train", "data.eval", "data.sequence-length", "data.train-on", "data.over-length", "data.chat-template",
    "optimizer.learning-rate", "optimizer.schedule", "optimizer.warmup-ratio", "optimizer.weight-decay",
    "train.epochs", "train.steps", "train.batch-size", "train.accumulation", "train.eval-every", "train.save-every",
    "train.seed",
    "adapter.kind", "adapter.rank",
    "mesh.data", "mesh.fsdp", "mesh.tensor",
    "distributed.cpu-devices",
)  # fmt: skip
"""What `--help` shows of the sections."""


def train(arguments: Sequence[str]) -> int:
    """sft-jax train CONFIG [--section.field value ...]"""
    train_on_terminal(resolve_config(arguments, "sft-jax train", USUAL))
    return EXIT_DONE


def train_on_terminal(config: RunConfig, **options: Any) -> "Run":
    """A whole run, shown on stderr by process 0; SIGTERM or Ctrl-C saves and ends it. Returns the run, closed.

    Args:
      options: of `Run`.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    announce(console, config)
    from sft_jax.api.run import Run
    from sft_jax.cli.processes import leave
    from sft_jax.distributed.agree import is_first_process
    from sft_jax.report.terminal import Stages, TrainingProgress, rows_progress
    from sft_jax.train.preemption import watch_for_preemption

    tokenised = rows_progress(console)

    def say(text: str) -> None:
        if is_first_process():
            console.print(text, markup=False)

    def progress(rows: int) -> None:
        if is_first_process():
            tokenised(rows)

    def notice() -> None:
        say("stopping after this step, with a checkpoint (Ctrl-C again: at once, without one)")

    stages = Stages(console, is_first_process)
    preemption = partial(watch_for_preemption, notice)
    run = Run(config, say=say, stage=stages, progress=progress, preemption=preemption, exit_process=leave, **options)
    console.quiet = not is_first_process()
    with run:
        first, last = run.steps_done, run.config.train.steps
        if first < last:
            with TrainingProgress(console, first, last) as shown:
                run.fit(shown.show)
        else:
            run.fit()
    if first < last:
        console.print(f"done: {run.workdir} (metrics.jsonl, checkpoints/, report.html, handoff.json)", markup=False)
    return run


def announce(console: "Console", config: RunConfig) -> None:
    """The first line, before JAX is imported and other processes are found."""
    if config.distributed.process_id == 0 and not config.distributed.auto:
        data = ", ".join(config.data.train[:3]) + (", ..." if len(config.data.train) > 3 else "")
        console.print(f"sft-jax {sft_jax.__version__}: {config.model.path} on {data} -> {config.workdir}", markup=False)
