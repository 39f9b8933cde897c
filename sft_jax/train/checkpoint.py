"""Orbax checkpoints: parameters, moments and counters as separate items, saved while training goes on.

`workdir/checkpoints/STEP/{parameters,moments,counters,record}`. Sampling and export read `parameters` alone. A
checkpoint restores onto any mesh: arrays are read straight into the shards that the new layout asks for.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers as policies

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters
from sft_jax.train.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every file it touches

ITEMS = ("parameters", "moments", "counters", "record")


def open_checkpoints(workdir: str | Path, keep_last: int, keep_every: int) -> ocp.CheckpointManager:
    """The manager of `workdir/checkpoints`: keeps the newest `keep_last` and every multiple of `keep_every`.

    Leftovers of a save that was cut off (a killed run) are removed.
    """
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
        keep.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(Path(workdir).resolve() / "checkpoints", item_names=ITEMS, options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, record: dict[str, Any]) -> None:
    """Start an asynchronous save under `state.step`; `manager.wait_until_finished()` waits for the commit."""
    counters = {"step": state.step, "skipped": state.skipped}
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            parameters=ocp.args.StandardSave(dict(state.trainable)),
            moments=ocp.args.StandardSave(state.moments),
            counters=ocp.args.StandardSave(counters),
            record=ocp.args.JsonSave(record),
        ),
        force=True,
    )


def restore(
    manager: ocp.CheckpointManager, step: int, abstract: TrainState, shardings: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """The state saved at `step`, laid out by `shardings`, and the record saved beside it.

    Raises:
      BadInput: the checkpoint's arrays are not those of this model and optimizer.
    """

    def target(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    wanted: TrainState = jax.tree.map(target, abstract, shardings)
    restored = _restore_items(
        manager,
        step,
        parameters=ocp.args.StandardRestore(dict(wanted.trainable)),
        moments=ocp.args.StandardRestore(wanted.moments),
        counters=ocp.args.StandardRestore({"step": wanted.step, "skipped": wanted.skipped}),
        record=ocp.args.JsonRestore(),
    )
    state = TrainState(
        restored["counters"]["step"], restored["counters"]["skipped"], restored["parameters"], restored["moments"]
    )
    return state, restored["record"]


def restore_parameters(
    workdir: str | Path, architecture: Architecture, shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """The parameters of the newest checkpoint of a run, laid out by `shardings`.

    Raises:
      BadInput: the workdir has no finished checkpoint.
    """
    shapes, _ = abstract_parameters(architecture)
    manager = open_checkpoints(workdir, keep_last=1_000_000, keep_every=0)
    step = manager.latest_step()
    if step is None:
        raise BadInput(f"{workdir}: no finished checkpoint in {Path(workdir) / 'checkpoints'}; train this run first")
    wanted = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings[name]) for name, shape in shapes.items()
    }
    restored = _restore_items(manager, step, parameters=ocp.args.StandardRestore(wanted))
    manager.close()
    return restored["parameters"]


def _restore_items(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise BadInput(f"{manager.directory / str(step)}: cannot be restored: {error}") from error


def to_host(tree: Any) -> Any:
    """Scalars of a metrics tree as Python numbers; waits for the device."""
    return jax.tree.map(lambda x: np.asarray(x).item(), tree)
