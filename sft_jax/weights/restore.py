"""The arrays of Orbax checkpoints, read straight into the shards that a layout asks for: a checkpoint restores onto any
mesh, its parameters alone where nothing else is wanted.

`workdir/checkpoints/STEP/{parameters,moments,counters,record}`, written by `train/checkpoint.py`.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters
from sft_jax.storage.bucket import below, is_remote, kind_of, place
from sft_jax.storage.orbax_object_store import teach_orbax

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every file it touches

VOCABULARY_PARAMETERS = ("embedding", "head")
"""Their rows may differ between layouts: those beyond the vocabulary are zero, get no gradient and stay zero."""


class _Manager(ocp.CheckpointManager):
    """A manager that leaves preemption to the loop.

    Orbax asks JAX's synchronisation point with the step as its tick; the loop asks it with ticks of its own. One notice
    answered to a step's number would never reach the loop.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def checkpoint_manager(workdir: str | Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    arrays = {name: ocp.StandardCheckpointHandler() for name in ("parameters", "moments", "counters")}
    handlers: Any = {**arrays, "record": ocp.JsonCheckpointHandler()}
    if is_remote(workdir):
        teach_orbax()
    return _Manager(place(workdir) / "checkpoints", item_handlers=handlers, options=options)


def restore_parameters(
    workdir: str | Path, architecture: Architecture, shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """The parameters of the newest checkpoint of a run, laid out by `shardings`; the run may be going on.

    Raises:
      BadInput: the workdir has no finished checkpoint, or one of another model.
    """
    shapes, _ = abstract_parameters(architecture)
    step = None
    directory = below(workdir, "checkpoints")
    if kind_of(directory) == "directory":
        manager = checkpoint_manager(workdir, ocp.CheckpointManagerOptions(read_only=True))
        step = manager.latest_step()
    if step is None:
        raise BadInput(f"{workdir}: no finished checkpoint in {directory}; train this run first")
    wanted = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings[name]) for name, shape in shapes.items()
    }
    with contextlib.closing(manager):
        return restore_items(manager, step, architecture.vocab, parameters=wanted)["parameters"]


def restore_items(manager: ocp.CheckpointManager, step: int, vocab: int, **items: Any) -> Any:
    where = manager.directory / str(step)
    # Orbax finds a wrong shape while it reads, and leaves the other reads behind, unfinished: look first.
    _check_parameters(manager.item_metadata(step)["parameters"], items["parameters"], vocab, where)
    # Not strict: rows are added or cut where the two layouts padded the vocabulary differently.
    wanted = {name: ocp.args.StandardRestore(item, strict=False) for name, item in items.items()}
    try:
        return manager.restore(step, args=ocp.args.Composite(**wanted))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise BadInput(f"{where}: cannot be restored: {error}") from error


def _check_parameters(stored: Any, wanted: Mapping[str, jax.ShapeDtypeStruct], vocab: int, where: Any) -> None:
    """Every parameter is there in its shape and no other, but for the rows that a layout adds to the vocabulary."""
    if stored is None:
        raise BadInput(f"{where}: cannot be restored: it holds no parameters. Remove it to go on from an earlier one.")

    def in_effect(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (vocab, *shape[1:]) if name in VOCABULARY_PARAMETERS and shape[0] >= vocab else shape

    found = {name: in_effect(name, tuple(leaf.shape)) for name, leaf in stored.items()}
    expected = {name: in_effect(name, tuple(leaf.shape)) for name, leaf in wanted.items()}
    problems = [
        f"{name}: found {list(found[name]) if name in found else 'nothing'}, "
        f"expected {list(expected[name]) if name in expected else 'nothing'}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if problems:
        raise BadInput(f"{where}: cannot be restored into this model:\n  " + "\n  ".join(problems))
