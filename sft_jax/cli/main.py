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

  look at your data     sft-jax data audit --model.path MODEL --data.train mine.jsonl
  fine-tune a model     sft-jax train CONFIG --data.train mine.jsonl --workdir runs/mine
  try the result        sft-jax sample runs/mine --prompt "What can you do?"
  measure it            sft-jax evaluate runs/mine --data held_out.jsonl --against base
  take it elsewhere     sft-jax export runs/mine --out my-model

MODEL is a Hugging Face directory, a .gguf file or hf://org/name; CONFIG a Python file such as configs/quickstart.py.
All commands: sft-jax --help. The options of one: sft-jax train --help.
"""

USAGE = """\
usage: sft-jax COMMAND ...    the options of a command: sft-jax COMMAND --help

Before training
  data audit [CONFIG]            what trains, token by token, and what is left out
  data prepare [CONFIG] --out D  tokenise once, for many runs
  data dump [CONFIG] --out F     tokens and loss weights as JSONL
  plan CONFIG --topology v5e:4x4 memory, time and layouts on hardware you don't have
Training
  train CONFIG                   fine-tune; run it again to resume
After training
  sample MODEL --prompts F       completions of prompts
  evaluate MODEL --data F        behaviour and likelihood on held-out rows; --against another model
  score MODEL --data F           log p of every token
  export MODEL --out D           a Hugging Face directory
  ceiling CONFIG                 more data, better data, a larger model, or preferences?
Towards RLHF
  select SAMPLES --out F         the best completions as demonstrations, or pairs
  reward-init MODEL --out D      a model with a scalar head: where a reward model starts
  kl MODEL --reference MODEL     how far a policy has moved from its reference

CONFIG  a Python file with get_config() -> RunConfig, or a run's workdir
MODEL   a Hugging Face directory, a .gguf file, a run's workdir (newest checkpoint), or hf://org/name;
        all but the last also in a bucket, gs://bucket/path
Exit status: 0 done, 1 failed, 2 bad input, 42 preempted after a checkpoint (start it again).
sft-jax --version prints the versions that matter.
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
