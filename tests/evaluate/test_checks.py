import dataclasses
import json

import pytest

from sft_jax.errors import BadInput
from sft_jax.evaluate.checks import auto_checks, check_answers, make_checks, summarise
from sft_jax.evaluate.constraints import is_json, json_schema, length, regex
from sft_jax.evaluate.register import register


def test_auto_takes_what_the_rows_call_for(task):
    assert auto_checks([task("Plain."), task("text")]) == []
    assert auto_checks([task("#### 4"), task("x\nA: 5")]) == ["numeric"]
    assert auto_checks([task("#### 4"), task("no number")]) == []
    assert auto_checks([task("x"), task("/timer minutes: 5 | label: tea")]) == ["tool_calls"]
    assert auto_checks([task("x", regex="a"), task("x", max_words=3), task("x", json_schema={})]) == [
        "regex",
        "json_schema",
        "length",
    ]


def test_auto_leaves_out_rows_that_do_not_say_which_calls_are_wanted(task, said):
    tasks = [task("/timer minutes: 5 | label: tea"), task("No."), task()]
    rows = check_answers(tasks, [said("x")] * 3, make_checks(["auto"], tasks=tasks))
    assert [(row["tool_call"], row["no_call"]) for row in rows] == [(0.0, None), (None, 1.0), (None, None)]


def test_auto_looks_for_calls_where_tools_are_given_and_none_is_needed(task):
    tools = ({"type": "function", "function": {"name": "f"}},)
    assert auto_checks([dataclasses.replace(task("No."), tools=tools)]) == ["tool_calls"]
    assert auto_checks([dataclasses.replace(task(), tools=tools)]) == []


def test_scores_are_means_over_the_rows_that_a_check_says_something_of(task, said):
    tasks = [task("x", regex="^x"), task("x"), task("x", regex="y")]
    rows = check_answers(tasks, [said("x"), said("x"), said("x")], make_checks(["regex", "exact"]))
    assert [row["regex"] for row in rows] == [1.0, None, 0.0]
    found = summarise(rows)
    assert (found["regex"].value, found["regex"].n) == (0.5, 2)
    assert found["exact"].value == 1.0 and found["stopped"].value == 1.0 and found["tokens"].value == 3.0


def test_unknown_checks_name_their_neighbour():
    with pytest.raises(BadInput, match="numeric"):
        make_checks(["numerik"])
    with pytest.raises(BadInput, match="no check 'exact:a'"):
        make_checks(["exact:a"])
    assert make_checks(["none"]) == []


def test_a_scorer_of_the_users_own_judges_too(tmp_path, task, said):
    path = tmp_path / "mine.py"
    path.write_text(
        "def polite(text, row):\n    return {'please': 'please' in text, 'short': None if row.get('long') else 1}\n"
        "def count(text, row):\n    return len(text)\n"
        "def broken(text, row):\n    return row['missing']\n"
        "def wrong(text, row):\n    return 'much'\n"
        "def infinite(text, row):\n    return float('nan')\n"
        "def huge(text, row):\n    return 10**400\n"
        "def array(text, row):\n    import numpy\n    return {'a': numpy.float32(0.5), 'b': numpy.bool_(True)}\n"
    )
    one = task("x", long=True)
    [row] = check_answers([one], [said("please")], make_checks([], f"{path}:polite"))
    assert row["please"] == 1.0 and row["short"] is None
    assert check_answers([one], [said("abc")], make_checks([], f"{path}:count"))[0]["count"] == 3.0
    [row] = check_answers([one], [said("abc")], make_checks([], f"{path}:array"))
    assert (row["a"], row["b"]) == (0.5, 1.0)
    for name, message in (
        *(("broken", "raised KeyError"), ("wrong", "returned 'much'"), ("infinite", "returned nan")),
        ("huge", "returned 1000"),
    ):
        with pytest.raises(BadInput, match=rf"rows.jsonl:1: --scorer .*{name} {message}"):
            check_answers([one], [said("x")], make_checks([], f"{path}:{name}"))
    with pytest.raises(BadInput, match=r"--scorer: .*has no function 'other'"):
        make_checks([], f"{path}:other")


def test_patterns_json_schemas_and_lengths(tmp_path, task, said):
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    one = task("x", json_schema=schema, min_words=2, max_words=3)
    assert json_schema(one, said('{"a": 1}')) == {"json_schema": 1.0}
    assert json_schema(one, said('Here:\n```json\n{"a": 1}\n```')) == {"json_schema": 1.0}
    assert json_schema(one, said('{"a": "1"}')) == {"json_schema": 0.0}
    assert json_schema(one, said("a: 1")) == {"json_schema": 0.0}
    assert json_schema(task("x"), said("{}")) == {"json_schema": None}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    [check] = make_checks([f"json_schema:{file}"])
    assert check(task("x"), said('{"a": 2}')) == {"json_schema": 1.0}
    with pytest.raises(BadInput, match="not a JSON schema"):
        json_schema(one, said("{}"), str(tmp_path / "other.json"))
    with pytest.raises(BadInput, match="is not a valid schema"):
        json_schema(task("x", json_schema={"type": "nonsense"}), said("{}"))
    for unfollowed in ({"$ref": "#/missing"}, {"$ref": "#"}):
        with pytest.raises(BadInput, match=r"rows.jsonl:1: json_schema cannot be resolved"):
            json_schema(task("x", json_schema=unfollowed), said("{}"))
    assert is_json(one, said("null")) == {"json": 1.0} and is_json(one, said("None")) == {"json": 0.0}
    assert is_json(one, said("NaN")) == is_json(one, said("[" * 100_000)) == {"json": 0.0}
    assert json_schema(task("x", json_schema={}), said("[" * 200 + "]" * 200)) == {"json_schema": 0.0}
    assert [length(one, said(text))["length"] for text in ("a", "a b", "a b c d")] == [0.0, 1.0, 0.0]
    assert length(task("x"), said("a")) == {"length": None}
    with pytest.raises(BadInput, match="expected whole numbers"):
        length(task("x", max_words="3"), said("a"))
    assert regex(task("x"), said("b\nabc"), "^a.c$") == {"regex": 1.0}
    with pytest.raises(BadInput, match="invalid regex"):
        regex(task("x", regex="("), said("a"))


def test_a_register_counts_sentences_and_words_as_mean_median_and_90th_percentile():
    found = register(["One. Two. Three four."])
    assert (found["sentences"], found["sentences, median"], found["sentences, 90th percentile"]) == (3.0, 3.0, 3.0)
    assert found["words"] == 4.0


def test_register_counts_what_people_would():
    texts = ["Sure! Here is what I'd do:\n- **one** thing\n- another.", "You pay 5 euros. It is cheap.", ""]
    found = register(texts)
    assert found["stock opening"] == pytest.approx(1 / 3) and found["exclamation mark"] == pytest.approx(1 / 3)
    assert found["markdown list"] == found["bold"] == found["contraction"] == found["first person"] == 1 / 3
    assert found["second person"] == found["empty"] == pytest.approx(1 / 3)
    assert found["full stop last"] == found["capital first"] == pytest.approx(2 / 3)
    assert found["words"] == pytest.approx((9 + 7) / 3)
    assert register(["a a a b"])["distinct-1"] == 0.5 and register(["a a a b"])["distinct-2"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no text"):
        register([])
