"""Accelerators: their public datasheets and the names of their topologies."""

import math
import re
from dataclasses import dataclass

from sft_jax.errors import BadInput, nearest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator, from its public datasheet (cloud.google.com/tpu/docs, nvidia.com); bytes, seconds, per chip."""

    kinds: tuple[str, ...]
    """Prefixes of JAX's `device_kind`."""
    flops: float
    """Peak dense bf16 FLOP/s."""
    memory: float
    """Bytes of high-bandwidth memory (HBM)."""
    memory_bandwidth: float
    """HBM bandwidth, bytes/s."""
    link: float
    """Bandwidth of one inter-chip link in one direction, bytes/s. For GPUs, all of NVLink in one direction."""
    network: float
    """Bandwidth per chip into the data-centre network in one direction, bytes/s: between TPU slices or GPU nodes."""
    host: float
    """Bandwidth to and from host memory in one direction, bytes/s."""
    host_memory: float
    """Bytes of host memory per chip."""
    host_chips: int
    """Chips per host in a larger slice."""
    tile: int
    """Side length of the matrix unit."""
    sides: int
    """Dimensions of the torus: 2 or 3; 0 for GPUs, which are all-to-all connected within a node."""
    wrap: int = 0
    """A side of the torus has wraparound links if it is a multiple of this."""
    devices: int = 1
    """JAX devices per chip."""
    overlaps_collectives: bool = False
    """Whether collectives overlap with products by default: on separate cores, or in GPU streams."""


# fmt: off
CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1228e9, 50e9, 6.25e9, 16e9, 100e9, 4, 128, 3, wrap=4),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 50e9, 3.125e9, 16e9, 64e9, 4, 128, 2, wrap=16),
    "v5p": Chip(("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, 16e9, 112e9, 4, 128, 3, wrap=4),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1640e9, 100e9, 12.5e9, 32e9, 192e9, 4, 256, 2, wrap=16),
    "tpu7x": Chip(("TPU7x",), 2307e12, 192 * GIB, 7370e9, 100e9, 12.5e9, 32e9, 240e9, 4, 256, 3, 4, 2, True),
    "a100": Chip(("NVIDIA A100",), 312e12, 80e9, 2039e9, 300e9, 25e9, 32e9, 128e9, 8, 128, 0, 0, 1, True),
    "h100": Chip(("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9, 50e9, 64e9, 256e9, 8, 128, 0, 0, 1, True),
    "h200": Chip(("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 50e9, 64e9, 256e9, 8, 128, 0, 0, 1, True),
}
# fmt: on
"""Topology name prefix -> chip."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device; None for a kind without a datasheet entry (CPUs)."""
    found = [(len(kind), chip) for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one JAX device; None for a kind without a datasheet entry (CPUs)."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops / chip.devices


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are connected."""

    name: str
    kind: str
    """Key of CHIPS."""
    sides: tuple[int, ...]
    """Chips along each side of a slice; for GPUs, their number."""
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.sides) * self.slices

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def is_gpu(self) -> bool:
        return self.chip.sides == 0


_CORES = ("v2", "v3", "v4", "v5p")
"""Accelerator types that count cores, two per chip: v5p-128 has 64 chips."""
_ALIASES = {"v5litepod": "v5e", "v5": "v5p", "v6": "v6e", "v7x": "tpu7x", "v7": "tpu7x", "ironwood": "tpu7x"}


def topology(name: str, slices: int = 1) -> Topology:
    """A topology from its name: `v5e:4x4`, `v5p:2x2x1`, `tpu7x:4x4x8`; GPUs by number, `h100:8`.

    Raises:
      BadInput: an unknown kind or impossible sizes; suggests the name that was probably meant.
    """
    kind, _, dims = name.partition(":")
    if slices < 1:
        raise BadInput(f"--slices is {slices}, expected at least 1")
    if kind not in CHIPS:
        raise BadInput(f"topology {name!r}: {_suggestion(name)}")
    chip = CHIPS[kind]
    if chip.sides == 0:
        if not re.fullmatch(r"[1-9]\d*", dims):
            raise BadInput(f"topology {name!r}: expected the number of GPUs after the colon, e.g. {kind}:8")
        if slices > 1:
            raise BadInput(f"--slices is {slices}: GPUs have nodes of {chip.host_chips}; use the total, e.g. {kind}:16")
        return Topology(name, kind, (int(dims),))
    example = f"{kind}:{'x'.join(['4'] * chip.sides)}"
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (chip.sides - 1), dims):
        raise BadInput(
            f"topology {name!r}: expected the chips along {chip.sides} sides after the colon, e.g. {example}"
        )
    sides = tuple(int(side) for side in dims.split("x"))
    if math.prod(sides) > 1 and (sides[0] % 2 or sides[1] % 2):
        raise BadInput(f"topology {name!r}: the first two sides must be even, since a host has 2x2 chips: {example}")
    return Topology(name, kind, sides, slices)


def _suggestion(name: str) -> str:
    """A suggestion for an invalid topology name: `v5litepod-16` should be v5e:4x4."""
    known = ", ".join(topology_name(kind, 16) for kind in CHIPS)
    found = re.fullmatch(r"([a-z0-9]+?)[-_:](\d+)((?:x\d+)*)", name.lower())
    kind = found and _ALIASES.get(found[1], found[1])
    if not found or kind not in CHIPS:
        word = re.split(r"[-_:]", name.lower())[0]
        return f"unknown kind {word!r}. {nearest(word, [*CHIPS, *_ALIASES])} Examples of topologies: {known}."
    if found[3]:
        return f"unknown kind {found[1]!r}; use {kind}:{found[2]}{found[3]}"
    chips = int(found[2]) // 2 if found[1] in _CORES else int(found[2])
    cores = f" ({found[2]} counts cores, two per chip)" if found[1] in _CORES else ""
    return f"no such topology; for {name} use {topology_name(kind, max(chips, 1))}{cores}"


def topology_name(kind: str, chips: int) -> str:
    """The name of the squarest topology with this number of chips: `v5e:4x4`."""
    sides = CHIPS[kind].sides
    if sides == 0:
        return f"{kind}:{chips}"
    if chips & (chips - 1) or chips == 2:
        return f"{kind}:{'x'.join('ABC'[:sides])} with {chips} chips in all"
    sizes = [1] * sides if chips == 1 else [2, 2, 1][:sides]
    while math.prod(sizes) < chips:
        sizes = sorted([2 * min(sizes), *sorted(sizes)[1:]])
    return f"{kind}:" + "x".join(map(str, sizes))
