"""Answers that are right or wrong by themselves: the same text, or the same number."""

import re
from collections.abc import Mapping
from decimal import Decimal

from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Answer, Task

REFERENCE_KEYS = ("answer", "ground_truth", "reference")
"""Keys of a row that say what is right, whoever demonstrates; a list holds several right answers."""

_MARKED = re.compile(r"####\s*(\S+)|^\s*A:\s*(\S+)", re.MULTILINE)
"""GSM8K ends a solution with `#### 18` (Cobbe et al. 2021), and the solutions published beside it with `A: 18`."""
_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""With its sign, which is none behind a number or a bracket: the last number of `16-3` is 3."""


def references(task: Task) -> list[str]:
    """The right answers as the row gives them, else the demonstrated text; [] where there is neither."""
    for key in REFERENCE_KEYS:
        value = task.row.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return [str(value)]
        if isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
            return [str(one) for one in value]
    return [task.shown] if task.shown else []


def exact(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`exact`: the text without white space around it is one of the right answers.

    Raises:
      BadInput: the row says nothing of the right answer.
    """
    right = {answer.strip() for answer in _needed(task, "exact")}
    return {"exact": float(completion.text.strip() in right)}


def numeric(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`numeric`: the final number equals that of a right answer; `number_marked`: it stands where the format wants it.

    Raises:
      BadInput: the row's right answer holds no number.
    """
    right = {number for number in map(final_number, _needed(task, "numeric")) if number is not None}
    if not right:
        raise BadInput(f"{task.where}: no number in the right answer {_needed(task, 'numeric')[0][:60]!r}")
    found = final_number(completion.text)
    return {"numeric": float(found in right), "number_marked": float(is_marked(completion.text))}


def is_marked(text: str) -> bool:
    """Whether a number stands behind `####`, or on a line of its own behind `A:`."""
    return any(_number(a or b) is not None for a, b in _MARKED.findall(text))


def final_number(text: str) -> Decimal | None:
    """The number behind the last mark, else the last number of the text; None where there is none."""
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
