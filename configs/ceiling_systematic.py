"""A demonstrator that is right six times in ten and errs the same way each time: greedy answers inherit its errors.

Command:   sft-jax ceiling configs/ceiling_systematic.py --check exact --max-new-tokens 4
           (make ceiling runs all five; docs/ceiling.md has what came of it)
Hardware:  2 CPU cores
Result:    greedy 0.497 right, sampled 0.590, best of 16 0.977, where 0.60 were shown; "preferences"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("systematic", Demonstrator("systematic", 0.6), demonstrations=16_000)
