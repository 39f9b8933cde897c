"""The type of an objective, and the counts that every objective reports."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from sft_jax.data.pack.batches import Batch
from sft_jax.model.architecture import Architecture

Objective = Callable[..., tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]]
"""(trainable, frozen, batch, rng) -> (loss_sum, weight_sum, metric_sums), all float32 sums, not yet normalised."""


def counts_of(architecture: Architecture, batch: Batch) -> dict[str, jax.Array]:
    """`tokens`, `target_tokens`, and for FLOP counts `pairs`: visible (query, key) pairs summed over layers, fewer in
    windowed layers."""
    filled = batch.segment_ids > 0
    pairs = jnp.zeros((), jnp.float32)
    windows = [spec.window for spec in architecture.layers]
    for window in dict.fromkeys(windows):
        seen = batch.positions + 1 if window is None else jnp.minimum(batch.positions + 1, window)
        pairs += windows.count(window) * jnp.where(filled, seen, 0).sum(dtype=jnp.float32)
    return {
        "tokens": filled.sum(dtype=jnp.float32),
        "target_tokens": (batch.target_weights > 0).sum(dtype=jnp.float32),
        "pairs": pairs,
    }
