"""What a device does in one update, in pieces that the cost model turns into seconds."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Product(NamedTuple):
    """Matrices [m, k] x [k, n], `count` of them."""

    m: float
    k: float
    n: float
    count: float = 1.0

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.count


class Sent(NamedTuple):
    """A collective, and what a device sends for it each time."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it goes over."""
    bytes: float
    """By the fewest that a ring needs: (n-1)/n of the whole array, twice that for an all-reduce, the shard itself for
    a permute (Chan et al. 2007, table 1)."""
    devices: int
    """That exchange among themselves."""
    islands: int
    """Slices of TPUs, or nodes of GPUs, that these are in."""
    waits: bool
    """Whether the device does nothing else meanwhile."""


class Work(NamedTuple):
    """What one instruction does, each time that it runs."""

    name: str
    products: tuple[Product, ...] = ()
    kernel_flops: float = 0.0
    """Of an attention kernel."""
    head_dim: int = 0
    """Of that kernel."""
    unevenness: float = 1.0
    """How much more of it the busiest device has, for which the others wait."""
    hbm: float = 0.0
    """Bytes of main memory read and written."""
    host: float = 0.0
    """Bytes to or from the host's memory."""
    sent: tuple[Sent, ...] = ()
    waits: bool = True
    """Whether the next instruction waits for it: prefetches and transfers to the host go on beside the others."""


class Stretch(NamedTuple):
    """Instructions that run one after another: the whole program, or a loop's body within it."""

    name: str
    times: float
    """How often, for each time that what is around it runs."""
    works: "tuple[Work | Stretch, ...]"


def each(program: Stretch) -> Iterator[tuple[float, Work]]:
    """Every piece of work and how often it is done."""
    for work in program.works:
        if isinstance(work, Stretch):
            yield from ((program.times * times, inner) for times, inner in each(work))
        else:
            yield program.times, work


def product_flops(program: Stretch) -> float:
    """Operations of the products of one update on a device; not of kernels."""
    return math.fsum(times * product.flops for times, work in each(program) for product in work.products)


def kernel_flops(program: Stretch) -> float:
    """Operations of the attention kernels of one update on a device."""
    return math.fsum(times * work.kernel_flops for times, work in each(program))


def hbm_bytes(program: Stretch) -> float:
    """Bytes that an update reads from and writes to a device's main memory."""
    return math.fsum(times * work.hbm for times, work in each(program))


def sent_by_axes(program: Stretch) -> dict[str, dict[str, float]]:
    """Bytes that a device sends in an update: mesh axes, joined by + -> kind of collective -> bytes."""
    total: dict[str, dict[str, float]] = {}
    for times, work in each(program):
        for one in work.sent:
            kinds = total.setdefault("+".join(one.axes), {})
            kinds[one.kind] = kinds.get(one.kind, 0.0) + one.bytes * times
    return {axes: dict(sorted(total[axes].items())) for axes in sorted(total)}


def causal_unevenness(parts: int) -> float:
    """Of devices that share a causal row, what the last one has over the mean: it sees the whole row, the first one
    its own part."""
    return (2 * parts - 1) / parts
