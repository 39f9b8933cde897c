"""Terminal output of `sft-jax evaluate`."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

REGISTER_SHOWN = ("words", "words a sentence", "markdown list", "exclamation mark", "first person", "stock opening")


def evaluation_tables(report: Mapping[str, Any]) -> Group:
    """A table per set of rows: every measure of the model and, if compared, of the other model and the difference."""
    shown: list[RenderableType] = []
    for name in ("data", "retained"):
        if name in report:
            shown.append(_table(name, report[name], "against" in report))
            if "kl" in report[name]:
                kl = report[name]["kl"]
                words = f"KL to {report['against']}: {kl['kl']:.4f} nats per token, over {kl['tokens']:,} tokens"
                shown.append(Text(words))
    return Group(*shown, Text("[low, high]: 95% of bootstrap resamples of the rows", "dim"))


def _table(name: str, about: Mapping[str, Any], compared: bool) -> Table:
    table = Table("held out" if name == "data" else "retained", "model", *(("against", "difference") * compared))

    def add(label: str, measure: Any, other: Any = None, difference: Any = None) -> None:
        table.add_row(Text(label), _show(measure), *((_show(other), _show(difference)) * compared))

    model, other, difference = about["model"], about.get("against", {}), about.get("difference", {})
    held_out, other_held_out = model.get("held_out"), other.get("held_out", {})
    if held_out:
        add("loss per trained token", held_out["loss"], other_held_out.get("loss"), difference.get("loss"))
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
