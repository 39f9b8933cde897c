"""A perfect demonstrator but only 16 demonstrations: limited by data.

Command:   sft-jax ceiling configs/ceiling_few.py --check exact --max-new-tokens 4
           (make ceiling runs all five; results: docs/ceiling.md)
Hardware:  2 CPU cores
Result:    greedy accuracy 0.899, demonstrator 1.00; verdict "more data"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("few", Demonstrator("scattered", 1.0), demonstrations=16, batch_size=1)
