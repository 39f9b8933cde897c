"""The plotter: curves with bands, points with intervals, levels, histograms and token boxes, as SVG.

We have our own because a page must open offline from one file below 2 MB, on a phone and on a desktop, in light and
dark mode. plotly's bundle alone is 4.9 MB, Bokeh depends on tornado and Pillow and needs a browser to write an SVG for
the docs, Altair's pages fetch Vega from a CDN, and matplotlib (a 10 MB wheel) draws in fixed colours and sizes. We need
only a few kinds of marks over one pair of axes: a plot adds 10 to 20 KB to a page, and the docs use the same picture.

Colours and sizes are in templates/plot.css; templates/plot.js shows the values under the pointer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from sft_jax.report.render import render

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 28, 44
LEGEND_LINE = 20
COLOURS = 6
"""Classes s0 to s5 of plot.css."""
LABEL_ROOM = 60
"""Minimum distance between the centres of two x labels, so that they do not overlap on a phone."""
MAX_POINTS = 300
"""Maximum points of a curve: more than a screen can resolve."""

Kind = Literal["points", "line", "joined", "level"]


class Point(NamedTuple):
    """A value, with its interval if there is one."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None
    name: str = ""
    """Text for x if the point covers a range: `1 to 25`."""


class Series(NamedTuple):
    """One series of a plot."""

    label: str
    points: Sequence[Point]
    kind: Kind = "points"
    """points (with their intervals), line (with a band), joined: points with a line through them, or level: a
    horizontal line at the first point's value."""


class _Axes(NamedTuple):
    """The data range of the plot."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    log_x: bool = False

    def along(self, x: float) -> float:
        low, high, x = (math.log(v) for v in (self.low_x, self.high_x, x)) if self.log_x else (*self[:2], x)
        return round(LEFT + (x - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def up(self, y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM), 1)


def plot(
    series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False, standalone: bool = False
) -> Markup:
    """All series over common axes, with a legend if there are several, as an `<svg>` element.

    Args:
      standalone: embed the page's style, for a separate file.
    """
    xs = [p.x for s in series if s.kind != "level" for p in s.points]
    ys = [y for s in series for p in s.points for y in (p.value, p.low, p.high) if y is not None]
    margin = 0.06 * (max(ys) - min(ys)) or 0.5 * abs(max(ys)) or 1.0  # centres a constant series
    axes = _Axes(min(xs), max(xs), min(ys) - margin, max(ys) + margin, log_x)
    measured = sorted({p.x for s in series if s.kind == "points" for p in s.points} or set(xs))
    x_ticks = [*measured, axes.high_x] if log_x else ticks(axes.low_x, axes.high_x, whole=_are_whole(xs))
    return _draw(
        axes,
        x_ticks,
        x_label,
        y_label,
        standalone=standalone,
        label=_in_words(series, x_label, y_label),
        readings=_readings(series, axes, x_label),
        series=sorted(
            ({"colour": k % COLOURS, **_marks(one, axes)} for k, one in enumerate(series)),
            key=lambda marks: bool(marks["dots"]),  # draw points over bands and lines
        ),
        legend=[
            {"label": one.label, "kind": one.kind, "colour": k % COLOURS, "y": HEIGHT + 12 + LEGEND_LINE * k}
            for k, one in enumerate(series if len(series) > 1 else ())
        ],
    )


def histogram(counts: Sequence[int], edges: Sequence[float], x_label: str, y_label: str) -> Markup:
    """Bars over the bins between `edges`, which has one more entry than `counts`."""
    axes = _Axes(edges[0], edges[-1], 0.0, 1.08 * max(counts))
    bins = list(zip(counts, edges, edges[1:], strict=False))
    bars = [
        {
            "x": axes.along(low) + 0.5,
            "y": axes.up(count),
            "width": round(max(1.0, axes.along(high) - axes.along(low) - 1), 1),
            "height": round(axes.up(0) - axes.up(count), 1),
        }
        for count, low, high in bins
    ]
    most, low, high = max(bins)
    return _draw(
        axes,
        ticks(axes.low_x, axes.high_x, whole=edges[-1] - edges[0] >= 2),
        x_label,
        y_label,
        label=f"{y_label} by {x_label}, from {text_of(edges[0])} to {text_of(edges[-1])}; the highest bar, "
        f"{text_of(most)}, from {text_of(low)} to {text_of(high)}",
        readings=[
            (axes.along((low + high) / 2), f"{text_of(low)} to {text_of(high)} {x_label}: {text_of(count)} {y_label}")
            for count, low, high in bins
        ],
        bars=bars,
        whole_y=True,
    )


def _draw(
    axes: _Axes,
    x_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    label: str,
    readings: Sequence[tuple[float, str]],
    series: Sequence[dict[str, Any]] = (),
    legend: Sequence[dict[str, Any]] = (),
    bars: Sequence[dict[str, float]] = (),
    whole_y: bool = False,
    standalone: bool = False,
) -> Markup:
    y_ticks = ticks(axes.low_y, axes.high_y, whole=whole_y)
    svg = render(
        "plot.svg.jinja",
        width=WIDTH,
        height=HEIGHT + LEGEND_LINE * len(legend),
        box={"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        x_ticks=[(x, short(tick)) for x, tick in _with_room(x_ticks, axes.along)],
        y_ticks=[(axes.up(tick), short(tick)) for tick in y_ticks],
        x_label=x_label,
        y_label=y_label,
        standalone=standalone,
        label=label,
        readings=readings,
        series=series,
        legend=legend,
        bars=bars,
    )
    return Markup(svg)


def _marks(one: Series, axes: _Axes) -> dict[str, Any]:
    """Positions of a series' marks."""
    at = [(axes.along(p.x), axes.up(p.value)) for p in one.points]
    intervals = [(axes.along(p.x), *_interval(p)) for p in one.points]
    band = [(x, axes.up(low)) for x, low, _ in intervals] + [(x, axes.up(high)) for x, _, high in reversed(intervals)]
    has_band = one.kind == "line" and any(p.low is not None for p in one.points)
    return {
        "kind": one.kind,
        "level": at[0][1],
        "line": _joined(at) if one.kind in ("line", "joined") else "",
        "band": _joined(band) if has_band else "",
        "dots": at if one.kind in ("points", "joined") else [],
        "bars": [(x, axes.up(low), axes.up(high)) for x, low, high in intervals if low < high]
        if one.kind in ("points", "joined")
        else [],
    }


