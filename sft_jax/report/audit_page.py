"""The audit of a data set: on the terminal, and as one self-contained page with every trained token coloured."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

STYLE = """
:root { color-scheme: light dark; --trained: #16a34a38; --line: #8886; --bar: #2563eb; --warn: #d97706; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; border-top: 1px solid var(--line); padding-top: .8rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem 1rem .15rem 0; text-align: right; font-weight: normal; }
th { color: #888; } td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
.warn { color: var(--warn); } .note { color: #888; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; display: block; } rect { fill: var(--bar); } text { font-size: 11px; fill: #888; }
.doc { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem .7rem;
  border: 1px solid var(--line); border-radius: .4rem; margin: .3rem 0; }
.doc b { font-weight: normal; background: var(--trained); border-radius: .15rem; }
.doc i { font-style: normal; color: #888; }
.doc span:hover, .doc b:hover { outline: 1px solid var(--bar); }
.row { border-left: 4px solid var(--bar); padding-left: .6rem; margin: .8rem 0; }
ul { padding-left: 1.2rem; margin: .2rem 0; } li { overflow-wrap: anywhere; }
"""

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
    ("lossy", "shown only in part by the chat template"),
    ("first_token_targets", "first token would train but has no context"),
)
ALWAYS = ("rows", "used", "tokens", "target_tokens")
FINDINGS = (
    ("duplicates", "duplicate rows"),
    ("repeated_prompts", "rows with the prompt of another row"),
    ("unstopped", "rows with a trained turn that ends in no stop token"),
)


def summary(split: dict[str, Any]) -> list[tuple[str, int]]:
    """What the counts of a split say, without the zeros."""
    counts = split["counts"]
    lines = [(words, counts[name]) for name, words in SUMMARY if counts[name] or name in ALWAYS]
    return lines + [(words, split[name]["count"]) for name, words in FINDINGS if split[name]["count"]]


def print_audit(report: dict[str, Any], console: Console) -> None:
    """The audit as tables, with the first examples and their trained tokens in green."""
    for name in ("train", "eval"):
        if name not in report:
            continue
        split = report[name]
        table = Table(title=name, show_header=False, title_justify="left")
        table.add_column()
        table.add_column(justify="right")
        for words, number in summary(split):
            table.add_row(words, f"{number:,}")
        for words, key in (("tokens a document", "lengths"), ("trained tokens a document", "targets")):
            d = split[key]
            table.add_row(words, f"median {d['median']:g}, 90 % below {d['p90']:g}, at most {d['max']:g}")
            table.add_row(f"  {d['edges'][0]:g} to {d['edges'][-1]:g}", _bars(d["counts"]))
        console.print(table)
        forms = ", ".join(f"{rows:,} {form}" for form, rows in split["counts"]["by_format"].items())
        console.print(f"  rows by format: {forms}", markup=False)
        for source, about in split["counts"]["by_source"].items():
            console.print(f"  {source}: {_of_source(about)}", markup=False)
        for row in split["dropped"]:
            console.print(f"  left out: {row['row']}: {row['reason']}", markup=False)
        for key, words in FINDINGS:
            for row in split[key]["rows"][:5]:
                same = f" (same as {row['same_as']})" if isinstance(row, dict) else ""
                console.print(f"  {words}: {row['row'] if isinstance(row, dict) else row}{same}", markup=False)
    if "overlap" in report:
        for kind, words in (("examples", "rows"), ("prompts", "prompts")):
            found = report["overlap"][kind]
            console.print(f"held-out {words} that stand in the training data: {found['count']:,} {found['rows'][:5]}")
    packing = report["packing"]
    console.print(
        f"packing: {packing['rows_per_epoch']:,} rows an epoch of {packing['tokens_per_row']:,} tokens "
        f"({packing['token_fill']:.1%} full) and {packing['targets_per_row']:,} targets "
        f"({packing['target_fill']:.1%} full); {packing['steps']:,} steps of {packing['rows_per_step']} rows"
    )
    for example in report["examples"][:3]:
        console.print(f"\n{example['row']} ({example['id']})", markup=False, style="dim")
        for text, _, weight in example["tokens"]:
            console.print(text, end="", style="black on green" if weight else None, markup=False)
        console.print()


def _bars(counts: Sequence[int]) -> str:
    """A histogram in one line."""
    highest = max(counts)
    return "".join(" " if not count else "▁▂▃▄▅▆▇█"[int(count / highest * 7)] for count in counts)


def _of_source(about: dict[str, int]) -> str:
    return (
        f"{about['rows']:,} rows, {about['used']:,} documents used, {about['tokens']:,} tokens, "
        f"{about['target_tokens']:,} trained"
    )


def write_audit_page(report: dict[str, Any], title: str, path: Path) -> None:
    """One HTML file without a reference to anything else."""
    splits = "".join(_split(name, report[name]) for name in ("train", "eval") if name in report)
    overlap = ""
    if "overlap" in report:
        kinds = (("examples", "held-out rows in the training data"), ("prompts", "held-out prompts in it"))
        overlap = "<h2>Train and eval</h2>" + "".join(_listed(report["overlap"][key], words) for key, words in kinds)
    rows = "".join(f'<div class="row">{"".join(_document(d) for d in row)}</div>' for row in report["packed_rows"])
    examples = "".join(_document(example) for example in report["examples"])
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f'</head><body><h1>{html.escape(title)}</h1><p class="note">Trained tokens are <span class="doc" '
        'style="padding:0 .2rem;border:0"><b>coloured</b></span>; point at a token for its id and weight.</p>'
        f"{splits}{overlap}{_packing(report['packing'])}<h2>Examples</h2>{examples}"
        f"<h2>First packed rows of the run</h2>{rows}</body></html>\n",
        encoding="utf-8",
    )


def _split(name: str, split: dict[str, Any]) -> str:
    numbers = "".join(f"<tr><td>{html.escape(words)}</td><td>{number:,}</td></tr>" for words, number in summary(split))
    sources = "".join(
        f"<tr><td>{html.escape(source)}</td>"
        + "".join(f"<td>{about[key]:,}</td>" for key in ("rows", "used", "tokens", "target_tokens"))
        + "</tr>"
        for source, about in split["counts"]["by_source"].items()
    )
    forms = ", ".join(f"{rows:,} {html.escape(form)}" for form, rows in split["counts"]["by_format"].items())
    dropped = "".join(
        f'<li class="warn">{html.escape(row["row"])}: {html.escape(row["reason"])}</li>' for row in split["dropped"]
    )
    findings = "".join(_listed(split[key], words) for key, words in FINDINGS if split[key]["count"])
    return (
        f'<h2>{html.escape(name)}</h2><p class="note">Format: {forms}</p><div class="scroll"><table>{numbers}</table>'
        '</div><h3>By source</h3><div class="scroll"><table><tr><th>file</th><th>rows</th><th>used</th><th>tokens</th>'
        f'<th>trained</th></tr>{sources}</table></div><div class="pair">'
        f"<div><h3>Tokens a document</h3>{_histogram(split['lengths'])}</div>"
        f"<div><h3>Trained tokens a document</h3>{_histogram(split['targets'])}</div></div>"
        + (f"<h3>Left out</h3><ul>{dropped}</ul>" if dropped else "")
        + findings
    )


def _listed(found: dict[str, Any], words: str) -> str:
    def line(row: Any) -> str:
        if isinstance(row, dict):
            return f"{html.escape(row['row'])}, same as {html.escape(row['same_as'])}"
        return html.escape(row)

    rows = "".join(f"<li>{line(row)}</li>" for row in found["rows"])
    more = f"<li>and {found['count'] - len(found['rows']):,} more</li>" if found["count"] > len(found["rows"]) else ""
    return f"<h3{' class=warn' if found['count'] else ''}>{found['count']:,} {words}</h3><ul>{rows}{more}</ul>"


def _histogram(of: dict[str, Any]) -> str:
    width, height, floor = 320, 110, 92
    top = max(of["counts"])
    step = width / len(of["counts"])
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{floor - count / top * 80:.1f}" width="{max(1.0, step - 1):.1f}" '
        f'height="{count / top * 80:.1f}"><title>{low:g} to {high:g}: {count:,}</title></rect>'
        for i, (count, low, high) in enumerate(zip(of["counts"], of["edges"], of["edges"][1:], strict=False))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="histogram">{bars}'
        f'<text x="0" y="{height - 4}">{of["min"]:g}</text><text x="{width / 2}" y="{height - 4}" '
        f'text-anchor="middle">median {of["median"]:g}, mean {of["mean"]:g}</text>'
        f'<text x="{width}" y="{height - 4}" text-anchor="end">{of["max"]:g}</text></svg>'
    )


def _packing(packing: dict[str, Any]) -> str:
    lines = (
        ("tokens a row (T)", f"{packing['tokens_per_row']:,}", f"{packing['token_fill']:.1%} full"),
        ("targets a row (M)", f"{packing['targets_per_row']:,}", f"{packing['target_fill']:.1%} full"),
        ("rows", f"{packing['rows_per_epoch']:,} an epoch", f"{packing['rows_per_step']} a step"),
        ("steps", f"{packing['steps_per_epoch']:,} an epoch", f"{packing['steps']:,} in the run"),
        ("tokens", f"{packing['tokens_per_epoch']:,} an epoch", f"{packing['tokens_per_step']:,.0f} a step"),
        ("targets", f"{packing['targets_per_epoch']:,} an epoch", f"{packing['targets_per_step']:,.0f} a step"),
        ("padding", f"{packing['padding_per_epoch']:,} an epoch", ""),
    )
    rows = "".join(f"<tr><td>{words}</td><td>{one}</td><td>{two}</td></tr>" for words, one, two in lines)
    return f'<h2>Packing</h2><div class="scroll"><table>{rows}</table></div>'


def _document(document: dict[str, Any]) -> str:
    head = html.escape(document["row"])
    if document["id"] != document["row"]:
        head += f" ({html.escape(document['id'])})"
    return f'<h3>{head}</h3><div class="doc">{"".join(_tokens(document["tokens"]))}</div>'


def _tokens(tokens: Sequence[tuple[str, int, float]]) -> list[str]:
    shown = []
    for text, number, weight in tokens:
        tag = "b" if weight else "span"
        # A line break belongs to a token: mark it, since white space shows no colour.
        body = html.escape(text).replace("\n", "<i>⏎</i>\n") or "<i>·</i>"
        shown.append(f'<{tag} title="id {number}, weight {weight:g}">{body}</{tag}>')
    return shown
