"""One row is parsed: what is refused says file, line and column, what was found, and what was expected."""

import json
from typing import Any

import pytest

from sft_jax.data.read.rows import JsonText, Row, parse
from sft_jax.errors import BadRow


def refused(value: Any, *parts: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse(Row("demos.jsonl", 2, value, 14))
    for part in ("demos.jsonl:2", *parts):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"text": "a", }', (":2:15:", "not valid JSON", "found '}'")),
        (b'{"text": "a"\n', (":2:13:", "found the end of the line")),
        (b'{"text": "a"', (":2:13:", "found the end of the line", "truncated")),
        (b'["a"]', (":2:1:", "found a list", "one JSON object per row")),
        (b"null", ("found null",)),
        (b'{"text": "\xff"}', (":2:", "not valid UTF-8", "byte 0xff at byte 24 of the file")),
        (b'{"text": NaN}', (":2:1:", "NaN is not JSON")),
        (b'{"text": -Infinity}', ("-Infinity is not JSON",)),
        (b'{"text": 1e999}', ("1e999", "too large")),
        (b'{"text": ' + b"1" * 5000 + b"}", ("not usable JSON",)),
        (b'{"text": "\\ud800"}', (":2:", "lone surrogate '\\ud800'")),
        (b'{"\\uDC00": 1}', ("lone surrogate",)),
        (b'{"text": "a\\u0000b"}', ("NUL character", "remove it")),
        (b'{"text": "a\0b"}', (":2:12:", "control character")),
        (b'{"text": "a", "text": "b"}', ("duplicate key 'text'", "Keep one")),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', ("duplicate key 'b'",)),
        (b'{"text": ' + b"[" * 101 + b"]" * 101 + b"}", ("nested deeper than 100 levels",)),
        (b'{"text": ' + b"[" * 100000 + b"]" * 100000 + b"}", ("nested deeper than 100 levels",)),
        (b'{\n"text": }', ("not valid JSON",)),
    ],
)
def test_a_bad_line_is_named_with_file_line_column_and_what_was_found(line: bytes, parts):
    if line.startswith(b"{\n"):  # an array's element may have several lines
        with pytest.raises(BadRow, match=r"demos\.jsonl:3:9: not valid JSON"):
            parse(Row("demos.jsonl", 2, line))
    else:
        refused(line, *parts)


def test_a_whole_line_that_is_no_json_is_not_said_to_be_cut_off():
    for line in (b'{"text": "a"\n', b'{"text": "a\n', b'{"text": "a", }'):
        with pytest.raises(BadRow, match="not valid JSON") as caught:
            parse(Row("f", 1, line))
        assert "truncated" not in str(caught.value)


def test_what_could_not_even_be_read_is_refused():
    with pytest.raises(BadRow, match="f:3: too long"):
        parse(Row("f", 3, b"", 0, "too long"))


def test_a_tables_nulls_vanish_and_its_text_is_decoded():
    value = {"a": None, "b": [{"c": None, "d": b"\xc3\xa9"}, None], "e": ("f",)}
    assert parse(Row("t.parquet", 1, value)).value == {"b": [{"d": "é"}, None], "e": ["f"]}


def test_what_cannot_be_read_of_a_tables_row_is_a_problem_of_its_column():
    deep: Any = "x"
    for _ in range(2000):
        deep = [deep]
    columns = {"bytes": [b"\xff"], "nul": "b\0", "deep": deep, "json": JsonText("{"), "fine": 1}
    record = parse(Row("t.parquet", 1, columns))
    assert record.value["fine"] == 1 and record.value["bytes"] == [b"\xff"], "for whoever can do something with it"
    for column, said in {"bytes": "byte 0xff", "nul": "NUL character", "deep": "nested deeper"}.items():
        assert record.problems[column].startswith(f"column {column!r}: ") and said in record.problems[column]
    assert list(record.problems) == ["bytes", "nul", "deep", "json"]


def test_text_that_looks_like_what_is_refused_is_kept():
    for text in ("\\u0000", "\\ud800", "😀", "NaN", "\ufeff"):
        for ascii_only in (True, False):
            raw = json.dumps({"text": text}, ensure_ascii=ascii_only).encode()
            assert parse(Row("f", 1, raw)).value["text"] == text
