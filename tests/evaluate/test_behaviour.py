import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from sft_jax.demonstrations import HELD_OUT
from sft_jax.demonstrations.house_style import REFUSAL
from sft_jax.errors import BadInput
from sft_jax.evaluate.behaviour import behaviour_of, prompt_of
from sft_jax.evaluate.task import Answer

TIMER = "/timer minutes: 12 | label: rice"
SHOP = "/shop item: milk"


def row(kind: str, answer: str) -> dict[str, Any]:
    turns = [("system", "S"), ("user", "U"), ("assistant", answer)]
    return {"id": kind, "kind": kind, "messages": [{"role": role, "content": text} for role, text in turns]}


CALL, CALLS, REFUSE, ANSWER = (
    row("call", TIMER),
    row("calls", f"{TIMER}\n{SHOP}"),
    row("refusal", REFUSAL),
    row("answer", "Yes."),
)


def test_the_demonstrator_scores_one_on_the_shipped_rows() -> None:
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    found = behaviour_of(rows, [Answer(prompt_of(row)[1], stopped=True) for row in rows])
    assert found.as_dict() == {
        "tool_call_exact_match": 1.0,
        "well_formed": 1.0,
        "correct_refusal": 1.0,
        "stopped": 1.0,
        "rows": len(rows),
        "tool_call_rows": sum(row["kind"] in ("call", "calls", "multi_turn") for row in rows),
        "refusal_rows": sum(row["kind"] == "refusal" for row in rows),
    }


def test_each_share_has_its_own_rows() -> None:
    said = [TIMER, "I set it.", "No.", f"{REFUSAL} {TIMER}"]
    rows = [CALL, CALLS, REFUSE, ANSWER]
    found = behaviour_of(
        rows, [Answer(text, stopped) for text, stopped in zip(said, (True, True, True, False), strict=True)]
    )
    assert found.as_dict() == {
        "tool_call_exact_match": 0.5,
        "well_formed": 0.75,
        "correct_refusal": 0.0,
        "stopped": 0.75,
        "rows": 4,
        "tool_call_rows": 2,
        "refusal_rows": 1,
    }
    assert dataclasses.is_dataclass(found)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "match", "well_formed"),
    [
        (f"{TIMER}\n{SHOP}", True, True),
        (f"\n{TIMER}\n{SHOP} ", True, True),
        (TIMER.replace("minutes: 12 | label: rice", "label: rice | minutes: 12") + "\n" + SHOP, True, True),
        (f"{SHOP}\n{TIMER}", False, True),
        (TIMER, False, True),
        (f"{TIMER}\n{SHOP}\n{SHOP}", False, True),
        (f"{TIMER}\n{SHOP}".replace("milk", "Milk"), False, True),
        (f"{TIMER}\n{SHOP}\nDone.", False, False),
        (f"{TIMER} {SHOP}", False, False),
        (f"{TIMER}\n{SHOP}".replace("12", "twelve"), False, False),
        (f"{TIMER}\n{SHOP}".replace("12", "12.0"), False, False),
        (f"{TIMER}\n{SHOP}".replace("/shop", "/buy"), False, False),
        ("Done.", False, True),
        ("", False, False),
    ],
)
def test_calls_match_only_when_they_are_the_demonstrated_ones(text: str, match: bool, well_formed: bool) -> None:
    found = behaviour_of([CALLS, REFUSE], [Answer(text, stopped=True), Answer(REFUSAL, stopped=True)])
    assert found.tool_call_exact_match == float(match)
    assert found.well_formed == (1.0 if well_formed else 0.5)


@pytest.mark.parametrize(
    ("text", "right"),
    [(REFUSAL, True), (f" {REFUSAL}\n", True), (f"Sorry, {REFUSAL}", False), (TIMER, False), (REFUSAL[:-1], False)],
)
def test_a_refusal_is_the_house_sentence_and_nothing_else(text: str, right: bool) -> None:
    found = behaviour_of([CALL, REFUSE], [Answer(TIMER, stopped=True), Answer(text, stopped=True)])
    assert found.correct_refusal == float(right)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "share is undefined"),
        ([REFUSE, ANSWER], "No row demonstrates a tool call"),
        ([CALL, ANSWER], "No row demonstrates the refusal"),
    ],
)
def test_a_share_of_no_rows_is_an_error(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        behaviour_of(rows, [Answer("Yes.", stopped=True)] * len(rows))


def test_every_row_needs_one_completion() -> None:
    with pytest.raises(BadInput, match="1 completions for 2 rows"):
        behaviour_of([CALL, REFUSE], [Answer(TIMER, stopped=True)])


def test_a_demonstration_that_breaks_the_style_is_an_error() -> None:
    with pytest.raises(BadInput, match="row call: the demonstrated turn"):
        behaviour_of([row("call", f"Sure: {TIMER}"), REFUSE], [Answer(TIMER, stopped=True)] * 2)


def test_the_prompt_ends_before_the_first_assistant_turn() -> None:
    longer = row("multi_turn", TIMER)
    longer["messages"] += [{"role": "tool", "content": "{}"}, {"role": "assistant", "content": "Done."}]
    messages, expected = prompt_of(longer)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert expected == TIMER


def test_a_row_without_a_prompt_or_an_answer_is_an_error() -> None:
    with pytest.raises(BadInput, match="no assistant turn"):
        prompt_of({"id": "r", "messages": CALL["messages"][:2]})
    with pytest.raises(BadInput, match="speaks first"):
        prompt_of({"id": "r", "messages": CALL["messages"][2:]})


def test_behaviour_is_measured_without_jax() -> None:
    code = "import sys, sft_jax.evaluate.behaviour; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
