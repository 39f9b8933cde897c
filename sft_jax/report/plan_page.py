"""A plan as people read it: a table on the terminal, and one self-contained page."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sft_jax.plan.planned import Planned
from sft_jax.report.page import STYLE
from sft_jax.report.sharding_page import size_of

WORDS = {
    "compute": "the matrix units",
    "hbm": "the chip's memory",
    "ici": "the network between chips",
    "dcn": "the network between slices",
    "host": "the way to the host's memory",
}


def headline(plan: Planned) -> str:
    """One sentence: whether it fits, how fast it is, what bounds it."""
    room = (plan.usable_bytes_per_chip - plan.peak_bytes_per_chip) / 2**30
    fits = f"fits with {room:.1f} GiB a chip to spare" if plan.fits else f"does not fit: {plan.problem}"
    return (
        f"{spelled_topology(plan)}: {fits}; about {plan.tokens_per_second_per_chip:,.0f} tokens/s a chip "
        f"({100 * plan.mfu:.0f} % MFU), bounded by {WORDS[plan.bound_by]}"
    )


def spelled_topology(plan: Planned) -> str:
    """`v6e:8x8, 2 slices (128 chips)`."""
    slices = f", {plan.slices} slices" if plan.slices > 1 else ""
    return f"{plan.topology}{slices} ({plan.chips} chip{'s' * (plan.chips > 1)})"


def spelled_mesh(plan: Planned) -> str:
    """`data 2 x fsdp 64`."""
    return " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"


def rows_of(plan: Planned) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(what, how much)])."""
    room = plan.usable_bytes_per_chip - plan.peak_bytes_per_chip
    memory = [
        ("peak: what must fit", size_of(plan.peak_bytes_per_chip)),
        ("the chip has", f"{size_of(plan.hbm_bytes_per_chip)}, {size_of(plan.usable_bytes_per_chip)} for programs"),
        ("to spare" if room >= 0 else "missing", size_of(abs(room))),
        ("of the peak: state and batch", size_of(plan.argument_bytes_per_chip)),
        ("of a host's memory, with a checkpoint's copy", size_of(plan.host_bytes_per_host)),
        ("a checkpoint", size_of(plan.checkpoint_bytes)),
    ]
    work = [
        ("the model needs (rows of one document)", f"{plan.model_flops:.4g} FLOPs"),
        ("executed", f"{plan.executed_flops:.4g}: {plan.executed_flops / plan.model_flops:.3f} x"),
        ("main memory read and written, a device", size_of(plan.hbm_traffic_bytes)),
    ]
    sent = [
        (f"{kind} over {axes} ({', '.join(plan.networks[axes])})", size_of(size))
        for axes, kinds in plan.collective_bytes.items()
        for kind, size in kinds.items()
    ]
    time = [
        ("a step", f"{plan.step_seconds:.3f} s for {plan.tokens_per_step:,} tokens"),
        ("a chip", f"{plan.tokens_per_second_per_chip:,.0f} tokens/s, {100 * plan.mfu:.1f} % MFU"),
        ("a host must be given", f"{plan.input_tokens_per_second_per_host:,.0f} tokens/s"),
        ("bounded by", WORDS[plan.bound_by]),
        *((f"{WORDS[name]}, alone", f"{seconds:.3f} s") for name, seconds in plan.busy_seconds.items() if seconds),
    ]
    return [
        ("memory a chip", memory),
        ("work of an update", work),
        ("a device sends in an update", sent),
        ("time, estimated", time),
    ]


