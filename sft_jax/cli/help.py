"""`--help` (common options, in groups that fit on a screen) and `--help-all` (every option)."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from itertools import groupby
from typing import Any, Literal, NoReturn, get_args, get_origin

from sft_jax.cli.fields import Option

HELP_OPTIONS = ("-h", "--help", "--help-all")
CONFIG_DOC = (
    "A Python file with get_config(), such as configs/quickstart.py, or a run's workdir. Without one, the "
    "defaults below."
)
NAMES = 30
"""Columns for the names; the longest of `train --help` fits."""
MOST_COLUMNS = 100


def show_help(kind: type, options: Sequence[Option], program: str, usual: Sequence[str], everything: bool) -> NoReturn:
    """Print the help of a command and exit with status 0.

    Args:
      kind: the command's dataclass; its docstring says what the command does.
      program: what the user typed to get here: `sft-jax sample`.
      usual: the options of sections that are shown without `everything`, in this order; a command's own always are.
    """
    columns = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    print("\n".join(help_lines(kind, options, program, usual, everything, columns)))
    raise SystemExit(0)


def help_lines(
    kind: type, options: Sequence[Option], program: str, usual: Sequence[str], everything: bool, columns: int
) -> Iterator[str]:
    """The help of a command, line by line; see `show_help`."""
    by_name = {option.name: option for option in options if not option.positional}
    first = {name.replace("_", "-") for name in kind.__annotations__}  # then what the command shares with others
    own = sorted((name for name in by_name if "." not in name), key=lambda name: name not in first)
    names = list(by_name) if everything else list(dict.fromkeys([*own, *usual]))
    names.sort(key=lambda name: "." in name)
    about = [(option.positional, option.doc) for option in options if option.positional]
    about = about or [("[CONFIG]", CONFIG_DOC)]
    yield f"usage: {program} {' '.join(name for name, _ in about)} [--option value ...]"
    yield ""
    yield from textwrap.wrap(" ".join((kind.__doc__ or "").split()), columns)
    for name, doc in about:
        yield ""
        yield from _entry(name, doc, columns)
    for section, group in groupby((by_name[name] for name in names), key=_section):
        yield from [""] if everything or not section else []
        yield f"{section or 'options'}:"
        for option in group:
            value = _value_name(option.kind) if everything else ""
            yield from _entry(f"--{option.name}{value}", _meaning(option, everything), columns)
    if hidden := [option for name, option in by_name.items() if name not in names]:
        sections = ", ".join(dict.fromkeys(f"--{_section(option)}.*" for option in hidden))
        yield ""
        yield from textwrap.wrap(f"{program} --help-all shows {len(hidden)} more: {sections}", columns)


def _section(option: Option) -> str:
    return option.name.rpartition(".")[0]


def _entry(name: str, meaning: str, columns: int) -> list[str]:
    """A name and its description in two columns."""
    lines = textwrap.wrap(meaning, columns - NAMES - 1) or [""]
    if len(name) + 4 > NAMES:
        return [f"  {name}", *(" " * NAMES + line for line in lines)]
    return [f"  {name}".ljust(NAMES) + lines[0], *(" " * NAMES + line for line in lines[1:])]


def _meaning(option: Option, whole: bool) -> str:
    """An option's description, choices and default."""
    text = option.doc.replace("`", "")
    if not whole:
        text = text.split(". ")[0].removesuffix(".")
    choices = _choices(option.kind)
    if choices and (whole or not all(word in text for word in choices)):
        text += f" ({', '.join(choices)})" if not whole else f" One of {', '.join(choices)}."
    shown = _default(option.default)
    return f"{text} [{shown}]" if shown else text


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _default(value: Any) -> str:
    if value in ("", None, False, MISSING, ()):
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{_value_name(get_args(kind)[0])} ..."
    return {int: " INT", float: " FLOAT", str: " STR"}.get(kind, "")
