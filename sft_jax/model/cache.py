"""Keys and values of earlier tokens, and the attention of one new token per row over them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import MASKED, TokenPositions, visible
from sft_jax.model.precision import accumulator


class Cache(NamedTuple):
    """Keys and values of the layers at one place of a group, in S slots; laid out as the products want it."""

    keys: jax.Array
    """[P, B, K, H, S] of P stacked layers; without P of a layer that stands alone."""
    values: jax.Array
    """[P, B, K, S, H], likewise."""


Caches = tuple[Cache, ...]
"""Of every place of every group, in order."""


class Slot(NamedTuple):
    """Where one token per row goes, and what it may see."""

    where: TokenPositions
    """[B, S]: of all slots, the new token's among them."""
    number: jax.Array
    """int32: its slot."""
    repeat: jax.Array | None
    """int32: which of the stacked layers is meant; None where the cache is of one layer."""


def over_cache(
    cache: Cache, slot: Slot, q_BTNH, k_BTKH, v_BTKH, queries: TokenPositions, window=None, softcap=None
) -> tuple[jax.Array, Cache]:
    """Attention [B, 1, N, H] of one token per row (T = 1) over its cache, and the cache with that token in it.

    The whole cache is passed through so that a loop over layers writes into it in place.
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
