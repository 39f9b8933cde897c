"""The accelerators: peak speed, from their public datasheets, and the sizes of their topologies."""

import math
import re

from sft_jax.errors import BadInput, nearest

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bf16 FLOP/s a chip, by the beginning of JAX's device kind."""

DEVICES_A_CHIP = {"TPU v4": 1, "TPU7x": 2}
"""Where JAX shows more than one device a chip."""


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one JAX device, or None for a kind without a datasheet entry (CPUs)."""
    for kind in sorted(PEAK_BF16_FLOPS, key=len, reverse=True):
        if device_kind.startswith(kind):
            return PEAK_BF16_FLOPS[kind] / DEVICES_A_CHIP.get(kind, 1)
    return None


TOPOLOGY_DEVICES = {"v2": 2, "v3": 2, "v4": 2, "v5": 1, "v5p": 1, "v5e": 1, "v6e": 1, "tpu7x": 2}
"""Devices a chip of each kind of topology that libtpu knows by this name."""


def topology_size(name: str) -> int:
    """Number of devices of a TPU topology such as `v5e:4x4` or `v5p:2x2x1`, without asking libtpu.

    Raises:
      BadInput: an unknown kind, or sizes that no topology has.
    """
    kind, _, dims = name.partition(":")
    if kind not in TOPOLOGY_DEVICES:
        raise BadInput(f"topology {name!r}: unknown kind {kind!r}. {nearest(kind, tuple(TOPOLOGY_DEVICES))}")
    if not re.fullmatch(r"\d+x\d+(x\d+)?", dims):
        raise BadInput(f"topology {name!r}: expected the chips along each side after the colon, e.g. {kind}:4x4")
    sides = [int(side) for side in dims.split("x")]
    if sides[0] % 2 or sides[1] % 2 or 0 in sides:
        raise BadInput(f"topology {name!r}: the first two sides are even, since a host has 2x2 chips, e.g. {kind}:4x4")
    return math.prod(sides) * TOPOLOGY_DEVICES[kind]
