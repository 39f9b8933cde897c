"""The result of `sft-jax ceiling`: a page with plots, and tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_jax.report.plots import Point, Series, plot
from sft_jax.report.render import render

SCORES = ("demonstrations", "sampled", "greedy")


def loss_plot(result: Mapping[str, Any], levels: Sequence[tuple[str, float]] = (), *, standalone: bool = False) -> str:
    """Held-out loss by number of demonstrations: measured, fitted, and known `levels` such as an entropy."""
    scaling = result["scaling"]
    measured = [Point(n, *_values(loss)) for n, loss in zip(scaling["sizes"], scaling["losses"], strict=True)]
    fitted = [Point(n, *_values(loss)) for n, loss in scaling["band"]]
    series = [Series("measured, held out", measured), Series("fit E + A n^-alpha, to twice as many", fitted, "line")]
    floor = scaling["floor"]
    if floor["high"] - floor["low"] < max(loss["high"] for loss in scaling["losses"]):  # otherwise it is undetermined
        series.append(Series(f"floor E = {floor['value']:.3f}", [Point(1, floor["value"])], "level"))
    series += [Series(label, [Point(1, value)], "level") for label, value in levels]
    return plot(series, "demonstrations", "loss per trained token", log_x=True, standalone=standalone)


def score_plot(result: Mapping[str, Any], *, standalone: bool = False) -> str:
    """Best-of-n score by n, with the scores of demonstrations and greedy answers."""
    quality = result["quality"]
    best = [Point(k, *_values(score)) for k, score in quality["best_of"]]
    series = [Series("best of n samples", best)]
    series += [
        Series(f"{name}: {quality[name]['value']:.3f}", [Point(1, quality[name]["value"])], "level")
        for name in ("demonstrations", "greedy")
    ]
    return plot(series, "n", result["score"], log_x=True, standalone=standalone)


def _values(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["value"], interval["low"], interval["high"]


def ceiling_page(result: Mapping[str, Any]) -> str:
    """One self-contained page."""
    return render(
        "ceiling.html.jinja",
        title=f"Ceiling of {result['config']}",
        verdict=result["verdict"],
        loss_plot=loss_plot(result),
        score=result["score"],
        score_plot=score_plot(result) if result["quality"] else "",
        samples=result["samples"],
    )


def ceiling_tables(result: Mapping[str, Any]) -> Group:
    """Curve, scores and verdict for the terminal."""
    table = Table("demonstrations", "held-out loss", "95%")
    for n, loss in zip(result["scaling"]["sizes"], result["scaling"]["losses"], strict=True):
        table.add_row(f"{n:,}", f"{loss['value']:.4f}", f"{loss['low']:.4f} .. {loss['high']:.4f}")
    shown: list[RenderableType] = [table]
    if result["quality"]:
        scores = Table(result["score"], "mean", "95%")
        quality = result["quality"]
        rows = [(name, quality[name]) for name in SCORES]
        rows += [(f"best of {k}", score) for k, score in quality["best_of"]]
        for name, score in rows:
            scores.add_row(name, f"{score['value']:.3f}", f"{score['low']:.3f} .. {score['high']:.3f}")
        shown.append(scores)
    verdict = result["verdict"]
    shown.append(Text.assemble("\n", (verdict["answer"], "bold"), f": {verdict['words']}"))
    return Group(*shown, *(Text(f"  {line}") for line in verdict["evidence"]))
