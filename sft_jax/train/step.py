"""One update: gradients of an objective summed over micro-batches, divided once, clipped, applied or skipped."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sft_jax.data.pack.batches import Batch
from sft_jax.losses.objective import Objective

Parameters = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that an update changes. Frozen parameters are separate: no gradient, optimizer state or donation."""

    step: jax.Array
    """int32: batches consumed, the index of the next batch."""
    skipped: jax.Array
    """int32: batches skipped because they had no targets."""
    trainable: Parameters
    """float32 master weights."""
    opt_state: Any
    """optax state over `trainable`."""


def initial_state(trainable: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. Call under `jax.jit` with `sharding.state_shardings` as out_shardings."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, dict(trainable), optimizer.init(dict(trainable)))


def accumulate(objective: Objective, trainable: Parameters, frozen: Parameters, batch: Batch, rng=None):
    """Sums over the micro-batch axis: ((loss_sum, weight_sum, metric_sums), gradient of loss_sum)."""

    def sums_of(trainable, micro):
        loss, weight, metrics = objective(trainable, frozen, micro, rng)
        return loss, (loss, weight, metrics)

    def one(micro):
        gradients, sums = jax.grad(sums_of, has_aux=True)(trainable, micro)
        return sums, gradients

    if batch.tokens.shape[0] == 1:
        return one(jax.tree.map(lambda x: x[0], batch))

    def add(carry, micro):
        return jax.tree.map(jnp.add, carry, one(micro)), None

    first = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(add, zeros, batch)[0]


def make_update(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule, clip_norm: float
) -> Callable[[TrainState, Parameters, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The update (state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    Loss and gradient are divided once, by the weight sum of the whole batch. A batch without targets, or with a
    non-finite loss or gradient, leaves parameters and optimizer state bit-equal; in the latter case
    `metrics["finite"]` is False.
    """

    def update(state: TrainState, frozen: Parameters, batch: Batch):
        (loss_sum, weight_sum, sums), gradients = accumulate(objective, state.trainable, frozen, batch)
        has_target = weight_sum > 0
        divisor = jnp.where(has_target, weight_sum, 1.0)
        norm = optax.tree.norm(gradients) / divisor
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(norm)
        scale = 1.0 / divisor
        if clip_norm:
            scale = scale * jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        stepped = jax.tree.map(lambda p, d: p - rate * d, state.trainable, directions)
        keep = has_target & finite

        def choose(new, old):
            return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)

        new_state = TrainState(
            state.step + 1,
            state.skipped + (finite & ~has_target),
            choose(stepped, state.trainable),
            choose(opt_state, state.opt_state),
        )
        metrics = {
            "loss_sum": loss_sum,
            "weight_sum": weight_sum,
            **sums,
            "grad_norm": norm,
            "learning_rate": rate,
            "finite": finite,
        }
        return new_state, metrics

    return update


def make_evaluation(objective: Objective) -> Callable[[Parameters, Parameters, Batch], dict[str, jax.Array]]:
    """Returns (trainable, frozen, batch) -> the sums of one batch, without gradients."""

    def evaluate(trainable: Parameters, frozen: Parameters, batch: Batch):
        def one(micro):
            loss, weight, metrics = objective(trainable, frozen, micro, None)
            return {"loss_sum": loss, "weight_sum": weight, **metrics}

        return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(one, batch))

    return evaluate
