"""The command line: one sub-command, one function. It composes the rooms; heavy imports wait until they are needed.

Exit status: 0 done, 1 failed, 2 bad input (one clear message), 42 preempted after a committed checkpoint.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from sft_jax.cli.processes import exit_status, leave_the_others
from sft_jax.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, BadInput, nearest

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

COMMANDS = ("train", "data", "plan", "sample", "select", "score", "evaluate", "ceiling", "export", "reward-init", "kl")
"""Each is a module of this room, with a function of the same name: (arguments) -> exit status."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    if os.getpid() == 1:  # of a container: the kernel lets no signal end it that it does not handle
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = EXIT_FAILED
    try:
        status = run_command(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        if status != EXIT_DONE:
            leave_the_others(status)
    sys.exit(status)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    return exit_status(_dispatch, arguments)


def _dispatch(arguments: Sequence[str]) -> int:
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise BadInput(f"sft-jax: unknown command {name!r}. {nearest(name, COMMANDS)}")
    module = name.replace("-", "_")  # imported when it is wanted: JAX alone takes a second
    return getattr(importlib.import_module(f"sft_jax.cli.{module}"), module)(rest)
