"""Checks against a reference answer: the same text, or the same final number."""

import re
from collections.abc import Mapping
from decimal import Decimal

from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Answer, Task

REFERENCE_KEYS = ("answer", "ground_truth", "reference")
"""Keys of a row with the right answer, independent of the demonstration; a list holds several right answers."""

_MARKED = re.compile(r"####\s*(\S+)|^\s*A:\s*(\S+)", re.MULTILINE)
"""GSM8K solutions end with `#### 18` (Cobbe et al. 2021), the model solutions published with it with `A: 18`."""
_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""Includes the sign, except after a number or a bracket: the last number of `16-3` is 3."""


def references(task: Task) -> list[str]:
    """The row's right answers, else the demonstrated text; [] if there is neither."""
    for key in REFERENCE_KEYS:
        value = task.row.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return [str(value)]
        if isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
            return [str(one) for one in value]
    return [task.shown] if task.shown else []


def exact(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`exact`: whether the stripped text equals one of the right answers.

    Raises:
      BadInput: the row has no right answer.
    """
    right = {answer.strip() for answer in _needed(task, "exact")}
    return {"exact": float(completion.text.strip() in right)}


def numeric(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`numeric`: whether the final number equals that of a right answer; `number_marked`: whether it has the expected
    marker.

    Raises:
      BadInput: the row's right answer contains no number.
    """
    right = {number for number in map(final_number, _needed(task, "numeric")) if number is not None}
    if not right:
        raise BadInput(f"{task.where}: no number in the right answer {_needed(task, 'numeric')[0][:60]!r}")
    found = final_number(completion.text)
    return {"numeric": float(found in right), "number_marked": float(is_marked(completion.text))}


def is_marked(text: str) -> bool:
    """Whether a number follows `####`, or `A:` at the start of a line."""
    return any(_number(a or b) is not None for a, b in _MARKED.findall(text))


def final_number(text: str) -> Decimal | None:
    """The number after the last marker, else the last number of the text; None if there is none."""
    for marked in reversed(_MARKED.findall(text)):
        number = _number(marked[0] or marked[1])
        if number is not None:
            return number
    found = _NUMBER.findall(text)
    return _number(found[-1]) if found else None


def _number(text: str) -> Decimal | None:
    found = _NUMBER.search(text)
    return Decimal(re.sub(r"[$,]", "", found[0]).replace("\u2212", "-")) if found else None


def _needed(task: Task, check: str) -> list[str]:
    right = references(task)
    if not right:
        keys = ", ".join(REFERENCE_KEYS)
        raise BadInput(f"{task.where}: the check {check} needs a demonstrated answer or one of the keys {keys}")
    return right
