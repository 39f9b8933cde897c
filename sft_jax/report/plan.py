"""A plan for people: tables on the terminal, and one self-contained page."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_jax.plan.planned import Planned
from sft_jax.report.render import render
from sft_jax.report.sharding import size_of

WORDS = {
    "compute": "the matrix units",
    "hbm": "the chip's memory",
    "ici": "the network between chips",
    "dcn": "the network between slices",
    "host": "the link to the host's memory",
}


def headline(plan: Planned) -> str:
    """One sentence: whether it fits, how fast it is, and what bounds it."""
    room = (plan.usable_bytes_per_chip - plan.peak_bytes_per_chip) / 2**30
    fits = f"fits with {room:.1f} GiB per chip to spare" if plan.fits else f"does not fit: {plan.problem}"
    return (
        f"{spelled_topology(plan)}: {fits}; about {plan.tokens_per_second_per_chip:,.0f} tokens/s per chip "
        f"({plan.mfu:.0%} MFU), bounded by {WORDS[plan.bound_by]}"
    )


def spelled_topology(plan: Planned) -> str:
    """`v6e:8x8, 2 slices (128 chips)`."""
    slices = f", {plan.slices} slices" if plan.slices > 1 else ""
    return f"{plan.topology}{slices} ({plan.chips} chip{'s' * (plan.chips > 1)})"


def spelled_mesh(plan: Planned) -> str:
    """`data 2 x fsdp 64`."""
    return " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"


def layout_line(plan: Planned) -> str:
    """`mesh fsdp 16; remat dots; 1 micro-batch`."""
    several = "es" if plan.accumulation > 1 else ""
    return f"mesh {spelled_mesh(plan)}; remat {plan.remat}; {plan.accumulation} micro-batch{several}"


def rows_of(plan: Planned) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(heading, [(quantity, value)])]."""
    room = plan.usable_bytes_per_chip - plan.peak_bytes_per_chip
    memory = [
        ("peak: what must fit", size_of(plan.peak_bytes_per_chip)),
        ("the chip has", f"{size_of(plan.hbm_bytes_per_chip)}, {size_of(plan.usable_bytes_per_chip)} for programs"),
        ("to spare" if room >= 0 else "missing", size_of(abs(room))),
        ("of the peak: state and batch", size_of(plan.argument_bytes_per_chip)),
        ("host memory, with a checkpoint's copy, per host", size_of(plan.host_bytes_per_host)),
        ("a checkpoint", size_of(plan.checkpoint_bytes)),
    ]
    work = [
        ("the model needs (rows of one document)", f"{plan.model_flops:.4g} FLOPs"),
        ("executed", f"{plan.executed_flops:.4g} FLOPs: {plan.executed_flops / plan.model_flops:.3f} x"),
        ("HBM read and written, per device", size_of(plan.hbm_traffic_bytes)),
    ]
    sent = [
        (f"{kind} over {axes} ({', '.join(plan.networks[axes])})", size_of(size))
        for axes, kinds in plan.collective_bytes.items()
        for kind, size in kinds.items()
    ]
    time = [
        ("step", f"{plan.step_seconds:.3f} s for {plan.tokens_per_step:,} tokens"),
        ("per chip", f"{plan.tokens_per_second_per_chip:,.0f} tokens/s, {plan.mfu:.1%} MFU"),
        ("input that each host must supply", f"{plan.input_tokens_per_second_per_host:,.0f} tokens/s"),
        ("bounded by", WORDS[plan.bound_by]),
        *((f"{WORDS[name]}, alone", f"{seconds:.3f} s") for name, seconds in plan.busy_seconds.items() if seconds),
    ]
    return [
        ("memory per chip", memory),
        ("work of an update", work),
        ("sent by each device in an update", sent),
        ("estimated time", time),
    ]


