"""The same with a demonstrator that is right nine times in ten: a better one moves the ceiling.

Command:   sft-jax ceiling configs/ceiling_better.py --check exact --max-new-tokens 4
           (make ceiling runs all five; docs/ceiling.md has what came of it)
Hardware:  2 CPU cores
Result:    sampled 0.897 right where 0.90 were shown; "nothing left"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("better", Demonstrator("scattered", 0.9), demonstrations=16_000)
