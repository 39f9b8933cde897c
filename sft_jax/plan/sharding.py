"""The sharding of every array of a run: shards, bytes per device, what is replicated and why. Compiles nothing."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from sft_jax.config import RunConfig, Sharding
from sft_jax.data.pack.batches import Batch
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.mesh import AXES, mesh_sizes
from sft_jax.parallel.rules import Axes, mesh_axes
from sft_jax.train.program import activations_of, make_program
from sft_jax.train.sharding import is_axes, state_axes

KINDS = ("parameter", "optimizer", "batch", "activation")
BATCH_AXES: tuple[Axes, ...] = ((None, "act_batch", "act_length"),) * 3 + ((None, "act_batch", "act_targets"),) * 3


@dataclass(frozen=True)
class Placed:
    """One array and its sharding."""

    kind: str
    """One of KINDS."""
    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: Axes
    """Logical axes, one per dimension."""
    over: tuple[tuple[str, ...], ...]
    """Mesh axes that shard each dimension, slowest first."""
    shard_shape: tuple[int, ...]
    bytes_per_device: int
    copies: int
    """Number of devices that hold each shard."""
    why: tuple[str, ...]
    """For each mesh axis over which it is replicated, the reason."""


@dataclass(frozen=True)
class Shard:
    """A shard of an array and the devices that hold it."""

    number: int
    index: tuple[tuple[int, int], ...]
    """Start and end index of each dimension."""
    devices: tuple[int, ...]
    """Device indices in mesh order."""


def abstract_mesh(config: RunConfig, devices: int) -> AbstractMesh:
    """The config's mesh over this number of devices, none of which need exist.

    Raises:
      BadInput: the product of the axes is not `devices`.
    """
    sizes = mesh_sizes(config.mesh, devices)
    return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def place_all(
    config: RunConfig, architecture: Architecture, shapes: Batch, mesh: AbstractMesh, platform: str
) -> list[Placed]:
    """The sharding of every parameter, optimizer state, batch array and activation of a run.

    Args:
      architecture: the model's architecture, not yet laid out.
      shapes: global shapes of a batch [A, b, T] and [A, b, M].

    Raises:
      BadInput: a layout that does not fit.
    """
    rules = config.sharding
    program = make_program(config, architecture, shapes, mesh, platform)  # raises if indivisible
    abstract, axes = abstract_parameters(program.architecture)
    placed = [_placed("parameter", name, leaf, axes[name], mesh, rules) for name, leaf in abstract.items()]
    own_axes = jax.tree.leaves(state_axes(program.state, axes).opt_state, is_leaf=is_axes)
    leaves = jax.tree_util.tree_leaves_with_path(program.state.opt_state)
    for (path, leaf), own in zip(leaves, own_axes, strict=True):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        label = next((key.name for key in reversed(path) if isinstance(key, jax.tree_util.GetAttrKey)), "state")
        placed.append(_placed("optimizer", " ".join([label, *keys]), leaf, own, mesh, rules))
    kinds = (np.int32,) * 5 + (np.float32,)
    for name, shape, own, kind in zip(Batch._fields, shapes, BATCH_AXES, kinds, strict=True):
        placed.append(_placed("batch", name, jax.ShapeDtypeStruct(shape, kind), own, mesh, rules))
    for each in activations_of(program.objective, abstract, shapes):
        array = jax.ShapeDtypeStruct(each.shape, each.dtype)
        placed.append(_placed("activation", each.name, array, each.axes, mesh, rules))
    return placed


def _placed(kind: str, name: str, array: Any, axes: Axes, mesh: AbstractMesh, rules: Sharding) -> Placed:
    over = tuple(tuple(n for n in mesh_axes(axis, rules) if mesh.shape[n] > 1) for axis in axes)
    parts = [math.prod(mesh.shape[name] for name in names) for names in over]
    shard = tuple(size // n for size, n in zip(array.shape, parts, strict=True))
    used = {name for names in over for name in names}
    unused = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1 and axis not in used]
    return Placed(
        kind=kind,
        name=name,
        shape=tuple(array.shape),
        dtype=str(np.dtype(array.dtype)) if array.dtype != jax.numpy.bfloat16 else "bfloat16",
        axes=axes,
        over=over,
        shard_shape=shard,
        bytes_per_device=math.prod(shard) * array.dtype.itemsize,
        copies=math.prod(mesh.shape[axis] for axis in unused),
        why=tuple(_why(unused, kind, array.shape, axes, rules)),
    )


def _why(unused: list[str], kind: str, shape: tuple[int, ...], axes: Axes, rules: Sharding) -> Iterator[str]:
    """Why an array is replicated over these mesh axes; one line per reason."""
    named = [axis for axis in dict.fromkeys(axes) if axis is not None]
    if unused and not [axis for axis in named if axis != "layers"]:
        size = math.prod(shape)
        reason = "a scalar" if size == 1 else f"{size:,} numbers, too few to shard: norm scales have no logical axis"
        yield f"{', '.join(unused)}: {reason}"
        return
    rule = ", ".join(f"sharding.{axis} is {getattr(rules, axis)}" for axis in named)
    for mesh_axis in unused:
        if mesh_axis == "data" and kind in ("parameter", "optimizer"):
            yield "data: every replica holds all parameters, by definition; fsdp would shard them instead"
        else:
            yield f"{mesh_axis}: no dimension is sharded over it ({rule})"


def shards_of(placed: Placed, sizes: Mapping[str, int]) -> list[Shard]:
    """Every shard of an array, and the devices that hold it.

    Args:
      sizes: sizes of the mesh axes, in mesh order.
    """
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    coordinates = dict(zip(sizes, np.indices(numbers.shape).reshape(len(sizes), -1), strict=True))
    part = np.zeros((len(placed.shape), numbers.size), np.int64)
    for dimension, names in enumerate(placed.over):
        for name in names:
            part[dimension] = part[dimension] * sizes[name] + coordinates[name]
    counts = [math.prod(sizes[name] for name in names) for names in placed.over]
    holders: dict[tuple[int, ...], list[int]] = {}
    for device, which in enumerate(part.T.tolist()):
        holders.setdefault(tuple(which), []).append(device)
    return [
        Shard(
            number,
            tuple((i * size, (i + 1) * size) for i, size in zip(which, placed.shard_shape, strict=True)),
            tuple(holders[which]),
        )
        for number, which in enumerate(np.ndindex(*counts))
    ]


def named_devices(devices: tuple[int, ...], sizes: Mapping[str, int]) -> str:
    """Describe devices by mesh axes, such as `fsdp 3, each data`, or by number if they do not form a block."""
    wide = {axis: size for axis, size in sizes.items() if size > 1}
    if not wide:
        return "the one device"
    at = np.array(np.unravel_index(np.array(devices), tuple(sizes.values())))
    found = {axis: sorted(set(at[list(sizes).index(axis)].tolist())) for axis in wide}
    if math.prod(map(len, found.values())) != len(devices):
        return f"devices {', '.join(map(str, devices))}"
    fixed = [f"{axis} {_ranges(where)}" for axis, where in found.items() if len(where) < wide[axis]]
    every = [f"each {axis}" for axis, where in found.items() if len(where) == wide[axis]]
    return ", ".join([*fixed, *every])


def _ranges(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return "+".join(map(str, numbers))


def totals(placed: list[Placed], devices: int) -> Iterator[tuple[str, int, int]]:
    """(kind, bytes per device, bytes of these that full sharding would save), for each kind."""
    for kind in KINDS[:3]:
        some = [each for each in placed if each.kind == kind]
        held = sum(each.bytes_per_device for each in some)
        spared = sum(each.bytes_per_device * (each.copies - 1) // each.copies for each in some)
        yield kind, held, spared
        if kind == "parameter":
            yield "gradient", held, spared
