"""`python -m sft_jax` is `sft-jax`."""

from sft_jax.cli import main

main()
