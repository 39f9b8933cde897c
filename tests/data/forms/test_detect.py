"""Which form a record has, what of it that form reads, and what nobody reads."""

import pytest

from sft_jax.config import Data
from sft_jax.data.forms.detect import KEYS, columns_read, find_form, keys_read
from sft_jax.data.forms.formats import read
from sft_jax.data.read.rows import Record

USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"messages": [USER], "text": "a copy"}, "messages"),
        ({"messages": [USER], "tokens": 12, "weights": 0.5}, "messages"),
        ({"prompt": "a", "completion": "b", "tokens": 12, "weights": [1]}, "prompt_completion"),
        ({"text": "a", "input_ids": 3, "labels": 4}, "text"),
        ({"text": "a", "tokens": [1, 2], "weights": 0.5}, "text"),
        ({"text": "a", "tokens": [1, 2], "weights": [0, 1]}, "tokens"),
        ({"tokens": [1, 2], "weights": "0 1"}, "tokens"),
        ({"tokens": 12, "weights": [0, 1]}, None),
    ],
)
def test_only_lists_with_a_mask_beside_them_are_tokens(value, form):
    assert find_form(value) == form


def test_a_declared_form_is_kept_so_that_its_own_message_is_told():
    assert find_form({"tokens": 12, "weights": 3}, "tokens") == "tokens"


@pytest.mark.parametrize(
    ("value", "unread"),
    [
        ({"messages": [USER, REPLY], "id": "x", "system": "s", "source": "web", "lang": "en"}, ("source", "lang")),
        ({"messages": [USER, REPLY], "source": None}, ()),
        ({"conversations": [USER, REPLY], "conversation": []}, ("conversation",)),
        ({"question": "a", "answer": "b", "context": "c"}, ("context",)),
        ({"instruction": "a", "output": "b", "response": "c", "input": "d", "context": "e"}, ("response", "context")),
        ({"prompt": "a", "completion": "b", "tools": [], "chat_template_kwargs": {"x": 1}},
         ("tools", "chat_template_kwargs")),
        ({"prompt": [USER], "completion": [REPLY], "tools": [], "chat_template_kwargs": {}}, ()),
        ({"text": "a", "system": "b"}, ("system",)),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY], "margin": 2}, ("margin",)),
    ],
)  # fmt: skip
def test_keys_that_the_form_does_not_read_are_told(value, unread):
    assert read(Record("f", 1, value), Data()).unread == unread


def test_keys_are_counted_as_the_map_and_the_function_leave_them(tmp_path):
    (tmp_path / "mine.py").write_text("def f(row): return {'text': row['body'], 'left': 1}")
    row = {"q": "a", "meta": {"answer": "b"}, "source": "web", "body": "c"}
    mapped = read(Record("f", 1, row), Data(fields=("question=q", "answer=meta.answer")))
    assert mapped.unread == ("source", "body")
    assert read(Record("f", 1, row), Data(function=f"{tmp_path}/mine.py:f")).unread == ("left",)


def test_the_columns_to_read_are_those_of_all_forms_and_of_the_map():
    columns = columns_read(Data(fields=("question=meta.q",)))
    assert columns is not None and {"meta", "messages", "functions", "chat_template_kwargs", "margin"} <= columns
    assert "source" not in columns
    for form in KEYS:
        assert keys_read(form, {}) <= columns
    assert columns_read(Data(function="mine.py:f")) is None, "a function may read any of them"
