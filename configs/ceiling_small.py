"""A perfect demonstrator, 16,000 demonstrations, and a decoder of width 4: limited by the model.

Command:   sft-jax ceiling configs/ceiling_small.py --check exact --max-new-tokens 4
           (make ceiling runs all five; results: docs/ceiling.md)
Hardware:  2 CPU cores
Result:    greedy accuracy 0.500, demonstrator 1.00; verdict "larger model"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("small", Demonstrator("scattered", 1.0), demonstrations=16_000, embed=4, layers=1, heads=1)
