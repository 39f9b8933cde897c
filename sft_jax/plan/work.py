"""The work of one device in one update, in units that the cost model converts to seconds."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Product(NamedTuple):
    """`count` matrix products [m, k] x [k, n]."""

    m: float
    k: float
    n: float
    count: float = 1.0

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.count


class Transfer(NamedTuple):
    """A collective, and the bytes that a device sends for it."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it spans."""
    bytes: float
    """Bytes of a ring algorithm: (n-1)/n of the whole array, twice that for an all-reduce, the shard itself for a
    permute (Chan et al. 2007, table 1)."""
    devices: int
    """Devices in each group."""
    islands: int
    """TPU slices, or GPU nodes, that a group spans."""
    waits: bool
    """Whether it blocks the device, without overlap."""


class Work(NamedTuple):
    """The work of one execution of an instruction."""

    name: str
    products: tuple[Product, ...] = ()
    kernel_flops: float = 0.0
    """FLOPs of an attention kernel."""
    head_dim: int = 0
    """Head dimension of that kernel."""
    imbalance: float = 1.0
    """Kernel work of the busiest device over the mean; the others wait for it."""
    hbm: float = 0.0
    """Bytes of HBM read and written."""
    host: float = 0.0
    """Bytes to or from host memory."""
    sent: tuple[Transfer, ...] = ()
    waits: bool = True
    """Whether the next instruction waits for it; prefetches and host transfers overlap with others."""


class Region(NamedTuple):
    """A sequence of instructions: the whole program, or a loop body within it."""

    name: str
    times: float
    """Number of executions per execution of the enclosing region."""
    works: "tuple[Work | Region, ...]"


def each(program: Region) -> Iterator[tuple[float, Work]]:
    """Every piece of work and its number of executions."""
    for work in program.works:
        if isinstance(work, Region):
            yield from ((program.times * times, inner) for times, inner in each(work))
        else:
            yield program.times, work


def product_flops(program: Region) -> float:
    """FLOPs of the products of one update on a device, without kernels."""
    return math.fsum(times * product.flops for times, work in each(program) for product in work.products)


def kernel_flops(program: Region) -> float:
    """FLOPs of the attention kernels of one update on a device."""
    return math.fsum(times * work.kernel_flops for times, work in each(program))


def hbm_bytes(program: Region) -> float:
    """Bytes that an update reads from and writes to a device's HBM."""
    return math.fsum(times * work.hbm for times, work in each(program))


def sent_by_axes(program: Region) -> dict[str, dict[str, float]]:
    """Bytes that a device sends in an update: mesh axes joined by + -> kind of collective -> bytes."""
    total: dict[str, dict[str, float]] = {}
    for times, work in each(program):
        for one in work.sent:
            kinds = total.setdefault("+".join(one.axes), {})
            kinds[one.kind] = kinds.get(one.kind, 0.0) + one.bytes * times
    return {axes: dict(sorted(total[axes].items())) for axes in sorted(total)}


def causal_imbalance(parts: int) -> float:
    """Attention work of the last of `parts` devices that share a causal row, over the mean: it sees the whole row, the
    first device only its own part."""
    return (2 * parts - 1) / parts
