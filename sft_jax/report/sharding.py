"""A run's sharding for people: tables and a picture on the terminal, and one self-contained page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_jax.plan.sharding import KINDS, Placed, Shard, named_devices, shards_of, totals
from sft_jax.report.render import render

COLOURS = ("#2563eb", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#ca8a04", "#dc2626")
"""Colours of shards, cycled."""

MAX_SHOWN = 16
"""Maximum number of shards of one array shown on the terminal."""

PLURALS = {"parameter": "parameters", "optimizer": "optimizer state", "batch": "batch", "activation": "activations"}


def size_of(number: float) -> str:
    """1536 -> '1.5 KiB'."""
    value, units = float(number), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError(number)


def axes_text(placed: Placed) -> str:
    """The sharding of an array's dimensions: `embed:fsdp+context heads:tensor head_dim`."""
    words = [axis or "·" for axis in placed.axes]
    return " ".join(
        word + (":" + "+".join(over) if over else "") for word, over in zip(words, placed.over, strict=True)
    )


def dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"


COLUMNS = ("shape", "dimension: mesh axes", "per device", "bytes", "copies")


def sharding_tables(placed: Sequence[Placed], sizes: Mapping[str, int], notes: Sequence[str]) -> Group:
    """Terminal output: every array, what is replicated and why, and the totals."""
    shown: list[RenderableType] = [Text(f"mesh of {math.prod(sizes.values())} devices: {mesh_text(sizes)}")]
    shown += [Text(note) for note in notes]
    for kind in KINDS:
        some = [each for each in placed if each.kind == kind]
        table = Table(box=None)
        for header in (PLURALS[kind], *COLUMNS):
            table.add_column(header, no_wrap=True)
        for each in (each for each in some if not _as_its_parameter(each)):
            copies = Text(str(each.copies), style="yellow" if each.copies > 1 else "dim")
            table.add_row(*map(Text, _cells(each)), copies)
        shown.append(table)
        alike = sorted({each.name.split(" ")[0] for each in some if _as_its_parameter(each)})
        if alike:
            shown.append(Text(f" {' and '.join(alike)} of each parameter: sharded like the parameter"))
        shown.append(Text())
    shown.append(Text("replicated, and why"))
    for reason, names in reasons(placed).items():
        first = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        shown.append(Text.assemble((f"  {reason}", "yellow"), f"  {first}"))
    table = Table(*TOTALS, box=None)
    for row in _totals(placed, sizes):
        table.add_row(*row)
    return Group(*shown, Text(), table)


def mesh_text(sizes: Mapping[str, int]) -> str:
    """`data 2 x fsdp 8`: the mesh axes with more than one device."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "device 1"


def _cells(each: Placed) -> tuple[str, ...]:
    return each.name, dims(each.shape), axes_text(each), dims(each.shard_shape), size_of(each.bytes_per_device)


TOTALS = ("held by each device", "bytes", "of it replicated")


def _totals(placed: Sequence[Placed], sizes: Mapping[str, int]) -> list[tuple[str, str, str]]:
    devices = math.prod(sizes.values())
    return [
        (PLURALS.get(what, f"{what}s"), size_of(held), size_of(spared))
        for what, held, spared in totals(list(placed), devices)
    ]


def _as_its_parameter(each: Placed) -> bool:
    """Whether this is the optimizer state of a parameter (`mu embedding`), whose row would repeat the parameter's."""
    return each.kind == "optimizer" and " " in each.name


def reasons(placed: Sequence[Placed]) -> dict[str, list[str]]:
    """Reason -> the arrays that are replicated for it."""
    found: dict[str, list[str]] = {}
    for each in placed:
        for reason in each.why:
            found.setdefault(reason, []).append(each.name)
    return found


def shard_blocks(placed: Placed, sizes: Mapping[str, int]) -> Group:
    """One array on the terminal: a line per shard with the devices that hold it."""
    shards = shards_of(placed, sizes)
    shown = [Text(), Text.assemble((placed.name, "bold"), f"  {dims(placed.shape)}, {len(shards)} shard(s)")]
    for shard in shards[:MAX_SHOWN]:
        words = f"{part_of(placed, shard)}  held by {named_devices(shard.devices, sizes)}"
        shown.append(Text.assemble(("  ██ ", COLOURS[shard.number % len(COLOURS)]), words))
    if len(shards) > MAX_SHOWN:
        shown.append(Text(f"  … and {len(shards) - MAX_SHOWN} more, to {part_of(placed, shards[-1])}"))
    return Group(*shown)


