"""Which weights these are: a fingerprint of parameters, the same wherever they lie."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.model.architecture import split_name, stack_name


def weights_fingerprint(parameters: Mapping[str, jax.Array]) -> str:
    """128 bits (hex) of the parameters: the same on every mesh and however layers are stacked; another bit anywhere
    gives another one.

    For each parameter of each layer two sums modulo 2^32 of every element's bits times a number drawn from its place:
    sums of integers do not depend on how they are divided, and rows that a layout adds to the vocabulary are zero. It
    tells mistakes, not malice. Every process must call it.
    """
    layout = next(iter(parameters.values())).sharding
    # Whole on every process: each reads the sums.
    whole = NamedSharding(layout.mesh, PartitionSpec()) if isinstance(layout, NamedSharding) else None
    sums = jax.jit(_sums, out_shardings=whole)(dict(parameters))
    digest = hashlib.sha256()
    for name in sorted(sums):
        digest.update(name.encode() + np.asarray(sums[name]).astype("<u4").tobytes())
    return digest.hexdigest()[:32]


def _sums(parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
    sums = {}
    for name, value in parameters.items():
        layers, suffix = split_name(name)
        if layers is None or len(layers) == 1:
            sums[name] = _sum_of_bits(value)
            continue
        each = jax.lax.map(_sum_of_bits, value)
        sums |= {f"{stack_name(range(layer, layer + 1))}.{suffix}": each[i] for i, layer in enumerate(layers)}
    return sums


def _sum_of_bits(value: jax.Array) -> jax.Array:
    """uint32 [2]."""
    wide = value if value.dtype == jnp.int8 else value.astype(jnp.float32)
    bits = wide.astype(jnp.uint32) if wide.dtype == jnp.int8 else jax.lax.bitcast_convert_type(wide, jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(value.shape):
        # By steps of its own for each axis: an element keeps its place where the first axis has rows added.
        along = jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis)
        place = place * jnp.uint32(size if axis else 1) + along
    return jnp.stack([(bits * _mixed(place, seed)).sum(dtype=jnp.uint32) for seed in (0x9E3779B9, 0x85EBCA6B)])


def _mixed(x: jax.Array, seed: int) -> jax.Array:
    """An odd number from each place (the mixing of MurmurHash3)."""
    x = (x ^ jnp.uint32(seed)) * jnp.uint32(0xCC9E2D51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x1B873593)
    return (x ^ (x >> 13)) | jnp.uint32(1)
