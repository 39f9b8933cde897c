"""The result of `sft-jax ceiling`: a page with its plots, and tables for the terminal."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft_jax.report.page import STYLE
from sft_jax.report.plots import Point, Series, plot

SCORES = ("demonstrations", "sampled", "greedy")


def loss_plot(result: Mapping[str, Any], levels: Sequence[tuple[str, float]] = ()) -> str:
    """Held-out loss against demonstrations: measured, fitted, and known `levels` such as an entropy."""
    scaling = result["scaling"]
    measured = [Point(n, *_values(loss)) for n, loss in zip(scaling["sizes"], scaling["losses"], strict=True)]
    fitted = [Point(n, *_values(loss)) for n, loss in scaling["band"]]
    series = [Series("measured, held out", measured), Series("fit E + A / n^a, to twice as many", fitted, "line")]
    floor = scaling["floor"]
    if floor["high"] - floor["low"] < max(p.high for p in measured):  # an undetermined floor says nothing
        series.append(Series(f"floor E = {floor['value']:.3f}", [Point(1, *_values(floor))], "level"))
    series += [Series(label, [Point(1, value, value, value)], "level") for label, value in levels]
    return plot(series, "demonstrations", "loss a trained token", log_x=True)


def score_plot(result: Mapping[str, Any], levels: Sequence[tuple[str, float]] = ()) -> str:
    """Best of n against n, with the scores of the demonstrations and of greedy answers."""
    quality = result["quality"]
    best = [Point(k, *_values(score)) for k, score in quality["best_of"]]
    series = [Series("best of n samples", best)]
    series += [Series(name, [Point(1, *_values(quality[name]))], "level") for name in ("demonstrations", "greedy")]
    series += [Series(label, [Point(1, value, value, value)], "level") for label, value in levels]
    return plot(series, "n", result["score"], log_x=True)


def _values(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["value"], interval["low"], interval["high"]


def write_ceiling_page(result: Mapping[str, Any], path: Path) -> None:
    """One self-contained page."""
    verdict = result["verdict"]
    evidence = "".join(f"<li>{html.escape(line)}</li>" for line in verdict["evidence"])
    body = (
        f"<h1>{html.escape(verdict['answer'])}</h1><p>{html.escape(verdict['words'])}</p><ul>{evidence}</ul>"
        f"<h2>What more demonstrations buy</h2>{loss_plot(result)}"
    )
    if result["quality"]:
        body += f"<h2>What imitation leaves ({html.escape(result['score'])})</h2>{score_plot(result)}"
        rows = "".join(
            f"<tr><td>{html.escape(each['prompt'])}</td><td>{html.escape(each['demonstration'])}</td>"
            f"<td>{html.escape(each['greedy'])}</td><td>{'<br>'.join(map(html.escape, each['sampled']))}</td></tr>"
            for each in result["samples"]
        )
        body += (
            "<h2>Some held-out prompts</h2><table><tr><td><b>prompt</b></td><td><b>demonstration</b></td>"
            f"<td><b>greedy</b></td><td><b>samples</b></td></tr>{rows}</table>"
        )
    body += "<p>Intervals: 95 % of bootstrap resamples of held-out rows (and of runs, for the loss).</p>"
    title = html.escape(f"Ceiling of {result['config']}")
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE} td {{ vertical-align: top; white-space: pre-wrap; }}</style></head>"
        f"<body>{body}</body></html>\n",
        encoding="utf-8",
    )


def print_ceiling(result: Mapping[str, Any], console: Console) -> None:
    """The curve, the scores and the verdict."""
    table = Table("demonstrations", "held-out loss", "95 %")
    for n, loss in zip(result["scaling"]["sizes"], result["scaling"]["losses"], strict=True):
        table.add_row(f"{n:,}", f"{loss['value']:.4f}", f"{loss['low']:.4f} .. {loss['high']:.4f}")
    console.print(table)
    if result["quality"]:
        scores = Table(result["score"], "mean", "95 %")
        quality = result["quality"]
        shown = [(name, quality[name]) for name in SCORES]
        shown += [(f"best of {k}", score) for k, score in quality["best_of"]]
        for name, score in shown:
            scores.add_row(name, f"{score['value']:.3f}", f"{score['low']:.3f} .. {score['high']:.3f}")
        console.print(scores)
    verdict = result["verdict"]
    console.print(f"\n[bold]{verdict['answer']}[/]: {verdict['words']}")
    for line in verdict["evidence"]:
        console.print(f"  {line}", markup=False)
