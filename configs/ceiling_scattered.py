"""A demonstrator that is right 60 % of the time, with scattered errors: greedy decoding beats the demonstrator.

Command:   sft-jax ceiling configs/ceiling_scattered.py --check exact --max-new-tokens 4
           (make ceiling runs all five; results: docs/ceiling.md)
Hardware:  2 CPU cores
Result:    greedy accuracy 0.998, sampled 0.591, demonstrator 0.60; verdict "nothing left"
"""

from sft_jax.config import RunConfig
from sft_jax.demonstrations.skill import Demonstrator, run_config


def get_config() -> RunConfig:
    return run_config("scattered", Demonstrator("scattered", 0.6), demonstrations=16_000)
