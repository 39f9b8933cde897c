"""The layout of a run as people look at it: tables and a picture on the terminal, and one self-contained page."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.plan.sharding import KINDS, Placed, Shard, named_devices, shards_of, totals

COLOURS = ("#2563eb", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#ca8a04", "#dc2626")
"""Of shards, in turn."""

MOST_SHOWN = 16
"""Shards of one array on the terminal."""

PLURALS = {"parameter": "parameters", "optimizer": "optimizer state", "batch": "batch", "activation": "activations"}


def size_of(number: float) -> str:
    """1536 -> '1.5 KiB'."""
    value, units = float(number), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError(number)


def spelled(placed: Placed) -> str:
    """`embed:fsdp+context heads:tensor head_dim` for the dimensions of an array."""
    words = [axis or "·" for axis in placed.axes]
    return " ".join(
        word + (":" + "+".join(over) if over else "") for word, over in zip(words, placed.over, strict=True)
    )


def dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"


def print_sharding(console: Console, placed: Sequence[Placed], sizes: Mapping[str, int], notes: Sequence[str]) -> None:
    """The tables: every array, what is replicated and why, and the totals."""
    devices = math.prod(sizes.values())
    console.print(f"mesh of {devices} devices: " + " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1))
    for note in notes:
        console.print(note)
    for kind in KINDS:
        table = Table(box=None)
        for header in (PLURALS[kind], "shape", "dimension: mesh axes", "on a device", "bytes", "copies"):
            table.add_column(header, no_wrap=True)
        for each in (each for each in placed if each.kind == kind and not _as_its_parameter(each)):
            row = (each.name, dims(each.shape), spelled(each), dims(each.shard_shape), size_of(each.bytes_a_device))
            table.add_row(*map(Text, row), Text(str(each.copies), style="yellow" if each.copies > 1 else "dim"))
        console.print(table)
        moments = {each.name.split(" ")[0] for each in placed if each.kind == kind and _as_its_parameter(each)}
        if moments:
            console.print(f" {' and '.join(sorted(moments))} of each parameter lie as the parameter does")
        console.print()
    console.print("replicated, and why")
    for reason, names in reasons(placed).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        console.print(Text.assemble((f"  {reason}", "yellow"), f"  {shown}"))
    table = Table("on each device", "bytes", "of it replicated", box=None)
    for what, held, spared in totals(list(placed), devices):
        table.add_row(PLURALS.get(what, f"{what}s"), size_of(held), size_of(spared))
    console.print()
    console.print(table)


def _as_its_parameter(each: Placed) -> bool:
    """Whether this is a moment of a parameter (`mu embedding`): its row would repeat the parameter's."""
    return each.kind == "optimizer" and " " in each.name


def reasons(placed: Sequence[Placed]) -> dict[str, list[str]]:
    """Reason -> the arrays that it keeps replicated."""
    found: dict[str, list[str]] = {}
    for each in placed:
        for reason in each.why:
            found.setdefault(reason, []).append(each.name)
    return found


def print_holders(console: Console, placed: Placed, sizes: Mapping[str, int]) -> None:
    """The picture of one array: a block for each shard, and who holds it."""
    shards = shards_of(placed, sizes)
    console.print()
    console.print(Text.assemble((placed.name, "bold"), f"  {dims(placed.shape)}, {len(shards)} shard(s)"))
    for shard in shards[:MOST_SHOWN]:
        block = Text("  ██ ", style=COLOURS[shard.number % len(COLOURS)])
        console.print(block, Text(f"{part_of(placed, shard)}  held by {named_devices(shard.devices, sizes)}"), sep="")
    if len(shards) > MOST_SHOWN:
        console.print(f"  … and {len(shards) - MOST_SHOWN} more, to {part_of(placed, shards[-1])}")


def part_of(placed: Placed, shard: Shard) -> str:
    """`embed 0..63, heads 4..7`: the part of the array, of the dimensions that are divided."""
    parts = [
        f"{axis or 'dimension'} {start}..{end - 1}"
        for axis, over, (start, end) in zip(placed.axes, placed.over, shard.index, strict=True)
        if over
    ]
    return ", ".join(parts) or "the whole array"


