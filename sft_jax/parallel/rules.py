"""Logical axes -> mesh axes: one readable table (`config.Sharding`), applied to parameters and activations.

A layout that does not fit raises with the array, the axis and the numbers; nothing is silently replicated.
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
"""One logical axis per dimension; None leaves the dimension unsharded (vectors such as norm scales)."""

AnyMesh = jax.sharding.Mesh | AbstractMesh


class Activation(NamedTuple):
    """An activation that `Layout.shard` saw while tracing."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes


_recorder: ContextVar[list[Activation] | None] = ContextVar("recorded_activations", default=None)


@contextlib.contextmanager
def recorded_activations() -> Iterator[list[Activation]]:
    """Collect every distinct activation passed to `Layout.shard`, e.g. under `jax.eval_shape`."""
    found: list[Activation] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


_RULES = Sharding()


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules that shard arrays over it, passed explicitly to everything computed on it.

    Hashable, so that it can be a static argument or cache key.
    """

    mesh: AnyMesh | None = None
    """None means one device: nothing is sharded."""
    rules: Sharding = _RULES
    target_platform: str = ""
    """cpu, gpu or tpu; set where the mesh is abstract and has no devices to ask."""

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu: the compilation target, which need not be the host's platform."""
        if self.mesh is None:
            return jax.default_backend()
        return self.target_platform if isinstance(self.mesh, AbstractMesh) else self.mesh.devices.flat[0].platform

    @property
    def is_one_device(self) -> bool:
        return self.mesh is None or self.mesh.size == 1

    @property
    def without_length_sharding(self) -> "Layout":
        """The same layout with undivided rows, for generation, where T = 1."""
        return replace(self, rules=replace(self.rules, act_length="none", act_targets="none"))

    def parts(self, axis: str) -> int:
        """Number of shards along a logical axis."""
        return 1 if self.mesh is None else axis_parts(axis, self.rules, self.mesh)

    def sharding_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that actually shard a logical axis: those with more than one device."""
        if self.mesh is None:
            return ()
        return tuple(name for name in mesh_axes(axis, self.rules) if self.mesh.shape[name] > 1)

    def round_up_batch(self, size: int) -> int:
        """Round a number of rows up to a multiple of the batch shards."""
        parts = self.parts("act_batch")
        return -(-size // parts) * parts

    def shard(self, x: jax.Array, *axes: str | None, name: str = "array") -> jax.Array:
        """Constrain `x` to this layout; `axes` has one logical axis per dimension.

        Args:
          name: name of the activation, for error messages and `recorded_activations`.

        Raises:
          BadInput: an unknown or colliding logical axis, or a dimension that is not divisible.
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
    """The mesh axes that a logical axis is sharded over, slowest first; () if unsharded.

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
      BadInput: an unknown logical axis, or two dimensions sharded over one mesh axis.
    """
    parts: list[tuple[str, ...] | str | None] = []
    used: dict[str, str] = {}
    for axis in axes:
        names = mesh_axes(axis, rules)
        for name in names:
            if name in used:
                raise BadInput(
                    f"{what or 'array'} with logical axes {', '.join(map(str, axes))}: {used[name]!r} and {axis!r} "
                    f"are both sharded over mesh axis {name!r}. Change the rule of one, e.g. "
                    f"--sharding.{str(axis).replace('_', '-')} none"
                )
            used[name] = str(axis)
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def axis_parts(axis: str, rules: Sharding, mesh: AnyMesh) -> int:
    """Number of shards along a logical axis on this mesh."""
    return math.prod(mesh.shape[name] for name in mesh_axes(axis, rules))


def indivisible(
    what: str, shape: tuple[int, ...], axes: Axes, mesh: AnyMesh, rules: Sharding
) -> dict[tuple[str, int], str]:
    """(logical axis, size) -> error message with a fix, for each dimension that is not divisible."""
    problems = {}
    for size, axis in zip(shape, axes, strict=True):
        parts = axis_parts(axis, rules, mesh) if axis else 1
        if axis and size % parts:
            fits = max(n for n in range(1, parts) if size % n == 0)
            problems[axis, size] = (
                f"{what}: {axis} {size} is not divisible by {getattr(rules, axis)} = {parts}; "
                f"set --sharding.{axis.replace('_', '-')} none to replicate it" + f", or use {fits} shards" * (fits > 1)
            )
    return problems


def shardings(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes], mesh: AnyMesh, rules: Sharding
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, by name.

    Raises:
      BadInput: two dimensions on one mesh axis, or dimensions that are not divisible; names each with its sizes and a
        layout that works.
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
