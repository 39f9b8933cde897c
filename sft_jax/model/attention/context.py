"""Context parallelism: attention over rows sharded along T, with all-gathered keys or in a ring.

Both run inside `shard_map`, where each device holds one of `count` consecutive, equal shards of every row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sft_jax.model.attention.reference import KEPT, MASKED, TokenPositions, join


def gather_rows(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """All-gather the whole rows [B, S, ...] from shards [B, T, ...]."""
    return jax.lax.all_gather(x, axes, axis=1, tiled=True)


def ring_steps(count: int, time: int, window: int | None) -> int:
    """Number of key shards that a shard of queries can see: its own and earlier ones."""
    return count if window is None else min(count, 1 + -(-(window - 1) // time))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def ring(kernel: Any, axes: tuple[str, ...], window, softcap, q_BTNH, k_BTKH, v_BTKH, where: TokenPositions):
    """Ring attention [B, T, N, H]: keys and values rotate around the devices (Liu et al. 2023).

    No device holds more than two shards of them at a time. Partial softmaxes are combined by log-sum-exp.

    Args:
      kernel: provides `forward_part` and `backward_part` for one shard of keys; hashable.
      axes: mesh axes that shard the rows.
    """
    return _forward(kernel, axes, window, softcap, q_BTNH, k_BTKH, v_BTKH, where)[0]


def _rotate(tree, axes, count, distance=1):
    """Send everything to the device that holds the next shard."""
    to = [(i, (i + distance) % count) for i in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, to), tree)


def _forward(kernel, axes, window, softcap, q, k, v, where):
    count, number, time = jax.lax.axis_size(axes), jax.lax.axis_index(axes), q.shape[1]
    out, lse = kernel.forward_part(q, k, v, where, where, 0, window, softcap)

    def part(step, q, k, v, keys):
        return kernel.forward_part(q, k, v, where, keys, step * time, window, softcap)

    def nothing(q, *_):
        return jnp.zeros(q.shape, lse.dtype), jnp.full(q.shape[:3], MASKED, lse.dtype)

    moving = (k, v, where)
    for step in range(1, ring_steps(count, time, window)):
        moving = _rotate(moving, axes, count)
        # A shard that wraps around the ring is entirely in the queries' future.
        others = jax.lax.cond(number >= step, functools.partial(part, step), nothing, q, *moving)
        out, lse = join(out, lse, *others)
    return out.astype(q.dtype), lse


def _forward_rule(kernel, axes, window, softcap, q, k, v, where):
    out, lse = (checkpoint_name(x, KEPT) for x in _forward(kernel, axes, window, softcap, q, k, v, where))
    return out, (q, k, v, where, out, lse)


def _backward_rule(kernel, axes, window, softcap, saved, d_out):
    q, k, v, where, out, lse = saved
    count, number, time = jax.lax.axis_size(axes), jax.lax.axis_index(axes), q.shape[1]
    wide = lse.dtype

    def part(step, k, v, keys):
        found = kernel.backward_part(q, k, v, where, keys, step * time, window, softcap, lse, out, d_out)
        return tuple(x.astype(wide) for x in found)

    def nothing(k, v, keys):
        del keys
        return tuple(jnp.zeros(x.shape, wide) for x in (q, k, v))

    dq, *sums = part(0, k, v, where)
    moving = (k, v, where)
    steps = ring_steps(count, time, window)
    for step in range(1, steps):
        # The gradient sums rotate together with their keys and values.
        moving, sums = _rotate((moving, sums), axes, count)
        more = jax.lax.cond(number >= step, functools.partial(part, step), nothing, *moving)
        dq, *sums = (x + y for x, y in zip((dq, *sums), more, strict=True))
    dk, dv = _rotate(sums, axes, count, 1 - steps) if steps > 1 else sums
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring.defvjp(_forward_rule, _backward_rule)
