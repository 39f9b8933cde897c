"""Sampling the next token from logits."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. The filters apply in transformers' order: temperature, top-k, top-p, min-p."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 means greedy decoding."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    seed: int = 0
    top_k: int = 0
    """Draw from the k most probable tokens; 0 means all."""
    min_p: float = 0.0
    """Draw from tokens at least min_p times as probable as the most probable one (Nguyen et al. 2024)."""
    stop: tuple[str, ...] = ()
    """A completion ends before the first occurrence of any of these strings."""


def draw(raw_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Next tokens int32 [B] from float32 logits [B, V]; -inf is never drawn."""
    if sampling.temperature == 0:
        return jnp.argmax(raw_BV, axis=-1).astype(jnp.int32)
    kept = filtered(raw_BV / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(keys_B, kept).astype(jnp.int32)


def filtered(scaled: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [B, V] with -inf for tokens removed by the filters."""
    if 0 < sampling.top_k < scaled.shape[-1]:
        kth = jax.lax.top_k(scaled, sampling.top_k)[0][:, -1:]
        scaled = jnp.where(scaled < kth, -jnp.inf, scaled)
    if sampling.top_p < 1:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
        reached = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        # The token that crosses top_p is included.
        last = jnp.minimum(jnp.sum(reached < sampling.top_p, axis=-1, keepdims=True), scaled.shape[-1] - 1)
        scaled = jnp.where(scaled < jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, scaled)
    if sampling.min_p > 0:
        least = scaled.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    return scaled
