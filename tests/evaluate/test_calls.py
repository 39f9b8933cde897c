import dataclasses
import json

import pytest

from sft_jax.errors import BadInput
from sft_jax.evaluate.calls import Call, find_calls, tool_calls

CALL = Call("weather.get", {"city": "Oslo", "days": 2})
JSON = '{"name": "weather.get", "arguments": {"city": "Oslo", "days": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{JSON}\n</tool_call>",
        f"Let me look.\n<tool_call>{JSON}",
        JSON.replace("arguments", "parameters"),
        f"<|python_tag|>{JSON}",
        f"[{JSON}]",
        f"[TOOL_CALLS] [{JSON}]",
        f"```json\n{JSON}\n```",
        '[weather.get(city="Oslo", days=2)]',
        "weather.get(city='Oslo', days=2)",
        "<think>\nShall I [f(a=1)]?\n</think>\n\n[weather.get(city='Oslo', days=2)]",
        json.dumps({"type": "function", "function": {"name": CALL.name, "arguments": json.dumps(CALL.arguments)}}),
    ],
)
def test_every_notation_gives_the_same_call(text):
    if '"type"' in text:  # an object with a function in it has a name inside
        assert '"name"' in text
    assert find_calls(text).calls == (CALL,)


def test_several_calls_keep_their_order():
    two = JSON.replace("Oslo", "Rome")
    for text in (f"{JSON}; {two}", f"<tool_call>{JSON}</tool_call><tool_call>{two}</tool_call>", f"[{JSON}, {two}]"):
        assert [call.arguments["city"] for call in find_calls(text).calls] == ["Oslo", "Rome"]
    assert [call.name for call in find_calls("[f(a=1), g()]").calls] == ["f", "g"]
    assert find_calls("/timer minutes: 5 | label: tea").calls == (Call("timer", {"minutes": 5, "label": "tea"}),)


def test_python_calls_may_stand_on_lines_of_their_own():
    assert [call.name for call in find_calls("f(a=1)\ng(b=2)").calls] == ["f", "g"]


@pytest.mark.parametrize(
    "text",
    [
        *("It rains in Oslo.", "I call that f(x).", "", "{not json}", "Use (a, b)."),
        *("Yes (I think so)", "Hello (there)", '{"name": "Bob", "age": 3}', '[{"name": "Bob"}, {"name": "Ann"}]'),
        f"<think>Is it <tool_call>{JSON}</tool_call>?</think>\nNo.",
    ],
)
def test_plain_text_has_no_trace_of_a_call(text):
    found = find_calls(text)
    assert not found.calls and not found.malformed


@pytest.mark.parametrize(
    "text",
    [
        *("<tool_call>{broken</tool_call>", '{"name": "f", "arguments": [1]}', "[f(1)]", "/timer minutes: 5 | broken"),
        *("<tool_call></tool_call>", "[f(a=1, a=2)]", "f(a=1)\nand so on (it goes)", "[f(a=(1)]"),
        *("<tool_call>" + "[" * 100_000, "[TOOL_CALLS]" + "[" * 100_000),
    ],
)
def test_a_broken_call_says_why(text):
    found = find_calls(text)
    assert not found.calls and found.malformed


def test_python_calls_are_read_and_never_run(tmp_path):
    mark = tmp_path / "ran"
    found = find_calls(f"[f(a=open({str(mark)!r}, 'w'))]")
    assert found.calls[0].arguments["a"].startswith("open(") and not mark.exists()


