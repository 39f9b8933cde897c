"""Top-level arrays: elements are found in the bytes, however the reads cut them, and keep their line numbers."""

import io
import json
from typing import Any

import pytest

from sft_jax.data.read import json_array
from sft_jax.data.read.json_array import read_array
from sft_jax.data.read.rows import Row, parse
from sft_jax.errors import BadInput, BadRow

VALUES: list[dict[str, Any]] = [
    {"text": 'brackets ]}[{, and "quotes" and \\'},
    {"a": {"b": [1, [2, {}], []]}, "c": "é😀\n"},
    {},
    {"text": "x" * 200},
]


def rows(content: bytes | str, offset: int = 0) -> list[Row]:
    content = content.encode() if isinstance(content, str) else content
    return list(read_array("a.json", io.BytesIO(content[6:]), content[offset:6], offset))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrap", ["%s", ' {"version": "1 [", "data": %s, "about": {"n": {}}}\n', "\n%s\n\n"])
def test_elements_are_found_however_the_reads_cut_them(monkeypatch, chunk: int, indent: int | None, wrap: str):
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    content = (wrap % json.dumps(VALUES, indent=indent, ensure_ascii=False)).encode()
    found = rows(content)
    assert [parse(row).value for row in found] == VALUES
    for row in found:
        assert content[row.offset :].startswith(row.value.rstrip(b"\n"))
        assert row.line == 1 + content.count(b"\n", 0, row.offset)


def test_a_byte_order_mark_counts_in_the_offset():
    [row] = rows(b"\xef\xbb\xbf[{}]", offset=3)
    assert row.offset == 4


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', ("an object without a list", ".jsonl")),
        ('{"messages": [{"role": "user"}]}', (":1:", "looks like a record ('messages')", "enclose it in [ ]")),
        ('{"a": [{}], "b": [{}]}', ("two lists, 'a' and 'b'",)),
        ('{"a": [{}]}\n{"a": [{}]}', ("a.json:2", "found '{' after the first value", ".jsonl")),
        ("[{}]\n]", ("a.json:2", "after the first value")),
        ("3", ("found '3', expected an array",)),
        ('"a', ("found '\"'",)),
        ("[{}", ("truncated", "not closed")),
        ('[{"text": "a', ("truncated",)),
        ('{"a": [{}]', ("truncated",)),
        ('{"a": ', ("truncated",)),
        ("[{}}", ("found '}' in an array",)),
        ("[{}, {]}, {}]", ("found '}' in an array",)),
        ("", ("an empty file",)),
    ],
)
def test_a_file_that_is_no_array_is_refused(content: str, parts):
    with pytest.raises(BadInput) as caught:
        rows(content)
    assert not isinstance(caught.value, BadRow)
    for part in ("a.json", *parts):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[{},\n3,\n{}]", "a.json:2:1: found a number"),
        ("[{},\n,\n{}]", "a.json:2:1: not valid JSON"),
        ("[{},\n{},\n]", "a.json:3:1: not valid JSON"),
        ('[{},\n{"a":\n"b" "c"},\n{}]', "a.json:3:5: not valid JSON"),
    ],
)
def test_a_bad_element_is_one_bad_row(content: str, part: str):
    values, problems = [], []
    for row in rows(content):
        try:
            values.append(parse(row).value)
        except BadRow as error:
            problems.append(str(error))
    assert values == [{}] * (content.count("{}"))
    assert len(problems) == 1 and part in problems[0]


def test_an_element_without_an_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(json_array, "ROW_LIMIT", 1000)
    monkeypatch.setattr(json_array, "_CHUNK", 100)
    file = io.BytesIO(b' {"a": "' + b"x" * 10**6)
    with pytest.raises(BadInput, match="element larger than 1,000 bytes"):
        list(read_array("a.json", file, b"[", 0))
    assert file.tell() < 5000
