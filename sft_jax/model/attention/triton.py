"""Attention on GPUs: JAX's Pallas kernel for Triton behind the function of `attention.reference`.

It is the flash kernel that JAX ships with segment ids, which packed rows need: cuDNN's, behind
`jax.nn.dot_product_attention`, takes none (a bias or mask of [T, T] would take their place). It knows neither windows
nor soft-caps nor queries that are part of a row; `dispatch.choose` says so and takes `blockwise` there.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import NO_SEGMENT, TokenPositions

BLOCK = 128
"""Lengths are padded to a multiple of this, the kernel's block of queries."""


def forward_blocks(head_bytes: int) -> tuple[int, int]:
    """Queries and keys per block of the forward kernel, as many as shared memory holds.

    A block of the H100 has 227 KiB; the kernel's default of 128 x 128 takes 80 KiB at 128 bytes per head, 160 at 256,
    and 320 at 512 (compiled for an H100 by triton 3.6).
    """
    if head_bytes <= 256:
        return 128, 128
    return (64, 64) if head_bytes <= 512 else (64, 32)


def triton(q_BTNH, k_BSKH, v_BSKH, queries: TokenPositions, keys: TokenPositions, interpret: bool) -> jax.Array:
    """Attention [B, T, N, H] of whole rows; `interpret` runs the kernel elsewhere than on a GPU, for tests."""
    time = q_BTNH.shape[1]
    if time != k_BSKH.shape[1]:
        raise ValueError(f"triton attends within whole rows, found {time} queries and {k_BSKH.shape[1]} keys")
    with warnings.catch_warnings():
        # JAX 0.12 points to tokamax, which has no version for Python 3.11 that goes with tyro 1.0.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    def padded(x, value=0):
        return jnp.pad(x, [(0, 0), (0, -time % BLOCK)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

    block_q, block_k = forward_blocks(q_BTNH.shape[-1] * q_BTNH.dtype.itemsize)
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    out: Any = mha(
        padded(q_BTNH),
        padded(jnp.repeat(k_BSKH, groups, axis=2)),  # the kernel has one key head for each query head
        padded(jnp.repeat(v_BSKH, groups, axis=2)),
        padded(keys.segments, NO_SEGMENT),
        sm_scale=q_BTNH.shape[-1] ** -0.5,
        causal=True,
        block_sizes=dataclasses.replace(BlockSizes.get_default(), block_q=block_q, block_k=block_k),
        interpret=interpret,
    )
    return out[:, :time]