def plan_tables(plan: Planned, notes: Sequence[str]) -> Group:
    """The whole plan for the terminal."""
    shown: list[RenderableType] = [Text(line) for line in (headline(plan), layout_line(plan), *notes)]
    shown += [_pairs(heading, rows) for heading, rows in rows_of(plan) if rows]
    if plan.collectives:
        shown.append(Text("\n  ".join(["collectives of an update, in the compiler's terms:", *plan.collectives])))
    return Group(*shown)


def _pairs(heading: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(heading, "", box=None)
    for row in rows:
        table.add_row(*row)
    return table


SPEND = "estimated cost"


def spend_rows(spent: Mapping[str, float], steps: int) -> list[tuple[str, str]]:
    """[(what, chip-hours and, if a price was given, the cost)]."""

    def priced(hours: str, cost: str) -> str:
        return f"{spent[hours]:,.1f} chip-hours" + (f", {spent[cost]:,.2f}" if cost in spent else "")

    run = "the number of steps comes from the data; set --train.steps"
    if steps:
        run = f"{priced('chip_hours', 'cost')} ({spent['wall_hours']:,.1f} hours)"
    return [
        ("a billion tokens, padding included", priced("chip_hours_per_billion_tokens", "cost_per_billion_tokens")),
        (f"the run's {steps:,} steps" if steps else "the run", run),
    ]


def spend_table(spent: Mapping[str, float], steps: int) -> Table:
    """The chip-hours of a run and, if a price was given, their cost."""
    return _pairs(SPEND, spend_rows(spent, steps))


def measured_table(plan: Planned, measured: Mapping[str, float]) -> Table:
    """Planned and measured values on the same chips, side by side."""
    table = Table("", "planned", "measured", "measured / planned", box=None)
    for what, name, digits in (
        ("seconds per step", "step_seconds", 3),
        ("tokens/s per chip", "tokens_per_second_per_chip", 0),
        ("MFU", "mfu", 3),
    ):
        planned, found = getattr(plan, name), measured[f"measured_{name}"]
        table.add_row(what, f"{planned:,.{digits}f}", f"{found:,.{digits}f}", f"{found / planned:.2f}")
    return table


def plan_page(
    title: str, plan: Planned, notes: Sequence[str], spent: Sequence[tuple[str, str]], found: Sequence[Planned] = ()
) -> str:
    """One self-contained HTML page.

    Args:
      spent: from `spend_rows`.
      found: all plans of a search, of which `plan` is the best.
    """
    longest = max(plan.busy_seconds.values()) or 1.0
    return render(
        "plan.html.jinja",
        title=title,
        headline=headline(plan),
        notes=[layout_line(plan), *notes],
        layouts=pareto_rows(found),
        headings=PARETO_HEADINGS,
        busy=[(WORDS[name], f"{time:.3f} s", time / longest) for name, time in plan.busy_seconds.items() if time],
        tables=[*((heading, rows) for heading, rows in rows_of(plan) if rows), (SPEND, spent)],
        collectives=plan.collectives,
    )


def pareto_rows(found: Sequence[Planned]) -> list[tuple[str, ...]]:
    """PARETO_HEADINGS for every layout, fastest first; a star marks the Pareto front of time and memory."""
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


PARETO_HEADINGS = ("", "mesh", "remat", "micro-batches", "peak per chip", "tokens/s per chip", "bounded by")


def _better(one: Planned, other: Planned) -> bool:
    """Whether `one` is at least as fast and as small as `other`, and not equal."""
    a = (one.step_seconds, one.peak_bytes_per_chip)
    b = (other.step_seconds, other.peak_bytes_per_chip)
    return one.fits and a != b and a[0] <= b[0] and a[1] <= b[1]


def pareto_table(found: Sequence[Planned]) -> Table:
    """Every layout planned by a search."""
    table = Table(box=None)
    for heading in PARETO_HEADINGS:
        table.add_column(heading, no_wrap=True)
    for row in pareto_rows(found):
        table.add_row(*row)
    return table
