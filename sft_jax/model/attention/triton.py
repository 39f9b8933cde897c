"""Attention on GPUs: JAX's Pallas kernel for Triton with the interface of `attention.reference`.

JAX's only flash kernel for GPUs with segment ids, which packed rows need: cuDNN's, used by
`jax.nn.dot_product_attention`, has none (it would need a [T, T] bias or mask). It supports neither windows nor
soft-caps nor sharded rows; there `dispatch.choose` warns and falls back to `blockwise`.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import NO_SEGMENT, TokenPositions

BLOCK = 128
"""Lengths are padded to a multiple of this, the kernel's query block size."""


def forward_blocks(head_bytes: int) -> tuple[int, int]:
    """(queries, keys) per block of the forward kernel: the largest that fit in shared memory.

    An H100 thread block has 227 KiB. The kernel's default of 128 x 128 needs 80 KiB at 128 bytes per head, 160 KiB at
    256 and 320 KiB at 512 (compiled for an H100 by triton 3.6).
    """
    if head_bytes <= 256:
        return 128, 128
    return (64, 64) if head_bytes <= 512 else (64, 32)


def triton(q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, interpret: bool) -> jax.Array:
    """Attention [B, T, N, H] of whole rows; `interpret` runs the kernel without a GPU, for tests."""
    time = q_BTNH.shape[1]
    if time != k_BSKH.shape[1]:
        raise ValueError(f"triton attends within whole rows, found {time} queries and {k_BSKH.shape[1]} keys")
    with warnings.catch_warnings():
        # JAX 0.12 recommends tokamax instead, whose current version needs Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    def padded(x, value=0):
        return jnp.pad(x, [(0, 0), (0, -time % BLOCK)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

    block_q, block_k = forward_blocks(q_BTNH.shape[-1] * q_BTNH.dtype.itemsize)
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    out: Any = mha(
        padded(q_BTNH),
        padded(jnp.repeat(k_BSKH, groups, axis=2)),  # the kernel needs one key head per query head
        padded(jnp.repeat(v_BSKH, groups, axis=2)),
        padded(keys.segments, NO_SEGMENT),
        sm_scale=q_BTNH.shape[-1] ** -0.5,
        causal=True,
        block_sizes=dataclasses.replace(BlockSizes.get_default(), block_q=block_q, block_k=block_k),
        interpret=interpret,
    )
    return out[:, :time]
