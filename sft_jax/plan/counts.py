"""The work of a compiled program on each device: FLOPs, HBM traffic and bytes sent, with loop iterations counted."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from sft_jax.plan.collectives import KINDS, axes_of, groups_of
from sft_jax.plan.hlo import Array, Instruction, Module, bodies
from sft_jax.plan.work import Product, Region, Transfer, Work

FREE = frozenset(
    {
        *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "partition-id", "replica-id"),
        *("copy-done", "slice-done", "dynamic-slice-done", "dynamic-update-slice-done", "async-done", "async-update"),
        *("all-gather-done", "all-reduce-done", "collective-permute-done", "after-all", "add-dependency"),
        *("opt-barrier", "send-done", "recv-done", "call-done"),
    }
)
"""Instructions that move no data; asynchronous ones are counted at their start."""
HBM, HOST = 0, 5
"""TPU memory spaces."""


def works(module: Module, mesh: jax.sharding.Mesh, kernels: Mapping[str, float], imbalance: float) -> Region:
    """The work of a device in one execution: every instruction, nested in its loops.

    Args:
      kernels: kernel name -> FLOPs per call on one device, from `flops.kernel_calls`.
      imbalance: kernel work of the busiest device over the mean.

    Raises:
      ValueError: a loop whose trip count cannot be determined.
    """
    return _stretch(_Program(module, mesh, _islands(mesh), kernels, imbalance, set()), module.entry, 1)


class _Program(NamedTuple):
    module: Module
    mesh: jax.sharding.Mesh
    islands: list[int]
    """The slice of each device, in the order of the mesh."""
    kernels: Mapping[str, float]
    """FLOPs per call."""
    imbalance: float
    carried: set[tuple[str, str]]
    """(computation, channel) of the collectives already counted."""


def _islands(mesh: jax.sharding.Mesh) -> list[int]:
    return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]


def _stretch(program: _Program, computation: str, times: float) -> Region:
    module, done = program.module, []
    home = module[computation]
    for each in home.values():
        done += [_stretch(program, name, count) for name, count in bodies(module, each)]
        if bodies(module, each) or each.opcode in FREE or 'custom_call_target="AllocateBuffer"' in each.attributes:
            continue
        kernel = _kernel(each, program.kernels)
        done.append(
            Work(
                name=each.name,
                products=tuple(_products_of(module, home, each)),
                kernel_flops=program.kernels[kernel] if kernel else 0.0,
                imbalance=program.imbalance,
                head_dim=max((array.shape[-1] for array in each.arrays if len(array.shape) == 4), default=0),
                hbm=_moved(module, home, each),
                host=_to_host(home, each),
                sent=tuple(_sent(program, computation, each)),
                waits=not (each.opcode.endswith("-start") or each.opcode in ("send", "recv")),
            )
        )
    return Region(computation, times, tuple(done))


def _kernel(each: Instruction, kernels: Mapping[str, float]) -> str | None:
    if each.opcode != "custom-call" or "tpu_custom_call" not in each.attributes:
        return None
    return next((name for name in kernels if re.match(rf"{re.escape(name)}(\.|$)", each.name)), None)


def _products_of(module: Module, home: Mapping[str, Instruction], each: Instruction) -> Iterator[Product]:
    if each.opcode == "convolution":
        yield _convolution(each, *(home[name].arrays[0] for name in each.operands[:2]))
    elif each.opcode == "dot":
        yield _dot(each, *(home[name].arrays[0] for name in each.operands[:2]))
    elif each.opcode == "fusion" and (called := each.called("calls")):
        inside = module[called]
        for inner in inside.values():
            yield from _products_of(module, inside, inner)


def _dot(each: Instruction, left: Array, right: Array) -> Product:
    sizes = {}
    for side, array in (("lhs", left), ("rhs", right)):
        for what in ("contracting", "batch"):
            found = re.search(rf"{side}_{what}_dims={{([\d,]*)}}", each.attributes)
            dims = [int(n) for n in found[1].split(",")] if found and found[1] else []
            sizes[side, what] = math.prod(array.shape[i] for i in dims)
    k, batch = sizes["lhs", "contracting"], sizes["lhs", "batch"]
    m, n = math.prod(left.shape) / (k * batch), math.prod(right.shape) / (k * batch)
    return Product(m, k, n, batch)


def _convolution(each: Instruction, left: Array, kernel: Array) -> Product:
    """2 x (outputs over batch and features) x (inputs of a kernel) x (pairs of an output and a tap that hit input).

    On TPUs products are convolutions; a batched product has a window whose taps mostly hit padding.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    assert found is not None, each.attributes
    of_left, of_kernel, of_out = found.groups()
    window = _window(each.attributes)
    m, k, n, count = 1.0, float(kernel.shape[of_kernel.index("i")]), 1.0, 1.0
    for label, size in zip(of_out, each.arrays[0].shape, strict=True):
        if label == "b":
            m *= size
        elif label == "f":
            n *= size
        else:
            spatial = int(label)
            inputs, taps = left.shape[of_left.index(label)], kernel.shape[of_kernel.index(label)]
            options = {name: values[spatial] for name, values in window.items()}
            pairs = _pairs(size, inputs, taps, **options)
            if size == 1:  # summed over
                k *= pairs
            elif inputs == 1:  # heads that the kernel adds
                n *= pairs
            elif pairs == size and taps > 1:  # each output meets a tap of its own
                count *= pairs
            else:
                m *= pairs
    return Product(m, k, n, count)


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
    """Number of pairs of an output and a tap that hit an input element rather than padding or a hole."""
    count = 0
    for out in range(outputs):
        for tap in range(taps):
            place = out * stride + tap * rhs_dilate - pad
            count += place % lhs_dilate == 0 and 0 <= place // lhs_dilate < inputs
    return count


