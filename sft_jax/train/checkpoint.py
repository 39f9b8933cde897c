"""Orbax checkpoints: parameters, optimizer state and counters as separate items, saved asynchronously.

`workdir/checkpoints/STEP/{parameters,moments,counters,record}`: `parameters` are the trainable ones, `moments` the
optax state. Sampling and export read only `parameters` (`weights/restore.py`).
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from sft_jax.storage.location import Location, as_location
from sft_jax.train.step import TrainState
from sft_jax.weights.restore import checkpoint_manager, restore_items, restore_record


def open_checkpoints(workdir: Location | str | Path, keep_last: int, keep_every: int) -> ocp.CheckpointManager:
    """The manager of `workdir/checkpoints`; keeps the newest `keep_last` and every multiple of `keep_every`.

    Removes unfinished saves of a killed run, so open only one manager per workdir at a time.
    """
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
        keep.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    return checkpoint_manager(as_location(workdir), options)


def save(manager: ocp.CheckpointManager, state: TrainState, record: dict[str, Any]) -> None:
    """Start an asynchronous save under `state.step`; `manager.wait_until_finished()` waits for the commit."""
    counters = {"step": state.step, "skipped": state.skipped}
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            parameters=ocp.args.StandardSave(dict(state.trainable)),
            moments=ocp.args.StandardSave(state.opt_state),
            counters=ocp.args.StandardSave(counters),
            record=ocp.args.JsonSave(record),
        ),
        force=True,
    )


def restore(
    manager: ocp.CheckpointManager, step: int, abstract: TrainState, shardings: TrainState, vocab: int
) -> tuple[TrainState, dict[str, Any]]:
    """Restore the state saved at `step` into `shardings`, with its record.

    Args:
      vocab: vocabulary rows that the checkpoint must have, not counting padding.

    Raises:
      BadInput: the checkpoint's arrays do not match this model and optimizer.
    """

    def target(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    wanted: TrainState = jax.tree.map(target, abstract, shardings)
    restored = restore_items(
        manager,
        step,
        vocab,
        parameters=dict(wanted.trainable),
        moments=wanted.opt_state,
        counters={"step": wanted.step, "skipped": wanted.skipped},
    )
    counters = restored["counters"]
    state = TrainState(counters["step"], counters["skipped"], restored["parameters"], restored["moments"])
    return state, restore_record(manager, step)


def to_host(tree: Any) -> Any:
    """Convert the scalars of a metrics tree to Python numbers; blocks on the device."""
    return jax.tree.map(lambda x: np.asarray(x).item(), tree)
