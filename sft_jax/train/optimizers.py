"""The optimizers (optax transformations), by name, and the learning-rate schedule.

To add one, put its settings in `config/kinds.py`, add a function here, and a field in `config.Optimizer` for each
setting that no other optimizer has.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import optax
import optax.contrib

from sft_jax.config import OPTIMIZERS, Optimizer
from sft_jax.config.kinds import Adafactor, AdamW, Lion, Muon, Sgd
from sft_jax.model.leaves import Leaf, input_letters, output_letters

NEVER_DECAYED = (".scale", ".bias")
"""Name suffixes of parameters without weight decay: norms and biases, as in Hugging Face's Trainer."""


def make_schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate.

    Linear warm-up from 0 over `warmup_steps`, or over `warmup_ratio` of all steps, then constant, linear decay to 0, or
    cosine decay to 0 at `steps` (as `transformers.get_scheduler`; the ratio is rounded up as in
    `TrainingArguments.get_warmup_steps`).
    """
    warmup_steps = config.warmup_steps or math.ceil(config.warmup_ratio * steps)
    after = max(1, steps - warmup_steps)
    if config.schedule == "linear":
        rest = optax.linear_schedule(config.learning_rate, 0.0, after)
    elif config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(config.learning_rate, after)
    else:
        rest = optax.constant_schedule(config.learning_rate)
    if not warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([rise, rest], [warmup_steps])


def make_optimizer(
    config: Optimizer, leaves: Mapping[str, Leaf] = MappingProxyType({})
) -> optax.GradientTransformation:
    """Clipped gradients -> update direction, which the step multiplies by minus its learning rate.

    The rate is applied outside so that it depends on batches consumed, also after skipped updates.

    Args:
      leaves: all parameter leaves, by name; some optimizers need the kernels' input and output dimensions.

    Raises:
      BadInput: an unknown optimizer, or a field that it does not have.
    """
    return OPTIMIZERS.make(config.name, config, config, leaves)


def decayed_weights(config: Optimizer) -> optax.GradientTransformation:
    """Decoupled weight decay, except for norms and biases."""
    return optax.add_decayed_weights(config.weight_decay, mask=_decays)


def _decays(parameters: Any) -> dict[str, bool]:
    return {name: not name.endswith(NEVER_DECAYED) for name in parameters}


@OPTIMIZERS.maker("adamw")
def adamw(own: AdamW, config: Optimizer, leaves: Mapping[str, Leaf]) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(own.b1, own.b2, own.eps, mu_dtype=own.first_moment_dtype)
    return optax.chain(adam, decayed_weights(config))


@OPTIMIZERS.maker("sgd")
def sgd(own: Sgd, config: Optimizer, leaves: Mapping[str, Leaf]) -> optax.GradientTransformation:
    if not own.momentum:
        return decayed_weights(config)
    return optax.chain(optax.trace(own.momentum), decayed_weights(config))


@OPTIMIZERS.maker("lion")
def lion(own: Lion, config: Optimizer, leaves: Mapping[str, Leaf]) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(own.b1, own.b2, own.first_moment_dtype), decayed_weights(config))


@OPTIMIZERS.maker("adafactor")
def adafactor(own: Adafactor, config: Optimizer, leaves: Mapping[str, Leaf]) -> optax.GradientTransformation:
    """Without the paper's relative step size and parameter scaling: the schedule sets the learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=own.decay_rate, min_dim_size_to_factor=own.factored_from),
        optax.clip_by_block_rms(own.clip_rms),
        decayed_weights(config),
    )


@OPTIMIZERS.maker("muon")
def muon(own: Muon, config: Optimizer, leaves: Mapping[str, Leaf]) -> optax.GradientTransformation:
    """Muon for layer kernels as matrices [inputs, outputs]; AdamW for embeddings, head, norms, biases and adapters.

    Updates are scaled to AdamW's RMS (Liu et al. 2025), so that learning rates transfer.
    """

    def matrices(parameters: Any) -> Any:
        return {name: _matrix(leaves[name]) if name in leaves else None for name in parameters}

    # optax would multiply by minus the rate; our step does that.
    return optax.contrib.muon(
        learning_rate=-1.0,
        beta=own.momentum,
        weight_decay=config.weight_decay,
        weight_decay_mask=_decays,
        adam_b1=own.b1,
        adam_b2=own.b2,
        adam_eps_root=0.0,
        adam_weight_decay=config.weight_decay,
        eps=own.eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,
    )


def _matrix(leaf: Leaf) -> optax.contrib.MuonDimensionNumbers | None:
    """The input and output dimensions of a kernel; None for other parameters."""
    array = leaf.array
    if not array.equation:
        return None
    inputs, outputs = (array.dims(letters(array.equation)) for letters in (input_letters, output_letters))
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)
