"""Attention in plain XLA, in blocks of queries: materialises scores of one block at a time and saves none of them.

Used on CPUs, and for anything that a platform's kernels do not support. Masks are computed from positions and segments,
so queries and keys may be any parts of a row.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sft_jax.model.attention.reference import (
    KEPT,
    MASKED,
    NO_SEGMENT,
    TokenPositions,
    attend_block,
    heads_first,
    heads_last,
    join,
    scores_of,
    visible,
    weighted_values,
)
from sft_jax.model.precision import at_least_f32

BLOCK = 64
"""Queries per block on a CPU: the scores fit in cache (fastest of 32..256, measured at T = 512, H = 64)."""

PART = 4096
"""Keys that a block of queries attends to at once; longer rows are processed in parts, combined by log-sum-exp."""

MAX_STRETCHES = 32
"""Maximum number of stretches of a row; each is compiled separately and sees no key after its end. In longer rows a
stretch has several blocks, so compile time does not grow and at most 1/32 of the work is wasted."""


def _over_blocks(one, q_BKGTH, queries: TokenPositions, *others):
    """Map `one(q, queries, *others)` over blocks of queries and concatenate along T; `others` are [B, K, G, T, ...].

    Only the arguments are saved for the backward pass.
    """
    one = jax.checkpoint(one)
    time = q_BKGTH.shape[3]
    if time <= BLOCK or time % BLOCK:
        return one(q_BKGTH, queries, *others)

    def blocks(x, axis):
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, BLOCK, *x.shape[axis + 1 :]), axis, 0)

    of_heads = tuple(blocks(x, 3) for x in (q_BKGTH, *others))
    of_rows = TokenPositions(*(blocks(x, 1) for x in queries))
    made = jax.lax.map(lambda block: one(block[0][0], block[1], *block[0][1:]), (of_heads, of_rows))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], time, *x.shape[5:]), made)


def blockwise(
    q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, window=None, softcap=None
) -> jax.Array:
    """Attention [B, T, N, H] in blocks of queries; scores are recomputed in the backward pass.

    With as many keys as queries they are the same tokens in order: a key after a stretch of queries is in the future
    or in another document for all of them, so half of the work is skipped.
    """
    if k_BSKH.shape[1] > PART:
        return _in_parts(window, softcap, q_BTNH, k_BSKH, v_BSKH, queries, keys)
    q, k, v = heads_first(q_BTNH, k_BSKH, v_BSKH)
    time = q.shape[3]

    def one(q, queries, k, v, keys):
        return attend_block(q, k, v, visible(queries, keys, window), softcap)

    stretch = BLOCK * max(1, -(-time // (BLOCK * MAX_STRETCHES)))
    outs = []
    for start in range(0, time, stretch):
        end = min(start + stretch, time)
        seen = end if time == k.shape[2] else k.shape[2]
        mine = TokenPositions(*(x[:, start:end] for x in queries))
        earlier = TokenPositions(*(x[:, :seen] for x in keys))
        against = functools.partial(one, k=k[:, :, :seen], v=v[:, :, :seen], keys=earlier)
        outs.append(_over_blocks(against, q[:, :, :, start:end], mine))
    return heads_last(jnp.concatenate(outs, axis=3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_parts(window, softcap, q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions) -> jax.Array:
    """Attention over many keys, part by part (Dao et al. 2022, FlashAttention); fully masked parts are skipped."""
    return _in_parts_forward(window, softcap, q_BTNH, k_BSKH, v_BSKH, queries, keys)[0]


def _parts(tree):
    """Arrays [B, S, ...] -> [parts, B, PART, ...]; padding belongs to no document."""

    def split(x):
        fill = NO_SEGMENT if x.dtype == jnp.int32 else 0
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % PART)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, PART, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _in_parts_forward(window, softcap, q, k, v, queries, keys):
    def add(known, part):
        some_k, some_v, some = part
        out, lse = forward_part(q, some_k, some_v, queries, some, 0, window, softcap)
        return join(known[0], known[1], out, lse), None

    wide_dtype = jnp.promote_types(q.dtype, jnp.float32)
    nothing = jnp.zeros(q.shape, wide_dtype), jnp.full(q.shape[:3], MASKED, wide_dtype)
    (out, lse), _ = jax.lax.scan(add, nothing, _parts((k, v, keys)))
    out, lse = checkpoint_name(out.astype(q.dtype), KEPT), checkpoint_name(lse, KEPT)
    return out, (q, k, v, queries, keys, out, lse)


def _in_parts_backward(window, softcap, saved, d_out):
    q, k, v, queries, keys, out, lse = saved

    def add(dq, part):
        some_k, some_v, some = part
        more, *rest = backward_part(q, some_k, some_v, queries, some, 0, window, softcap, lse, out, d_out)
        return dq + more.astype(dq.dtype), rest

    dq, sums = jax.lax.scan(add, jnp.zeros(q.shape, lse.dtype), _parts((k, v, keys)))

    def whole(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : k.shape[1]]

    dk, dv = (whole(x) for x in sums)
    return dq.astype(q.dtype), dk, dv, None, None


_in_parts.defvjp(_in_parts_forward, _in_parts_backward)


def forward_part(
    q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, offset=0, window=None, softcap=None
):
    """Attention over a part of a row's keys: (out [B, T, N, H], log-sum-exp [B, T, N]), float32.

    Args:
      offset: position of the first query minus that of the first key in the row; unused here, where masks come from
        positions.
    """
    del offset
    q, k, v = heads_first(q_BTNH, k_BSKH, v_BSKH)

    def seeing(q, seen):
        scores = scores_of(q, k, seen, softcap)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        return weighted_values(weights, v) / total, top + jnp.log(total)

    def blind(q, seen):
        del seen
        return jnp.zeros_like(at_least_f32(q)), jnp.full((*q.shape[:-1], 1), MASKED, at_least_f32(q).dtype)

    def one(q, queries):
        seen = visible(queries, keys, window)
        return jax.lax.cond(seen.any(), seeing, blind, q, seen)

    out, lse = _over_blocks(one, q, queries)
    return heads_last(out), heads_last(lse)[..., 0]


def backward_part(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    queries: TokenPositions,
    keys: TokenPositions,
    offset,
    window,
    softcap,
    lse_BTN,
    out_BTNH,
    d_out_BTNH,
):
    """Gradients (dq, dk, dv) for a part of the keys, given the output and log-sum-exp over all of them.

    With P = exp(S - lse) and delta = sum(out * d_out), dS = P * (d_out . V - delta) and dV = P^T d_out (Dao et al.
    2022, FlashAttention, appendix B.4): the gradient of sum(P * (d_out . V - delta)) with all but S and V fixed.
    """
    del offset

    def fixed(q, k, v):
        q, k, v = heads_first(q, k, v)

        def grouped(x_BTNH):
            return x_BTNH.reshape(*x_BTNH.shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)

        def seeing(q, seen, d_out, lse, delta):
            weights = jnp.exp(scores_of(q, k, seen, softcap) - lse)
            pull = jnp.einsum("BKGTH,BKSH->BKGTS", d_out.astype(v.dtype), v, preferred_element_type=weights.dtype)
            return (weights * (pull - delta)).sum(axis=-1, keepdims=True)

        def one(q, queries, d_out, lse, delta):
            seen = visible(queries, keys, window)
            return jax.lax.cond(seen.any(), seeing, lambda *_: jnp.zeros_like(lse), q, seen, d_out, lse, delta)

        delta = (at_least_f32(out_BTNH) * at_least_f32(d_out_BTNH)).sum(axis=-1, keepdims=True)
        return _over_blocks(one, q, queries, grouped(d_out_BTNH), grouped(lse_BTN[..., None]), grouped(delta)).sum()

    return jax.grad(fixed, (0, 1, 2))(q_BTNH, k_BSKH, v_BSKH)
