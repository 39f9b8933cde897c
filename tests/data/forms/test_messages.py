"""Conversations: what they become, what is refused, and whether the message says where and what to do."""

import json
from typing import Any

import pytest

from sft_jax.data.forms.messages import check_messages, check_tools, message_weight, says_nothing
from sft_jax.errors import BadRow

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def refused(run, *expected: str) -> str:
    with pytest.raises(BadRow) as caught:
        run()
    message = str(caught.value)
    for part in expected:
        assert part in message, message
    return message


def checked(*messages: object) -> list[dict[str, Any]]:
    return check_messages("demos.jsonl:17", list(messages))


def test_valid_messages_come_back_with_arguments_parsed():
    messages = checked(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "{}", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done", "weight": 0.5},
    )
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert CALL["function"]["arguments"] == '{"city": "Paris"}', "the record itself stays as it was"
    assert [m["role"] for m in messages] == ["developer", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"role": "asistant", "content": ""}, ("unknown role 'asistant'", "'assistant'", "developer")),
        ({"content": ""}, ("unknown role None", "system, developer, user, assistant, tool")),
        ({"role": "user"}, ("content is missing",)),
        ({"role": "user", "content": None}, ("content is null",)),
        ({"role": "assistant", "content": None}, ("content is null", "null with tool_calls")),
        ({"role": "user", "content": 3}, ("content is a number",)),
        ({"role": "user", "content": [{"type": "text"}]}, (".content[0]", "text is null", "a string")),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ("'image_url'", "only text")),
        ({"role": "user", "content": [3]}, (".content[0] is a number",)),
        (
            {"role": "user", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]},
            ("assistant",),
        ),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "reasoning", "value": "b"}]},
            (".content[1]: reasoning after text",),
        ),
        ({"role": "assistant", "content": "", "reasoning_content": 3}, ("reasoning_content is a number",)),
        ({"role": "assistant", "content": "", "loss_weight": float("nan")}, ("loss_weight is nan",)),
        ({"from": "robot", "value": ""}, ("unknown speaker 'robot'", "human")),
        ({"from": "gpt"}, ("content is missing",)),
        ({"from": "function_call", "value": "f()"}, ("function_call) is a string but not valid JSON",)),
        ({"from": "function_call", "value": "[]"}, ("an empty list, expected at least one call",)),
        ("hello", ("is a string", "an object with role and content")),
        ({"role": "user", "content": "", "tool_calls": [CALL]}, ("only an assistant calls tools",)),
        ({"role": "assistant", "content": "", "tool_calls": {}}, ("tool_calls is an empty object",)),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, ("tool_calls[0]", '"function"')),
        ({"role": "assistant", "content": "", "weight": "1"}, ("weight is '1'",)),
        ({"role": "assistant", "content": "", "weight": -1}, ("weight is -1",)),
        ({"role": "user", "content": "", "train": True}, ("only assistant messages train",)),
    ],
)
def test_a_bad_message_is_named_with_line_and_index(message: object, parts):
    refused(lambda: checked({"role": "user", "content": "hi"}, message), "demos.jsonl:17: messages[1]", *parts)


@pytest.mark.parametrize(
    ("arguments", "part"), [("{", "not valid JSON"), ("[1]", "a list"), (None, "null"), (3, "a number")]
)
def test_tool_call_arguments_must_be_an_object_or_a_json_string_of_one(arguments: object, part: str):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    refused(
        lambda: checked({"role": "assistant", "content": "", "tool_calls": [call]}),
        "messages[0].tool_calls[0] (f)",
        part,
    )


def test_a_conversation_must_be_a_list_with_messages():
    refused(lambda: check_messages("f:1", []), "an empty list")
    refused(lambda: check_messages("f:1", "hi"), "a string")