def as_json(placed: Sequence[Placed], sizes: Mapping[str, int], notes: Sequence[str]) -> dict[str, Any]:
    """All of it as JSON."""
    devices = math.prod(sizes.values())
    arrays = [
        {
            "kind": each.kind, "name": each.name, "shape": each.shape, "dtype": each.dtype, "logical_axes": each.axes,
            "spec": ["+".join(over) or None for over in each.over], "shard_shape": each.shard_shape,
            "bytes_a_device": each.bytes_a_device, "copies": each.copies, "replicated_because": each.why,
        }
        for each in placed
    ]  # fmt: skip
    summed = {
        what: {"bytes_a_device": held, "replicated": spared} for what, held, spared in totals(list(placed), devices)
    }
    return {"devices": devices, "mesh": dict(sizes), "totals": summed, "notes": list(notes), "arrays": arrays}


STYLE = """
:root { color-scheme: light dark; --line: #8886; --warn: #b45309; --back: #8881; }
* { box-sizing: border-box; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 1.2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.note, th { color: #888; font-weight: normal; } .warn { color: var(--warn); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
td, th { padding: .12rem .9rem .12rem 0; text-align: left; white-space: nowrap; }
td.n, th.n { text-align: right; }
tr.array { cursor: pointer; } tr.array:hover, tr.chosen { background: var(--back); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.2rem;
  position: sticky; top: 0; background: Canvas; padding: .6rem 0; border-bottom: 1px solid var(--line); z-index: 1; }
.pictures h3 { font-size: .9rem; margin: 0 0 .3rem; font-weight: normal; overflow-wrap: anywhere; }
svg { width: 100%; height: 11rem; display: block; } rect { stroke: Canvas; }
.dim rect:not(.lit) { opacity: .2; } #who { min-height: 3em; }
li { overflow-wrap: anywhere; } ul { padding-left: 1.2rem; margin: .2rem 0; }
@media (max-width: 40rem) { .pictures { position: static; } svg { height: 8rem; } }
"""

SCRIPT = """
const shown = document.getElementById("array"), grid = document.getElementById("devices");
const who = document.getElementById("who"), title = document.getElementById("title");
const ns = "http://www.w3.org/2000/svg";
function rect(svg, x, y, w, h, shard) {
  const r = document.createElementNS(ns, "rect");
  for (const [k, v] of Object.entries({x, y, width: w, height: h})) r.setAttribute(k, v);
  r.style.fill = data.colours[shard % data.colours.length];
  r.style.fillOpacity = 1 - .5 * (Math.floor(shard / data.colours.length) % 2);
  r.dataset.shard = shard;
  r.onmouseenter = r.onclick = () => light(shard);
  svg.append(r);
}
function light(shard) {
  for (const svg of [shown, grid]) {
    svg.classList.toggle("dim", shard !== null);
    for (const r of svg.children) r.classList.toggle("lit", +r.dataset.shard === shard);
  }
  who.textContent = shard === null ? "Point at a shard or a device: who holds what." : current.shards[shard].text;
}
let current = null;
function choose(index) {
  current = data.arrays[index];
  document.querySelectorAll("tr.array").forEach((row, i) => row.classList.toggle("chosen", i === index));
  title.textContent = current.name + ": " + current.text;
  shown.replaceChildren(); grid.replaceChildren();
  const [rows, columns] = current.grid;
  shown.setAttribute("viewBox", "0 0 " + columns + " " + rows);
  shown.setAttribute("preserveAspectRatio", "none");
  for (let s = 0; s < rows * columns; s++) rect(shown, s % columns, Math.floor(s / columns), 1, 1, s);
  const [down, across] = data.grid;
  grid.setAttribute("viewBox", "0 0 " + across + " " + down);
  grid.setAttribute("preserveAspectRatio", "none");
  current.holds.forEach((shard, d) => rect(grid, d % across, Math.floor(d / across), 1, 1, shard));
  for (const svg of [shown, grid]) for (const r of svg.children) r.style.strokeWidth = "2px";
  for (const svg of [shown, grid]) for (const r of svg.children) r.setAttribute("vector-effect", "non-scaling-stroke");
  light(null);
}
document.querySelectorAll("tr.array").forEach((row, i) => row.onclick = () => choose(i));
for (const svg of [shown, grid]) svg.onmouseleave = () => light(null);
choose(data.first);
"""


