"""Logical axes -> mesh axes: one readable table (`config.Sharding`), applied to parameters and activations.

A layout that cannot be applied is refused with the array, the axis and the numbers; nothing is silently replicated.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from sft_jax.config import Sharding
from sft_jax.errors import BadInput, nearest

LOGICAL_AXES = tuple(field.name for field in dataclasses.fields(Sharding))

Axes = tuple[str | None, ...]
"""One logical axis a dimension; None leaves the dimension whole (vectors such as norm scales)."""

AnyMesh = jax.sharding.Mesh | AbstractMesh


class Layout(NamedTuple):
    """A mesh and the rules that divide arrays over it."""

    mesh: AnyMesh
    rules: Sharding
    platform: str
    """cpu, gpu or tpu: what is compiled for, which need not be what is compiled on."""


class Activation(NamedTuple):
    """An activation that `shard` met while tracing."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes


_active: ContextVar[Layout | None] = ContextVar("active_layout", default=None)
_recorder: ContextVar[list[Activation] | None] = ContextVar("recorded_activations", default=None)


@contextlib.contextmanager
def layout(mesh: AnyMesh, rules: Sharding, platform: str = "") -> Iterator[None]:
    """Make `mesh` and `rules` the ones that `shard` uses while tracing.

    Args:
      mesh: of devices, or an abstract one to trace on only.
      platform: of an abstract mesh; the devices of another tell it.
    """
    abstract = isinstance(mesh, AbstractMesh)
    token = _active.set(Layout(mesh, rules, platform if abstract else mesh.devices.flat[0].platform))
    try:
        with jax.sharding.use_abstract_mesh(mesh) if abstract else jax.set_mesh(mesh):
            yield
    finally:
        _active.reset(token)


@contextlib.contextmanager
def rows_whole() -> Iterator[None]:
    """The active layout with no row divided: for generation, whose rows are one token long."""
    active = _active.get()
    if active is None:
        yield
        return
    rules = dataclasses.replace(active.rules, act_length="none", act_targets="none")
    token = _active.set(active._replace(rules=rules))
    try:
        yield
    finally:
        _active.reset(token)


def active_layout() -> Layout | None:
    """The layout that is being traced under; None for arrays on one device."""
    return _active.get()


def target_platform() -> str:
    """cpu, gpu or tpu: what is compiled for, which need not be what is compiled on."""
    active = _active.get()
    return jax.default_backend() if active is None else active.platform


@contextlib.contextmanager
def recorded_activations() -> Iterator[list[Activation]]:
    """Collect every activation that `shard` meets, e.g. under `jax.eval_shape`; each (name, shape, axes) once."""
    found: list[Activation] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


def mesh_axes(axis: str | None, rules: Sharding) -> tuple[str, ...]:
    """The mesh axes that a logical axis is divided over, the slowest first; () where it stays whole.

    Raises:
      BadInput: an unknown logical axis.
    """
    if axis is None:
        return ()
    if axis not in LOGICAL_AXES:
        raise BadInput(f"unknown logical axis {axis!r}. {nearest(axis, LOGICAL_AXES)}")
    rule = getattr(rules, axis)
    return () if rule == "none" else tuple(rule.split("+"))


def spec(axes: Axes, rules: Sharding, what: str = "") -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes.

    Args:
      what: the array's name, for messages.

    Raises:
      BadInput: an unknown logical axis, or two dimensions that land on one mesh axis.
    """
    parts: list[tuple[str, ...] | str | None] = []
    taken: dict[str, str] = {}
    for axis in axes:
        names = mesh_axes(axis, rules)
        for name in names:
            if name in taken:
                raise BadInput(
                    f"{what or 'array'} with logical axes {', '.join(map(str, axes))}: {taken[name]!r} and {axis!r} "
                    f"are both divided over mesh axis {name!r}. Give one of them another rule, e.g. "
                    f"--sharding.{str(axis).replace('_', '-')} none"
                )
            taken[name] = str(axis)
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def shard(x: jax.Array, *axes: str | None, name: str = "array") -> jax.Array:
    """Constrain `x` (one logical axis a dimension) to the active layout; without a layout there is nothing to divide.

    Args:
      name: of the activation, for messages and for `recorded_activations`.

    Raises:
      BadInput: an unknown or colliding logical axis, or a dimension that does not divide.
      ValueError: the number of axes is not the rank of `x`.
    """
    if len(axes) != x.ndim:
        raise ValueError(f"shard got axes {axes} for an array of shape {x.shape}")
    active, recorder = _active.get(), _recorder.get()
    met = Activation(name, x.shape, x.dtype, axes)
    if recorder is not None and met not in recorder:
        recorder.append(met)
    partition = spec(axes, Sharding() if active is None else active.rules, name)
    if active is None:
        return x
    problems = indivisible(f"activation {name}", x.shape, axes, active.mesh, active.rules)
    if problems:
        raise BadInput("\n".join(problems.values()))
    return jax.lax.with_sharding_constraint(x, partition)


def axis_parts(axis: str, rules: Sharding, mesh: AnyMesh) -> int:
    """How many parts a logical axis is divided into on this mesh."""
    return math.prod(mesh.shape[name] for name in mesh_axes(axis, rules))


def dividing_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes of the active layout that do divide a logical axis: those with more than one device."""
    active = _active.get()
    if active is None:
        return ()
    return tuple(name for name in mesh_axes(axis, active.rules) if active.mesh.shape[name] > 1)


def active_parts(axis: str) -> int:
    """`axis_parts` of the active layout; 1 without one."""
    active = _active.get()
    return 1 if active is None else axis_parts(axis, active.rules, active.mesh)


def whole_batches(size: int) -> int:
    """A number of rows rounded up to what the active layout divides evenly."""
    parts = active_parts("act_batch")
    return -(-size // parts) * parts


def indivisible(
    what: str, shape: tuple[int, ...], axes: Axes, mesh: AnyMesh, rules: Sharding
) -> dict[tuple[str, int], str]:
    """(logical axis, size) -> what is wrong with it and what would work, for dimensions that do not divide."""
    problems = {}
    for size, axis in zip(shape, axes, strict=True):
        parts = axis_parts(axis, rules, mesh) if axis else 1
        if axis and size % parts:
            fits = max(n for n in range(1, parts) if size % n == 0)
            problems[axis, size] = (
                f"{what}: {axis} {size} is not divisible by {getattr(rules, axis)} = {parts}; "
                f"leave it whole with --sharding.{axis.replace('_', '-')} none" + f", or use {fits} parts" * (fits > 1)
            )
    return problems


def shardings(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes], mesh: AnyMesh, rules: Sharding
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, by name.

    Raises:
      BadInput: two dimensions on one mesh axis, or dimensions that do not divide; every one is named with its numbers
        and a layout that works.
    """
    problems: dict[tuple[str, int], str] = {}
    result = {}
    for name, shape in shapes.items():
        result[name] = NamedSharding(mesh, spec(axes[name], rules, f"parameter {name}"))  # type: ignore[arg-type]
        found = indivisible(f"parameter {name}", shape, axes[name], mesh, rules)
        problems.update({key: text for key, text in found.items() if key not in problems})
    if problems:
        raise BadInput("\n".join(problems.values()))
    return result
