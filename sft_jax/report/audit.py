"""Dataset audit: terminal tables, and a self-contained page that colours trained tokens."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_jax.data.pack.prepare import NULLS, describe_unread
from sft_jax.report.plots import histogram
from sft_jax.report.render import render
from sft_jax.report.tokens import tokens_text

SUMMARY = (
    ("rows", "rows read"),
    ("used", "documents used"),
    ("tokens", "tokens"),
    ("target_tokens", "trained tokens"),
    ("bad_rows", "bad rows skipped"),
    ("left_out", "rows left out by data.function"),
    ("dropped_over_length", "dropped: too long"),
    ("truncated", "truncated"),
    ("split", "split into pieces"),
    ("dropped_no_target", "dropped: no trained token"),
    ("empty_turns", "empty assistant turns, not trained"),
    ("null_rows", "rows with nulls in tool calls or tool schemas"),
    ("lossy", "rendered only in part by the chat template"),
    ("first_token_targets", "first token would train but has no context"),
)
ALWAYS = ("rows", "used", "tokens", "target_tokens")
FINDINGS = (
    ("duplicates", "duplicate rows"),
    ("repeated_prompts", "rows with the same prompt as another row"),
    ("unstopped", "rows with a trained turn without a stop token"),
)
OVERLAPS = (
    ("examples", "held-out rows that are also in the training data"),
    ("prompts", "held-out prompts that are also in the training data"),
)
LENGTHS = (("tokens per document", "lengths"), ("trained tokens per document", "targets"))
MOST_TOKENS = 2000
"""Maximum tokens shown per document; longer ones show beginning and end."""


def summary(split: dict[str, Any]) -> list[tuple[str, int]]:
    """The nonzero counts of a split, labelled."""
    counts = split["counts"]
    lines = [(words, counts[name]) for name, words in SUMMARY if counts[name] or name in ALWAYS]
    return lines + [(words, split[name]["count"]) for name, words in FINDINGS if split[name]["count"]]


def audit_tables(report: dict[str, Any]) -> Group:
    """The audit for the terminal, with the first examples; trained tokens are green."""
    shown: list[RenderableType] = []
    for name in ("train", "eval"):
        if name in report:
            shown += _split_tables(name, report[name], report["packing"]["tokens_per_row"])
    if "overlap" in report:
        for kind, words in OVERLAPS:
            found = report["overlap"][kind]
            shown.append(Text(f"{words}: {found['count']:,}" + "".join(f"\n  {row}" for row in found["rows"][:5])))
    packing = report["packing"]
    shown.append(
        Text(
            f"packing: {packing['rows_per_epoch']:,} rows per epoch of {packing['tokens_per_row']:,} tokens "
            f"({packing['token_fill']:.1%} full) and {packing['targets_per_row']:,} targets "
            f"({packing['target_fill']:.1%} full); {packing['steps']:,} steps of {packing['rows_per_step']} rows"
        )
    )
    for example in report["examples"][:3]:
        shown.append(Text(f"\n{example['row']} ({example['id']})", "dim"))
        shown.append(tokens_text(example["tokens"]))
    return Group(*shown)


def faults_text(faults: Sequence[dict[str, Any]]) -> list[str]:
    """Each kind of fault with its count and first rows."""
    lines = []
    for fault in faults:
        rows = ", ".join(fault["rows"][:3]) + (", ..." if fault["count"] > 3 else "")
        lines.append(f"{fault['count']:,} x {fault['reason']}" + (f" ({rows})" if fault["rows"] else ""))
    return lines


def over_length_text(found: dict[str, Any] | None, limit: int) -> list[str]:
    """What data.sequence_length drops, and which length would keep almost all."""
    if found is None:
        return []
    return [
        f"{found['count']:,} documents ({found['share']:.1%}) are longer than data.sequence_length {limit:,}, the "
        f"longest has {found['longest']:,} tokens; {found['keeps_99']:,} would keep 99 % of all documents whole"
    ]


def _split_tables(name: str, split: dict[str, Any], limit: int) -> list[RenderableType]:
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for words, number in summary(split):
        table.add_row(words, f"{number:,}")
    for words, key in LENGTHS:
        d = split[key]
        table.add_row(words, f"median {d['median']:g}, 90% below {d['p90']:g}, at most {d['max']:g}")
        table.add_row(f"  {d['edges'][0]:g} to {d['edges'][-1]:g}", _bars(d["counts"]))
    forms = ", ".join(f"{rows:,} {form}" for form, rows in split["counts"]["by_format"].items())
    lines = [f"  rows by format: {forms}"]
    lines += [f"  note: {note}" for note in notes(split["counts"])]
    lines += [f"  {source}: {_of_source(about)}" for source, about in split["counts"]["by_source"].items()]
    lines += [f"  {line}" for line in over_length_text(split["over_length"], limit)]
    lines += [f"  left out: {line}" for line in faults_text(split["faults"])]
    for key, words in FINDINGS:
        for row in split[key]["rows"][:5]:
            same = f" (same as {row['same_as']})" if isinstance(row, dict) else ""
            lines.append(f"  {words}: {row['row'] if isinstance(row, dict) else row}{same}")
    return [table, Text("\n".join(lines))]


def notes(counts: dict[str, Any]) -> list[str]:
    """Notes on the counts: unread keys, and possibly unintended nulls."""
    found = [f"keys that no form reads: {describe_unread(counts['unread'], 40)}"] if counts["unread"] else []
    return found + ([f"{counts['null_rows']:,} {NULLS}"] if counts["null_rows"] else [])


def _bars(counts: Sequence[int]) -> str:
    """A one-line histogram."""
    highest = max(counts)
    return "".join(" " if not count else "▁▂▃▄▅▆▇█"[int(count / highest * 7)] for count in counts)


def _of_source(about: dict[str, int]) -> str:
    return (
        f"{about['rows']:,} rows, {about['used']:,} documents used, {about['tokens']:,} tokens, "
        f"{about['target_tokens']:,} trained"
    )


def audit_page(report: dict[str, Any], title: str) -> str:
    """A self-contained HTML page."""
    return render(
        "audit.html.jinja",
        title=title,
        splits=[
            _split(name, report[name], report["packing"]["tokens_per_row"])
            for name in ("train", "eval")
            if name in report
        ],
        overlaps=[(report["overlap"][kind], words) for kind, words in OVERLAPS] if "overlap" in report else [],
        packing=_packing(report["packing"]),
        examples=[_document(example) for example in report["examples"]],
        packed_rows=[[_document(document) for document in row] for row in report["packed_rows"]],
    )


def _split(name: str, split: dict[str, Any], limit: int) -> dict[str, Any]:
    counts = split["counts"]
    of_source = ("rows", "used", "tokens", "target_tokens")
    return {
        "name": name,
        "forms": ", ".join(f"{rows:,} {form}" for form, rows in counts["by_format"].items()),
        "summary": [(words, f"{number:,}") for words, number in summary(split)],
        "sources": [
            (source, *(f"{about[key]:,}" for key in of_source)) for source, about in counts["by_source"].items()
        ],
        "histograms": [
            (words, histogram(split[key]["counts"], split[key]["edges"], words, "documents"), split[key])
            for words, key in LENGTHS
        ],
        "over_length": over_length_text(split["over_length"], limit),
        "faults": faults_text(split["faults"]),
        "notes": notes(counts),
        "findings": [(split[key], words) for key, words in FINDINGS if split[key]["count"]],
    }


def _packing(packing: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        ("tokens per row (T)", f"{packing['tokens_per_row']:,}", f"{packing['token_fill']:.1%} full"),
        ("targets per row (M)", f"{packing['targets_per_row']:,}", f"{packing['target_fill']:.1%} full"),
        ("rows", f"{packing['rows_per_epoch']:,} per epoch", f"{packing['rows_per_step']} per step"),
        ("steps", f"{packing['steps_per_epoch']:,} per epoch", f"{packing['steps']:,} in the run"),
        ("tokens", f"{packing['tokens_per_epoch']:,} per epoch", f"{packing['tokens_per_step']:,.0f} per step"),
        ("targets", f"{packing['targets_per_epoch']:,} per epoch", f"{packing['targets_per_step']:,.0f} per step"),
        ("padding", f"{packing['padding_per_epoch']:,} per epoch", ""),
    ]


def _document(document: dict[str, Any]) -> dict[str, Any]:
    """A document for the page; long ones are cut in the middle."""
    tokens = document["tokens"]
    left_out = max(0, len(tokens) - MOST_TOKENS)
    head = tokens[: MOST_TOKENS // 2] if left_out else tokens
    return {**document, "head": head, "left_out": left_out, "tail": tokens[-MOST_TOKENS // 2 :]}
