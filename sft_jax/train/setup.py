"""From inputs to a run that can start: devices, layout and state."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.config import RunConfig
from sft_jax.data.batches import Batch, Batches, PreparedRows
from sft_jax.errors import BadInput
from sft_jax.model.decoder import Compute, abstract_parameters
from sft_jax.parallel.rules import axis_parts, shardings
from sft_jax.train import checkpoint
from sft_jax.train.feed import put_batch
from sft_jax.train.inputs import Inputs
from sft_jax.train.loss import Objective, sft_objective
from sft_jax.train.metrics import MetricsRow, evaluation_row
from sft_jax.train.optimizer import make_optimizer, make_schedule
from sft_jax.train.pretrained import padded
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
    from sft_jax.data.streaming import Streamed


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


def check_batch(config: RunConfig, shapes: Batch, mesh: jax.sharding.Mesh) -> None:
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


def make_objective(config: RunConfig, architecture, shapes: Batch, mesh: jax.sharding.Mesh) -> Objective:
    """The SFT objective with the head's chunk turned from positions a device into positions a row."""
    rows_a_device = shapes.tokens[1] // axis_parts("act_batch", config.sharding, mesh)
    model = config.model
    compute = Compute(model.dtype, model.remat, model.attention, model.scan_layers)
    return sft_objective(architecture, compute, max(1, model.head_chunk // rows_a_device))


def assemble(inputs: Inputs, mesh: jax.sharding.Mesh, poll) -> Assembled:
    """Lay out the parameters, restore the newest checkpoint or load the pretrained weights, compile nothing yet.

    Args:
      poll: the preemption poll, called once an evaluation batch too.

    Raises:
      BadInput: a dimension that the layout does not divide.
    """
    config = inputs.config
    shapes = batch_shapes_of(inputs.source)
    check_batch(config, shapes, mesh)
    architecture = padded(inputs.pretrained.architecture, config, mesh)
    abstract, axes = abstract_parameters(architecture)
    layout = shardings({name: leaf.shape for name, leaf in abstract.items()}, axes, mesh, config.sharding)

    optimizer = make_optimizer(config.optimizer)
    abstract_state = jax.eval_shape(lambda parameters: initial_state(parameters, optimizer), abstract)
    state_layout = state_shardings(abstract_state, layout, mesh)
    manager = checkpoint.open_checkpoints(config.workdir, config.train.keep_last, config.train.keep_every)
    step = manager.latest_step()
    if step is None:
        make_state = jax.jit(
            lambda parameters: initial_state(parameters, optimizer), out_shardings=state_layout, donate_argnums=0
        )
        state = make_state(inputs.pretrained.load(architecture, layout))
    else:
        state, record = checkpoint.restore(manager, step, abstract_state, state_layout, architecture.vocab)
        if not isinstance(inputs.source, PreparedRows):
            inputs.source.restore(record["source"], step)

    batch_layout = batch_shardings(mesh, config.sharding)
    whole = NamedSharding(mesh, PartitionSpec())
    frozen: dict[str, jax.Array] = {}
    objective = make_objective(config, architecture, shapes, mesh)
    schedule = make_schedule(config.optimizer, config.train.steps)
    update = jax.jit(
        make_update(objective, optimizer, schedule, config.optimizer.clip_norm),
        donate_argnums=0,
        in_shardings=(state_layout, {}, batch_layout),
        out_shardings=(state_layout, whole),
    )
    evaluate = None
    if inputs.evaluation is not None:
        check_batch(config, batch_shapes_of(inputs.evaluation), mesh)
        evaluate = _evaluation(inputs.evaluation, config, architecture, mesh, layout, batch_layout, poll)
    return Assembled(state, frozen, update, evaluate, shapes, batch_layout, manager)


def _evaluation(source: Batches, config: RunConfig, architecture, mesh, layout, batch_layout, poll):
    shapes = batch_shapes_of(source)
    sums = jax.jit(
        make_evaluation(make_objective(config, architecture, shapes, mesh)),
        in_shardings=(layout, {}, batch_layout),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def evaluate(state: TrainState, step: int, may_give_up: bool) -> MetricsRow | None:
        """The held-out metrics of `state`; every process takes part."""
        batches = []
        for number in range(source.steps_for(1)):
            batch = put_batch(source, number, shapes, batch_layout)
            batches.append(checkpoint.to_host(sums(state.trainable, {}, batch)))
            if poll() and may_give_up:
                return None
        return evaluation_row(batches, step)

    return evaluate
