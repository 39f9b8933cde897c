"""The cost model: an instruction takes as long as the slower of its compute and its memory traffic.

A roofline (Williams et al. 2009) per instruction, in program order. Asynchronous work (collectives, prefetches, host
transfers) overlaps with the other instructions of the same loop body, which takes as long as the longest of them.
"""

import math
from collections import Counter
from typing import NamedTuple

from sft_jax.plan import assumptions
from sft_jax.plan.chips import Topology
from sft_jax.plan.work import Product, Region, Transfer, Work

RESOURCES = ("compute", "hbm", "ici", "dcn", "host")
"""The matrix units, the device's memory, the network between chips, the network between slices (or GPU nodes), and the
link to host memory."""


class Estimate(NamedTuple):
    """Estimated time of an update."""

    step_seconds: float
    busy: dict[str, float]
    """Seconds that each resource would need on its own."""
    bound_by: str
    """The resource that needs the most time."""


def estimate(program: Region, topology: Topology) -> Estimate:
    """Estimate the seconds of one update."""
    busy: Counter[str] = Counter()
    seconds = _run(program, topology, 1.0, busy)
    found = {name: float(busy[name]) for name in RESOURCES}
    return Estimate(seconds, found, max(RESOURCES, key=lambda name: found[name]))


def _run(stretch: Region, topology: Topology, times: float, busy: "Counter[str]") -> float:
    """Seconds of one execution; adds each resource's time over `times` executions to `busy`."""
    core, beside = 0.0, Counter[str]()
    for work in stretch.works:
        if isinstance(work, Region):
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
        "compute": (products + work.kernel_flops * work.imbalance / attention) / peak,
        "hbm": work.hbm * chip.devices / (chip.memory_bandwidth * assumptions.MEMORY),
        "host": work.host * chip.devices / (chip.host * assumptions.HOST),
    }


def _matmul(product: Product, tile: int) -> float:
    """Fraction of peak that a product reaches, by how well its two shorter sides fill the matrix unit."""
    short = sorted((product.m, product.k, product.n))[:2]
    return assumptions.MATMUL * math.prod(_filled(side, tile) for side in short)


def _filled(side: float, tile: int) -> float:
    return side / (math.ceil(side / tile) * tile)


def _sending(sent: Transfer, topology: Topology) -> dict[str, float]:
    """Seconds on the network between chips and on the network between slices."""
    chip, inside = topology.chip, sent.devices // sent.islands
    whole = (sent.devices - 1) / sent.devices
    # Hierarchical: each island reduces within itself first and sends its share of the result.
    across = sent.bytes / whole * (sent.islands - 1) / sent.islands / inside if sent.islands > 1 else 0.0
    within = sent.bytes / whole * (inside - 1) / inside if inside > 1 else 0.0
    seconds = {"ici": 0.0, "dcn": 0.0}
    if within:
        seconds["ici"] = within / (_between_chips(sent.kind, inside, topology) * assumptions.LINK)
    if across:
        seconds["dcn"] = across * chip.devices / (chip.network * assumptions.NETWORK)
    return seconds


def _between_chips(kind: str, devices: int, topology: Topology) -> float:
    """Bytes per second that a device sends within a group of `devices` of its slice, over both link directions.

    A group is assumed to span the longest sides of the torus. Along a wrapped side (a ring) a device sends over two
    links; along an open side the outer devices have one, and all wait for them. A permute uses a single ring, whatever
    the number of sides.
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
