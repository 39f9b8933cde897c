"""Reference attention over packed documents, which every other implementation must match.

A query sees a key if both are in the same segment and the key is not later (nor outside the window). Positions restart
with every document, so this holds for packed rows, for cached keys and for any shard of a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.model.precision import accumulator

KEPT = "attention_out"
"""Checkpoint name of attention's residuals, its output and log-sum-exp, for remat policies."""

NO_SEGMENT = -1
"""Segment id of padding that fills a block; no document has it."""

MASKED = -1e30
"""Finite, so that the softmax of a fully masked row has no NaN."""


class TokenPositions(NamedTuple):
    """Position and segment of each token of a [B, T] array."""

    positions: jax.Array
    """int32 [B, T], counting from 0 in every document."""
    segments: jax.Array
    """int32 [B, T]; 0 is padding."""


def visible(queries: TokenPositions, keys: TokenPositions, window: int | None) -> jax.Array:
    """bool [B, T, S]: whether the query may attend to the key."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def scores_of(q_BKGTH, k_BKSH, seen_BTS, softcap) -> jax.Array:
    """Scores [B, K, G, T, S] in float32, MASKED for hidden keys; q is already scaled."""
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=accumulator(k_BKSH))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(seen_BTS[:, None, None], scores, MASKED)


def weighted_values(weights_BKGTS, v_BKSH) -> jax.Array:
    """Weighted sums of values [B, K, G, T, H] in float32; weights are cast to the dtype of the values."""
    weights = weights_BKGTS.astype(v_BKSH.dtype)
    return jnp.einsum("BKGTS,BKSH->BKGTH", weights, v_BKSH, preferred_element_type=accumulator(v_BKSH))


def attend_block(q_BKGTH, k_BKSH, v_BKSH, seen_BTS, softcap) -> jax.Array:
    """Softmax attention of one block of queries, in float32 from the scores on; returns [B, K, G, T, H]."""
    scores = scores_of(q_BKGTH, k_BKSH, seen_BTS, softcap)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Normalise the small output instead of the large weights.
    out = weighted_values(weights, v_BKSH) / weights.sum(axis=-1, keepdims=True)
    return out.astype(v_BKSH.dtype)


def join(out_BTNH, lse_BTN, other_out_BTNH, other_lse_BTN):
    """Combine attention over two parts of the keys; `lse` is the log-sum-exp of a query's scores."""
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


def reference(
    q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, window=None, softcap=None
) -> jax.Array:
    """Attention with the full score matrix; the other implementations are tested against it."""
    q, k, v = heads_first(q_BTNH, k_BSKH, v_BSKH)
    return heads_last(attend_block(q, k, v, visible(queries, keys, window), softcap))
