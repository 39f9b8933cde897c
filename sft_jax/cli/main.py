"""The command line: one sub-command, one function. Heavy imports wait until they are needed.

Exit status: 0 done, 1 failed, 2 bad input (one clear message), 42 preempted after a committed checkpoint.
"""

import importlib
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence

import sft_jax
from sft_jax.cli.processes import exit_status, leave_the_others
from sft_jax.errors import EXIT_DONE, EXIT_FAILED, BadInput, nearest

WELCOME = """\
sft-jax: supervised fine-tuning in JAX

  check data    sft-jax data audit --model.path MODEL --data.train mine.jsonl
  fine-tune     sft-jax train CONFIG --data.train mine.jsonl --workdir runs/mine
  try it        sft-jax sample runs/mine --prompt "What can you do?"
  measure it    sft-jax evaluate runs/mine --data held_out.jsonl --against base
  take it along sft-jax export runs/mine --out my-model

MODEL   a Hugging Face directory, a .gguf file, or hf://org/name
CONFIG  a Python file such as configs/quickstart.py
All commands: sft-jax --help    Options of a command: sft-jax train --help
"""

USAGE = """\
usage: sft-jax COMMAND ...

Before training
  data audit                what trains, what is left out, what looks wrong
  data prepare              tokenise once, for many runs
  data dump                 tokens and loss weights as JSONL
  plan                      memory, time, layouts on hardware you don't have
Training
  train                     fine-tune; run it again to resume
After training
  sample                    completions of prompts
  evaluate                  behaviour and likelihood on held-out rows
  score                     log p of every token
  export                    a Hugging Face directory
  ceiling                   more data, better data, a larger model, preferences?
Towards RLHF
  select                    the best completions as demonstrations, or pairs
  reward-init               a scalar head: where a reward model starts
  kl                        how far a policy has moved from its reference

Options of a command: sft-jax COMMAND --help      Versions: sft-jax --version
Exit status: 0 done, 1 failed, 2 bad input, 42 preempted (start it again)
"""

COMMANDS = ("train", "data", "plan", "sample", "select", "score", "evaluate", "ceiling", "export", "reward-init", "kl")
"""Each is a module of this room, with a function of the same name: (arguments) -> exit status."""
MEANT = {
    **dict.fromkeys(("sft", "finetune", "fine-tune", "fit", "run", "resume"), "train"),
    **dict.fromkeys(("generate", "predict", "infer", "inference", "complete", "chat"), "sample"),
    **dict.fromkeys(("eval", "test", "benchmark", "measure", "compare"), "evaluate"),
    **dict.fromkeys(("convert", "save", "merge"), "export"),
    **dict.fromkeys(("audit", "prepare", "dump"), "data"),
    **dict.fromkeys(("estimate", "memory"), "plan"),
}
"""What other tools call our commands."""


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
    if not arguments:
        print(WELCOME, end="")
        return EXIT_DONE
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return EXIT_DONE
    if arguments[0] in ("-V", "--version", "version"):
        print(versions())
        return EXIT_DONE
    return exit_status(_dispatch, arguments)


def versions() -> str:
    """`sft-jax 0.1.0 (jax 0.10.2, flax 0.12.8, …, Python 3.11.7)`."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax", "orbax-checkpoint")]
    return f"sft-jax {sft_jax.__version__} ({', '.join(packages)}, Python {platform.python_version()})"


def _dispatch(arguments: Sequence[str]) -> int:
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        meant = MEANT.get(name)
        hint = f"Here it is sft-jax {meant}." if meant else nearest(name, COMMANDS)
        raise BadInput(f"sft-jax: unknown command {name!r}. {hint}")
    module = name.replace("-", "_")  # imported when it is wanted: JAX alone takes a second
    return getattr(importlib.import_module(f"sft_jax.cli.{module}"), module)(rest)
