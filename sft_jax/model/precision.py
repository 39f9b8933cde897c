"""What is computed in float32 whatever the compute dtype."""

import jax
import jax.numpy as jnp


def at_least_f32(x: jax.Array) -> jax.Array:
    """At least float32: what softmax, norms, angles and the loss are computed in (float64 stays, for tests)."""
    return x.astype(accumulator(x))


def accumulator(x: jax.Array):
    """The dtype in which products of such arrays are summed: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)
