"""The result of `sft-jax evaluate` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

REGISTER_SHOWN = ("words", "words a sentence", "markdown list", "exclamation mark", "first person", "stock opening")


def print_evaluation(report: Mapping[str, Any], console: Console) -> None:
    """A table for each set of rows: every measure of the model, of the one it is held against, and the difference."""
    for name in ("data", "retained"):
        if name in report:
            console.print(_table(name, report[name], "against" in report))
            if "kl" in report[name]:
                kl = report[name]["kl"]
                console.print(f"KL to {report['against']}: {kl['kl']:.4f} nats a token, over {kl['tokens']:,} tokens")
    console.print("[low, high]: 95 % of bootstrap resamples of the rows", style="dim", markup=False)


def _table(name: str, about: Mapping[str, Any], compared: bool) -> Table:
    table = Table("held out" if name == "data" else "retained", "model", *(("against", "difference") * compared))

    def add(label: str, measure: Any, other: Any = None, difference: Any = None) -> None:
        table.add_row(label, _show(measure), *((_show(other), _show(difference)) * compared))

    model, other, difference = about["model"], about.get("against", {}), about.get("difference", {})
    held_out, other_held_out = model.get("held_out"), other.get("held_out", {})
    if held_out:
        add("loss a trained token", held_out["loss"], other_held_out.get("loss"), difference.get("loss"))
        add("perplexity", held_out["perplexity"], other_held_out.get("perplexity"))
        for part in ("by_turn", "by_source"):
            if len(held_out[part]) > 1:
                for key, value in held_out[part].items():
                    add(f"  loss {part[3:]} {key}", value, other_held_out.get(part, {}).get(key))
    for score, value in model.get("scores", {}).items():
        add(score, value, other.get("scores", {}).get(score), difference.get(score))
    for key in REGISTER_SHOWN:
        if "register" in model:
            shown = model.get("register_demonstrated", {}).get(key)
            label = f"register: {key}" + ("" if shown is None else f" (demonstrated: {shown:.3g})")
            add(label, model["register"][key], other.get("register", {}).get(key))
    return table


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}] n={value['n']}"
    return f"{value:.4g}"
