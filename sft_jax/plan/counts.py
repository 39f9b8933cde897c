"""What a compiled program does on each device: operations, bytes of main memory, bytes sent; loops are counted."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax

from sft_jax.plan.collectives import KINDS, axes_of, groups_of
from sft_jax.plan.hlo import Array, Instruction, Module, executed

FREE = frozenset(
    {
        *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "partition-id", "replica-id"),
        *("copy-done", "slice-done", "async-done", "async-update", "all-gather-done", "all-reduce-done"),
        *("collective-permute-done", "after-all", "add-dependency", "opt-barrier"),
    }
)
"""Instructions that move nothing: what the others move is counted with their beginning."""


def products(module: Module) -> float:
    """Operations of the products (convolutions and dots; not of kernels) of one run on each device."""
    return sum(each.times * _products_of(module, each.instruction) for each in executed(module))


def _products_of(module: Module, each: Instruction) -> float:
    if each.opcode == "convolution":
        return _convolution(each, *_inputs(module, each))
    if each.opcode == "dot":
        return _dot(each, *_inputs(module, each))
    if each.opcode == "fusion" and (called := each.called("calls")):
        return sum(_products_of(module, inner) for inner in module.computations[called])
    return 0.0


def _inputs(module: Module, each: Instruction) -> tuple[Array, ...]:
    home = next(found for found in module.computations.values() if each in found)
    named = {one.name: one for one in home}
    return tuple(named[name].arrays[0] for name in each.operands[:2])


def _dot(each: Instruction, left: Array, right: Array) -> float:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
    contracted = [int(n) for n in found[1].split(",")] if found and found[1] else []
    return 2.0 * math.prod(each.arrays[0].shape) * math.prod(left.shape[i] for i in contracted)


def _convolution(each: Instruction, left: Array, kernel: Array) -> float:
    """2 x (outputs over batch and features) x (inputs of a kernel) x (pairs of an output and a tap that meet input).

    Products are convolutions on TPUs; a batch of them is one with a window whose taps mostly meet padding.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    assert found is not None, each.attributes
    of_left, of_kernel, of_out = found.groups()
    window = _window(each.attributes)
    flops = 2.0
    for label, size in zip(of_out, each.arrays[0].shape, strict=True):
        if label in "bf":
            flops *= size
        else:
            spatial = int(label)
            flops *= _pairs(
                size, left.shape[of_left.index(label)], kernel.shape[of_kernel.index(label)],
                **{name: values[spatial] for name, values in window.items()},
            )  # fmt: skip
    return flops * kernel.shape[of_kernel.index("i")]


def _window(attributes: str) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    if not found:
        return {}
    values: dict[str, list[int]] = {}
    for name, text in re.findall(r"(\w+)=(\S+)", found[1]):
        if name == "pad":
            values["pad"] = [int(part.split("_")[0]) for part in text.split("x")]
        elif name in ("stride", "lhs_dilate", "rhs_dilate"):
            values[name] = [int(part) for part in text.split("x")]
    return values


def _pairs(
    outputs: int, inputs: int, taps: int, pad: int = 0, stride: int = 1, lhs_dilate: int = 1, rhs_dilate: int = 1
):
    """How many pairs of an output and a tap fall on an element of the input, not on padding or a hole."""
    count = 0
    for out in range(outputs):
        for tap in range(taps):
            place = out * stride + tap * rhs_dilate - pad
            count += place % lhs_dilate == 0 and 0 <= place // lhs_dilate < inputs
    return count


class Sent(NamedTuple):
    """A collective, and what a device sends for it in one run."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it goes over."""
    bytes: float
    """Each time, by the fewest that a ring needs: (n-1)/n of the whole array, twice that for an all-reduce, the shard
    itself for a permute (Chan et al. 2007, table 1)."""
    times: float


def sent(module: Module, mesh: jax.sharding.Mesh) -> list[Sent]:
    """Every collective of one run, those inside of fusions too; one that several fusions carry on counts once."""
    found, seen = [], set()
    for each in executed(module):
        for one in _collectives_of(module, each.instruction):
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            here = (each.computation, channel[1] if channel else one.name)
            groups = groups_of(one.attributes, mesh.size)
            axes = axes_of(groups, mesh)
            if here in seen or not axes:
                continue
            seen.add(here)
            kind = one.opcode.removesuffix("-start")
            found.append(Sent(kind, axes, _wire(kind, one, max(map(len, groups))), each.times))
    return found


