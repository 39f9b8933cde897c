"""The KV cache, and the attention of one new token per row over it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import MASKED, TokenPositions, visible
from sft_jax.model.precision import accumulator


class Cache(NamedTuple):
    """Keys and values of one stack of layers, in S slots; dimensions ordered as the products need them."""

    keys: jax.Array
    """[P, B, K, H, S] for P stacked layers; [B, K, H, S] for a single layer."""
    values: jax.Array
    """[P, B, K, S, H] for P stacked layers; [B, K, S, H] for a single layer."""


Caches = tuple[Cache, ...]
"""One per stack of layers, in order."""


class Slot(NamedTuple):
    """Where the new token of each row is written, and what it may attend to."""

    where: TokenPositions
    """[B, S]: positions and segments of all slots, including the new token's."""
    number: jax.Array
    """int32: index of the new token's slot."""
    repeat: jax.Array | None
    """int32: index into the stacked layers; None for the cache of a single layer."""


def attend_with_cache(
    cache: Cache, slot: Slot, q_BTNH, k_BTKH, v_BTKH, queries: TokenPositions, window=None, softcap=None
) -> tuple[jax.Array, Cache]:
    """Attention [B, 1, N, H] of one token per row (T = 1) over its cache, and the updated cache.

    Takes and returns the cache of all stacked layers, so that a loop over layers updates it in place.
    """
    zero, s = jnp.int32(0), slot.number
    k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)
    if slot.repeat is None:
        keys = k_BKHS = jax.lax.dynamic_update_slice(cache.keys, k_BKHT, (zero, zero, zero, s))
        values = v_BKSH = jax.lax.dynamic_update_slice(cache.values, v_BKTH, (zero, zero, s, zero))
    else:
        i = slot.repeat
        keys = jax.lax.dynamic_update_slice(cache.keys, k_BKHT[None], (i, zero, zero, zero, s))
        values = jax.lax.dynamic_update_slice(cache.values, v_BKTH[None], (i, zero, zero, s, zero))
        k_BKHS = jax.lax.dynamic_index_in_dim(keys, i, keepdims=False)
        v_BKSH = jax.lax.dynamic_index_in_dim(values, i, keepdims=False)
    batch, _, heads, head_dim = q_BTNH.shape
    q_BKGH = (q_BTNH * head_dim**-0.5).reshape(batch, k_BKHS.shape[1], -1, head_dim)
    scores = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS, preferred_element_type=accumulator(k_BKHS))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(visible(queries, slot.where, window)[:, None], scores, MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    rounded = weights.astype(v_BKSH.dtype)
    out = jnp.einsum("BKGS,BKSH->BKGH", rounded, v_BKSH, preferred_element_type=accumulator(v_BKSH))
    out = out / weights.sum(axis=-1, keepdims=True)
    return out.reshape(batch, 1, heads, head_dim).astype(v_BKSH.dtype), Cache(keys, values)
