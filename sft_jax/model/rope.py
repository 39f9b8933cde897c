"""Rotary position embedding: angles from positions, and the rotation of queries and keys."""

import jax
import jax.numpy as jnp

from sft_jax.model.architecture import Rope
from sft_jax.model.precision import at_least_f32


def rope_frequencies(rope: Rope, head_dim: int) -> jax.Array:
    """Frequency (radians per position) of each pair of elements, float32 [H/2].

    The llama3 scaling is that of the Llama 3.1 reference (`transformers.modeling_rope_utils`): frequencies with a
    wavelength above original_positions / low_freq_factor are divided by factor, those below original_positions /
    high_freq_factor are unchanged, those in between are interpolated.
    """
    frequencies = 1.0 / rope.theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelengths = 2 * jnp.pi / frequencies
        smooth = (rope.original_positions / wavelengths - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        smooth = jnp.clip(smooth, 0.0, 1.0)
        return (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return frequencies


def rope_angles(rope: Rope, head_dim: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, H/2]."""
    angles = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(rope, head_dim)
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + H/2), the layout of Hugging Face checkpoints; computed in float32."""
    first, second = jnp.split(at_least_f32(x_BTNH), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
