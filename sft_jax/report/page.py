"""report.html: one self-contained page of a run: its curves, its numbers, its config."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from sft_jax.train.metrics import scores_of

REPORT = "report.html"

WIDTH, HEIGHT, MARGIN = 640, 220, 44

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
svg { width: 100%; height: auto; } .line { fill: none; stroke: #2563eb; stroke-width: 2; }
.held-out { fill: none; stroke: #d97706; stroke-width: 2; } .dot { fill: #d97706; }
.axis { stroke: #8888; } text { font-size: 12px; fill: #888; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; } pre { overflow-x: auto; }
"""


def _path(points: Sequence[tuple[float, float]], box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    low_x, high_x, low_y, high_y = box
    across, up = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0
    return [
        (
            MARGIN + (x - low_x) / across * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN / 2 - (y - low_y) / up * (HEIGHT - MARGIN),
        )
        for x, y in points
    ]


def chart(line: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float]], label: str) -> str:
    """An SVG line chart of (step, value) points, with the held-out points over it."""
    both = [*line, *dots]
    if not both:
        return ""
    xs, ys = [x for x, _ in both], [y for _, y in both]
    box = (min(xs), max(xs), min(ys), max(ys))
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in _path(line, box))
    held_out = _path(dots, box)
    marks = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in held_out)
    between = " ".join(f"{x:.1f},{y:.1f}" for x, y in held_out)
    floor = HEIGHT - MARGIN / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f'<line class="axis" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{floor}" y2="{floor}"/>'
        f'<text x="0" y="{MARGIN / 2 + 4}">{box[3]:.4g}</text><text x="0" y="{HEIGHT - MARGIN / 2}">{box[2]:.4g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 4}">step {box[0]:g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 4}" text-anchor="end">{box[1]:g}</text>'
        f'<polyline class="line" points="{joined}"/><polyline class="held-out" points="{between}"/>{marks}</svg>'
    )


def write_page(workdir: Path) -> Path:
    """Write workdir/report.html from metrics.jsonl and config.json; returns its path."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "eval/loss" in row]

    def points(name: str | None, of: Sequence[dict]) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in of if name and row.get(name) is not None]

    numbers = {
        "steps": f"{training[-1]['step']:,}" if training else "0",
        "tokens": f"{sum(row['tokens'] for row in training):,}",
        "trained tokens": f"{sum(row['target_tokens'] for row in training):,}",
        "seconds in steps": f"{sum(row['step_seconds'] for row in training):,.0f}",
    }
    if held_out:
        numbers["held-out loss, first and last"] = f"{held_out[0]['eval/loss']:.4f} → {held_out[-1]['eval/loss']:.4f}"
    table = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in numbers.items())
    scores = sorted({name for row in held_out for name in scores_of(row)})
    sections: list[tuple[str, str | None, str | None]] = [
        ("Loss a trained token (held out in orange)", "loss", "eval/loss"),
        ("Accuracy of the next trained token (held out in orange)", "accuracy", "eval/accuracy"),
        *((f"Answers to held-out prompts: {name}", None, f"eval/{name}") for name in scores),
        ("Gradient norm", "grad_norm", None),
        ("Learning rate", "learning_rate", None),
        ("Tokens a second", "tokens_per_second", None),
    ]
    body = "".join(
        f"<h2>{html.escape(title)}</h2>{chart(points(line, training), points(dots, held_out), title)}"
        for title, line, dots in sections
    )
    config = html.escape((workdir / "config.json").read_text(encoding="utf-8"))
    path = workdir / REPORT
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(workdir.name)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(workdir.name)}</h1><table>{table}</table>{body}"
        f"<h2>Config</h2><pre>{config}</pre></body></html>\n",
        encoding="utf-8",
    )
    return path
