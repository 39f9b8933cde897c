"""The collectives of a compiled program: what they move, over which mesh axes, and for which operation of the model."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import jax
import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%[\w.-]+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)$")
_ARRAY = re.compile(r"\b((?:[a-z]+\d+|pred)\w*)\[([\d,]*)\]")
_NAMED_GROUPS = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}"


class Collective(NamedTuple):
    """One collective instruction; inside a loop it runs once per iteration."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it spans."""
    shape: str
    """Largest array of the result, per device: `f32[64,128]`."""
    when: str
    """Once per update, per layer, or per chunk of the head; with `, backward` in the backward pass."""
    operation: str
    """Named scopes and operation that it belongs to, as reported by JAX: `mlp BTD,DF->BTF`."""


def collectives(text: str, mesh: jax.sharding.Mesh) -> list[Collective]:
    """Every collective over more than one device in an optimised HLO module (`compiled.as_text()`), in order."""
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        result, kind, rest = match.groups()
        axes = axes_of(groups_of(rest, mesh.size), mesh)
        if axes:
            found.append(Collective(kind, axes, _largest(result), *_scope(rest)))
    return found


def collective_lines(found: Iterable[Collective]) -> list[str]:
    """One line with a count per kind, axes, shape and phase, as in the golden files."""
    counts = Counter(c[:4] for c in found)
    return sorted(
        f"{when}: {n} x {kind} {shape} over {'+'.join(axes)}" for (kind, axes, shape, when), n in counts.items()
    )


def _largest(result: str) -> str:
    arrays = []
    for kind, dims in _ARRAY.findall(result):
        size = math.prod(int(n) for n in dims.split(",")) if dims else 1
        arrays.append((size, f"{kind}[{dims}]"))
    return max(arrays, key=lambda array: array[0])[1]


def _scope(rest: str) -> tuple[str, str]:
    """`op_name="jit(update)/transpose(jvp())/while/body/closed_call/mlp/BTD,DF->BTF/dot_general"` -> (`each layer,
    backward`, `mlp BTD,DF->BTF`)."""
    named = re.search(r'op_name="([^"]*)"', rest)
    path = named[1] if named else ""
    backward = ", backward" if "transpose(" in path else ""
    # Several operations may share a collective, `prefix/(first:second:third)`: use the first.
    path = re.sub(r"/\(([^:]*):.*", r"/\1", path)
    parts = re.sub(r"(transpose|jvp|jit|rematted)\(|\)", "", path).split("/")[1:]
    where = "update" if "while" not in parts else "each chunk of the head" if "head" in parts else "each layer"
    skipped = ("", "while", "body", "closed_call", "checkpoint", "rematted_computation", "shard_map", "dot_general")
    return where + backward, " ".join(part for part in parts if part not in skipped)


def groups_of(rest: str, devices: int) -> frozenset[frozenset[int]]:
    """The device groups of a collective, from its attributes."""
    if pairs := re.search(r"source_target_pairs=\{([{}\d,]*)\}", rest):
        return _connected([tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1])])
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}", rest
    ):
        sizes = [int(size) for size in re.findall(r"=(\d+)", named[1])]
        ids = (_iota(named[2]) if named[2] else np.arange(devices)).reshape(sizes)
        names = re.findall(r"'(\w+)'=", named[1])
        over = [names.index(name) for name in re.findall(r"'(\w+)'", named[3])]
        rows = np.moveaxis(ids, over, range(-len(over), 0)).reshape(-1, math.prod(sizes[i] for i in over))
        return frozenset(frozenset(row.tolist()) for row in rows)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        rows = _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))
        return frozenset(frozenset(row.tolist()) for row in rows)
    listed = re.search(r"replica_groups=\{([{}\d,]*)\}", rest)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    if not groups:
        return frozenset({frozenset(range(devices))})
    return frozenset(frozenset(map(int, group.split(","))) for group in groups)


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)` -> 0..7 as [2, 4], transposed."""
    shape = [int(n) for n in re.search(r"\[([\d,]+)\]", text)[1].split(",")]  # type: ignore[index]
    ids = np.arange(math.prod(shape)).reshape(shape)
    order = re.search(r"T\(([\d,]+)\)", text)
    return ids.transpose([int(n) for n in order[1].split(",")]) if order else ids


def _connected(pairs: list[tuple[int, ...]]) -> frozenset[frozenset[int]]:
    groups: list[set[int]] = []
    for pair in pairs:
        touching = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touching] + [set(pair).union(*touching)]
    return frozenset(frozenset(group) for group in groups)


def axes_of(groups: frozenset[frozenset[int]], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The smallest set of mesh axes that spans every group; () if every group is one device.

    A group may be only part of a mesh row: over several slices XLA reduces within each slice first.
    """
    if max(map(len, groups)) == 1:
        return ()
    wide = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    ids = np.arange(mesh.size).reshape(mesh.devices.shape)
    for count in range(1, len(wide) + 1):
        for axes in combinations(wide, count):
            over = [mesh.axis_names.index(axis) for axis in axes]
            size = math.prod(mesh.shape[axis] for axis in axes)
            rows = np.moveaxis(ids, over, range(-len(over), 0)).reshape(-1, size)
            row_of = {device: number for number, row in enumerate(rows.tolist()) for device in row}
            if all(len({row_of[device] for device in group}) == 1 for group in groups):
                return axes
    raise ValueError(f"groups {sorted(map(sorted, groups))} over {mesh.size} devices")