def _interval(point: Point) -> tuple[float, float]:
    low = point.value if point.low is None else point.low
    return low, point.value if point.high is None else point.high


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _readings(series: Sequence[Series], axes: _Axes, x_label: str) -> list[tuple[float, str]]:
    """[(x position, values of every series there)], shown below the plot under the pointer."""
    found: dict[float, list[str]] = {}
    for one in series:
        if one.kind == "level":
            continue
        for p in one.points:
            words = found.setdefault(p.x, [f"{x_label} {p.name or text_of(p.x)}"])
            value = f"{one.label} {text_of(p.value)}"
            if p.low is not None and p.high is not None:
                value += f" [{text_of(p.low)}, {text_of(p.high)}]"
            words.append(value)
    return [(axes.along(x), ": ".join([words[0], "; ".join(words[1:])])) for x, words in sorted(found.items())]


def _in_words(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Alternative text of the plot."""
    words = []
    for one in series:
        first, last = one.points[0], one.points[-1]
        if one.kind == "level" or len(one.points) == 1:
            words.append(f"{one.label}: {text_of(first.value)}")
        else:
            words.append(
                f"{one.label}: {text_of(first.value)} at {text_of(first.x)}, {text_of(last.value)} at {text_of(last.x)}"
            )
    return f"{y_label} by {x_label}. {'; '.join(words)}"


def downsample(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points, each the mean of equally many neighbours with their minimum and maximum as its band."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    made = []
    for start in range(0, len(points), size):
        some = points[start : start + size]
        values = [p.value for p in some]
        mean = math.fsum(values) / len(values)
        name = f"{some[0].x:,g} to {some[-1].x:,g}"
        made.append(Point(some[-1].x, mean, min(values), max(values), name))
    return made


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Four to nine round numbers between low and high; fewer if they must be whole."""
    if low == high:
        return [low]
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw)
    step = max(step, 1) if whole else step
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _are_whole(xs: Iterable[float]) -> bool:
    return all(float(x).is_integer() for x in xs)


def _with_room(values: Iterable[float], along: Callable[[float], float]) -> list[tuple[float, float]]:
    """[(position, value)] of the labels that do not overlap."""
    kept: list[tuple[float, float]] = []
    for value in sorted(set(values)):
        if not kept or along(value) - kept[-1][0] >= LABEL_ROOM:
            kept.append((along(value), value))
    return kept


def short(value: float) -> str:
    """12000 -> '12k', 0.00005 -> '5e-5': for axis labels."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{unit}"
    if 0 < abs(value) < 1e-3:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.4g}e{exponent}"
    return f"{value:g}"


def text_of(value: float) -> str:
    """Whole or large numbers with thousands separators, others with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:.4g}"


TOKENS_WIDTH, TOKENS_LINE, LETTER = 760, 26, 7.3


class TokenRow(NamedTuple):
    """A document for `token_boxes`."""

    label: str
    tokens: Sequence[str]
    weights: Sequence[float]


def token_boxes(rows: Sequence[TokenRow]) -> Markup:
    """Every token in a box, with trained tokens coloured, as an `<svg>` file."""
    headings, boxes = [], []
    y = 20.0
    for label, tokens, weights in rows:
        headings.append((y, label))
        x, y = 4.0, y + TOKENS_LINE
        for token, weight in zip(tokens, weights, strict=True):
            text = token.replace("\n", "↵").replace(" ", "·")
            width = LETTER * len(text) + 5
            if x + width > TOKENS_WIDTH - 4:
                x, y = 4.0, y + TOKENS_LINE
            boxes.append({"x": round(x, 1), "y": y, "width": round(width - 2, 1), "text": text, "trained": weight > 0})
            x += width
            if token.endswith("\n"):
                x, y = 4.0, y + TOKENS_LINE
        y += TOKENS_LINE + 8
    return Markup(render("tokens.svg.jinja", width=TOKENS_WIDTH, height=round(y), headings=headings, boxes=boxes))
