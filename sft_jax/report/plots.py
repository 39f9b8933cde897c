"""Plots with axes as SVG text: lines with bands, points with intervals, levels; on light and dark pages."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 40
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")


class Point(NamedTuple):
    """A measured value with its interval."""

    x: float
    value: float
    low: float
    high: float


class Series(NamedTuple):
    """One thing in a plot."""

    label: str
    points: Sequence[Point]
    kind: str = "points"
    """points (with bars), line (with a band), or level: a horizontal line at the first point's value."""


def plot(series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False) -> str:
    """All series over common axes, with a legend, as an `<svg>` element."""
    xs = [p.x for s in series if s.kind != "level" for p in s.points]
    ys = [y for s in series for p in s.points for y in (p.value, p.low, p.high)]
    low_x, high_x = min(xs), max(xs)
    margin = 0.06 * ((max(ys) - min(ys)) or abs(max(ys)) or 1.0)
    low_y, high_y = min(ys) - margin, max(ys) + margin

    def along(x: float) -> float:
        a, b, x = (math.log(v) for v in (low_x, high_x, x)) if log_x else (low_x, high_x, x)
        return LEFT + (x - a) / ((b - a) or 1.0) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    measured = [p.x for s in series if s.kind == "points" for p in s.points]
    parts = [_axes(low_y, high_y, up, sorted({*(measured or xs), high_x}), along, x_label, y_label)]
    for number, one in enumerate(series):
        parts.append(_series(one, COLOURS[number % len(COLOURS)], along, up))
    parts.append(_legend(series))
    label = html.escape(f"{y_label} against {x_label}")
    height = HEIGHT + 18 * math.ceil(len(series) / 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" '
        f'font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _axes(low: float, high: float, up, xs: Sequence[float], along, x_label: str, y_label: str) -> str:
    parts = []
    for tick in ticks(low, high):
        y = up(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#888">{tick:g}</text>'
        )
    last = -math.inf
    for x in xs:
        if along(x) - last >= 48:  # labels must not run into each other
            last = along(x)
            parts.append(
                f'<text x="{last:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="#888">{_short(x)}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="#888">{html.escape(x_label)}</text>'
        f'<text transform="translate(12 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle" '
        f'fill="#888">{html.escape(y_label)}</text>'
    )
    return "".join(parts)


def _short(x: float) -> str:
    return f"{x / 1000:g}k" if x >= 10_000 else f"{x:g}"


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between low and high."""
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _series(one: Series, colour: str, along, up) -> str:
    if one.kind == "level":
        y = up(one.points[0].value)
        dash = 'stroke-width="1.5" stroke-dasharray="5 4"'
        return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" {dash}/>'
    if one.kind == "line":
        lows = [f"{along(p.x):.1f},{up(p.low):.1f}" for p in one.points]
        highs = [f"{along(p.x):.1f},{up(p.high):.1f}" for p in reversed(one.points)]
        middle = " ".join(f"{along(p.x):.1f},{up(p.value):.1f}" for p in one.points)
        return (
            f'<polygon points="{" ".join(lows + highs)}" fill="{colour}" opacity="0.15"/>'
            f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    return "".join(
        f'<line x1="{along(p.x):.1f}" x2="{along(p.x):.1f}" y1="{up(p.low):.1f}" y2="{up(p.high):.1f}" '
        f'stroke="{colour}" stroke-width="2"/><circle cx="{along(p.x):.1f}" cy="{up(p.value):.1f}" r="4" '
        f'fill="{colour}"/>'
        for p in one.points
    )


def _legend(series: Sequence[Series]) -> str:
    parts = []
    for number, one in enumerate(series):
        x, y = LEFT + (number % 2) * (WIDTH - LEFT) / 2, HEIGHT + 12 + 18 * (number // 2)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{x}" y="{y - 8}" width="14" height="4" fill="{colour}"/>'
            f'<text x="{x + 20}" y="{y}" fill="#888">{html.escape(one.label)}</text>'
        )
    return "".join(parts)
