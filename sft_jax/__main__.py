"""`python -m sft_jax` is `sft-jax`."""

from sft_jax.cli.main import main

main()
