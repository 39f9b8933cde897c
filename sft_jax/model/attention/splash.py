"""Attention on TPUs: JAX's splash kernel (Pallas) with the interface of `attention.reference`.

The kernel skips blocks hidden by the causal mask or the window, takes segment ids, and reads each key head once for
the query heads that share it. Its masks use indices in the row, which within a document have the order of positions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from sft_jax.errors import BadInput
from sft_jax.model.attention.reference import KEPT, NO_SEGMENT, TokenPositions


class Kernels(NamedTuple):
    """Attention over whole rows, and over parts of rows that are combined later (`context.ring`)."""

    whole: Callable[..., jax.Array]
    forward_part: Callable[..., Any]
    backward_part: Callable[..., Any]


@functools.cache
def for_platform(platform: str) -> Kernels:
    """The kernel compiled for a TPU; on other platforms, used by tests, it is interpreted."""
    interpret = platform != "tpu"
    functions: Any = (functools.partial(one, interpret) for one in (splash, forward_part, backward_part))
    return Kernels(*functions)


LANES = 128
"""Lengths are padded to a multiple of this, the width of a vector register."""

BLOCKS = (512, 256, 128)
"""Candidate block sizes; the first that divides the length is used."""


def splash(
    interpret: bool, q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, window=None, softcap=None,
    shard=None,
) -> jax.Array:  # fmt: skip
    """Attention [B, T, N, H] of consecutive tokens.

    Args:
      shard: (number, count) if the queries are shard `number` (may be traced) of `count` equal shards of the row; None
        if they are the whole row.

    Raises:
      BadInput: the shard length is not a multiple of LANES.
    """
    time, seen = q_BTNH.shape[1], k_BSKH.shape[1]
    number, count = shard or (0, 1)
    if time * count != seen:
        raise ValueError(f"splash attends within one row: expected {seen} queries, found {time} x {count}")
    if count > 1 and time % LANES:
        raise BadInput(
            f"rows of {seen} tokens over {count} devices give shards of {time} tokens, but the splash kernel needs "
            f"a multiple of {LANES}. Set data.sequence_length to a multiple of {LANES * count}, or "
            "model.context_attention ring, or model.attention blockwise."
        )
    q, k, v, ids = _prepare(q_BTNH, k_BSKH, v_BSKH, queries, keys)
    kernel = _kernel(interpret, q.shape[1], q.shape[2] * count, k.shape[2], 0, window, softcap, count)
    if count > 1:
        kernel = _of_shard(kernel, number, count)
    out: Any = jax.vmap(kernel)(q, k, v, ids)
    return out.swapaxes(1, 2)[:, :time]


def forward_part(interpret: bool, q_BTNH, k_BSKH, v_BSKH, queries, keys, offset, window=None, softcap=None):
    """As `blockwise.forward_part`; `offset` is the first query's index minus the first key's in the row."""
    time = q_BTNH.shape[1]
    q, k, v, ids = _prepare(q_BTNH, k_BSKH, v_BSKH, queries, keys)
    kernel = _kernel(interpret, q.shape[1], q.shape[2], k.shape[2], offset, window, softcap, residuals=True)
    out, (lse,) = jax.vmap(kernel)(q, k, v, ids)
    # Queries that see no key would divide zero by zero.
    empty = ~(lse > kernels.DEFAULT_MASK_VALUE / 2)
    out = jnp.where(empty[..., None], 0.0, out.astype(jnp.float32))
    lse = jnp.where(empty, kernels.DEFAULT_MASK_VALUE, lse)
    return out.swapaxes(1, 2)[:, :time], lse.swapaxes(1, 2)[:, :time]


def backward_part(
    interpret: bool, q_BTNH, k_BSKH, v_BSKH, queries, keys, offset, window, softcap, lse_BTN, out_BTNH, d_out_BTNH
):
    """As `blockwise.backward_part`; the kernel computes delta from the output over all keys."""
    time, seen = q_BTNH.shape[1], k_BSKH.shape[1]
    q, k, v, ids = _prepare(q_BTNH, k_BSKH, v_BSKH, queries, keys)
    kernel = _kernel(interpret, q.shape[1], q.shape[2], k.shape[2], offset, window, softcap)
    options = kernel.kwargs
    extra = q.shape[2] - time

    def one(q, k, v, ids, out, lse, d_out):
        saved = (q, k, v, ids, None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info)
        # The kernel's own backward pass, given the log-sum-exp over all keys instead of over these.
        gradients = kernels._splash_attention_bwd(
            options["save_residuals"], options["mask_value"], options["is_mqa"], options["block_sizes"],
            options["residual_checkpoint_name"], options["mask_function"], options["attn_logits_soft_cap"],
            options["interpret"], saved, d_out,
        )  # fmt: skip
        return gradients[3:6]

    def heads(x):
        return jnp.pad(x.swapaxes(1, 2), [(0, 0), (0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 3))

    lse = jnp.pad(lse_BTN.swapaxes(1, 2), [(0, 0), (0, 0), (0, extra)])
    dq, dk, dv = jax.vmap(one)(q, k, v, ids, heads(out_BTNH.astype(q.dtype)), lse, heads(d_out_BTNH.astype(q.dtype)))
    scale = q_BTNH.shape[-1] ** -0.5
    return dq.swapaxes(1, 2)[:, :time] * scale, dk.swapaxes(1, 2)[:, :seen], dv.swapaxes(1, 2)[:, :seen]


def _prepare(q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions):
    """Move heads first, scale q, pad lengths to whole registers; also returns the segment ids."""

    def heads(x):
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % LANES), (0, 0)))

    def segments(places):
        return jnp.pad(places.segments, ((0, 0), (0, -places.segments.shape[1] % LANES)), constant_values=NO_SEGMENT)

    ids = kernels.SegmentIds(q=segments(queries), kv=segments(keys))
    return heads(q_BTNH * q_BTNH.shape[-1] ** -0.5), heads(k_BSKH), heads(v_BSKH), ids


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


@functools.lru_cache(maxsize=64)
def _masks(heads: int, time: int, seen: int, offset: int, window: int | None):
    if window is not None:
        mask: masks.Mask = masks.LocalMask((time, seen), (window - 1, 0), offset)
    elif offset >= time:
        mask = masks.FullMask((time, seen))
    else:
        mask = masks.CausalMask((time, seen), offset)
    return masks.MultiHeadMask([mask] * heads)


def _kernel(interpret: bool, heads, time, seen, offset, window, softcap, shards: int = 1, residuals: bool = False):
    q_block, block = _block(time // shards), _block(seen)
    sizes = kernels.BlockSizes(
        block_q=q_block, block_kv=block, block_kv_compute=block, block_q_dkv=q_block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=q_block, block_kv_dq=block,
    )  # fmt: skip
    return kernels.make_splash_mha(
        _masks(heads, time, seen, offset, window),
        block_sizes=sizes,
        save_residuals=residuals,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )


PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
"""Matrix products per pair of query and key blocks in each kernel: scores and values; scores, dP, dV and dK; scores, dP
and dQ (Dao 2023, algorithms 1 and 2; here the backward pass computes the scores twice)."""


def kernel_flops(equation: Any) -> float:
    """FLOPs of one splash kernel call, from its equation in a jaxpr; masked blocks are skipped.

    A causal call, sharded or not, counts its share of the whole triangle. A windowed call counts as if every block of
    queries saw as many key blocks as the one that sees the most.

    Raises:
      ValueError: not a splash kernel.
    """
    name = str(equation.params["name"])
    phase = next((phase for phase in PRODUCTS if name.startswith(f"splash_mha_{phase}_")), None)
    if phase is None:
        raise ValueError(f"no FLOP formula for the kernel {name}")
    table, q, k = (equation.invars[i].aval.shape for i in (1, 2, 3))
    time, seen = q[-2], k[-2]
    q_block, block = _block(time), _block(seen)
    if phase == "dkv":  # its table has key blocks as columns too, but is sliced along the queries
        whole, visible = table[-2] == time // q_block, table[-2] * table[-1]
    else:
        whole, visible = table[-1] == seen // block, table[-2] * table[-1]
    if whole:
        visible = sum(-(-(i + 1) * q_block // block) for i in range(seen // q_block)) * time / seen
    return PRODUCTS[phase] * 2.0 * visible * q_block * block * math.prod(q[:-2]) * q[-1]


def _of_shard(kernel, number, count: int):
    """The slice of the kernel's mask tables for one shard of the queries; `number` may be traced."""

    def part(x, axis):
        if x is None:
            return None
        size = x.shape[axis] // count
        return jax.lax.dynamic_slice_in_dim(x, number * size, size, axis)

    def of(info):
        return info and info._replace(
            data_next=part(info.data_next, 1),
            mask_next=part(info.mask_next, 1),
            block_mask=part(info.block_mask, 1),
            q_sequence=part(info.q_sequence, 0),
        )

    return kernels.SplashAttentionKernel(
        of(kernel.fwd_mask_info), of(kernel.dq_mask_info), of(kernel.dkv_mask_info), **kernel.kwargs
    )
