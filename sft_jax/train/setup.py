"""From inputs to a run that can start: devices, layout and state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.config import RunConfig, Sharding
from sft_jax.data.pack.batches import Batch, Batches, PreparedRows
from sft_jax.errors import BadInput
from sft_jax.losses.bradley_terry import reward_objective
from sft_jax.losses.cross_entropy import Objective, sft_objective
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import Compute, abstract_parameters
from sft_jax.parallel.nearest import nearest_mesh
from sft_jax.parallel.rules import (
    Activation,
    AnyMesh,
    Axes,
    axis_parts,
    layout,
    mesh_axes,
    recorded_activations,
    shardings,
)
from sft_jax.train import checkpoint
from sft_jax.train.feed import put_batch
from sft_jax.train.inputs import Inputs
from sft_jax.train.metrics import MetricsRow, evaluation_row
from sft_jax.train.optimizer import make_optimizer, make_schedule
from sft_jax.train.step import (
    Parameters,
    TrainState,
    batch_shardings,
    initial_state,
    make_evaluation,
    make_update,
    state_shardings,
)

if TYPE_CHECKING:
    from sft_jax.data.pack.streaming import Streamed


@dataclass(frozen=True)
class Assembled:
    """A run on its devices, ready for the loop."""

    state: TrainState
    frozen: Parameters
    update: Any
    evaluate: Any
    shapes: Batch
    shardings: Batch
    manager: ocp.CheckpointManager


def batch_shapes_of(source: "PreparedRows | Streamed") -> Batch:
    """Global shapes of the six arrays: [A, b, T] three times, [A, b, M] three times."""
    parts = source.accumulation
    rows = source.batch_size // parts
    by_position = (parts, rows, source.tokens_per_row)
    by_target = (parts, rows, source.targets_per_row)
    return Batch(by_position, by_position, by_position, by_target, by_target, by_target)


def abstract_batch(shapes: Batch, layout: Batch | None = None) -> Batch:
    """Shapes and dtypes of the six arrays, with their shardings if given."""
    kinds = (jnp.int32,) * 5 + (jnp.float32,)
    places = (None,) * 6 if layout is None else layout
    arrays = [
        jax.ShapeDtypeStruct(shape, kind, sharding=place)
        for shape, kind, place in zip(shapes, kinds, places, strict=True)
    ]
    return Batch(*arrays)  # type: ignore[arg-type]


def check_batch(config: RunConfig, shapes: Batch, mesh: AnyMesh) -> None:
    """Every divided dimension of a batch must divide.

    Raises:
      BadInput: names the dimension, both numbers and the nearest valid value.
    """
    parts, rows, length = shapes.tokens
    row_parts = axis_parts("act_batch", config.sharding, mesh)
    if rows % row_parts:
        unit = row_parts * parts
        below, above = rows * parts // unit * unit, -(-rows * parts // unit) * unit
        raise BadInput(
            f"train.batch_size {rows * parts} in {parts} micro-batch(es) gives {rows} rows, not divisible over "
            f"{config.sharding.act_batch} = {row_parts} devices; nearest valid batch sizes: "
            + (f"{below} or {above}" if below else f"{above}")
        )
    for field, size, axis in (
        ("data.sequence_length", length, "act_length"),
        ("data.target_capacity", shapes.target_index[2], "act_targets"),
    ):
        rule, over = getattr(config.sharding, axis), axis_parts(axis, config.sharding, mesh)
        if size % over:
            raise BadInput(
                f"{field} {size} is not divisible over {rule} = {over} devices; "
                f"nearest valid: {-(-size // over) * over}"
            )


def make_objective(config: RunConfig, architecture, shapes: Batch, mesh: AnyMesh) -> Objective:
    """The config's objective; for SFT with the head's chunk turned from positions a device into positions a row."""
    rows_a_device = shapes.tokens[1] // axis_parts("act_batch", config.sharding, mesh)
    model = config.model
    compute = Compute(model.dtype, model.remat, model.attention, model.scan_layers, model.context_attention)
    if config.train.objective == "reward":
        return reward_objective(architecture, compute)
    return sft_objective(architecture, compute, max(1, model.head_chunk // rows_a_device))


def check_no_idle_axis(axes: Mapping[str, Axes], mesh: AnyMesh, rules: Sharding) -> None:
    """Refuse a mesh axis that divides neither a parameter nor the batch: its devices would do the same work.

    Args:
      axes: logical axes of every parameter.

    Raises:
      BadInput: names the axis.
    """
    divided = {axis for each in axes.values() for axis in each} | {"act_batch", "act_length", "act_targets"}
    used = {name for axis in divided for name in mesh_axes(axis, rules)}
    for name, size in mesh.shape.items():
        if size > 1 and name not in used:
            raise BadInput(
                f"mesh.{name} is {size}, but nothing of this model goes over it: its devices would repeat one "
                f"another's work. Set --mesh.{name} 1 and give the devices to another axis, or name it in a rule "
                "(--sharding.*)."
            )


def parameter_layout(
    config: RunConfig, architecture: Architecture, shapes: Batch, mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, once it is known that batches and parameters divide.

    Raises:
      BadInput: what does not divide or collides, with its numbers, and the nearest mesh on which everything works.
    """

    def find(mesh: AnyMesh) -> dict[str, NamedSharding]:
        check_batch(config, shapes, mesh)
        padded = architecture.padded_to(axis_parts("vocab", config.sharding, mesh))
        abstract, axes = abstract_parameters(padded)
        check_no_idle_axis(axes, mesh, config.sharding)
        return shardings({name: leaf.shape for name, leaf in abstract.items()}, axes, mesh, config.sharding)

    def works(mesh: AnyMesh) -> bool:
        try:
            find(mesh)
        except BadInput:
            return False
        return True

    try:
        return find(mesh)
    except BadInput as error:
        other = nearest_mesh(dict(mesh.shape), works)
        if other is None:
            raise
        flags = " ".join(f"--mesh.{axis} {size}" for axis, size in other.items() if (size, mesh.shape[axis]) != (1, 1))
        raise BadInput(f"{error}\nThe nearest mesh that works with these rules and this batch: {flags}") from error


