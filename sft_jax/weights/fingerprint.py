"""A fingerprint of parameters that does not depend on their sharding."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.model.architecture import split_name, stack_name


def weights_fingerprint(parameters: Mapping[str, jax.Array]) -> str:
    """128-bit fingerprint (hex) of the parameters, independent of the mesh and of how layers are stacked. Changing any
    bit changes it.

    Per parameter and layer: two sums modulo 2^32 of each element's bits times a hash of its index. Integer sums do not
    depend on the sharding, and padding rows of the vocabulary are zero. It detects mistakes, not tampering. Every
    process must call it.
    """
    layout = next(iter(parameters.values())).sharding
    # Replicated, since every process reads the sums.
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
        # The first axis is not part of the stride, so added rows do not change an element's index.
        along = jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis)
        place = place * jnp.uint32(size if axis else 1) + along
    return jnp.stack([(bits * _mixed(place, seed)).sum(dtype=jnp.uint32) for seed in (0x9E3779B9, 0x85EBCA6B)])


def _mixed(x: jax.Array, seed: int) -> jax.Array:
    """Hash each index to an odd number (the mixing of MurmurHash3)."""
    x = (x ^ jnp.uint32(seed)) * jnp.uint32(0xCC9E2D51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x1B873593)
    return (x ^ (x >> 13)) | jnp.uint32(1)
