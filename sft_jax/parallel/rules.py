"""Logical axes -> mesh axes: one readable table (`config.Sharding`), applied to parameters and activations.

A layout that cannot be applied is refused with the parameter, the axis and the numbers; nothing is silently
replicated.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.config import Sharding
from sft_jax.errors import BadInput, nearest

LOGICAL_AXES = tuple(field.name for field in dataclasses.fields(Sharding))

Axes = tuple[str | None, ...]
"""One logical axis a dimension; None leaves the dimension whole (vectors such as norm scales)."""

_active_rules: ContextVar[Sharding | None] = ContextVar("active_rules", default=None)


@contextlib.contextmanager
def layout(mesh: jax.sharding.Mesh, rules: Sharding) -> Iterator[None]:
    """Make `mesh` and `rules` the ones that `shard` uses while tracing."""
    token = _active_rules.set(rules)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _active_rules.reset(token)


def spec(axes: Axes, rules: Sharding) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes.

    Raises:
      BadInput: an unknown logical axis, or two dimensions that land on one mesh axis.
    """
    parts: list[tuple[str, ...] | str | None] = []
    taken: dict[str, str] = {}
    for axis in axes:
        if axis is not None and axis not in LOGICAL_AXES:
            raise BadInput(f"unknown logical axis {axis!r}. {nearest(axis, LOGICAL_AXES)}")
        rule = "none" if axis is None else getattr(rules, axis)
        names = () if rule == "none" else tuple(rule.split("+"))
        for name in names:
            if name in taken:
                raise BadInput(
                    f"logical axes {axes}: {taken[name]!r} and {axis!r} are both divided over mesh axis {name!r}. "
                    f"Give one of them another rule, e.g. --sharding.{str(axis).replace('_', '-')} none"
                )
            taken[name] = str(axis)
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain `x` (one logical axis a dimension) to the active layout; without a layout there is nothing to divide.

    Raises:
      BadInput: an unknown or colliding logical axis.
      ValueError: the number of axes is not the rank of `x`.
    """
    if len(axes) != x.ndim:
        raise ValueError(f"shard got axes {axes} for an array of shape {x.shape}")
    rules = _active_rules.get()
    partition = spec(axes, rules or Sharding())
    return x if rules is None else jax.lax.with_sharding_constraint(x, partition)


def mesh_size(rule: str, mesh: jax.sharding.Mesh) -> int:
    """How many parts a rule such as 'data+fsdp' makes on this mesh."""
    return math.prod(mesh.shape[name] for name in rule.split("+")) if rule != "none" else 1


def shardings(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes], mesh: jax.sharding.Mesh, rules: Sharding
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, by name.

    Raises:
      BadInput: dimensions that do not divide; every one is named with its numbers and a layout that works.
    """
    problems: dict[tuple[str, int], str] = {}
    result = {}
    for name, shape in shapes.items():
        result[name] = NamedSharding(mesh, spec(axes[name], rules))
        for size, axis in zip(shape, axes[name], strict=True):
            parts = mesh_size(getattr(rules, axis), mesh) if axis else 1
            if axis and size % parts and (axis, size) not in problems:
                flag = axis.replace("_", "-")
                fits = [n for n in range(1, parts) if size % n == 0]
                problems[axis, size] = (
                    f"parameter {name}: {axis} {size} is not divisible by {getattr(rules, axis)} = {parts}; "
                    f"leave it whole with --sharding.{flag} none, or use {fits[-1]} parts"
                )
    if problems:
        raise BadInput("\n".join(problems.values()))
    return result
