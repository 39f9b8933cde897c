"""Records: what is read, what is refused, and whether the message says where and what to do."""

import json
from pathlib import Path

import pytest

from sft_jax.data.records import Record, detect_format, read_records, read_tools, validate_messages
from sft_jax.errors import BadInput

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def refused(run, *expected: str) -> str:
    with pytest.raises(BadInput) as caught:
        run()
    message = str(caught.value)
    for part in expected:
        assert part in message, message
    return message


def record(*messages: object, **rest: object) -> Record:
    return Record("demos.jsonl", 17, {"messages": list(messages), **rest})


def test_each_record_knows_its_file_and_line_and_blank_lines_are_skipped(tmp_path: Path):
    path = tmp_path / "demos.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}')
    records = list(read_records((str(path),)))
    assert [r.where for r in records] == [f"{path}:1", f"{path}:3"]
    assert [r.value["text"] for r in records] == ["a", "b"]


def test_a_glob_reads_its_files_in_sorted_order_and_several_paths_in_the_order_given(tmp_path: Path, jsonl):
    b, a = jsonl([{"text": "b"}], "b.jsonl"), jsonl([{"text": "a"}], "a.jsonl")
    assert [r.value["text"] for r in read_records((str(tmp_path / "*.jsonl"),))] == ["a", "b"]
    assert [r.value["text"] for r in read_records((b, a))] == ["b", "a"]


def test_a_missing_file_names_the_nearest_existing_one(tmp_path: Path, jsonl):
    jsonl([{}], "train.jsonl")
    refused(lambda: list(read_records((str(tmp_path / "trian.jsonl"),))), "no such file", "Did you mean 'train.jsonl'?")
    refused(lambda: list(read_records((str(tmp_path / "x*.jsonl"),))), "no file matches", "train.jsonl")
    refused(lambda: list(read_records((str(tmp_path),))), "is a directory")
    refused(lambda: list(read_records((str(tmp_path / "gone" / "a.jsonl"),))), "no such file")


def test_a_file_that_is_not_jsonl_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    refused(lambda: list(read_records((str(tmp_path / "a.parquet"),))), "expected a .jsonl file", "'.parquet'")


def test_an_empty_file_is_refused(tmp_path: Path):
    for name, content in (("a.jsonl", b""), ("b.jsonl", b"\n \n")):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: list(read_records((str(tmp_path / name),))), name, "empty", "one JSON object a line")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"text": "a", }', (":2:15:", "not valid JSON", "found '}'")),
        (b'{"text": "a"', (":2:13:", "found the end of the line")),
        (b'["a"]', (":2:1:", "found a list", "one JSON object a line")),
        (b"null", ("found null",)),
        (b'{"text": "\xff"}', (":2:", "not valid UTF-8", "byte 0xff at byte 24 of the file")),
        (b'{"text": NaN}', (":2:1:", "NaN is not JSON")),
        (b'{"text": "\\ud800"}', (":2:", "lone surrogate")),
    ],
)
def test_a_bad_line_is_named_with_file_line_column_and_what_was_found(tmp_path: Path, line: bytes, parts):
    path = tmp_path / "demos.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    refused(lambda: list(read_records((str(path),))), str(path), *parts)


def test_the_format_is_detected_by_keys_and_can_be_declared():
    rows = {
        "messages": {"messages": [], "id": 1},
        "prompt_completion": {"prompt": "", "completion": ""},
        "text": {"text": ""},
    }
    for form, value in rows.items():
        assert detect_format(Record("f", 1, value)) == form
        assert detect_format(Record("f", 1, {**value, "text": ""}), form) == form


def test_an_unknown_format_lists_the_keys_found_and_expected():
    row = Record("demos.jsonl", 3, {"question": "", "answer": ""})
    refused(
        lambda: detect_format(row), "demos.jsonl:3", "question, answer", "prompt and completion", "messages", "text"
    )
    refused(lambda: detect_format(row, "prompt_completion"), "no key prompt or completion", "question, answer")


def test_valid_messages_come_back_with_arguments_parsed():
    row = record(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "{}", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done", "weight": 0.5},
    )
    messages = validate_messages(row)
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
        ({"role": "assistant", "content": None}, ("content is null", "beside tool_calls")),
        ({"role": "user", "content": 3}, ("content is a number",)),
        ({"role": "user", "content": [{"type": "text"}]}, ("content is a list",)),
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
    row = record({"role": "user", "content": "hi"}, message)
    refused(lambda: validate_messages(row), "demos.jsonl:17: messages[1]", *parts)


@pytest.mark.parametrize(
    ("arguments", "part"), [("{", "not valid JSON"), ("[1]", "a list"), (None, "null"), (3, "a number")]
)
def test_tool_call_arguments_must_be_an_object_or_a_json_string_of_one(arguments: object, part: str):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    row = record({"role": "assistant", "content": "", "tool_calls": [call]})
    refused(lambda: validate_messages(row), "messages[0].tool_calls[0] (f)", part)


def test_a_conversation_must_be_a_list_with_messages():
    refused(lambda: validate_messages(Record("f", 1, {"messages": []})), "an empty list")
    refused(lambda: validate_messages(Record("f", 1, {"messages": "hi"})), "a string")


def test_tools_are_a_list_or_a_json_string_of_one():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert read_tools(record(tools=tools)) == tools == read_tools(record(tools=json.dumps(tools)))
    assert read_tools(record()) is None
    refused(lambda: read_tools(record(tools="nope")), "tools", "not valid JSON")
    refused(lambda: read_tools(record(tools=[1])), "tools is a list", "list of objects")