def test_tools_are_a_list_or_a_json_string_of_one_and_come_back_in_openais_form():
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools), [json.dumps(tools[0])], [{"name": "f"}]):
        assert check_tools("f:1", given) == tools
    assert [check_tools("f:1", nothing) for nothing in (None, "", [], "[]")] == [None] * 4
    refused(lambda: check_tools("f:1", "nope"), "f:1: tools", "not valid JSON")
    refused(lambda: check_tools("f:1", [1]), "tools is a list", "list of objects")
    refused(lambda: check_tools("f:1", 3), "tools is a number")


def test_parts_become_text_reasoning_and_calls():
    parts = [
        {"type": "reasoning", "value": "Which city? "},
        {"type": "thinking", "thinking": "Paris."},
        {"type": "text", "text": "Let me "},
        {"type": "text", "value": "look."},
        {"type": "tool_call", "value": '{"name": "get_weather", "arguments": {"city": "Paris"}}'},
        {"type": "tool_call", "value": {"name": "get_weather", "arguments": "{}"}},
    ]
    [message] = checked({"role": "assistant", "content": parts, "loss_weight": 1.0})
    assert message["content"] == "Let me look." and message["reasoning_content"] == "Which city? Paris."
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"city": "Paris"}, {}]
    assert all(call["type"] == "function" for call in message["tool_calls"])
    [silent] = checked({"role": "assistant", "content": parts[4:5]})
    assert silent["content"] is None
    assert checked({"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]})[0]["content"] == "ab"


def test_sharegpts_speakers_become_roles_and_its_calls_tool_calls():
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    messages = checked(
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u", "loss_weight": 0},
        {"from": "function_call", "value": json.dumps([call, call])},
        {"from": "observation", "value": "{}"},
        {"from": "gpt", "value": "a"},
        {"from": "bing", "value": "b"},
    )
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant", "assistant"]
    assert messages[2]["content"] is None and [c["function"] for c in messages[2]["tool_calls"]] == [call, call]
    assert not any({"from", "value"} & set(message) for message in messages)


def test_the_older_function_form_is_read_and_nulls_of_tables_vanish():
    function = CALL["function"]
    messages = checked(
        {"role": "assistant", "content": None, "function_call": function, "name": None, "weight": None},
        {"role": "function", "name": "get_weather", "content": "{}", "tool_calls": None},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "user", "content": "u", "tool_calls": []},
    )
    assert messages[4] == {"role": "user", "content": "u"}
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert set(messages[0]) == {"role", "content", "tool_calls"} and "function_call" not in messages[0]
    assert messages[1] == {"role": "tool", "name": "get_weather", "content": "{}"}
    assert messages[3]["content"] is None


def test_a_messages_weights_multiply():
    assert message_weight("f", {"role": "assistant", "weight": 0.5, "loss_weight": 0.5, "train": True}) == 0.25
    assert message_weight("f", {"role": "assistant", "train": False}) == 0.0
    assert message_weight("f", {"role": "user", "loss_weight": 0.0}) == 0.0
    assert message_weight("f", {"role": "assistant"}) == 1.0


def test_a_message_of_white_space_says_nothing_and_one_that_calls_or_reasons_does():
    assert says_nothing({"role": "assistant", "content": " \n"})
    assert says_nothing({"role": "assistant", "content": None})
    assert not says_nothing({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert not says_nothing({"role": "assistant", "content": "", "reasoning_content": "hm"})


def test_a_call_without_arguments_has_none():
    for arguments in ("", " \n", "{}"):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        [message] = checked({"role": "assistant", "content": None, "tool_calls": [call]})
        assert message["tool_calls"][0]["function"]["arguments"] == {}


def test_messages_may_be_a_json_string_as_tools_may():
    talk = [{"role": "user", "content": "a"}]
    assert check_messages("f:1", json.dumps(talk)) == talk
    refused(lambda: check_messages("f:1", "[{"), "f:1: messages is a string but not valid JSON")
    refused(lambda: check_messages("f:1", '{"role": "user"}'), "messages is an object")
    refused(lambda: check_messages("f:1", ""), "messages is an empty string")
