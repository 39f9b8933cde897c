"""Selecting and running checks on completions, and summarising their scores."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sft_jax.data.forms.mapping import load_function
from sft_jax.errors import BadInput, nearest
from sft_jax.evaluate.answers import exact, is_marked, numeric, references
from sft_jax.evaluate.bfcl import ACCEPTED
from sft_jax.evaluate.bootstrap import Interval, mean_interval
from sft_jax.evaluate.calls import CALL_SCORES, find_calls, tool_calls
from sft_jax.evaluate.constraints import is_json, json_schema, length, regex
from sft_jax.evaluate.task import Answer, Task

Check = Callable[..., Mapping[str, float | None]]
"""(task, completion) -> named scores in [0, 1]; None if the check does not apply to this row."""

CHECKS: dict[str, Check] = {
    "exact": exact,
    "numeric": numeric,
    "tool_calls": tool_calls,
    "regex": regex,
    "json": is_json,
    "json_schema": json_schema,
    "length": length,
}
_WITH_ARGUMENT = {"regex": "pattern", "json_schema": "path"}
AUTO, NONE = "auto", "none"

Scores = dict[str, float | None]


def make_checks(names: Sequence[str], scorer: str = "", tasks: Sequence[Task] = ()) -> list[Check]:
    """The checks selected by `names` and `scorer`.

    Args:
      names: keys of CHECKS, `regex:PATTERN`, `json_schema:FILE`, `auto` (chosen from the tasks' rows) or `none`.
      scorer: a user function, `file.py:name` or `package.module:name`; "" for none.

    Raises:
      BadInput: an unknown name, or a scorer that cannot be loaded.
    """
    checks: list[Check] = []
    for name in dict.fromkeys(names):
        kind, _, argument = name.partition(":")
        if kind == NONE:
            continue
        if kind == AUTO:
            checks += [_calls_where_known if each == "tool_calls" else CHECKS[each] for each in auto_checks(tasks)]
        elif kind not in CHECKS or (argument and kind not in _WITH_ARGUMENT):
            raise BadInput(f"--check: no check {name!r}. {nearest(name, [*CHECKS, AUTO, NONE])}")
        else:
            checks.append(partial(CHECKS[kind], **{_WITH_ARGUMENT[kind]: argument}) if argument else CHECKS[kind])
    if scorer:
        checks.append(_user_check(scorer))
    return checks


def auto_checks(tasks: Sequence[Task]) -> list[str]:
    """The checks chosen by `auto`: those whose keys or markers occur in the rows.

    `numeric` is chosen only if every right answer has a marker: a single row ending with `A: 5` may be ordinary chat.
    """
    found = []
    if any(_shows_calls(task) for task in tasks):
        found.append("tool_calls")
    answers = [answer for task in tasks for answer in references(task)]
    if answers and all(is_marked(answer) for answer in answers):
        found.append("numeric")
    by_key = {"regex": ("regex",), "json_schema": ("json_schema",), "length": ("min_words", "max_words")}
    for check, keys in by_key.items():
        if any(key in task.row for task in tasks for key in keys):
            found.append(check)
    return found


def _shows_calls(task: Task) -> bool:
    """Whether calls are expected, or tools are given and the demonstrator uses none."""
    if task.row.get(ACCEPTED) is not None:
        return True
    shown = task.demonstration or {}
    return bool(shown.get("tool_calls") or (shown and task.tools) or find_calls(task.shown).calls)


def _calls_where_known(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`tool_calls` for rows that say which calls are expected; None for the others, instead of an error."""
    known = task.demonstration is not None or task.row.get(ACCEPTED) is not None
    return tool_calls(task, completion) if known else dict.fromkeys(CALL_SCORES)


def _user_check(scorer: str) -> Check:
    try:
        function: Callable[..., Any] = load_function(scorer)
    except BadInput as error:
        raise BadInput(str(error).replace("data.function", "--scorer", 1)) from error
    name = scorer.rpartition(":")[2]

    def check(task: Task, completion: Answer) -> Mapping[str, float | None]:
        try:
            found = function(completion.text, dict(task.row))
        except Exception as error:  # any exception of a user function is a user error
            raise BadInput(f"{task.where}: --scorer {scorer} raised {type(error).__name__}: {error}") from error
        scores = found if isinstance(found, dict) else {name: found}
        return {str(key): _number(task, scorer, value) for key, value in scores.items()}

    return check


def _number(task: Task, scorer: str, value: Any) -> float | None:
    if value is None:
        return None
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool | int | float) and abs(value) <= sys.float_info.max:  # False for NaN
        return float(value)
    raise BadInput(
        f"{task.where}: --scorer {scorer} returned {value!r}, expected a finite number, a bool, None (does not apply "
        "to this row), or a dict from name to these"
    )


def check_answers(tasks: Sequence[Task], completions: Sequence[Answer], checks: Sequence[Check]) -> list[Scores]:
    """Scores of every check for each task and its completion, plus `stopped` and `tokens`."""
    rows: list[Scores] = []
    for task, completion in zip(tasks, completions, strict=True):
        row: Scores = {}
        for check in checks:
            row.update(check(task, completion))
        rows.append({**row, "stopped": float(completion.stopped), "tokens": float(completion.tokens)})
    return rows


def summarise(rows: Sequence[Scores], seed: int = 0) -> dict[str, Interval]:
    """The mean of every score over the rows it applies to, with its interval."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [value for row in rows if (value := row.get(name)) is not None]
        if values:
            found[name] = mean_interval(values, seed=seed)
    return found
