"""JSON by the standard; `test_rows.py` tests what is said of a row that is not."""

import datetime

import pytest

from sft_jax.data.read.strict_json import MAX_DEPTH, kind, load, unusable


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_valid_json_is_read_as_the_standard_library_does():
    assert load('{"a": [1, -2.5e3, true, null, "é\\n\\ud83d\\ude00"], "b": {}}') == {
        "a": [1, -2500.0, True, None, "é\n😀"],
        "b": {},
    }
    assert load(nested(MAX_DEPTH)) is not None
    assert load("[" + ",".join(["[]"] * 500) + "]") == [[]] * 500, "many brackets, but not deep"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("-1e999", "too large"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(10**5), "nested deeper"),
        ('"\\ud83d"', "lone surrogate"),
        ('["\\u0000"]', "NUL"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_not_json_or_no_text_is_refused(text: str, problem: str):
    with pytest.raises(ValueError, match=problem):
        load(text)


def test_values_that_never_were_json_are_judged_alike():
    assert unusable({"a": ["b", {"c": 1}], "d": ("e",)}) == ""
    assert "NUL" in unusable({"a": {"b": "\0"}})
    assert "NUL" in unusable({"a\0": 1}) and "surrogate" in unusable(["a", ("\udc00",)])


def test_kinds_are_named_in_jsons_words():
    words = {"null": None, "true": True, "an empty list": [], "an object": {"a": 1}, "a number": 2.5, "a string": "a"}
    assert {kind(value): value for value in words.values()} == words
    assert kind(datetime.date(2026, 1, 1)) == "a date"
