"""A perfect demonstrator, 16,000 demonstrations, and a decoder of four dimensions: limited by the model.

Command:   sft-jax ceiling configs/ceiling_small.py --check exact --max-new-tokens 4
           (make ceiling runs all five; docs/ceiling.md has what came of it)
Hardware:  2 CPU cores
Result:    greedy 0.500 right where all were shown; "larger model"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("small", Demonstrator("scattered", 1.0), demonstrations=16_000, embed=4, layers=1, heads=1)
