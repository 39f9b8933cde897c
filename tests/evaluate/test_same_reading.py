"""Training and sampling read a row the same way: a prompt is, token by token, what training has before the answer."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sft_jax.config import Data
from sft_jax.data.pack.prepare import prepare
from sft_jax.evaluate.complete import prompts_of, task_tokens
from sft_jax.evaluate.evaluation import read_tasks
from sft_jax.weights.pretrained import Pretrained

TEMPLATE = """{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""
USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo."}
SILENT, SYSTEM = {"role": "assistant", "content": ""}, {"role": "system", "content": "Be brief."}
BARE = {"name": "f", "parameters": {"type": "object"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}
ROWS = {
    "messages": {"messages": [USER, REPLY]},
    "several turns": {"messages": [SYSTEM, USER, REPLY, USER, REPLY]},
    "text beside messages": {"messages": [USER, REPLY], "text": "rendered copy"},
    "a number of tokens": {"messages": [USER, REPLY], "tokens": 12, "weights": [1, 2]},
    "tokens beside a completion": {"prompt": "Boil the", "completion": " water", "tokens": 12},
    "messages as JSON": {"messages": json.dumps([USER, REPLY])},
    "system beside messages": {"messages": [USER, REPLY], "system": "Be brief."},
    "system beside lists": {"prompt": [USER], "completion": [REPLY], "system": "Be brief."},
    "system beside answers": {"prompt": "Hi", "chosen": [REPLY], "rejected": [REPLY], "system": "Be brief."},
    "system in a string": {"prompt": "Be brief. Hi", "completion": " Yo.", "system": "Be brief."},
    "functions": {"messages": [USER, CALL], "functions": [BARE]},
    "tools": {"messages": [USER, REPLY], "tools": [BARE]},
    "the row's values": {"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": False}},
    "the row's own win": {"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": True}},
    "an untrained turn": {"messages": [USER, {**REPLY, "weight": 0}, USER, REPLY]},
    "an empty turn": {"messages": [USER, SILENT, USER, REPLY]},
    "the assistant opens": {"prompt": [REPLY, USER], "completion": [REPLY]},
    "alpaca": {"instruction": "Sort.", "input": "b a", "output": "a b", "system": "Be brief.", "history": []},
    "seed tasks": {
        "instruction": "Halve.",
        "instances": [{"input": "4", "output": "2"}, {"input": "8", "output": "4"}],
    },
    "question and answer": {"question": "Why?", "answer": "So.", "context": "unread"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo."}], "system": "S"},
    "special text": {"messages": [{"role": "user", "content": "<|im_end|>"}, REPLY]},
}


@pytest.fixture
def templated(tokenizer):
    one = copy.deepcopy(tokenizer)
    one.chat_template = TEMPLATE
    return one


@pytest.mark.parametrize(
    "settings",
    [{}, {"template_kwargs": ("enable_thinking=false",)}, {"special_text": "text"}],
    ids=["plain", "values of a run", "special text"],
)
def test_the_prompt_of_a_row_is_what_training_has_before_its_first_trained_turn(templated, tmp_path, settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name, row in ROWS.items()))
    data = Data((str(file),), **settings)
    examples = prepare(data, templated).examples
    tasks = read_tasks(data, data.train)
    model = Pretrained("MODEL", None, {}, {}, templated, None, data)  # type: ignore[arg-type]
    prompts = prompts_of(tasks, model, SimpleNamespace(vocab=10_000, max_positions=10_000), 1)  # type: ignore[arg-type]
    assert [task.id for task in tasks] == [example.id for example in examples]
    assert {task.id.partition("#")[0] for task in tasks} == set(ROWS)
    for example, prompt in zip(examples, prompts, strict=True):
        before = int(np.argmax(example.weights > 0))
        assert prompt == example.tokens[:before].tolist(), example.id


def test_a_rows_values_reach_its_completions_and_what_is_made_of_them(templated):
    from sft_jax.data.read.rows import Record
    from sft_jax.evaluate.sampled import as_demonstration, pairs, sampled_row
    from sft_jax.evaluate.task import task_of
    from sft_jax.sample.generate import Generated

    row = {"messages": [USER, REPLY], "functions": [BARE], "chat_template_kwargs": {"enable_thinking": False}}
    task = task_of(Record("f", 1, row), Data())
    kept = sampled_row(task, [Generated([5], True, [-1.0], "stop", [5])] * 2, templated)
    assert kept["tools"] == [{"type": "function", "function": BARE}]
    made = as_demonstration(kept, "Yo.", "x")
    [pair], _ = pairs([{**kept, "completions": [{"text": "a"}, {"text": "b"}]}], [[1, 0]])
    for one in (made, pair):
        again = task_of(Record("f", 2, one), Data())
        assert task_tokens(again, templated) == task_tokens(task, templated)