def _sent(program: _Program, computation: str, each: Instruction) -> Iterator[Transfer]:
    """The collectives of an instruction, including those inside fusions; one in several fusions counts once."""
    mesh, carried, called = program.mesh, program.carried, each.called("calls") or ""
    if each.opcode == "send":
        yield from _between_slices(program, each)
    for one in _collectives_of(program.module, each):
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        here = (computation, channel[1] if channel else one.name)
        groups = groups_of(one.attributes, mesh.size)
        axes = axes_of(groups, mesh)
        if here in carried or not axes:
            continue
        carried.add(here)
        kind, devices = one.opcode.removesuffix("-start"), max(map(len, groups))
        if kind == "all-reduce" and called.startswith("all-reduce-scatter"):
            size = _whole(kind, one) * (devices - 1) / devices  # each device keeps only its shard of the sum
            kind = "reduce-scatter"
        else:
            size = _wire(kind, one, devices)
        waits = each.opcode in KINDS or called.startswith("all-reduce-scatter")
        islands = max(len({program.islands[device] for device in group}) for group in groups)
        yield Transfer(kind, axes, size, devices, islands, waits)


def _between_slices(program: _Program, each: Instruction) -> Iterator[Transfer]:
    """Transfers to other slices through the host; XLA's own collectives stay within a slice."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', each.attributes)
    if found:
        kind, slices = found[1].lower().replace("_", "-"), len(set(program.islands))
        times = 2 * (slices - 1) / slices if kind == "all-reduce" else 1
        yield Transfer(kind, ("data",), times * each.arrays[0].bytes, slices, slices, waits=False)


def _wire(kind: str, one: Instruction, devices: int) -> float:
    """Bytes that a device sends."""
    whole, share = _whole(kind, one), (devices - 1) / devices
    return {
        "all-gather": whole * share,
        "all-reduce": 2 * whole * share,
        "reduce-scatter": whole * (devices - 1),
        "all-to-all": whole * share,
        "collective-permute": whole,
    }[kind]


def _whole(kind: str, one: Instruction) -> float:
    # The result of a start also contains its operands; for a permute or all-to-all they are the same size.
    if one.opcode == "all-reduce" or kind == "all-to-all":
        return sum(array.bytes for array in one.arrays)
    return max((array.bytes for array in one.arrays), default=0.0)


def _collectives_of(module: Module, each: Instruction) -> Iterator[Instruction]:
    if each.opcode.removesuffix("-start") in KINDS:
        yield each
    elif each.opcode in ("fusion", "call-start") and (called := each.called("calls") or each.called("to_apply")):
        for inner in module.computations[called]:
            yield from _collectives_of(module, inner)


def _to_host(home: Mapping[str, Instruction], each: Instruction) -> float:
    """Bytes that an instruction moves between device and host memory."""
    if each.opcode not in _CROSSING:
        return 0.0
    source, target, size = _crossing(home, each)
    return size if HOST in (source, target) and source != target else 0.0


_CROSSING = ("copy", "copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
"""Instructions that may move their operand to another memory space."""


def _crossing(home: Mapping[str, Instruction], each: Instruction) -> tuple[int, int, float]:
    """(memory space read, memory space written, bytes)."""
    operand = home[each.operands[0]].arrays[0]
    if each.opcode in ("copy", "copy-start"):
        return operand.space, each.arrays[0].space, each.arrays[0].bytes
    if each.opcode == "dynamic-update-slice-start":
        update = home[each.operands[1]].arrays[0]
        return update.space, operand.space, update.bytes
    result = each.arrays[-2]  # after the operands, before the context
    return operand.space, result.space, result.bytes


def _moved(module: Module, home: Mapping[str, Instruction], each: Instruction) -> float:
    """Bytes of HBM that an instruction reads and writes; a kernel's operands and results count once each.

    Other memory spaces do not count. If a fusion only slices an operand, only the slice is read; if it updates a result
    in place, only the update is written.
    """
    if each.opcode == "fusion":
        return _moved_by_fusion(module, home, each)
    if each.opcode in _CROSSING:
        source, target, size = _crossing(home, each)
        return size * ((source == HBM) + (target == HBM))
    if each.opcode in ("dynamic-slice", "slice", "gather"):
        read = _in_hbm(each.arrays[:1]) if _in_hbm(home[each.operands[0]].arrays) else 0.0
        return read + _in_hbm(each.arrays[:1])
    if each.opcode == "dynamic-update-slice":
        update = home[each.operands[1]].arrays
        return _in_hbm(update) + (update[0].bytes if _in_hbm(each.arrays) else 0.0)
    # The start of a collective returns its operands before its results.
    written = each.arrays[1:] if each.opcode.endswith("-start") else each.arrays
    return _in_hbm(written) + sum(_in_hbm(home[name].arrays) for name in dict.fromkeys(each.operands))


def _moved_by_fusion(module: Module, home: Mapping[str, Instruction], each: Instruction) -> float:
    inner = module[each.called("calls") or ""]
    total = 0.0
    for parameter in (one for one in inner.values() if one.opcode == "parameter"):
        whole = _in_hbm(home[each.operands[int(parameter.inside)]].arrays)
        part = _read(module, inner, parameter.name) if whole else 0.0
        total += whole if part is None else min(whole, part)
    root = next(one for one in inner.values() if one.root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for array, one in zip(each.arrays, roots, strict=False):
        total += _written(module, inner, one) if array.space == HBM else 0.0
    return total


def _read(module: Module, inside: Mapping[str, Instruction], name: str) -> float | None:
    """Bytes that a fusion reads of one of its arrays; None means all of it."""
    total = 0.0
    for use in inside.values():
        if name not in use.operands:
            continue
        if use.opcode in ("dynamic-slice", "slice") and use.operands[0] == name:
            part: float | None = use.arrays[0].bytes
        elif use.opcode == "dynamic-update-slice" and use.operands[0] == name:
            part = 0.0
        elif _is_alias(use):
            part = None if use.root else _read(module, inside, use.name)
        elif use.opcode == "fusion":
            inner = module[use.called("calls") or ""]
            given = [one.name for one in inner.values() if one.opcode == "parameter"
                     and use.operands[int(one.inside)] == name]  # fmt: skip
            parts = [_read(module, inner, parameter) for parameter in given]
            part = None if None in parts else sum(one for one in parts if one is not None)
        else:
            part = None
        if part is None:
            return None
        total += part
    return total


def _written(module: Module, inside: Mapping[str, Instruction], one: Instruction) -> float:
    """Bytes that the root instruction of a fusion writes; for an in-place update, only the update."""
    while _is_alias(one):
        one = inside[one.operands[0]]
    if one.opcode == "dynamic-update-slice":
        return inside[one.operands[1]].arrays[0].bytes
    if one.opcode == "fusion" and len(one.arrays) == 1:
        inner = module[one.called("calls") or ""]
        return _written(module, inner, next(last for last in inner.values() if last.root))
    return one.arrays[0].bytes


def _is_alias(one: Instruction) -> bool:
    """Whether the result is the operand with another shape or layout."""
    aliased = one.opcode == "fusion" and len(one.operands) == 1 and "output_to_operand_aliasing" in one.attributes
    return bool(one.operands) and (one.opcode in ("bitcast", "copy") or aliased)


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == HBM)
