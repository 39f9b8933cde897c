"""What a run hands to the RL stage: handoff.json says where policy, tokenizer and stop tokens are, and which weights.

The policy of an RL run starts as a copy of these weights, and its KL term is taken against them, frozen: whoever loads
them can tell by the fingerprint that they are the same ones.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.data.chat.tokenizer import fingerprint as tokenizer_fingerprint
from sft_jax.data.pack.store import write_json

HANDOFF = "handoff.json"


def weights_fingerprint(parameters: Mapping[str, jax.Array]) -> str:
    """128 bits (hex) of the float32 parameters: the same on every mesh; another bit anywhere gives another one.

    For each parameter two sums modulo 2^32 of every element's bits times a number drawn from its place: sums of
    integers do not depend on how they are divided, and rows that a layout adds to the vocabulary are zero. It tells
    mistakes, not malice. Every process must call it.
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
    return {name: _sum_of_bits(value) for name, value in parameters.items()}


def _sum_of_bits(value: jax.Array) -> jax.Array:
    """uint32 [2]."""
    bits = jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.uint32)
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


def describe_handoff(
    tokenizer: Any, stop_ids: tuple[int, ...], fingerprint: str, policy: str, tokenizer_directory: str, date: str
) -> dict[str, Any]:
    """The content of handoff.json; paths are relative to where it lies."""
    return {
        "format": 1,
        "policy": policy,
        "tokenizer": tokenizer_directory,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "template_date": date,
        "stop_token_ids": list(stop_ids),
        "stop_tokens": tokenizer.convert_ids_to_tokens(list(stop_ids)),
        "pad_token_id": tokenizer.pad_token_id,
        "weights_fingerprint": fingerprint,
    }


def write_handoff(directory: str | Path, content: Mapping[str, Any]) -> None:
    """Write handoff.json, whole or not at all."""
    write_json(Path(directory) / HANDOFF, dict(content))