def part_of(placed: Placed, shard: Shard) -> str:
    """`embed 0..63, heads 4..7`: the shard's index range in the sharded dimensions."""
    parts = [
        f"{axis or 'dimension'} {start}..{end - 1}"
        for axis, over, (start, end) in zip(placed.axes, placed.over, shard.index, strict=True)
        if over
    ]
    return ", ".join(parts) or "the whole array"


def as_json(placed: Sequence[Placed], sizes: Mapping[str, int], notes: Sequence[str]) -> dict[str, Any]:
    """The same content as JSON."""
    devices = math.prod(sizes.values())
    arrays = [
        {
            "kind": each.kind, "name": each.name, "shape": each.shape, "dtype": each.dtype, "logical_axes": each.axes,
            "spec": ["+".join(over) or None for over in each.over], "shard_shape": each.shard_shape,
            "bytes_a_device": each.bytes_per_device, "copies": each.copies, "replicated_because": each.why,
        }
        for each in placed
    ]  # fmt: skip
    summed = {
        what: {"bytes_a_device": held, "replicated": spared} for what, held, spared in totals(list(placed), devices)
    }
    return {"devices": devices, "mesh": dict(sizes), "totals": summed, "notes": list(notes), "arrays": arrays}


def _picture(placed: Placed, sizes: Mapping[str, int], layouts: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """What the page's script draws for one array; arrays with the same sharding share an entry of `layouts`."""
    divided = [
        [axis or "dimension", size // shard, shard]
        for axis, over, size, shard in zip(placed.axes, placed.over, placed.shape, placed.shard_shape, strict=True)
        if over
    ]
    key = tuple(over for over in placed.over if over)
    if key not in layouts:
        shards = shards_of(placed, sizes)
        holds = [0] * math.prod(sizes.values())
        for shard in shards:
            for device in shard.devices:
                holds[device] = shard.number
        columns = divided[-1][1] if divided else 1
        layouts[key] = {
            "number": len(layouts),
            "grid": [len(shards) // columns, columns],
            "holds": holds,
            "devices": [named_devices(shard.devices, sizes) for shard in shards],
        }
    layout = layouts[key]
    text = (
        f"{dims(placed.shape)} {placed.dtype} in {math.prod(layout['grid'])} shard(s), "
        f"{size_of(placed.bytes_per_device)} per device"
    )
    return {"name": placed.name, "text": text, "divided": divided, "layout": layout["number"]}


def _columns(devices: int, inner: int) -> int:
    """Columns of the mesh picture: whole groups of its innermost axis, and about twice as many as rows."""
    groups = devices // inner
    fitting = [inner * k for k in range(1, groups + 1) if groups % k == 0]
    return min(fitting, key=lambda columns: abs(math.log(columns**2 / devices / 2)))


def sharding_page(
    title: str, placed: Sequence[Placed], sizes: Mapping[str, int], notes: Sequence[str], first: int = 0
) -> str:
    """One self-contained HTML page.

    Args:
      placed: as returned by `place_all`, grouped by kind.
      first: index of the array shown first.
    """
    devices = math.prod(sizes.values())
    inner = [size for size in sizes.values() if size > 1][-1:] or [1]
    across = _columns(devices, inner[0])
    layouts: dict[Any, dict[str, Any]] = {}
    pictures = [_picture(each, sizes, layouts) for each in placed]
    return render(
        "sharding.html.jinja",
        title=title,
        mesh=f"{devices} devices: {mesh_text(sizes)}",
        notes=notes,
        innermost=next((axis for axis in reversed(tuple(sizes)) if sizes[axis] > 1), "device"),
        totals_headings=TOTALS,
        totals=_totals(placed, sizes),
        reasons=[(reason, ", ".join(names)) for reason, names in reasons(placed).items()],
        columns=COLUMNS,
        kinds=[
            (PLURALS[kind], [(*_cells(each), each.copies) for each in placed if each.kind == kind]) for kind in KINDS
        ],
        data={
            "colours": COLOURS, "arrays": pictures, "layouts": list(layouts.values()),
            "grid": [devices // across, across], "first": first,
        },
    )  # fmt: skip
