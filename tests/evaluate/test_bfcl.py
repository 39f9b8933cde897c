import dataclasses
import json

import pytest

from sft_jax.data.read.readers import read_records
from sft_jax.errors import BadInput
from sft_jax.evaluate.bfcl import accepts, bfcl_task, is_bfcl, system_prompt
from sft_jax.evaluate.calls import tool_calls

FUNCTION = {
    "name": "trip.plan",
    "description": "Plan a trip.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "price": {"type": "float"},
            "days": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "guest": {"type": "dict", "properties": {"name": {"type": "string"}}},
            "note": {"type": "any"},
        },
        "required": ["city"],
    },
}
ACCEPTED = {
    "city": ["New York, NY", "NYC"],
    "price": [100.0],
    "days": [2, ""],
    "tags": [["art", "food"], ""],
    "guest": [{"name": ["Ann", "Anna"], "age": [3, ""]}, ""],
}
GOOD = {"city": "new york ny", "price": 100, "days": 2, "tags": ["Art", "food"], "guest": {"name": "Anna"}}


@pytest.fixture
def question_file(tmp_path):
    """(category, accepted answers or None) -> a file laid out as the leaderboard's."""

    def make(category: str, accepted, turns: int = 1):
        path = tmp_path / f"BFCL_v4_{category}.json"
        asked = [[{"role": "user", "content": "Go!"}]] * turns
        row = {"id": f"{category}_0", "question": asked, "function": [FUNCTION]}
        path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": f"{category}_1"}) + "\n")
        if accepted is not None:
            (tmp_path / "possible_answer").mkdir(exist_ok=True)
            lines = [{"id": f"{category}_{n}", "ground_truth": accepted} for n in (0, 1)]
            (tmp_path / "possible_answer" / path.name).write_text("\n".join(map(json.dumps, lines)))
        return list(read_records((str(path),)))

    return make


def _accepts(given) -> bool:
    return accepts(given, ACCEPTED, FUNCTION["parameters"]["properties"], ["city"])


def test_text_counts_without_case_spaces_and_punctuation_and_whole_numbers_as_floats():
    assert _accepts(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"city": "Boston"},
        {"price": "100"},
        {"price": 100.5},
        {"days": 2.0},
        {"days": True},
        {"tags": ["food", "art"]},
        {"tags": "art"},
        {"guest": {"name": "Bob"}},
        {"guest": {"name": "Ann", "pet": "cat"}},
        {"guest": {}},
        {"extra": 1},
    ],
)
def test_a_wrong_value_type_order_or_name_does_not_count(change):
    assert not _accepts({**GOOD, **change})


def test_what_may_be_left_out_says_the_answer_not_the_schema_alone():
    assert _accepts({"city": "NYC", "price": 100.0})
    assert not _accepts({"price": 100.0})  # required
    assert not _accepts({"city": "NYC"})  # not required, and yet expected


def test_a_question_becomes_a_task_with_json_schemas_and_is_judged(question_file, said):
    [record, _] = question_file("parallel", [{"trip.plan": ACCEPTED}, {"trip.plan": {**ACCEPTED, "city": ["Rome"]}}])
    assert is_bfcl(record.value)
    task = bfcl_task(record)
    parameters = task.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object" and parameters["properties"]["price"]["type"] == "number"
    assert "type" not in parameters["properties"]["note"]
    assert parameters["properties"]["guest"]["type"] == "object"
    both = '[trip_plan(city="Rome", price=100), trip.plan(city="NYC", price=100.0)]'
    assert tool_calls(task, said(both))["tool_call"] == 1.0
    assert tool_calls(task, said('[trip.plan(city="NYC", price=100)]'))["tool_call"] == 0.0
    assert tool_calls(task, said(both.replace("Rome", "NYC")))["tool_call"] == 0.0


