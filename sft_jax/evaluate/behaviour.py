"""Behaviour on held-out demonstrations in the house style: does the model call, refuse, answer and stop as shown?

Every row is judged at its first assistant turn: the model gets the messages before it, and its completion is compared
with the demonstrated turn. Later turns are not used.
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
    """Shares of rows in [0, 1], and the number of rows each is taken over.

    White space around a completion is ignored.

    - `tool_call_exact_match`: of the `tool_call_rows` (the demonstrator made calls), the share whose completion
      consists only of calls, one per line, equal to the demonstrated ones: the same names and arguments in the same
      order. Arguments are compared by name, so their order does not matter. Any other text makes it a miss.
    - `well_formed`: of all `rows`, the share whose completion is legal in the house style: either only calls, one per
      line, each of a known tool with exactly its declared arguments and types, or non-blank text without any trace of
      a call. Whether the content is right does not matter.
    - `correct_refusal`: of the `refusal_rows` (the demonstrator refused), the share whose completion is exactly the
      house style's refusal.
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
        """All fields by name."""
        return dataclasses.asdict(self)


def prompt_of(row: Row) -> tuple[list[dict[str, str]], str]:
    """(messages before the row's first assistant turn, the demonstrated text of that turn)."""
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
    """Compare the completions, one per row in order, with the demonstrated behaviour.

    Raises:
      BadInput: a share is undefined: no rows, no row with calls, or no refusal.
    """
    if len(rows) != len(completions):
        raise BadInput(f"{len(completions)} completions for {len(rows)} rows; expected one completion per row.")
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
    # A broken demonstration would count as a miss of every model; the data must be fixed instead.
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
