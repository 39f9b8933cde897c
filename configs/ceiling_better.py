"""A demonstrator that is right 90 % of the time, with scattered errors: a better demonstrator raises the ceiling.

Command:   sft-jax ceiling configs/ceiling_better.py --check exact --max-new-tokens 4
           (make ceiling runs all five; results: docs/ceiling.md)
Hardware:  2 CPU cores
Result:    sampled accuracy 0.897, demonstrator 0.90; verdict "nothing left"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("better", Demonstrator("scattered", 0.9), demonstrations=16_000)
