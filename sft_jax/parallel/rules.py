"""Logical axes -> mesh axes: one readable table (`config.Sharding`), applied to parameters and activations.

A layout that cannot be applied is refused with the array, the axis and the numbers; nothing is silently replicated.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from sft_jax.config import Sharding
from sft_jax.errors import BadInput, nearest

LOGICAL_AXES = tuple(field.name for field in dataclasses.fields(Sharding))

Axes = tuple[str | None, ...]
"""One logical axis a dimension; None leaves the dimension whole (vectors such as norm scales)."""

AnyMesh = jax.sharding.Mesh | AbstractMesh


class Activation(NamedTuple):
    """An activation that `Layout.shard` met while tracing."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes


_recorder: ContextVar[list[Activation] | None] = ContextVar("recorded_activations", default=None)


@contextlib.contextmanager
def recorded_activations() -> Iterator[list[Activation]]:
    """Collect every activation that `Layout.shard` meets, e.g. under `jax.eval_shape`; each one once."""
    found: list[Activation] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


_RULES = Sharding()


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules that divide arrays over it; what is computed on it carries it along.

    Hashable, so that functions that are compiled once per layout can have it as a key.
    """

    mesh: AnyMesh | None = None
    """None is one device: nothing is divided."""
    rules: Sharding = _RULES
    compiles_for: str = ""
    """cpu, gpu or tpu, where the mesh is an abstract one and no device tells."""

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu: what is compiled for, which need not be what is compiled on."""
        if self.mesh is None:
            return jax.default_backend()
        return self.compiles_for if isinstance(self.mesh, AbstractMesh) else self.mesh.devices.flat[0].platform

    @property
    def is_one_device(self) -> bool:
        return self.mesh is None or self.mesh.size == 1

    @property
    def rows_whole(self) -> "Layout":
        """The same with no row divided: for generation, whose rows are one token long."""
        return replace(self, rules=replace(self.rules, act_length="none", act_targets="none"))

    def parts(self, axis: str) -> int:
        """How many parts a logical axis is divided into."""
        return 1 if self.mesh is None else axis_parts(axis, self.rules, self.mesh)

    def dividing_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that do divide a logical axis: those with more than one device."""
        if self.mesh is None:
            return ()
        return tuple(name for name in mesh_axes(axis, self.rules) if self.mesh.shape[name] > 1)

    def whole_batches(self, size: int) -> int:
        """A number of rows rounded up to what the layout divides evenly."""
        parts = self.parts("act_batch")
        return -(-size // parts) * parts

    def shard(self, x: jax.Array, *axes: str | None, name: str = "array") -> jax.Array:
        """Constrain `x` (one logical axis for each dimension) to this layout.

        Args:
          name: of the activation, for messages and for `recorded_activations`.

        Raises:
          BadInput: an unknown or colliding logical axis, or a dimension that does not divide.
          ValueError: the number of axes is not the rank of `x`.
        """
        if len(axes) != x.ndim:
            raise ValueError(f"shard got axes {axes} for an array of shape {x.shape}")
        recorder, met = _recorder.get(), Activation(name, x.shape, x.dtype, axes)
        if recorder is not None and met not in recorder:
            recorder.append(met)
        partition = spec(axes, self.rules, name)
        if self.mesh is None:
            return x
        problems = indivisible(f"activation {name}", x.shape, axes, self.mesh, self.rules)
        if problems:
            raise BadInput("\n".join(problems.values()))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, partition))  # type: ignore[arg-type]


ONE_DEVICE = Layout()


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


def axis_parts(axis: str, rules: Sharding, mesh: AnyMesh) -> int:
    """How many parts a logical axis is divided into on this mesh."""
    return math.prod(mesh.shape[name] for name in mesh_axes(axis, rules))


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