@dataclass(frozen=True)
class Program:
    """The update of a run on a mesh, and how what goes into it lies there; no array exists yet."""

    architecture: Architecture
    """With the vocabulary rows that the layout needs."""
    objective: Objective
    optimizer: optax.GradientTransformation
    state: TrainState
    """Shapes and dtypes."""
    state_layout: TrainState
    batch_layout: Batch
    update: Any
    """Jitted: (state, frozen parameters, batch) -> (state, metrics); the state is donated."""

    @property
    def parameter_layout(self) -> Mapping[str, NamedSharding]:
        return self.state_layout.trainable  # type: ignore[return-value]


def make_program(config: RunConfig, architecture: Architecture, shapes: Batch, mesh: jax.sharding.Mesh) -> Program:
    """Lay a run out on a mesh, which may be of devices that are not here.

    Args:
      architecture: the model's own.
      shapes: global shapes of a batch, as `batch_shapes_of`.

    Raises:
      BadInput: a dimension that the layout does not divide, or two dimensions of an array on one mesh axis.
    """
    parameters = parameter_layout(config, architecture, shapes, mesh)
    architecture = architecture.padded_to(axis_parts("vocab", config.sharding, mesh))
    abstract, _ = abstract_parameters(architecture)
    optimizer = make_optimizer(config.optimizer)
    state = jax.eval_shape(lambda parameters: initial_state(parameters, optimizer), abstract)
    state_layout = state_shardings(state, parameters, mesh)
    batch_layout = batch_shardings(mesh, config.sharding)
    objective = make_objective(config, architecture, shapes, mesh)
    schedule = make_schedule(config.optimizer, config.train.steps)
    update = jax.jit(
        make_update(objective, optimizer, schedule, config.optimizer.clip_norm),
        donate_argnums=0,
        in_shardings=(state_layout, {}, batch_layout),
        out_shardings=(state_layout, NamedSharding(mesh, PartitionSpec())),
    )
    return Program(architecture, objective, optimizer, state, state_layout, batch_layout, update)


def activations_of(objective: Objective, parameters: Mapping[str, Any], shapes: Batch) -> list[Activation]:
    """Every activation of one micro-batch's forward pass, with its logical axes; traced, not computed.

    Raises:
      BadInput: an activation that the active layout does not divide.
    """
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract_batch(shapes))
    with recorded_activations() as found:
        jax.eval_shape(lambda p, batch: objective(p, {}, batch, None), dict(parameters), micro)
    return found


def check_layout(inputs: Inputs, mesh: jax.sharding.Mesh) -> None:
    """Refuse a layout that does not fit the model and the batches, before anything is written or any weight is read.

    Raises:
      BadInput: what does not divide or collides, of parameters, batches and activations.
    """
    config, shapes = inputs.config, batch_shapes_of(inputs.source)
    program = make_program(config, inputs.pretrained.architecture, shapes, mesh)
    with layout(mesh, config.sharding):
        activations_of(program.objective, program.state.trainable, shapes)
    if inputs.evaluation is not None:
        check_batch(config, batch_shapes_of(inputs.evaluation), mesh)


def assemble(inputs: Inputs, mesh: jax.sharding.Mesh, poll) -> Assembled:
    """Lay out the parameters, restore the newest checkpoint or load the pretrained weights, compile nothing yet.

    Args:
      poll: the preemption poll, called once an evaluation batch too.

    Raises:
      BadInput: a checkpoint or weights that do not fit.
    """
    config = inputs.config
    shapes = batch_shapes_of(inputs.source)
    program = make_program(config, inputs.pretrained.architecture, shapes, mesh)
    optimizer, architecture = program.optimizer, program.architecture
    manager = checkpoint.open_checkpoints(config.workdir, config.train.keep_last, config.train.keep_every)
    step = manager.latest_step()
    if step is None:
        make_state = jax.jit(
            lambda parameters: initial_state(parameters, optimizer),
            out_shardings=program.state_layout,
            donate_argnums=0,
        )
        state = make_state(inputs.pretrained.load(architecture, program.parameter_layout))
    else:
        state, record = checkpoint.restore(manager, step, program.state, program.state_layout, architecture.vocab)
        if not isinstance(inputs.source, PreparedRows):
            inputs.source.restore(record["source"], step)

    evaluate = None
    if inputs.evaluation is not None:
        evaluate = _evaluation(inputs.evaluation, config, program, mesh, poll)
    return Assembled(state, {}, program.update, evaluate, shapes, program.batch_layout, manager)


def _evaluation(source: Batches, config: RunConfig, program: Program, mesh, poll):
    shapes = batch_shapes_of(source)
    sums = jax.jit(
        make_evaluation(make_objective(config, program.architecture, shapes, mesh)),
        in_shardings=(program.parameter_layout, {}, program.batch_layout),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def evaluate(state: TrainState, step: int, may_give_up: bool) -> MetricsRow | None:
        """The held-out metrics of `state`; every process takes part."""
        batches = []
        for number in range(source.steps_for(1)):
            batch = put_batch(source, number, shapes, program.batch_layout)
            batches.append(checkpoint.to_host(sums(state.trainable, {}, batch)))
            if poll() and may_give_up:
                return None
        return evaluation_row(batches, step)

    return evaluate
