"""Forms of records: each is recognised, becomes the demonstration it means, and trains what it should."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_jax.config import Data, Format
from sft_jax.data.chat.encode import encode
from sft_jax.data.forms.formats import (
    KEYS,
    Conversation,
    PromptCompletion,
    Text,
    Tokens,
    check_settings,
    demonstrations,
    detect_format,
)
from sft_jax.data.read.readers import read_records
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow

FORMS = json.loads((Path(__file__).parents[1] / "forms.json").read_text(encoding="utf-8"))
"""Rows of every form, and how many turns of each train (trained tokens, where the form is tokens)."""


def made(value: dict[str, Any], **settings: Any) -> list[Any]:
    return demonstrations(Record("demos.jsonl", 17, value), Data(**settings))


def refused(value: dict[str, Any], *parts: str, **settings: Any) -> None:
    with pytest.raises(BadRow) as caught:
        made(value, **settings)
    for part in ("demos.jsonl:17", *parts):
        assert part in str(caught.value), str(caught.value)


def trained_turns(tokenizer: Any, demonstration: Any) -> int:
    """Each turn that trains ends with one trained stop token."""
    encoded = encode("demos.jsonl:17", demonstration, tokenizer, "assistant")
    if isinstance(demonstration, Tokens):
        return int(np.count_nonzero(encoded.weights))
    return int(np.count_nonzero(encoded.weights[encoded.tokens == tokenizer.eos_token_id]))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_trains_the_turns_it_should(make_tokenizer, templates, form: Format):
    tokenizer = make_tokenizer(templates.CHATML_THINKS)
    assert set(FORMS) == set(KEYS) - {"pair"}  # a preference, read for another objective
    for value, turns in zip(FORMS[form]["rows"], FORMS[form]["trained"], strict=True):
        for declared in ("auto", form):
            found = made(value, format=declared)
            assert {one.form for one in found} == {form}
            assert sum(trained_turns(tokenizer, one) for one in found) == turns, value


@pytest.mark.parametrize("end", ["json", "jsonl", "jsonl.gz"])
def test_every_form_is_read_from_every_kind_of_text_file(tmp_path: Path, end: str):
    for form, given in FORMS.items():
        lines = "\n".join(json.dumps(row) for row in given["rows"])
        content = (json.dumps(given["rows"], indent=1) if end == "json" else lines).encode()
        path = tmp_path / f"{form}.{end}"
        path.write_bytes(gzip.compress(content) if end.endswith("gz") else content)
        assert [record.value for record in read_records((str(path),))] == given["rows"]


def test_every_example_row_of_the_documentation_is_in_the_form_it_stands_under():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    headings = re.split(r"^### (.*)$", page, flags=re.MULTILINE)[1:]
    shown = []
    for heading, body in zip(headings[::2], headings[1::2], strict=True):
        for block in re.findall(r"^```json\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                shown += [one.form for one in made(json.loads(line))]
                assert shown[-1] in heading, line
    assert set(shown) == set(KEYS) - {"pair"}


def test_instruction_and_input_are_one_request_to_the_assistant():
    [one] = made({"instruction": "Sort.", "input": "b a", "output": "a b"})
    assert [(m["role"], m["content"]) for m in one.messages] == [("user", "Sort.\n\nb a"), ("assistant", "a b")]
    [one] = made({"instruction": "Sort.", "input": "", "output": "a b", "system": "You sort."})
    assert [m["content"] for m in one.messages] == ["You sort.", "Sort.", "a b"]
    [one] = made({"instruction": "Sort.", "context": "b a", "response": "a b"})
    assert [m["content"] for m in one.messages] == ["Sort.\n\nb a", "a b"]
    [one] = made({"question": "Why?", "answer": "So."})
    assert [(m["role"], m["content"]) for m in one.messages] == [("user", "Why?"), ("assistant", "So.")]


def test_a_seed_tasks_instances_are_demonstrations_with_ids_of_their_own():
    value = FORMS["seed_task"]["rows"][0]
    assert [one.id for one in made(value)] == ["s1", "s1#2"]
    assert [one.messages[0]["content"] for one in made(value)] == [
        "Halve the amount.\n\n200 g",
        "Halve the amount.\n\n3 eggs",
    ]
    del (nameless := dict(value))["id"]
    assert [one.id for one in made(nameless)] == ["demos.jsonl:17", "demos.jsonl:17#2"]


def test_strings_stay_strings_and_message_lists_remember_where_the_answer_begins():
    assert made({"prompt": "a", "completion": " b", "id": 3}) == [PromptCompletion("a", " b", "3", "prompt_completion")]
    assert made({"text": "a"}) == [Text("a", "demos.jsonl:17", "text")]
    [one] = made(FORMS["prompt_completion"]["rows"][2])
    assert isinstance(one, Conversation) and one.first == 3 and len(one.messages) == 4


def test_the_preferred_answer_is_what_trains():
    strings, _, _, whole, text = FORMS["preference"]["rows"]
    assert made(strings) == [PromptCompletion("A quick lunch?", " Bread with an egg.", "demos.jsonl:17", "preference")]
    [one] = made(whole)
    assert [m["role"] for m in one.messages] == ["user", "assistant"], "the answer repeats the prompt"
    assert made(text) == [Text("Q: lunch? A: bread.", "demos.jsonl:17", "preference")]


def test_labels_weights_and_padding_of_tokenised_rows():
    [plain, padded, weighted, *_] = (made(value)[0] for value in FORMS["tokens"]["rows"])
    assert plain.weights.tolist() == [0, 0, 1, 1] and plain.tokens.tolist() == [72, 101, 108, 108]
    assert (plain.tokens.dtype, plain.weights.dtype) == (np.int32, np.float32)
    assert padded.tokens.tolist() == [72, 101, 108, 108] and padded.weights.tolist() == [0, 1, 0, 1]
    assert weighted.weights.tolist() == [0, 0.5, 1]
    assert encode("f:1", weighted, None, "all").weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ({"labels": [-100, 3, 4]}, ("labels[1] is 3 where input_ids has 2", "shifted by one")),
        ({"labels": [2, 3, -100]}, ("labels[0] is 2", "shifted by one")),
        ({"labels": [-100, 9, 3]}, ("labels[1] is 9 where input_ids has 2: expected -100",)),
        ({"labels": [-1, 2, 3]}, ("labels[0] is -1",)),
        ({"labels": [1, 2]}, ("3 entries, labels has 2",)),
        ({"labels": "1 2 3"}, ("labels is a string",)),
        ({"weights": [0, -1, 1]}, ("weights: expected finite",)),
        ({"weights": [0, float("nan"), 1]}, ("weights: expected finite",)),
        ({"weights": [0, None, 1]}, ("weights is a list, expected a list of numbers",)),
        ({"labels": [1, 2, 3], "attention_mask": [1, 1, 0]}, ("attention_mask masks a trained token",)),
        ({"labels": [1, 2, 3], "input_ids": []}, ("non-empty list of token ids",)),
        ({"labels": [1, 2, 3], "input_ids": [1.0, 2, 3]}, ("integers",)),
        ({"labels": [1, 2, 3], "input_ids": [-1, 2, 3]}, ("at least 0",)),
        ({"labels": [1, 2, 3], "input_ids": [2**31, 2, 3]}, ("token ids",)),
        ({"labels": [1, 2, 3], "input_ids": [10**400, 2, 3]}, ("input_ids",)),
    ],
)
def test_tokenised_rows_that_do_not_fit_together_are_refused(rest, parts):
    refused({"input_ids": [1, 2, 3], **rest}, *parts)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"prompt": "a", "completion": " "}, ("completion is empty",)),
        ({"prompt": "a", "completion": None}, ("completion is null",)),
        ({"prompt": 3, "completion": "a"}, ("prompt is a number",)),
        ({"prompt": [], "completion": "a"}, ("prompt is an empty list",)),
        ({"prompt": "a", "completion": []}, ("completion is an empty list",)),
        ({"text": ""}, ("text is empty",)),
        ({"text": ["a"]}, ("text is a list",)),
        ({"question": "a", "answer": "\n"}, ("answer is empty",)),
        ({"question": None, "answer": "b"}, ("question is null",)),
        ({"instruction": "a", "output": ""}, ("output is empty",)),
        ({"instruction": "a", "output": "b", "input": 3}, ("input is a number",)),
        ({"instruction": "a", "output": "b", "history": ["x"]}, ("history is a list", "pairs")),
        ({"instruction": "a", "instances": [{"input": "b"}]}, ("instances[0]", "input and output")),
        ({"instruction": "a", "instances": [{"input": "b", "output": ""}]}, ("instances[0]: output is empty",)),
        ({"instruction": "a", "instances": []}, ("instances is an empty list",)),
        ({"chosen": "", "rejected": "b"}, ("chosen is empty",)),
        ({"chosen": 3, "rejected": "b"}, ("chosen is a number",)),
        ({"messages": [], "tools": 3}, ("messages is an empty list",)),
        ({"messages": [{"role": "user", "content": "a"}], "tools": 3}, ("tools is a number",)),
        ({"conversations": [{"from": "human", "value": "a"}], "system": 3}, ("system is a number",)),
    ],
)
def test_what_is_empty_or_of_another_type_is_refused(value: dict[str, Any], parts):
    refused(value, *parts)


def test_an_empty_answer_of_weight_zero_is_no_answer_and_may_stand():
    [one] = made({"messages": [{"role": "assistant", "content": "", "weight": 0}]})
    assert one.messages[0]["content"] == ""


def test_the_form_is_detected_by_keys_and_can_be_declared():
    for form, given in FORMS.items():
        for value in given["rows"]:
            assert detect_format(Record("f", 1, value)) == form
            assert detect_format(Record("f", 1, {**value, "text": ""}), form) == form
    both = {"text": "Below is an instruction", "instruction": "a", "output": "b"}
    assert detect_format(Record("f", 1, both)) == "alpaca", "a form that says what is the answer goes first"


def test_an_unknown_form_lists_the_keys_found_and_expected():
    refused({"query": "", "reply": ""}, "query, reply", "prompt and completion", "messages", "data.fields")
    refused({"query": "", "id": 1}, "no key prompt or completion", "query, id", format="prompt_completion")
    refused({}, "keys found: none")


def test_a_field_map_decides_the_form():
    value = {"question": "a", "answer": {"text": " b"}, "text": "c", "id": "x"}
    assert made(value, fields=("prompt=question", "completion=answer.text")) == [PromptCompletion("a", " b", "x")]
    assert made({**value, "messages": 3}, fields=("text=answer.text",))[0] == Text(" b", "x")
    tools = [{"type": "function", "function": {"name": "f"}}]
    [one] = made({"talk": [{"role": "user", "content": "a"}], "tools": tools}, fields=("messages=talk",))
    assert one.tools == tools, "keys that are not renamed stay"
    refused(value, "no key prompt", "data.fields fills prompt", fields=("prompt=qestion",), format="prompt_completion")


def test_a_bad_map_or_function_is_refused_at_the_start():
    for settings in ({"fields": ("prompt",)}, {"function": "nowhere.py:f"}):
        with pytest.raises(BadInput, match=r"data\.f"):
            check_settings(Data(**settings))
    check_settings(Data(fields=("prompt=question",), function="json:loads"))


def test_a_function_may_give_no_record_or_several(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def split(row):\n"
        "    if row['n'] == 0:\n        return None\n"
        "    return [{'prompt': row['q'], 'completion': str(k)} for k in range(row['n'])]\n"
    )
    function = f"{tmp_path / 'mine.py'}:split"
    assert made({"q": "a", "n": 0}, function=function) == []
    assert [(one.completion, one.id) for one in made({"q": "a", "n": 2}, function=function)] == [
        ("0", "demos.jsonl:17"),
        ("1", "demos.jsonl:17#2"),
    ]
    renamed = made({"q": "a", "n": 1}, function=function, fields=("question=prompt", "answer=completion"))
    assert renamed[0].form == "question_answer", "the map applies to what the function returns"
    refused({"q": "a"}, "data.function", "raised KeyError: 'n'", "mine.py:2", function=function)


SILENT = {"role": "assistant", "content": " \n"}


@pytest.mark.parametrize(
    ("value", "empty"),
    [
        ({"messages": [{"role": "user", "content": "a"}, SILENT, {"role": "user", "content": "a"}, SILENT]}, 2),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, 1),
        ({"prompt": "a", "completion": [SILENT]}, 1),
        ({"prompt": [{"role": "user", "content": "a"}, SILENT, {"role": "user", "content": "b"}],
          "completion": [{"role": "assistant", "content": "c"}]}, 0),
        ({"messages": [{"role": "user", "content": "a"}, {**SILENT, "reasoning_content": "hm"}]}, 0),
        ({"messages": [{"role": "user", "content": "a"}, {**SILENT, "weight": 0}]}, 0),
    ],
)  # fmt: skip
def test_an_empty_turn_that_would_train_has_no_weight_and_is_counted(value: dict[str, Any], empty: int):
    [one] = made(value)
    assert one.empty == empty
    assert sum(message.get("weight") == 0 for message in one.messages[one.first :]) == empty + ("weight" in str(value))


def test_an_empty_answer_is_nothing_to_compare():
    talk = [{"role": "user", "content": "a"}]
    full = [*talk, {"role": "assistant", "content": "b"}]
    refused({"chosen": full, "rejected": [*talk, SILENT]}, "rejected ends with an empty message", format="pair")


def test_a_column_that_cannot_be_read_is_an_error_where_it_is_read():
    row = Record("t.parquet", 3, {"question": "a", "answer": b"\xff", "text": "c"}, {"answer": "column 'answer': bad"})
    with pytest.raises(BadRow, match=r"^t.parquet:3: column 'answer': bad$"):
        demonstrations(row, Data())
    with pytest.raises(BadRow, match=r"^t.parquet:3: column 'answer': bad$"):
        demonstrations(row, Data(fields=("text=answer.words",)))
    assert demonstrations(row, Data(format="text"))[0].text == "c"


FOLDER = "/home/somebody/experiments/2026-11/demonstrations/part-00017.jsonl"


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        ({f"column number {k}": k for k in range(100)}, {}),
        ({"query": "a"}, {"format": "prompt_completion"}),
        ({"question": "a", "answer": 4e10}, {}),
        ({"messages": [{"role": "x" * 50, "content": ""}]}, {}),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}),
        ({"prompt": "a", "completion": "b", "system": "c" * 1000}, {}),
        ({"messages": [{"role": "system", "content": "d" * 1000}], "system": "c" * 1000}, {}),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": 1, "tools": 2}}, {}),
        ({"input_ids": [1, 2], "labels": [2, -100]}, {}),
    ],
)
def test_a_refusal_says_the_path_once_and_fits_three_lines(value: dict[str, Any], settings: dict[str, Any]):
    with pytest.raises(BadRow) as caught:
        demonstrations(Record(FOLDER, 17, value), Data(**settings))
    message = str(caught.value)
    assert message.startswith(f"{FOLDER}:17: ") and message.count(FOLDER) == 1
    assert len(message) <= 3 * 120, message