def print_plan(console: Console, plan: Planned, notes: Sequence[str]) -> None:
    """The whole plan."""
    console.print(headline(plan))
    console.print(f"mesh {spelled_mesh(plan)}; remat {plan.remat}; {plan.accumulation} micro-batch(es)")
    for note in notes:
        console.print(note)
    for heading, rows in rows_of(plan):
        if rows:
            table = Table(heading, "", box=None, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    if plan.collectives:
        console.print("what the update sends, as the compiler names it:")
        for line in plan.collectives:
            console.print(f"  {line}")


SPEND = "what it costs, estimated"


def spend_rows(spent: Mapping[str, float], steps: int) -> list[tuple[str, str]]:
    """(what, chip-hours and its price where one was given)."""

    def priced(hours: str, cost: str) -> str:
        return f"{spent[hours]:,.1f} chip-hours" + (f", {spent[cost]:,.2f}" if cost in spent else "")

    run = "its data tell the number of steps; give --train.steps"
    if steps:
        run = f"{priced('chip_hours', 'cost')} ({spent['wall_hours']:,.1f} hours)"
    return [
        ("a billion tokens, padding too", priced("chip_hours_per_billion_tokens", "cost_per_billion_tokens")),
        (f"the run's {steps:,} steps" if steps else "the run", run),
    ]


def print_spend(console: Console, spent: Mapping[str, float], steps: int) -> None:
    """The time of chips that a run takes, and its price where one was given."""
    table = Table(SPEND, "", box=None)
    for row in spend_rows(spent, steps):
        table.add_row(*row)
    console.print(table)


def print_measured(console: Console, plan: Planned, measured: Mapping[str, float]) -> None:
    """What was planned beside what was measured on the same chips."""
    table = Table("", "planned", "measured", "measured / planned", box=None)
    for what, name, digits in (
        ("seconds of a step", "step_seconds", 3),
        ("tokens/s a chip", "tokens_per_second_per_chip", 0),
        ("MFU", "mfu", 3),
    ):
        planned, found = getattr(plan, name), measured[f"measured_{name}"]
        table.add_row(what, f"{planned:,.{digits}f}", f"{found:,.{digits}f}", f"{found / planned:.2f}")
    console.print(table)


def write_plan_page(
    path: str,
    title: str,
    plan: Planned,
    notes: Sequence[str],
    spent: Sequence[tuple[str, str]],
    found: Sequence[Planned] = (),
) -> None:
    """One HTML page without anything from elsewhere.

    Args:
      spent: as `spend_rows`.
      found: of a search, with `plan` the best.
    """
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(headline(plan))}.</p>"]
    mesh = f"mesh {spelled_mesh(plan)}; remat {plan.remat}; {plan.accumulation} micro-batch(es)"
    parts += [f"<p>{html.escape(note)}</p>" for note in (mesh, *notes)]
    if found:
        parts.append(f"<h2>Layouts</h2>{_pareto_table(found)}")
    longest = max(plan.busy_seconds.values()) or 1.0
    bars = "".join(
        f"<tr><td>{html.escape(WORDS[name])}</td><td>{seconds:.3f} s</td><td><svg width=240 height=10 role=img "
        f'aria-label="{seconds:.3f} s"><rect width="{240 * seconds / longest:.0f}" height=10 fill="#2563eb"/></svg>'
        "</td></tr>"
        for name, seconds in plan.busy_seconds.items()
    )
    parts.append(f"<h2>What each resource needs, were the others free</h2><table>{bars}</table>")
    for heading, rows in [*rows_of(plan), (SPEND, spent)]:
        cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
        parts.append(f"<h2>{html.escape(heading)}</h2><table>{cells}</table>")
    if plan.collectives:
        parts.append("<h2>Collectives, as the compiler names them</h2><pre>")
        parts.append(html.escape("\n".join(plan.collectives)) + "</pre>")
    Path(path).write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )


def pareto_rows(found: Sequence[Planned]) -> list[tuple[str, ...]]:
    """(mesh, remat, micro-batches, peak, tokens/s a chip, bounded by, how planned), the fastest first."""
    ordered = sorted(found, key=lambda plan: (not plan.fits, plan.step_seconds))
    return [
        (
            "*" if plan.fits and not any(_better(other, plan) for other in found) else "",
            spelled_mesh(plan),
            plan.remat,
            str(plan.accumulation),
            size_of(plan.peak_bytes_per_chip),
            f"{plan.tokens_per_second_per_chip:,.0f}" if plan.fits else "does not fit",
            plan.bound_by,
        )
        for plan in ordered
    ]


PARETO_HEADINGS = ("", "mesh", "remat", "micro-batches", "peak a chip", "tokens/s a chip", "bounded by")


def _better(one: Planned, other: Planned) -> bool:
    """Whether one is at least as fast and as small, and not the same."""
    a = (one.step_seconds, one.peak_bytes_per_chip)
    b = (other.step_seconds, other.peak_bytes_per_chip)
    return one.fits and a != b and a[0] <= b[0] and a[1] <= b[1]


def _pareto_table(found: Sequence[Planned]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in PARETO_HEADINGS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in pareto_rows(found)
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def print_pareto(console: Console, found: Sequence[Planned]) -> None:
    """Every layout that was compiled; a star marks those that no other beats in both time and memory."""
    table = Table(box=None)
    for heading in PARETO_HEADINGS:
        table.add_column(heading, no_wrap=True)
    for row in pareto_rows(found):
        table.add_row(*row)
    console.print(table)
