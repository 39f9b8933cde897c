"""The demonstrations that ship with sft_jax.

A few hundred conversations in one house style, small enough to fine-tune a 135M-parameter model on a laptop CPU in
minutes, with held-out requests that share neither wording nor values with them. `house_style` defines the style,
`generate` writes the files, and `house_assistant` serves them as a TFDS dataset.
"""

from pathlib import Path

TRAIN = Path(__file__).parent / "train.jsonl"
"""The demonstrations to train on."""

HELD_OUT = Path(__file__).parent / "held_out.jsonl"
"""The requests to measure behaviour on."""
