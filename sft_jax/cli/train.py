"""sft-jax train CONFIG [--section.field value ...]"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_jax.cli.arguments import resolve_config
from sft_jax.config import RunConfig
from sft_jax.errors import EXIT_DONE

if TYPE_CHECKING:
    from sft_jax.api.run import Run


def train(arguments: Sequence[str]) -> int:
    """sft-jax train CONFIG [--section.field value ...]"""
    train_on_terminal(resolve_config(arguments, "sft-jax train"))
    return EXIT_DONE


def train_on_terminal(config: RunConfig, **options: Any) -> "Run":
    """A whole run, shown on stderr by process 0; SIGTERM saves and ends it. Returns the run, closed.

    Args:
      options: of `Run`.
    """
    from rich.console import Console

    from sft_jax.api.run import Run
    from sft_jax.cli.processes import leave
    from sft_jax.distributed.agree import is_first_process
    from sft_jax.report.terminal import TrainingProgress, rows_progress
    from sft_jax.train.preemption import watch_for_preemption

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    tokenised = rows_progress(console)

    def say(text: str) -> None:
        if is_first_process():
            console.print(text)

    def progress(rows: int) -> None:
        if is_first_process():
            tokenised(rows)

    run = Run(config, say=say, progress=progress, preemption=watch_for_preemption, exit_process=leave, **options)
    console.quiet = not is_first_process()
    with run:
        first, last = run.steps_done, run.config.train.steps
        if first < last:
            with TrainingProgress(console, first, last) as shown:
                run.fit(shown.show)
        else:
            run.fit()
    if first < last:
        console.print(f"done: {run.workdir} (metrics.jsonl, checkpoints/, report.html, handoff.json)")
    return run
