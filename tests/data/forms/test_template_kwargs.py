import pytest

from sft_jax.config import Data
from sft_jax.data.forms.formats import check_settings, demonstrations
from sft_jax.data.forms.template_kwargs import merged, parse_template_kwargs
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def given(value):
    [one] = demonstrations(Record("demos.jsonl", 17, {"messages": TALK, "chat_template_kwargs": value}), Data())
    return one.template_kwargs


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"enable_thinking": None, "x": [None]}, {"x": [None]}),
        ({"enable_thinking": None}, None),
        ({}, None),
        ("", None),
        (None, None),
    ],
)
def test_a_rows_values_are_an_object_whose_nulls_are_not_given(value, expected):
    assert given(value) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], "chat_template_kwargs is a list, expected an object"),
        ("{", "not valid JSON"),
        ({"messages": []}, "chat_template_kwargs has messages"),
        ({"tools": [], "tokenize": False, "x": 1}, "chat_template_kwargs has tokenize, tools"),
        ({"add_generation_prompt": True}, "has add_generation_prompt"),
    ],
)
def test_what_is_no_value_for_a_template_is_refused(value, said):
    with pytest.raises(BadRow, match=rf"^demos.jsonl:17: .*{said}"):
        given(value)


def test_a_runs_values_are_json_or_text_and_the_rows_own_win():
    run = ("enable_thinking=false", "budget=3", "style=short=er", 'stop=["a"]')
    values = {"enable_thinking": False, "budget": 3, "style": "short=er", "stop": ["a"]}
    assert parse_template_kwargs(run) == values
    assert merged(run, {"budget": 4}) == {**values, "budget": 4}
    assert merged((), None) is None and merged((), {"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (("enable_thinking",), "expected name=value, such as enable_thinking=false"),
        (("a b=1",), "expected name=value"),
        (("x=1", "x=2"), "'x' is given twice"),
        (("messages=[]",), "'messages' is reserved"),
    ],
)
def test_a_runs_values_are_checked_before_any_row_is_read(run, said):
    with pytest.raises(BadInput, match=rf"data.template_kwargs: .*{said}"):
        check_settings(Data(template_kwargs=run))
