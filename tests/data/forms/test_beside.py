"""What stands beside a conversation in its row is used, or refused with the cure."""

import json

import pytest

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow

USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "Be brief."}
BARE = {"name": "find", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": BARE}
FORMS = {
    "messages": {"messages": [USER, REPLY]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "prompt and completion": {"prompt": [USER], "completion": [REPLY]},
    "a string and a list": {"prompt": "a", "completion": [REPLY]},
    "preference": {"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY]},
    "whole answers": {"chosen": [USER, REPLY], "rejected": [USER, REPLY]},
    "alpaca": {"instruction": "a", "output": "b"},
    "seed task": {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
    "question and answer": {"question": "a", "answer": "b"},
}


def made(value, **settings):
    [one] = demonstrations(Record("demos.jsonl", 17, value), Data(**settings))
    return one


@pytest.mark.parametrize("form", FORMS)
def test_system_is_the_first_turn_and_the_answer_trains_as_without_it(form):
    plain, given = made(FORMS[form]), made({**FORMS[form], "system": SYSTEM["content"]})
    assert given.messages == [SYSTEM, *plain.messages]
    assert given.first == plain.first + 1


def test_both_answers_of_a_pair_get_the_system_turn():
    pair = made({**FORMS["whole answers"], "system": "Be brief."}, format="pair")
    assert pair.chosen.messages[0] == pair.rejected.messages[0] == SYSTEM


@pytest.mark.parametrize("role", ["system", "developer"])
def test_equal_instructions_stand_once_and_different_ones_are_refused(role):
    first = {"role": role, "content": "Be brief."}
    assert made({"messages": [first, USER, REPLY], "system": "Be brief."}).messages == [first, USER, REPLY]
    with pytest.raises(BadRow, match=rf"system is 'Be long\.', .* the {role} message 'Be brief\.'.*Remove one"):
        made({"messages": [first, USER, REPLY], "system": "Be long."})


@pytest.mark.parametrize("rest", [{"completion": "b"}, {"chosen": "b", "rejected": "c"}])
def test_a_plain_string_has_no_place_for_a_system_turn_unless_it_holds_it(rest):
    with pytest.raises(
        BadRow, match=r"system is 'Be brief\.', but a plain string prompt has no system turn. Add it to"
    ):
        made({"prompt": "a", "system": "Be brief.", **rest})
    assert made({"prompt": "Be brief.\n\na", "system": "Be brief.", **rest}).prompt == "Be brief.\n\na"
    assert made({"prompt": "a", "system": "", **rest}).prompt == "a"


@pytest.mark.parametrize("functions", [[BARE], [WRAPPED], json.dumps([BARE])])
def test_functions_are_tools(functions):
    assert made({**FORMS["messages"], "functions": functions}).tools == [WRAPPED]
    assert made({**FORMS["messages"], "functions": functions, "tools": [WRAPPED]}).tools == [WRAPPED]
    assert made({**FORMS["messages"], "functions": functions, "tools": []}).tools == [WRAPPED]


def test_functions_that_are_other_tools_are_refused():
    other = {"name": "lose", "parameters": {"type": "object"}}
    with pytest.raises(BadRow, match=r"tools \(find\) and functions \(lose\) differ"):
        made({**FORMS["messages"], "tools": [WRAPPED], "functions": [other]})
    with pytest.raises(BadRow, match="functions is a number"):
        made({**FORMS["messages"], "functions": 3})


@pytest.mark.parametrize(
    ("rest", "nulls"),
    [
        ({"tools": [{"type": "function", "function": {**BARE, "description": None}}]}, True),
        ({"tools": [WRAPPED]}, False),
    ],
)
def test_nulls_in_schemas_are_seen(rest, nulls):
    assert made({**FORMS["messages"], **rest}).nulls == nulls


@pytest.mark.parametrize(
    ("arguments", "nulls"), [({"x": 1, "y": None}, True), ({"x": [{"y": None}]}, True), ({}, False)]
)
def test_nulls_in_arguments_are_seen(arguments, nulls):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    assert made({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}).nulls == nulls
