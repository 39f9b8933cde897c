"""What a record asks: a prompt for each demonstration, up to its first trained turn, read as in training."""

import pytest

from sft_jax.config import Data
from sft_jax.data.forms.prompts import prompts
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow

USER, REPLY = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SILENT, SYSTEM = {"role": "assistant", "content": " "}, {"role": "system", "content": "S"}
TOOL = {"type": "function", "function": {"name": "f"}}


def asked(row, **settings):
    return prompts(Record("f", 1, row), Data(**settings))


@pytest.mark.parametrize(
    ("row", "messages", "text", "shown"),
    [
        ({"messages": [USER, REPLY], "text": "a copy"}, [USER], "", "A"),
        ({"messages": [USER, REPLY], "tokens": 12, "weights": [1]}, [USER], "", "A"),
        ({"prompt": "P", "completion": "C", "tokens": 12}, [], "P", "C"),
        ({"conversations": [USER, REPLY, USER]}, [USER, REPLY, USER], "", None),
        ({"messages": [USER, {**REPLY, "weight": 0}, USER, REPLY]}, [USER, {**REPLY, "weight": 0}, USER], "", "A"),
        ({"messages": [USER, SILENT, USER, REPLY]}, [USER, {**SILENT, "weight": 0}, USER], "", "A"),
        ({"messages": [USER, SILENT]}, [USER], "", None),
        ({"messages": [REPLY, USER, REPLY]}, [REPLY, USER], "", "A"),
        ({"messages": [USER, REPLY], "system": "S"}, [SYSTEM, USER], "", "A"),
        ({"prompt": [USER], "completion": [REPLY], "system": "S"}, [SYSTEM, USER], "", "A"),
        ({"messages": '[{"role": "user", "content": "Q"}]', "system": "S"}, [SYSTEM, USER], "", None),
        ({"prompt": [USER], "system": "S"}, [SYSTEM, USER], "", None),
    ],
)
def test_a_row_that_trains_has_a_prompt_up_to_its_first_trained_turn(row, messages, text, shown):
    [one] = asked(row)
    assert (one.messages, one.text, (one.shown or {}).get("content")) == (messages, text, shown)


def test_train_on_decides_which_turn_is_asked_for():
    talk = [USER, REPLY, USER, {**REPLY, "content": "B"}]
    for train_on, before in (("assistant", 1), ("last_assistant", 3), ("completion", 3), ("all", 1)):
        [one] = asked({"messages": talk}, train_on=train_on)
        assert one.messages == talk[:before]


def test_every_instance_of_a_seed_task_is_asked():
    row = {
        "id": "s",
        "instruction": "Halve.",
        "instances": [{"input": "4", "output": "2"}, {"input": "8", "output": "4"}],
    }
    assert [(one.id, one.messages[0]["content"]) for one in asked(row)] == [
        ("s", "Halve.\n\n4"),
        ("s#2", "Halve.\n\n8"),
    ]


@pytest.mark.parametrize("rest", [{"messages": [USER, REPLY]}, {"messages": [USER]}, {"prompt": [USER]}])
def test_tools_functions_and_values_for_the_template_go_along(rest):
    for tools in ({"tools": [TOOL]}, {"functions": [{"name": "f"}]}):
        [one] = asked({**rest, **tools, "chat_template_kwargs": {"enable_thinking": False}})
        assert one.tools == [TOOL] and one.template_kwargs == {"enable_thinking": False}


def test_what_asks_nothing_has_no_prompt(tmp_path):
    (tmp_path / "mine.py").write_text("def f(row): return None")
    assert asked({"text": "T"}) == asked({"tokens": [1, 2], "labels": [-100, 2]}) == []
    assert asked({"prompt": "P"}, function=f"{tmp_path}/mine.py:f") == []
    assert asked({"prompt": "P", "text": "T"}, format="text") == []


def test_a_system_beside_a_lone_string_is_refused_as_in_training():
    with pytest.raises(BadRow, match="a plain string prompt has no system turn"):
        asked({"prompt": "P", "system": "S"})
