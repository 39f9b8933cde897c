"""Measurements on an accelerator, beside the library: `sft_jax` imports none of this.

`program.py` alone calls into the library.
"""
