"""Restore Orbax checkpoints directly into the requested shards, on any mesh; parameters can be restored alone.

`workdir/checkpoints/STEP/{parameters,moments,counters,record}`, written by `train/checkpoint.py`.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sft_jax.distributed.agree import run_on_first_process, wait_for
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location, as_location
from sft_jax.storage.orbax_object_store import enable_object_stores
from sft_jax.weights.restack import Piece, as_requested, as_stored, is_stack, pieces_of, stored_layers

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every file it touches

VOCABULARY_PARAMETERS = ("embedding", "head")
"""Their number of rows may differ between layouts. Padding rows are zero, get no gradient and stay zero."""


class _Manager(ocp.CheckpointManager):
    """A checkpoint manager that leaves preemption to the training loop.

    Orbax polls JAX's preemption sync point with step numbers, the loop with its own ticks. A notice that Orbax consumed
    would never reach the loop.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def checkpoint_manager(workdir: Location, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    arrays = {name: ocp.StandardCheckpointHandler() for name in ("parameters", "moments", "counters")}
    handlers: Any = {**arrays, "record": ocp.JsonCheckpointHandler()}
    if workdir.is_remote:
        enable_object_stores()
    return _Manager((workdir / "checkpoints").epath, item_handlers=handlers, options=options)


def restore_parameters(
    workdir: Location | str | Path, shapes: Mapping[str, jax.ShapeDtypeStruct], vocab: int
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Restore these arrays from a run's newest checkpoint, with its record; the run may still be in progress.

    A run with frozen parameters saves only the trainable ones; frozen ones are missing from the result.

    Args:
      shapes: name -> shape and dtype, with the sharding to restore to.
      vocab: vocabulary rows that the checkpoint must have, not counting padding.

    Raises:
      BadInput: the workdir has no finished checkpoint, or one of another model.
    """
    step = None
    workdir = as_location(workdir)
    directory = workdir / "checkpoints"
    if run_on_first_process("looks for checkpoints", lambda _: directory.kind() == "directory"):
        manager = checkpoint_manager(workdir, ocp.CheckpointManagerOptions(read_only=True))
        step = newest_step(manager)
    if step is None:
        raise BadInput(f"{workdir}: no finished checkpoint in {directory}; train this run first")
    with contextlib.closing(manager):
        record = restore_record(manager, step)
        stored = stored_layers(stored_shapes(manager, step))
        some = pieces_of(list(shapes), stored) if record.get("base") else shapes
        wanted = {name: shapes[name] for name in some}
        return restore_items(manager, step, vocab, parameters=wanted)["parameters"], record


def newest_step(manager: ocp.CheckpointManager) -> int | None:
    """The newest checkpoint that process 0 sees, on every process; None if it sees none.

    Raises:
      BadInput: the checkpoint does not become visible to this process.
    """
    step = run_on_first_process("looks for the newest checkpoint", lambda _: manager.latest_step())
    if step is not None:
        wait_for(lambda: (manager.directory / str(step)).exists(), manager.directory / str(step))
    return step


def restore_record(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON record saved with the arrays."""
    return manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]


def stored_shapes(manager: ocp.CheckpointManager, step: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters in a checkpoint.

    Raises:
      BadInput: it holds none.
    """
    stored = manager.item_metadata(step)["parameters"]
    if stored is None:
        raise BadInput(
            f"{manager.directory / str(step)}: cannot be restored: it contains no parameters. Remove it to resume from "
            "an earlier one."
        )
    return {name: tuple(leaf.shape) for name, leaf in stored.items()}


def restore_items(manager: ocp.CheckpointManager, step: int, vocab: int, **items: Any) -> dict[str, Any]:
    """Restore items of a checkpoint, each to the given tree of shapes, dtypes and shardings.

    Raises:
      BadInput: the checkpoint's parameters do not match `items["parameters"]`, or its files cannot be read.
    """
    where = manager.directory / str(step)
    shapes, parameters = stored_shapes(manager, step), items["parameters"]
    as_wanted = set(shapes) == set(parameters)
    pieces = None if as_wanted else pieces_of(list(parameters), stored_layers(shapes))
    # Check first: Orbax detects a wrong shape only while reading, and leaves its other reads unfinished.
    _check_parameters(shapes, parameters, pieces, vocab, where)
    targets = items if pieces is None else {key: as_stored(tree, pieces, shapes) for key, tree in items.items()}
    # Not strict: rows are added or dropped where the two layouts pad the vocabulary differently.
    arguments = {name: ocp.args.StandardRestore(item, strict=False) for name, item in targets.items()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**arguments))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise BadInput(f"{where}: cannot be restored: {error}") from error
    return {key: restored[key] if pieces is None else as_requested(restored[key], items[key], pieces) for key in items}


def _check_parameters(
    stored: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    pieces: Mapping[str, Sequence[Piece]] | None,
    vocab: int,
    where: Any,
) -> None:
    """Check that names and shapes match exactly, apart from vocabulary padding and the stacking of layers."""

    def in_effect(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (vocab, *shape[1:]) if name in VOCABULARY_PARAMETERS and shape[0] >= vocab else shape

    def requested_shape(name: str) -> tuple[int, ...] | None:
        if pieces is None or name not in pieces:
            return stored.get(name) if pieces is None else None
        one = pieces[name][0]
        own = stored[one.name] if one.row is None else stored[one.name][1:]
        return (len(pieces[name]), *own) if is_stack(name) else own

    used = {piece.name for some in (pieces or {}).values() for piece in some}
    unused = set() if pieces is None else {name for name in stored if name not in used}
    problems = []
    for name in sorted({*wanted, *(stored if pieces is None else unused)}):
        found = stored.get(name) if name in unused else requested_shape(name)
        expected = tuple(wanted[name].shape) if name in wanted else None
        spelled = ["nothing" if shape is None else str(list(in_effect(name, shape))) for shape in (found, expected)]
        if spelled[0] != spelled[1]:
            problems.append(f"{name}: found {spelled[0]}, expected {spelled[1]}")
    if problems:
        raise BadInput(f"{where}: cannot be restored into this model:\n  " + "\n  ".join(problems))
