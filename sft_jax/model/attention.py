"""RoPE and attention over packed documents: two implementations of one function, chosen from one table.

A query sees a key when both lie in the same segment and the key's position is not later (nor outside the window).
Positions restart with every document, so this holds for packed rows, for cached keys and for any shard of a row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.model.architecture import Rope

MASKED = -1e30
"""Finite, so that a row whose every key is hidden has a softmax without NaN."""

BLOCK = 64
"""Queries a block on a CPU: its scores stay in the cache (measured fastest of 32..256 at T = 512, H = 64)."""


def wide(x: jax.Array) -> jax.Array:
    """At least float32: what softmax, norms, angles and the loss are computed in (float64 stays, for tests)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Places(NamedTuple):
    """Where the tokens of a [B, T] array stand."""

    positions: jax.Array
    """int32 [B, T], from 0 in every document."""
    segments: jax.Array
    """int32 [B, T]; 0 is padding."""


def rope_frequencies(rope: Rope, head_dim: int) -> jax.Array:
    """Angle per position of each pair of elements, float32 [H/2].

    The llama3 scaling is that of the Llama 3.1 reference (`transformers.modeling_rope_utils`): frequencies with a
    wavelength beyond original_positions / low_freq_factor are divided by factor, those below original_positions /
    high_freq_factor stay, those between are interpolated.
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
    first, second = jnp.split(wide(x_BTNH), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)


def visible(queries: Places, keys: Places, window: int | None) -> jax.Array:
    """bool [B, T, S]: may the query see the key?"""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _attend(q_BKGTH, k_BKSH, v_BKSH, seen_BTS, softcap):
    """Softmax attention of one block of queries, in float32 from the scores on; returns [B, K, G, T, H]."""
    accumulate = jnp.promote_types(v_BKSH.dtype, jnp.float32)
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=accumulate)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen_BTS[:, None, None], scores, MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # The sum divides the small result instead of the large weights.
    out = jnp.einsum("BKGTS,BKSH->BKGTH", weights.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=accumulate)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v_BKSH.dtype)


def _heads_first(q_BTNH, k_BSKH, v_BSKH):
    batch, time, heads, head_dim = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    q = (q_BTNH * head_dim**-0.5).reshape(batch, time, k_BSKH.shape[2], groups, head_dim)
    return q.transpose(0, 2, 3, 1, 4), k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)


def reference(q_BTNH, k_BSKH, v_BSKH, queries: Places, keys: Places, window=None, softcap=None) -> jax.Array:
    """Plain attention with the whole score matrix; what the other implementations are tested against."""
    q, k, v = _heads_first(q_BTNH, k_BSKH, v_BSKH)
    out = _attend(q, k, v, visible(queries, keys, window), softcap)
    return out.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def blockwise(q_BTNH, k_BSKH, v_BSKH, queries: Places, keys: Places, window=None, softcap=None) -> jax.Array:
    """Attention in blocks of queries over the keys up to each block's end.

    Rows are laid out in order, so a key after the block is later than, or of another document than, each of its
    queries: half the work is never done. Scores are recomputed in the backward pass; none is kept.
    """
    time = q_BTNH.shape[1]
    if time != k_BSKH.shape[1]:
        return reference(q_BTNH, k_BSKH, v_BSKH, queries, keys, window, softcap)
    q, k, v = _heads_first(q_BTNH, k_BSKH, v_BSKH)

    @functools.partial(jax.checkpoint, static_argnums=(5,))
    def block(q, k, v, queries, keys, softcap):
        return _attend(q, k, v, visible(queries, keys, window), softcap)

    outs = []
    for start in range(0, time, BLOCK):
        end = min(start + BLOCK, time)
        mine = Places(queries.positions[:, start:end], queries.segments[:, start:end])
        earlier = Places(keys.positions[:, :end], keys.segments[:, :end])
        outs.append(block(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], mine, earlier, softcap))
    out = jnp.concatenate(outs, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


IMPLEMENTATIONS = {"reference": reference, "blockwise": blockwise}

BY_PLATFORM = {"cpu": "blockwise", "gpu": "reference", "tpu": "reference"}


def implementation(name: str, platform: str):
    """The attention function `model.attention` names; auto chooses by platform."""
    return IMPLEMENTATIONS[BY_PLATFORM[platform] if name == "auto" else name]
