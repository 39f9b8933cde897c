"""The closest mesh that works, for error messages about one that does not."""

import math
from collections.abc import Callable, Iterator, Mapping

from jax.sharding import AbstractMesh, AxisType

FREE = ("data", "fsdp", "tensor", "context")
"""Axes whose sizes may be traded against each other."""


def nearest_mesh(sizes: Mapping[str, int], works: Callable[[AbstractMesh], bool]) -> dict[str, int] | None:
    """The axis sizes with the same product that work and are closest to `sizes`, in doublings; None if none work.

    Args:
      sizes: size of every axis of the mesh that does not work.
      works: whether a given mesh works.
    """

    def distance(other: tuple[int, ...]) -> tuple[float, int, int]:
        doublings = sum(abs(math.log2(size / sizes[axis])) for axis, size in zip(FREE, other, strict=True))
        data, fsdp, *_ = other
        return doublings, -fsdp, -data  # ties: prefer the axes that shard parameters and put no demands on the model

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
