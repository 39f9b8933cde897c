"""From the work of an update to seconds: every instruction takes as long as the slower of its products and its bytes.

A roofline (Williams et al. 2009) for each instruction, in the order of the program. What the compiler started ahead
(collectives, prefetches, transfers to the host) runs beside the other instructions of the same loop's body, which takes
as long as the longest of them.
"""

import math
from collections import Counter
from typing import NamedTuple

from sft_jax.plan import assumptions
from sft_jax.plan.chips import Topology
from sft_jax.plan.work import Product, Sent, Stretch, Work

RESOURCES = ("compute", "hbm", "ici", "dcn", "host")
"""The matrix units, the device's memory, the network between chips, the one between slices (or GPU nodes), and the way
to the host's memory."""


class Estimate(NamedTuple):
    """How long an update takes."""

    step_seconds: float
    busy: dict[str, float]
    """Seconds that each resource would need if the others took no time."""
    bound_by: str
    """The resource that needs the most."""


def estimate(program: Stretch, topology: Topology) -> Estimate:
    """Seconds of one update."""
    busy: Counter[str] = Counter()
    seconds = _run(program, topology, 1.0, busy)
    found = {name: float(busy[name]) for name in RESOURCES}
    return Estimate(seconds, found, max(RESOURCES, key=lambda name: found[name]))


def _run(stretch: Stretch, topology: Topology, times: float, busy: "Counter[str]") -> float:
    """Seconds of one pass; adds what every resource does in `times` of them to `busy`."""
    core, beside = 0.0, Counter[str]()
    for work in stretch.works:
        if isinstance(work, Stretch):
            core += work.times * _run(work, topology, times * work.times, busy)
            continue
        needs = _needs(work, topology)
        for name, seconds in needs.items():
            busy[name] += times * seconds  # type: ignore[assignment]
        core += max(needs["compute"], needs["hbm"]) if work.waits else 0.0
        if not work.waits:
            beside["hbm"] += needs["hbm"]  # type: ignore[assignment]
        for sent in work.sent:
            for name, seconds in _sending(sent, topology).items():
                busy[name] += times * seconds  # type: ignore[assignment]
                if sent.waits:
                    core += seconds
                else:
                    beside[name] += seconds  # type: ignore[assignment]
        beside["host"] += needs["host"]  # type: ignore[assignment]
    return max(core, *beside.values(), 0.0)


def _needs(work: Work, topology: Topology) -> dict[str, float]:
    chip = topology.chip
    peak = chip.flops / chip.devices
    products = math.fsum(product.flops / _matmul(product, chip.tile) for product in work.products)
    attention = assumptions.ATTENTION * _filled(work.head_dim or chip.tile, chip.tile)
    return {
        "compute": (products + work.kernel_flops * work.unevenness / attention) / peak,
        "hbm": work.hbm * chip.devices / (chip.memory_bandwidth * assumptions.MEMORY),
        "host": work.host * chip.devices / (chip.host * assumptions.HOST),
    }


def _matmul(product: Product, tile: int) -> float:
    """Fraction of the peak that a product reaches: its two shorter sides fill the matrix unit, or they do not."""
    short = sorted((product.m, product.k, product.n))[:2]
    return assumptions.MATMUL * math.prod(_filled(side, tile) for side in short)


def _filled(side: float, tile: int) -> float:
    return side / (math.ceil(side / tile) * tile)


def _sending(sent: Sent, topology: Topology) -> dict[str, float]:
    """Seconds on the network between chips and on the one between slices."""
    chip, inside = topology.chip, sent.devices // sent.islands
    whole = (sent.devices - 1) / sent.devices
    # Each island first adds up what its own devices have, and sends its share of that.
    across = sent.bytes / whole * (sent.islands - 1) / sent.islands / inside if sent.islands > 1 else 0.0
    within = sent.bytes / whole * (inside - 1) / inside if inside > 1 else 0.0
    seconds = {"ici": 0.0, "dcn": 0.0}
    if within:
        seconds["ici"] = within / (_between_chips(sent.kind, inside, topology) * assumptions.LINK)
    if across:
        seconds["dcn"] = across * chip.devices / (chip.network * assumptions.NETWORK)
    return seconds


def _between_chips(kind: str, devices: int, topology: Topology) -> float:
    """Bytes a second that a device sends to `devices` of its slice, itself counted, over both directions of links.

    A group lies along the longest sides of the torus that hold it. Along a side that is closed to a ring a device has
    two links to send by; along an open one the outer devices have one, and all wait for them. A permute hands on around
    one ring, whatever the number of sides.
    """
    chip = topology.chip
    if topology.is_gpu:
        return chip.link
    sides, held = [], chip.devices
    for side in sorted(topology.sides, reverse=True):
        if held < devices:
            sides.append(side)
            held *= side
    rings = [1.0 if side % chip.wrap == 0 else 0.5 for side in sides]
    if kind == "collective-permute":
        rings = [1.0 if len(sides) > 1 or 1.0 in rings else 0.5]
    return 2 * chip.link * math.fsum(rings or [1.0]) / chip.devices