def _picture(placed: Placed, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What the script draws of one array: a grid of shards, and the shard of every device."""
    shards = shards_of(placed, sizes)
    counts = [size // part for size, part in zip(placed.shape, placed.shard_shape, strict=True)]
    divided = [count for count in counts if count > 1]
    columns = divided[-1] if divided else 1
    holds = [0] * sum(len(shard.devices) for shard in shards)
    for shard in shards:
        for device in shard.devices:
            holds[device] = shard.number
    texts = [{"text": f"{part_of(placed, s)}: held by {named_devices(s.devices, sizes)}"} for s in shards]
    text = f"{dims(placed.shape)} {placed.dtype} in {len(shards)} shard(s), {size_of(placed.bytes_a_device)} a device"
    return {
        "name": placed.name, "text": text, "grid": [len(shards) // columns, columns], "holds": holds, "shards": texts,
    }  # fmt: skip


def write_sharding_page(
    path: str | Path,
    title: str,
    placed: Sequence[Placed],
    sizes: Mapping[str, int],
    notes: Sequence[str],
    first: int = 0,
) -> None:
    """Write the page.

    Args:
      first: which array is shown when the page opens.
    """
    devices = math.prod(sizes.values())
    wide = [(axis, size) for axis, size in sizes.items() if size > 1] or [("device", 1)]
    across = wide[-1][1] if len(wide) > 1 else min(devices, 16 if devices % 16 == 0 else devices)
    pictures = [_picture(each, sizes) for each in placed]
    data = {"colours": COLOURS, "arrays": pictures, "grid": [devices // across, across], "first": first}
    escape = html.escape
    body = [
        f"<h1>{escape(title)}</h1><p class=note>{devices} devices: {escape(' x '.join(f'{a} {n}' for a, n in wide))}"
    ]
    body += [f"<br>{escape(note)}" for note in notes]
    body.append(
        "</p><div class=pictures><div><h3 id=title></h3><svg id=array></svg></div><div><h3>the devices of the mesh, "
        f"{escape(wide[-1][0])} across</h3><svg id=devices></svg></div><div id=who class=note></div></div>"
    )
    body.append("<h2>On each device</h2><table><tr><th><th class=n>bytes<th class=n>of it replicated")
    for what, held, spared in totals(list(placed), devices):
        body.append(f"<tr><td>{PLURALS.get(what, what + 's')}<td class=n>{size_of(held)}<td class=n>{size_of(spared)}")
    body.append("</table><h2>Replicated, and why</h2><ul>")
    for reason, names in reasons(placed).items():
        body.append(f"<li><span class=warn>{escape(reason)}</span> <span class=note>{escape(', '.join(names))}</span>")
    body.append("</ul><h2>Every array</h2><p class=note>Choose one to see who holds what.</p><div class=scroll><table>")
    for kind in KINDS:
        body.append(
            f"<tr><th>{PLURALS[kind]}<th>shape<th>dimension: mesh axes<th>on a device<th class=n>bytes<th>copies"
        )
        for each in (each for each in placed if each.kind == kind):
            warn = " class=warn" if each.copies > 1 else ""
            cells = (each.name, dims(each.shape), spelled(each), dims(each.shard_shape))
            body.append("<tr class=array>" + "".join(f"<td>{escape(cell)}" for cell in cells))
            body.append(f"<td class=n>{size_of(each.bytes_a_device)}<td{warn}>{each.copies}")
    body.append("</table></div>")
    script = f"const data = {json.dumps(data)};".replace("</", "<\\/") + SCRIPT
    page = (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(body)}"
        f"<script>{script}</script></html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")