def test_demonstrated_calls_must_be_made_with_equal_arguments_in_any_order(task, said):
    given = [
        {"function": {"name": "f", "arguments": {"a": 1}}},
        {"function": {"name": "g", "arguments": '{"b": [true, "x"]}'}},
    ]
    one = task(tool_calls=given)
    right = tool_calls(one, said('[g(b=[True, "x"]), f(a=1.0)]'))
    assert right == {"tool_call": 1.0, "tool_name": 1.0, "tool_call_read": 1.0, "no_call": None}
    assert tool_calls(one, said('[g(b=[1, "x"]), f(a=1)]'))["tool_call"] == 0.0  # true is not 1
    assert tool_calls(one, said("[f(a=1)]")) == {
        "tool_call": 0.0,
        "tool_name": 0.0,
        "tool_call_read": 1.0,
        "no_call": None,
    }
    assert tool_calls(one, said("I would rather talk."))["tool_call_read"] == 0.0


def test_a_tuple_is_a_list(task, said):
    given = '{"name": "f", "arguments": {"a": [1, [2, 3]]}}'
    assert tool_calls(task("[f(a=(1, (2, 3)))]"), said(given))["tool_call"] == 1.0
    assert tool_calls(task("[f(a=(1, (2, 4)))]"), said(given))["tool_call"] == 0.0


def test_rows_of_ones_own_may_say_which_calls_are_accepted(task, said):
    one = task(accepted_calls=[{"f": {"a": ["Oslo, Norway"], "n": [4.5, ""]}}])
    for text, score in (
        ('[f(a="oslo norway")]', 1.0),
        ('[f(a="Oslo, Norway", n=4.5)]', 1.0),
        ('[f(a="Oslo, Norway", n=45)]', 0.0),  # nor is it as text without punctuation
        ('[f(a="Rome")]', 0.0),
        ("[f(n=4.5)]", 0.0),
        ('[f(a="Oslo, Norway", b=1)]', 0.0),
    ):
        assert tool_calls(one, said(text))["tool_call"] == score, text
    assert tool_calls(task(accepted_calls=[]), said("Sorry."))["no_call"] == 1.0
    with pytest.raises(BadInput, match=r"rows.jsonl:1: accepted_calls is .*, expected a list of"):
        tool_calls(task(accepted_calls=[{"f": {"a": "Oslo"}}]), said("x"))


def test_the_tools_of_a_row_say_the_types_of_its_accepted_calls(task, said):
    schema = {"type": "object", "properties": {"n": {"type": "number"}, "s": {"type": ["string", "null"]}}}
    tools = ({"type": "function", "function": {"name": "f", "parameters": {**schema, "required": ["n"]}}},)
    one = dataclasses.replace(task(accepted_calls=[{"f": {"n": [5.0], "s": ["a", ""]}}]), tools=tools)
    assert tool_calls(one, said("[f(n=5)]"))["tool_call"] == 1.0
    assert tool_calls(one, said("[f(n=5, s='A')]"))["tool_call"] == 1.0
    assert tool_calls(one, said("[f(n='5.0')]"))["tool_call"] == 0.0
    assert tool_calls(one, said("[f(s='a')]"))["tool_call"] == 0.0


def test_where_no_call_is_demonstrated_any_trace_of_one_is_wrong(task, said):
    one = task("I cannot do that.")
    assert tool_calls(one, said("Sorry."))["no_call"] == 1.0
    assert tool_calls(one, said("[f(a=1)]"))["no_call"] == 0.0
    assert tool_calls(one, said("<tool_call>{broken"))["no_call"] == 0.0
    assert tool_calls(one, said("Sorry."))["tool_call"] is None


def test_calls_that_special_tokens_mark_are_found_in_the_raw_text(task, said):
    one = task(tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}])
    assert tool_calls(one, said("", raw="[TOOL_CALLS][f(a=1)]"))["tool_call"] == 0.0
    assert tool_calls(one, said("", raw='[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]'))["tool_call"] == 1.0
    assert tool_calls(one, said("[f(a=1)]", raw="[f(a=1)]<|im_end|>"))["tool_call"] == 1.0


def test_a_row_that_shows_no_answer_is_refused(task, said):
    with pytest.raises(BadInput, match="needs a demonstrated answer"):
        tool_calls(task(), said("x"))