def by_kind_and_axes(found: Iterable[Sent]) -> dict[str, dict[str, float]]:
    """Bytes that a device sends in one run: kind -> mesh axes, joined by + -> bytes."""
    total: dict[str, dict[str, float]] = {}
    for one in found:
        of_axes = total.setdefault(one.kind, {})
        axes = "+".join(one.axes)
        of_axes[axes] = of_axes.get(axes, 0.0) + one.bytes * one.times
    return {kind: dict(sorted(total[kind].items())) for kind in sorted(total)}


def _wire(kind: str, one: Instruction, devices: int) -> float:
    """Bytes that a device sends."""
    # The result of a start holds its operands too; a permute's and an all-to-all's are as large as each other.
    whole = max((array.bytes for array in one.arrays), default=0.0)
    if one.opcode == "all-reduce" or kind == "all-to-all":
        whole = sum(array.bytes for array in one.arrays)
    share = (devices - 1) / devices
    return {
        "all-gather": whole * share,
        "all-reduce": 2 * whole * share,
        "reduce-scatter": whole * (devices - 1),
        "all-to-all": whole * share,
        "collective-permute": whole,
    }[kind]


def _collectives_of(module: Module, each: Instruction) -> Iterator[Instruction]:
    if each.opcode.removesuffix("-start") in KINDS:
        yield each
    elif each.opcode == "fusion" and (called := each.called("calls")):
        for inner in module.computations[called]:
            yield from _collectives_of(module, inner)


def hbm_bytes(module: Module) -> float:
    """Bytes that one run reads from and writes to a device's main memory, kernels' operands and results once each.

    What lies in another memory (`S(1)` on TPUs) does not count. A fusion reads of an operand that it only slices the
    slice alone, and writes of a result that it updates in place the update alone.
    """
    total = 0.0
    for each in executed(module):
        if each.instruction.opcode not in FREE:
            total += each.times * _moved(module, module[each.computation], each.instruction)
    return total


def _moved(module: Module, home: dict[str, Instruction], each: Instruction) -> float:
    if each.opcode == "fusion" and (called := each.called("calls")):
        return _moved_by_fusion(module[called], home, each)
    if each.opcode in ("dynamic-slice", "slice", "gather", "slice-start"):
        read = _in_hbm(each.arrays[:1]) if _in_hbm(home[each.operands[0]].arrays) else 0.0
        return read + _in_hbm(each.arrays[:1])
    if each.opcode == "dynamic-update-slice":
        update = home[each.operands[1]].arrays
        return _in_hbm(update) + (update[0].bytes if _in_hbm(each.arrays) else 0.0)
    written = each.arrays[:1] if each.opcode.endswith("-start") else each.arrays
    return _in_hbm(written) + sum(_in_hbm(home[name].arrays) for name in dict.fromkeys(each.operands))


def _moved_by_fusion(inner: dict[str, Instruction], home: dict[str, Instruction], each: Instruction) -> float:
    users: dict[str, list[Instruction]] = {}
    for one in inner.values():
        for name in one.operands:
            users.setdefault(name, []).append(one)
    total = 0.0
    for parameter in (one for one in inner.values() if one.opcode == "parameter"):
        whole = _in_hbm(home[each.operands[int(parameter.inside)]].arrays)
        uses = users.get(parameter.name, [])
        parts = [_part(use, parameter.name) for use in uses]
        total += min(whole, sum(part for part in parts if part is not None)) if None not in parts and whole else whole
    root = next(one for one in inner.values() if one.root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for array, one in zip(each.arrays, roots, strict=False):
        while one.opcode in ("bitcast", "copy") and one.operands:
            one = inner[one.operands[0]]
        update = inner[one.operands[1]].arrays[0].bytes if one.opcode == "dynamic-update-slice" else array.bytes
        total += update if array.space == 0 else 0.0
    return total


def _part(use: Instruction, name: str) -> float | None:
    """Bytes that one use reads of an operand; None for all of it."""
    if use.opcode in ("dynamic-slice", "slice"):
        return use.arrays[0].bytes if use.operands[0] == name else 0.0
    if use.opcode == "dynamic-update-slice" and use.operands[0] == name:
        return 0.0
    return None


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)
