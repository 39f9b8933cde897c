"""Behaviour on held-out demonstrations in the house style: does the model call, refuse, answer and stop as shown?

Every row is judged at its first assistant turn: the model sees what stands before it, and its completion is compared
with what the demonstrator wrote there. Later turns of the row are not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sft_jax.demonstrations.house_style import REFUSAL, Call, HouseStyleError, check_turn, parse_calls
from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Answer

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Behaviour:
    """Shares of rows, each in [0, 1], and the number of rows each is a share of.

    White space around a completion is ignored throughout.

    - `tool_call_exact_match`: of the `tool_call_rows` (the demonstrator made calls), the share whose completion is
      calls alone, one to a line, equal to the demonstrated ones: the same names with the same arguments, in the same
      order. Arguments are compared by name, so their order does not count. One character of other text outside the
      calls makes it a miss.
    - `well_formed`: of all `rows`, the share whose completion is legal in the house style: either calls alone, one to
      a line, each of a known tool with exactly its declared arguments in their types, or text that is not blank and
      has no trace of a call. Whether it is the right thing to say does not count.
    - `correct_refusal`: of the `refusal_rows` (the demonstrator refused), the share whose completion is the refusal
      of the house, word for word and nothing else.
    - `stopped`: of all `rows`, the share whose completion ended with a stop token.
    """

    tool_call_exact_match: float
    well_formed: float
    correct_refusal: float
    stopped: float
    rows: int
    tool_call_rows: int
    refusal_rows: int

    def as_dict(self) -> dict[str, float | int]:
        """Returns every field by its name."""
        return dataclasses.asdict(self)


def prompt_of(row: Row) -> tuple[list[dict[str, str]], str]:
    """Returns the messages before the row's first assistant turn, and what the demonstrator wrote in that turn."""
    messages: list[dict[str, str]] = list(row["messages"])
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            if not place:
                raise BadInput(
                    f"row {row['id']}: the assistant speaks first; expected a system or user turn before it."
                )
            return messages[:place], message["content"]
    roles = [message["role"] for message in messages]
    raise BadInput(f"row {row['id']}: no assistant turn among {roles}; expected at least one to compare with.")


def behaviour_of(rows: Sequence[Row], completions: Sequence[Answer]) -> Behaviour:
    """Returns how well the completions, one a row in the rows' order, behave as the rows demonstrate.

    Raises `BadInput` where a share would have nothing to be a share of: no rows, no row with calls, no refusal.
    """
    if len(rows) != len(completions):
        raise BadInput(f"{len(completions)} completions for {len(rows)} rows; expected one completion a row.")
    matches: list[bool] = []
    refusals: list[bool] = []
    for row, completion in zip(rows, completions, strict=True):
        expected = prompt_of(row)[1]
        if expected_calls := _demonstrated_calls(row, expected):
            matches.append(_same_calls(expected_calls, completion.text))
        elif expected == REFUSAL:
            refusals.append(completion.text.strip() == REFUSAL)
    return Behaviour(
        tool_call_exact_match=_share(matches, "demonstrates a tool call"),
        well_formed=_share([_is_well_formed(completion.text) for completion in completions], "is given"),
        correct_refusal=_share(refusals, f"demonstrates the refusal {REFUSAL!r}"),
        stopped=_share([completion.stopped for completion in completions], "is given"),
        rows=len(rows),
        tool_call_rows=len(matches),
        refusal_rows=len(refusals),
    )


def _demonstrated_calls(row: Row, expected: str) -> list[Call]:
    # A broken demonstration would count as a miss of every model: it is the data that must be mended.
    try:
        check_turn(expected)
    except HouseStyleError as error:
        raise BadInput(f"row {row['id']}: the demonstrated turn breaks the house style: {error}") from error
    return parse_calls(expected)


def _same_calls(expected: list[Call], text: str) -> bool:
    try:
        check_turn(text)
    except HouseStyleError:
        return False
    return parse_calls(text) == expected


def _is_well_formed(text: str) -> bool:
    try:
        check_turn(text)
    except HouseStyleError:
        return False
    return True


def _share(hits: list[bool], what: str) -> float:
    if not hits:
        raise BadInput(f"No row {what}, so its share is undefined. Measure on rows of which at least one {what}.")
    return sum(hits) / len(hits)