def test_irrelevant_functions_want_no_call_and_relevant_ones_any(question_file, said):
    [record, _] = question_file("irrelevance", None)
    assert tool_calls(bfcl_task(record), said("I cannot."))["no_call"] == 1.0
    assert tool_calls(bfcl_task(record), said("[f(a=1)]"))["no_call"] == 0.0
    [record, _] = question_file("live_relevance", None)
    assert tool_calls(bfcl_task(record), said("[f(a=1)]"))["tool_call"] == 1.0
    assert tool_calls(bfcl_task(record), said("I cannot."))["tool_call"] == 0.0


def test_the_category_stands_in_the_id_too(question_file, said):
    [record, _] = question_file("irrelevance", None)
    renamed = dataclasses.replace(record, source="a_part_of_it.jsonl")
    assert tool_calls(bfcl_task(renamed), said("I cannot."))["no_call"] == 1.0


JAVA = {
    "name": "Db.open",
    "parameters": {
        "type": "dict",
        "properties": {
            "rows": {"type": "long"},
            "ratio": {"type": "double"},
            "strict": {"type": "boolean"},
            "tags": {"type": "ArrayList", "items": {"type": "String"}},
            "options": {"type": "HashMap"},
            "object": {"type": "any"},
        },
        "required": ["rows"],
    },
}
JAVA_ACCEPTED = {
    "rows": [5],
    "ratio": [4.5],
    "strict": [True],
    "tags": [["a", "b"]],
    "options": [{"limit": [50], "schema": ["public", ""]}],
    "object": ["new Thing()"],
}
JAVA_GIVEN = {
    "rows": 5,
    "ratio": 4.5,
    "strict": True,
    "tags": ["a", "b"],
    "options": {"limit": 50},
    "object": "new Thing()",
}


@pytest.mark.parametrize(
    ("change", "score"),
    [
        ({}, 1.0),
        ({"rows": "5L", "ratio": "4.5", "strict": "true"}, 1.0),
        ({"options": {"limit": "50", "schema": "public"}}, 1.0),
        ({"rows": -5}, 0.0),
        ({"ratio": 45}, 0.0),
        ({"strict": "false"}, 0.0),
        ({"strict": False}, 0.0),
        ({"tags": ["b", "a"]}, 0.0),
        ({"tags": ["a"]}, 0.0),
        ({"options": {"schema": "public"}}, 0.0),
        ({"options": {"limit": 50, "more": 1}}, 0.0),
        ({"object": "other"}, 0.0),
    ],
)
def test_java_values_count_as_they_stand_or_as_text(tmp_path, said, change, score):
    row = {"id": "simple_java_0", "question": [[{"role": "user", "content": "Go!"}]], "function": [JAVA]}
    (tmp_path / "BFCL_v4_simple_java.json").write_text(f"{json.dumps(row)}\n" * 2)
    (tmp_path / "possible_answer").mkdir()
    answer = json.dumps({"id": row["id"], "ground_truth": [{"Db.open": JAVA_ACCEPTED}]})
    (tmp_path / "possible_answer/BFCL_v4_simple_java.json").write_text(answer)
    record, _ = read_records((str(tmp_path / "BFCL_v4_simple_java.json"),))
    task = bfcl_task(record)
    types = {name: schema.get("type") for name, schema in task.tools[0]["function"]["parameters"]["properties"].items()}
    assert list(types.values()) == ["integer", "number", "boolean", "array", "object", None]
    call = json.dumps({"name": "Db.open", "arguments": {**JAVA_GIVEN, **change}})
    assert tool_calls(task, said(call))["tool_call"] == score


def test_what_needs_an_environment_or_has_no_answers_is_refused(question_file):
    with pytest.raises(BadInput, match="needs an environment"):
        bfcl_task(question_file("multi_turn_base", [], turns=2)[0])
    with pytest.raises(BadInput, match="accepted answers are missing"):
        bfcl_task(question_file("simple_python", None)[0])


def test_models_without_a_place_for_tools_are_told_of_them_in_words():
    text = system_prompt([{"type": "function", "function": FUNCTION}])
    assert '"name": "trip.plan"' in text and "[name(argument=1" in text
