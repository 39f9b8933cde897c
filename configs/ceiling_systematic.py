"""A demonstrator that is right 60 % of the time, with systematic errors: greedy decoding inherits them.

Command:   sft-jax ceiling configs/ceiling_systematic.py --check exact --max-new-tokens 4
           (make ceiling runs all five; results: docs/ceiling.md)
Hardware:  2 CPU cores
Result:    greedy accuracy 0.497, sampled 0.590, best of 16 0.977, demonstrator 0.60; verdict "preferences"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("systematic", Demonstrator("systematic", 0.6), demonstrations=16_000)
