"""The mesh closest to a refused one that works: what an error message offers."""

import math
from collections.abc import Callable, Iterator, Mapping

from jax.sharding import AbstractMesh, AxisType

FREE = ("data", "fsdp", "tensor", "context")
"""Axes whose sizes may be exchanged for one another."""


def nearest_mesh(sizes: Mapping[str, int], works: Callable[[AbstractMesh], bool]) -> dict[str, int] | None:
    """Axis sizes with the same product that work and differ least from `sizes`, counted in doublings; None if none.

    Args:
      sizes: of every axis of the mesh that does not work.
      works: whether a mesh does.
    """

    def distance(other: tuple[int, ...]) -> tuple[float, int, int]:
        doublings = sum(abs(math.log2(size / sizes[axis])) for axis, size in zip(FREE, other, strict=True))
        data, fsdp, *_ = other
        return doublings, -fsdp, -data  # of equals, the one that divides parameters and needs nothing of the model

    devices = math.prod(sizes[axis] for axis in FREE)
    for candidate in sorted(factorings(devices, len(FREE)), key=distance):
        other = {**sizes, **dict(zip(FREE, candidate, strict=True))}
        names = tuple(other)
        if works(AbstractMesh(tuple(other.values()), names, axis_types=(AxisType.Auto,) * len(names))):
            return other
    return None


def factorings(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `number` as a product of `parts` ordered factors."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in factorings(number // first, parts - 1):
                yield (first, *rest)
