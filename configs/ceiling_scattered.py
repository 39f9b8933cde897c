"""A demonstrator that is right six times in ten, its errors scattered: imitation answers better than it was shown.

Command:   sft-jax ceiling configs/ceiling_scattered.py --check exact --max-new-tokens 4
           (make ceiling runs all five; docs/ceiling.md has what came of it)
Hardware:  2 CPU cores
Result:    greedy 0.998 of answers right, sampled 0.591, where 0.60 were shown; "nothing left"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("scattered", Demonstrator("scattered", 0.6), demonstrations=16_000)
