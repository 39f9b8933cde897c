"""The optax transformation and the learning-rate schedule."""

from typing import Any

import optax

from sft_jax.config import Optimizer

NEVER_DECAYED = (".scale", ".bias")
"""Norms and biases: endings of the parameter names that weight decay leaves alone, as Hugging Face's Trainer does."""


def make_schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Step (batches consumed before it, from 0) -> learning rate.

    A linear warm-up from 0 over `warmup_steps`, then constant, linear to 0, or half a cosine to 0 at `steps`
    (the shapes of `transformers.get_scheduler`).
    """
    after = max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        rest = optax.linear_schedule(config.learning_rate, 0.0, after)
    elif config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(config.learning_rate, after)
    else:
        rest = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, rest], [config.warmup_steps])


def make_optimizer(config: Optimizer) -> optax.GradientTransformation:
    """Gradients (already clipped) -> direction; the step multiplies it by minus the learning rate of its own step.

    The rate stands outside so that it follows batches consumed, also after a skipped update.
    """

    def decayed(parameters: Any) -> dict[str, bool]:
        return {name: not name.endswith(NEVER_DECAYED) for name in parameters}

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if config.name == "sgd":
        return decay
    return optax.chain(optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.first_moment_dtype), decay)
