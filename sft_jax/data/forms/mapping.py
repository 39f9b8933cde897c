"""Custom record formats: a field map (`data.fields`) and a Python function (`data.function`)."""

import importlib
import runpy
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sft_jax.data.read import strict_json
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow, nearest


def parse_fields(fields: Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`("completion=answer.text",)` as {"completion": ("answer", "text")}.

    Raises:
      BadInput: not `ours=theirs`, or our key is unknown (suggests similar ones) or given twice.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for field in fields:
        ours, equals, theirs = (part.strip() for part in field.partition("="))
        path = tuple(theirs.split("."))
        if not equals or not ours or not all(path):
            raise BadInput(f"data.fields: found {field!r}, expected OUR_KEY=YOUR_KEY, such as 'prompt=question'")
        if ours not in known:
            raise BadInput(f"data.fields: {field!r}: no form has the key {ours!r}. {nearest(ours, list(known))}")
        if ours in paths:
            raise BadInput(f"data.fields: {ours!r} is given twice: {'.'.join(paths[ours])} and {theirs}. Keep one")
        paths[ours] = path
    return paths


def rename(record: Record, paths: dict[str, tuple[str, ...]]) -> Record:
    """The record with our keys filled from their paths; other keys are kept unless they were renamed.

    A key without a value is left out; the record's form decides whether it is required.
    """
    moved = {path[0] for path in paths.values()} | set(paths)
    value = {key: child for key, child in record.value.items() if key not in moved}
    problems = {key: problem for key, problem in record.problems.items() if key not in moved}
    for ours, path in paths.items():
        found: Any = record.value
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if path[0] in record.problems:
            value[ours], problems[ours] = record.value[path[0]], record.problems[path[0]]
        elif found is not None:
            value[ours] = found
    return Record(record.source, record.line, value, problems)


@lru_cache(maxsize=8)
def load_function(spec: str) -> Callable[[dict[str, Any]], Any]:
    """Load the function named by `path/to/file.py:name` or `package.module:name`.

    Raises:
      BadInput: malformed name, a file or module that is missing or cannot be executed, or no such function in it.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise BadInput(f"data.function: found {spec!r}, expected path/to/file.py:name or package.module:name")
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise BadInput(f"data.function: {place}: no such file")
            scope = runpy.run_path(place)
        else:
            scope = vars(importlib.import_module(place))
    # User code may raise anything.
    except Exception as error:
        if isinstance(error, BadInput):
            raise
        problem = f"{type(error).__name__}: {error}"
        raise BadInput(f"data.function: {place} cannot be executed: {problem}") from error
    function = scope.get(name)
    if not callable(function):
        names = [key for key, value in scope.items() if callable(value) and not key.startswith("_")]
        raise BadInput(f"data.function: {place} has no function {name!r}. {nearest(name, names) if names else ''}")
    return function


def apply_function(record: Record, spec: str) -> list[Record]:
    """Apply the function `spec` to a record; None becomes [].

    Raises:
      BadRow: the function raises, or returns something other than a dict, a list of dicts or None; names file:line,
        the function and the error.
    """
    function = load_function(spec)
    try:
        made = function(dict(record.value))
    except Exception as error:  # as above: user code
        line = _line(error)
        raise BadRow(f"{record.where}: data.function {spec} raised {type(error).__name__}: {error}{line}") from error
    made = [] if made is None else made if isinstance(made, list) else [made]
    for value in made:
        if not isinstance(value, dict):
            raise BadRow(
                f"{record.where}: data.function {spec} returned {strict_json.kind(value)}, expected a record (a dict), "
                "a list of records, or None to leave the row out"
            )
        problem = strict_json.unusable(value)
        if problem:
            raise BadRow(f"{record.where}: data.function {spec} returned {problem}")
    return [Record(record.source, record.line, value) for value in made]


def _line(error: BaseException) -> str:
    """` (mine.py:12)`: where in the user's code the error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
