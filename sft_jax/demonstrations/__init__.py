"""The demonstrations that ship with sft_jax.

A few hundred conversations in one house style, small enough that a laptop CPU learns them from a 135M-parameter model
in minutes, with held-out requests that share neither wording nor values with them. `house_style` says what is taught,
`generate` writes the files, `house_assistant` serves them as a TFDS dataset.
"""

from pathlib import Path

TRAIN = Path(__file__).parent / "train.jsonl"
"""The demonstrations to train on."""

HELD_OUT = Path(__file__).parent / "held_out.jsonl"
"""The requests to measure behaviour on."""
