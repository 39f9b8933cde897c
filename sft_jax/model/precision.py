"""Computations that use at least float32 whatever the compute dtype."""

import jax
import jax.numpy as jnp


def at_least_f32(x: jax.Array) -> jax.Array:
    """Cast to at least float32, for softmax, norms, angles and the loss (float64 is kept, for tests)."""
    return x.astype(accumulator(x))


def accumulator(x: jax.Array):
    """The dtype that accumulates products of such arrays: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)
