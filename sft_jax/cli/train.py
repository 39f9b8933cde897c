"""sft-jax train CONFIG [--section.field value ...]"""

from collections.abc import Sequence

from sft_jax.cli.arguments import resolve_config
from sft_jax.errors import EXIT_DONE
from sft_jax.training import run_training


def train(arguments: Sequence[str]) -> int:
    """sft-jax train CONFIG [--section.field value ...]"""
    run_training(resolve_config(arguments, "sft-jax train"))
    return EXIT_DONE
