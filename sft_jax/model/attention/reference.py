"""RoPE and plain attention over packed documents: what every other implementation must equal.

A query sees a key when both lie in the same segment and the key's position is not later (nor outside the window).
Positions restart with every document, so this holds for packed rows, for cached keys and for any shard of a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.model.architecture import Rope

KEPT = "attention_out"
"""Name, for remat policies, of what attention keeps for its backward pass: its output and log-sums."""

NO_SEGMENT = -1
"""Segment of what is added to a row to fill a block; no document has it."""

MASKED = -1e30
"""Finite, so that a row whose every key is hidden has a softmax without NaN."""


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


def scores_of(q_BKGTH, k_BKSH, seen_BTS, softcap) -> jax.Array:
    """Scores [B, K, G, T, S] in float32, those of hidden keys MASKED; q is scaled already."""
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=_accumulator(k_BKSH))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(seen_BTS[:, None, None], scores, MASKED)


def weighted_values(weights_BKGTS, v_BKSH) -> jax.Array:
    """Sums of values [B, K, G, T, H] in float32; the weights are rounded to the dtype of the values."""
    weights = weights_BKGTS.astype(v_BKSH.dtype)
    return jnp.einsum("BKGTS,BKSH->BKGTH", weights, v_BKSH, preferred_element_type=_accumulator(v_BKSH))


def _accumulator(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def attend_block(q_BKGTH, k_BKSH, v_BKSH, seen_BTS, softcap) -> jax.Array:
    """Softmax attention of one block of queries, in float32 from the scores on; returns [B, K, G, T, H]."""
    scores = scores_of(q_BKGTH, k_BKSH, seen_BTS, softcap)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # The sum divides the small result instead of the large weights.
    out = weighted_values(weights, v_BKSH) / weights.sum(axis=-1, keepdims=True)
    return out.astype(v_BKSH.dtype)


def join(out_BTNH, lse_BTN, other_out_BTNH, other_lse_BTN):
    """Attention over two parts of the keys -> over both; `lse` is the log of the sum of a query's weights."""
    lse = jnp.logaddexp(lse_BTN, other_lse_BTN)
    out = out_BTNH * jnp.exp(lse_BTN - lse)[..., None] + other_out_BTNH * jnp.exp(other_lse_BTN - lse)[..., None]
    return out, lse


def heads_first(q_BTNH, k_BSKH, v_BSKH):
    """(q scaled [B, K, G, T, H], k [B, K, S, H], v [B, K, S, H])."""
    batch, time, heads, head_dim = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    q = (q_BTNH * head_dim**-0.5).reshape(batch, time, k_BSKH.shape[2], groups, head_dim)
    return q.transpose(0, 2, 3, 1, 4), k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)


def heads_last(x_BKGTH: jax.Array) -> jax.Array:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    batch, kv_heads, groups, time, width = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, time, kv_heads * groups, width)


def reference(q_BTNH, k_BSKH, v_BSKH, queries: Places, keys: Places, window=None, softcap=None) -> jax.Array:
    """Plain attention with the whole score matrix; what the other implementations are tested against."""
    q, k, v = heads_first(q_BTNH, k_BSKH, v_BSKH)
    return heads_last(attend_block(q, k, v, visible(queries, keys, window), softcap))


# --- one new token a row over a cache of earlier ones ----------------------------------------------------------------


class Cache(NamedTuple):
    """Keys and values of the layers at one place of the period, in S slots; laid out as the products want it."""

    keys: jax.Array
    """[P, B, K, H, S]; without P where there is one period, and in the remainder."""
    values: jax.Array
    """[P, B, K, S, H], likewise."""


Caches = tuple[Cache, ...]
"""Of every place of the period, then of every layer of the remainder."""


class Slot(NamedTuple):
    """Where one token a row goes, and what it may see."""

    places: Places
    """[B, S]: of all slots, the new token's among them."""
    number: jax.Array
    """int32: its slot."""
    period: jax.Array | None
    """int32: whose keys and values are meant; None where the cache is of one layer."""


def over_cache(
    cache: Cache, slot: Slot, q_BTNH, k_BTKH, v_BTKH, queries: Places, window=None, softcap=None
) -> tuple[jax.Array, Cache]:
    """Attention [B, 1, N, H] of one token a row (T = 1) over its cache, and the cache with that token in it.

    The whole cache is passed through so that a loop over layers writes into it in place.
    """
    zero, s = jnp.int32(0), slot.number
    k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)
    if slot.period is None:
        keys = k_BKHS = jax.lax.dynamic_update_slice(cache.keys, k_BKHT, (zero, zero, zero, s))
        values = v_BKSH = jax.lax.dynamic_update_slice(cache.values, v_BKTH, (zero, zero, s, zero))
    else:
        i = slot.period
        keys = jax.lax.dynamic_update_slice(cache.keys, k_BKHT[None], (i, zero, zero, zero, s))
        values = jax.lax.dynamic_update_slice(cache.values, v_BKTH[None], (i, zero, zero, s, zero))
        k_BKHS = jax.lax.dynamic_index_in_dim(keys, i, keepdims=False)
        v_BKSH = jax.lax.dynamic_index_in_dim(values, i, keepdims=False)
    batch, _, heads, head_dim = q_BTNH.shape
    q_BKGH = (q_BTNH * head_dim**-0.5).reshape(batch, k_BKHS.shape[1], -1, head_dim)
    scores = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS, preferred_element_type=_accumulator(k_BKHS))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(visible(queries, slot.places, window)[:, None], scores, MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    rounded = weights.astype(v_BKSH.dtype)
    out = jnp.einsum("BKGS,BKSH->BKGH", rounded, v_BKSH, preferred_element_type=_accumulator(v_BKSH))
    out = out / weights.sum(axis=-1, keepdims=True)
    return out.reshape(batch, 1, heads, head_dim).astype(v_BKSH.dtype), Cache(keys, values)
