"""From a config to a run that can start: inputs read on the host first, then devices, layout and state."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.config import RunConfig, identity_differences, to_json
from sft_jax.data.batches import Batch, Batches
from sft_jax.data.packing import choose_target_capacity, plan_packing
from sft_jax.data.prepare import (
    Prepared,
    check_vocabulary,
    describe,
    fingerprint,
    prepare,
    prepare_cached,
    write_whole,
)
from sft_jax.errors import BadInput
from sft_jax.model.decoder import Compute, abstract_parameters
from sft_jax.parallel.rules import mesh_size, shardings
from sft_jax.train import checkpoint
from sft_jax.train.feed import put_batch
from sft_jax.train.loss import Objective, sft_objective
from sft_jax.train.metrics import MetricsRow, evaluation_row
from sft_jax.train.optimizer import make_optimizer, make_schedule
from sft_jax.train.pretrained import MODEL_FILES, RUN_CONFIG, Pretrained, open_pretrained, padded, read_run_config
from sft_jax.train.step import (
    Parameters,
    TrainState,
    batch_shardings,
    initial_state,
    make_evaluation,
    make_update,
    state_shardings,
)
from sft_jax.weights.export import save_tokenizer

TARGET_MULTIPLE = 32
"""M is a multiple of this times the context axis. The head multiplies b * M rows at once, so its products are aligned
to 128 from four rows on, and a multiple of 128 itself would leave two thirds of the head idle on short rows."""


RECORD = "record.json"
"""In a workdir: the fingerprints of its data and packing plan."""


@dataclass(frozen=True)
class Inputs:
    """Everything read from files: the same on every process and every mesh."""

    config: RunConfig
    """With target_capacity and steps written in."""
    pretrained: Pretrained
    source: Batches
    evaluation: Batches | None
    record: dict[str, Any]
    """Fingerprints of the data and of the packing plan, saved beside every checkpoint."""
    notes: list[str]
    """Lines for the log: counts, what was dropped, fill."""


def read_inputs(config: RunConfig, first_process: bool) -> Inputs:
    """Open the model's description, tokenise the demonstrations, plan the rows; touches no device.

    Raises:
      BadInput: anything wrong with the model, the data, or their fit (lengths beyond the model's positions).
    """
    pretrained = open_pretrained(config.model.path, config.data.tokenizer, config.data.chat_template)
    limit = pretrained.architecture.max_positions
    if config.data.sequence_length > limit:
        raise BadInput(
            f"data.sequence_length is {config.data.sequence_length}, but {config.model.path} was made for at most "
            f"{limit} positions. Lower data.sequence_length to {limit} or less."
        )
    several = config.distributed.processes > 1 or config.distributed.auto

    def prepared(files: tuple[str, ...]) -> Prepared:
        if several:
            cache, deadline = Path(config.workdir) / "prepared", config.distributed.timeout_seconds
            found = prepare_cached(config.data, pretrained.tokenizer, cache, first_process, deadline, files)
        else:
            found = prepare(config.data, pretrained.tokenizer, files)
        check_vocabulary(found.examples, pretrained.architecture.vocab, config.model.path)
        return found

    check_same_run(config)
    train_data = prepared(config.data.train)
    data = {"data": fingerprint(train_data.examples)}
    check_same_record(config, data)
    lengths, targets = _sizes(train_data)
    length, packing = config.data.sequence_length, config.data.packing
    multiple = TARGET_MULTIPLE * max(1, config.mesh.context)
    # A run keeps the capacity it began with: the context axis may change, and the rows must not.
    capacity = config.data.target_capacity or _capacity_of(Path(config.workdir))
    capacity = capacity or choose_target_capacity(lengths, targets, length, packing, multiple)
    plan = plan_packing(lengths, targets, length, capacity, packing)
    notes = [*describe(train_data), plan.describe()]
    rows, parts = config.train.batch_size, config.train.accumulation
    of_epochs = -(-config.train.epochs * plan.rows // rows)
    steps = config.train.steps or of_epochs
    # The resolved config names both: a run of whole epochs ends with padding there too, not with rows of one more.
    total_rows = config.train.epochs * plan.rows if steps == of_epochs else None
    source = Batches(
        train_data.examples, plan, config.train.seed, rows, parts, config.data.shuffle, total_rows=total_rows
    )
    evaluation = None
    if config.data.eval:
        held_out = prepared(config.data.eval)
        notes += [f"held out: {line}" for line in describe(held_out)]
        lengths, targets = _sizes(held_out)
        eval_capacity = choose_target_capacity(lengths, targets, length, packing, multiple)
        eval_plan = plan_packing(lengths, targets, length, eval_capacity, packing)
        evaluation = Batches(held_out.examples, eval_plan, 0, rows, parts, False, total_rows=eval_plan.rows)
    resolved = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, target_capacity=capacity),
        train=dataclasses.replace(config.train, steps=steps),
    )
    check_same_run(resolved)
    record = {**data, "plan": plan.hash}
    check_same_record(config, record)
    return Inputs(resolved, pretrained, source, evaluation, record, notes)


def _capacity_of(workdir: Path) -> int:
    """The target capacity of the run in `workdir`; 0 where none has begun."""
    return read_run_config(workdir).data.target_capacity if _has_begun(workdir) else 0


def _has_begun(workdir: Path) -> bool:
    """Whether a run has taken a step here; one that was refused before its first may be started anew."""
    steps = workdir / "metrics.jsonl", *(workdir / "checkpoints").glob("*")
    return (workdir / RUN_CONFIG).is_file() and any(
        path.is_dir() or path.stat().st_size for path in steps if path.exists()
    )


def _sizes(data: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Length and number of trained tokens of every example, int64 [examples]."""
    lengths = np.array([len(example.tokens) for example in data.examples], np.int64)
    targets = np.array([example.targets for example in data.examples], np.int64)
    return lengths, targets


def check_same_run(config: RunConfig) -> None:
    """Refuse the workdir of another run: at once for what the config says, and again for what was resolved from it.

    A workdir whose run never took a step is free: what it holds is of a start that was refused.

    Raises:
      BadInput: a diff of the identity fields.
    """
    workdir = Path(config.workdir)
    if not _has_begun(workdir):
        return
    before = read_run_config(workdir)
    # Not known yet where the config leaves them open; the capacity is then that of the run that began.
    steps = config.train.steps or before.train.steps
    capacity = config.data.target_capacity or before.data.target_capacity
    chosen = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps),
        data=dataclasses.replace(config.data, target_capacity=capacity),
    )
    differences = identity_differences(before, chosen)
    if differences:
        listed = "\n  ".join(differences)
        raise BadInput(f"{workdir} holds another run; these fields differ:\n  {listed}\nChoose another --workdir.")


