"""A run's jitted update and evaluation on a mesh, with the shardings of their arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from sft_jax.config import RunConfig
from sft_jax.data.pack.batches import Batch
from sft_jax.losses.kinds import objective_of
from sft_jax.losses.objective import Objective
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters, leaves
from sft_jax.model.layers import Compute
from sft_jax.model.trainable import split_parameters, trainable_names
from sft_jax.parallel.rules import Activation, AnyMesh, Layout, recorded_activations
from sft_jax.train.optimizers import make_optimizer, make_schedule
from sft_jax.train.sharding import abstract_batch, batch_shardings, parameter_layout, replicated, state_shardings
from sft_jax.train.step import Parameters, TrainState, initial_state, make_evaluation, make_update
from sft_jax.weights.pretrained import laid_out


def compute_of(config: RunConfig, mesh: AnyMesh | None, platform: str = "") -> Compute:
    """How and where the config's forward pass is computed.

    Args:
      platform: cpu, gpu or tpu, for an abstract mesh.
    """
    model = config.model
    layout = Layout(mesh, config.sharding, platform)
    return Compute(model.dtype, model.remat, model.attention, model.scan_layers, model.context_attention, layout)


def make_objective(config: RunConfig, architecture: Architecture, shapes: Batch, compute: Compute) -> Objective:
    """The config's objective; converts the head's chunk from positions per device to positions per row."""
    rows_per_device = shapes.tokens[1] // compute.layout.parts("act_batch")
    return objective_of(config.loss, architecture, compute, max(1, config.model.head_chunk // rows_per_device))


@dataclass(frozen=True)
class TrainProgram:
    """A run's update and the shardings of its arguments; holds no arrays."""

    architecture: Architecture
    """As laid out."""
    compute: Compute
    objective: Objective
    optimizer: optax.GradientTransformation
    trained: frozenset[str]
    """Names of the trainable parameters."""
    state: TrainState
    """Shapes and dtypes."""
    state_layout: TrainState
    frozen: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes and dtypes of the frozen parameters."""
    frozen_layout: Mapping[str, NamedSharding]
    batch_layout: Batch
    update: Any
    """Jitted: (state, frozen parameters, batch) -> (state, metrics); the state is donated."""

    @property
    def parameter_layout(self) -> dict[str, NamedSharding]:
        """Shardings of all parameters, by name."""
        return {**self.state_layout.trainable, **self.frozen_layout}  # type: ignore[dict-item]


def make_program(
    config: RunConfig, architecture: Architecture, shapes: Batch, mesh: AnyMesh, platform: str = ""
) -> TrainProgram:
    """Lay out a run on a mesh, possibly of hardware you don't have.

    Args:
      architecture: the model's architecture, not yet laid out.
      shapes: global shapes of a batch, from `sharding.batch_shapes_of`.
      platform: cpu, gpu or tpu, for an abstract mesh.

    Raises:
      BadInput: an indivisible dimension, two dimensions of an array on one mesh axis, or a pattern in train.trainable
        that matches nothing.
    """
    layout = parameter_layout(config, architecture, shapes, mesh)
    architecture = laid_out(architecture, config, mesh)
    compute = compute_of(config, mesh, platform)
    abstract, axes = abstract_parameters(architecture)
    trained = trainable_names(config.train.trainable, architecture)
    trainable, frozen = split_parameters(abstract, trained)
    _, frozen_layout = split_parameters(layout, trained)
    optimizer = make_optimizer(config.optimizer, leaves(architecture))
    state = jax.eval_shape(lambda parameters: initial_state(parameters, optimizer), trainable)
    state_layout = state_shardings(state, axes, mesh, config.sharding)
    batch_layout = batch_shardings(mesh, config.sharding)
    objective = make_objective(config, architecture, shapes, compute)
    schedule = make_schedule(config.optimizer, config.train.steps)
    update = jax.jit(
        make_update(objective, optimizer, schedule, config.optimizer.clip_norm),
        donate_argnums=0,
        in_shardings=(state_layout, frozen_layout, batch_layout),
        out_shardings=(state_layout, replicated(mesh)),
    )
    return TrainProgram(
        architecture, compute, objective, optimizer, trained, state, state_layout, frozen, frozen_layout, batch_layout,
        update,
    )  # fmt: skip


def make_initial_state(program: TrainProgram) -> Callable[[Parameters], TrainState]:
    """Jitted: trainable parameters, donated -> the state at step 0."""
    return jax.jit(
        lambda parameters: initial_state(parameters, program.optimizer),
        out_shardings=program.state_layout,
        donate_argnums=0,
    )


def make_evaluate(program: TrainProgram, config: RunConfig, shapes: Batch) -> Any:
    """Jitted: (trainable, frozen, batch) -> the sums of one held-out batch."""
    objective = make_objective(config, program.architecture, shapes, program.compute)
    mesh = program.compute.layout.mesh
    assert mesh is not None
    return jax.jit(
        make_evaluation(objective),
        in_shardings=(program.state_layout.trainable, program.frozen_layout, program.batch_layout),
        out_shardings=replicated(mesh),
    )


def activations_of(objective: Objective, parameters: Mapping[str, Any], shapes: Batch) -> list[Activation]:
    """Every activation of one micro-batch's forward pass, with its logical axes; traced, not computed.

    Raises:
      BadInput: an activation that is not divisible in the objective's layout.
    """
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract_batch(shapes))
    with recorded_activations() as found:
        jax.eval_shape(lambda p, batch: objective(p, {}, batch, None), dict(parameters), micro)
    return found
