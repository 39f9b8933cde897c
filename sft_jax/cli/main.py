"""The command line: one sub-command, one function. It composes the rooms; heavy imports wait until they are needed.

Exit status: 0 done, 1 failed, 2 bad input (one clear message), 42 preempted after a committed checkpoint.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from sft_jax.cli import ceiling, data, evaluate, export, kl, plan, reward_init, sample, score, select, train
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

USAGE = """\
sft-jax: supervised fine-tuning in JAX

  sft-jax train CONFIG [--section.field value ...]     fine-tune; running it again continues
  sft-jax data audit|prepare|dump CONFIG [...]         what is trained and what is not; tokenise once for many runs
  sft-jax plan CONFIG --topology v5e:4x4 [--search]    what fits, what it costs, which layout: chips that are not here
  sft-jax sample MODEL --prompts F --out F             completions of prompts
  sft-jax select SAMPLES --out F --check numeric       the best completions as new demonstrations, or pairs
  sft-jax score MODEL --data F --out F                 log p of every token of examples
  sft-jax evaluate MODEL --data F [--against MODEL]    behaviour and likelihood on held-out rows, before and after
  sft-jax ceiling CONFIG                               more data, better data, a larger model, or preferences?
  sft-jax export MODEL --out DIR                       a Hugging Face directory
  sft-jax reward-init MODEL --out DIR                  a scalar head on it: where a reward model starts
  sft-jax kl MODEL --reference MODEL --data F          how far a policy has moved from its reference

MODEL is a Hugging Face directory, a .gguf file, a run's workdir (newest checkpoint), all also
at gs://bucket/path, or hf://org/name.
`sft-jax COMMAND --help` lists every option with its default.
"""


# --- dispatch ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train.train,
    "data": data.data,
    "plan": plan.plan,
    "sample": sample.sample,
    "score": score.score,
    "export": export.export,
    "evaluate": evaluate.evaluate,
    "kl": kl.kl,
    "reward-init": reward_init.reward_init,
    "select": select.select,
    "ceiling": ceiling.ceiling,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    if os.getpid() == 1:  # of a container: the kernel lets no signal end it that it does not handle
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = EXIT_FAILED
    try:
        status = run_command(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        if status != EXIT_DONE:
            _leave_the_others(status)
    sys.exit(status)


def _leave_the_others(status: int) -> None:
    """End a process of several at once: JAX's exit hook waits minutes for the others, and aborts with 134 without them.

    The others are told, and leave with the same status. An error of the runtime may come of another process's end: the
    watchdog has the time to find that out first.
    """
    start = sys.modules.get("sft_jax.distributed.start")
    if start is None or start.watch is None:
        return
    from jax.errors import JaxRuntimeError

    from sft_jax.distributed.watchdog import await_verdict, farewell

    if error := sys.exception():
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(error, JaxRuntimeError):
        await_verdict(start.watch)
    farewell(start.watch, status, f"status {status}; its console says why")
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