CHANGED = {
    "data": "the demonstrations changed since this run began; restore the files",
    "plan": "the rows are packed otherwise than when this run began; go on with the version of sft_jax that began it",
}
"""What a difference in each entry of the record means, and the cure."""


def check_same_record(config: RunConfig, found: dict[str, str]) -> None:
    """Refuse data or rows that changed since the run in the workdir began.

    Raises:
      BadInput: with both fingerprints.
    """
    path = Path(config.workdir) / RECORD
    if not (_has_begun(path.parent) and path.is_file()):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in found.items():
        if before[name] != value:
            raise BadInput(
                f"{path.parent}: {CHANGED[name]}, or choose another --workdir (fingerprint {before[name][:12]}, now "
                f"{value[:12]})"
            )


def claim_workdir(inputs: Inputs) -> None:
    """Write what makes the run independent of its inputs; process 0 alone calls it.

    Raises:
      BadInput: the workdir cannot be written.
    """
    workdir = Path(inputs.config.workdir)
    model = workdir / MODEL_FILES
    try:
        model.mkdir(parents=True, exist_ok=True)
        save_tokenizer(inputs.pretrained.tokenizer, model)
        for path, text in (
            (model / "config.json", json.dumps(inputs.pretrained.hf_config, indent=2)),
            (model / "generation_config.json", json.dumps(inputs.pretrained.generation_config, indent=2)),
            (workdir / RECORD, json.dumps(inputs.record)),
            (workdir / RUN_CONFIG, to_json(inputs.config)),
        ):
            content = f"{text.rstrip()}\n".encode()
            write_whole(path, lambda file, content=content: file.write(content))
    except OSError as error:
        raise BadInput(f"workdir {workdir} cannot be written: {error}") from error


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


def batch_shapes_of(source: Batches) -> Batch:
    """Global shapes of the six arrays: [A, b, T] three times, [A, b, M] three times."""
    parts = source.accumulation
    rows = source.batch_size // parts
    by_position = (parts, rows, source.plan.tokens_per_row)
    by_target = (parts, rows, source.plan.targets_per_row)
    return Batch(by_position, by_position, by_position, by_target, by_target, by_target)


def check_batch(config: RunConfig, shapes: Batch, mesh: jax.sharding.Mesh) -> None:
    """Every divided dimension of a batch must divide.

    Raises:
      BadInput: names the dimension, both numbers and the nearest valid value.
    """
    parts, rows, length = shapes.tokens
    row_parts = mesh_size(config.sharding.act_batch, mesh)
    if rows % row_parts:
        unit = row_parts * parts
        below, above = rows * parts // unit * unit, -(-rows * parts // unit) * unit
        raise BadInput(
            f"train.batch_size {rows * parts} in {parts} micro-batch(es) gives {rows} rows, not divisible over "
            f"{config.sharding.act_batch} = {row_parts} devices; nearest valid batch sizes: "
            + (f"{below} or {above}" if below else f"{above}")
        )
    for field, size, rule in (
        ("data.sequence_length", length, config.sharding.act_length),
        ("data.target_capacity", shapes.target_index[2], config.sharding.act_targets),
    ):
        over = mesh_size(rule, mesh)
        if size % over:
            raise BadInput(
                f"{field} {size} is not divisible over {rule} = {over} devices; "
                f"nearest valid: {-(-size // over) * over}"
            )


def make_objective(config: RunConfig, architecture, shapes: Batch, mesh: jax.sharding.Mesh) -> Objective:
    """The SFT objective with the head's chunk turned from positions a device into positions a row."""
    rows_a_device = shapes.tokens[1] // mesh_size(config.sharding.act_batch, mesh)
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
        state, _ = checkpoint.restore(manager, step, abstract_state, state_layout, architecture.vocab)

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
