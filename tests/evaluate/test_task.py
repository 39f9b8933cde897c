import copy
import dataclasses
from types import SimpleNamespace

import pytest

from sft_jax.config import Data
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow
from sft_jax.evaluate.complete import prompts_of, task_tokens
from sft_jax.evaluate.evaluation import has_demonstrations, read_tasks
from sft_jax.evaluate.task import task_of

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("row", "messages", "prompt", "shown"),
    [
        ({"messages": [USER, ASSISTANT]}, [USER], "", "A"),
        ({"messages": [USER, ASSISTANT, USER]}, [USER, ASSISTANT, USER], "", ""),
        ({"messages": [USER]}, [USER], "", ""),
        ({"prompt": "P"}, [], "P", ""),
        ({"prompt": "P", "completion": "C"}, [], "P", "C"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [USER], "", "A"),
        ({"prompt": [USER]}, [USER], "", ""),
        ({"question": "Q", "answer": "#### 1"}, [USER], "", "#### 1"),
        ({"prompt": "Q", "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, [USER], "", "A"),
        ({"prompt": "Q", "messages": [USER, ASSISTANT]}, [USER], "", "A"),
        ({"prompt": "Below: Q A", "instruction": "Q", "output": "A"}, [USER], "", "A"),
        ({"prompt": "P", "answer": "4"}, [], "P", ""),
        ({"prompt": "P", "text": "T"}, [], "P", ""),
    ],
)
def test_what_stands_before_the_first_answer_is_the_task(row, messages, prompt, shown):
    task = task_of(Record("f", 1, row), Data(()))
    assert (list(task.messages), task.prompt, task.shown) == (messages, prompt, shown)
    assert task.row == row and task.where == "f:1"


@pytest.mark.parametrize(
    ("data", "row", "prompt", "shown"),
    [
        (Data(fields=("completion=response",)), {"prompt": "P", "response": "C"}, "P", "C"),
        (Data(fields=("prompt=q",)), {"q": "Q", "prompt": "not this"}, "Q", ""),
        (Data(format="prompt_completion"), {"prompt": "P"}, "P", ""),
    ],
)
def test_the_prompt_is_what_the_field_map_says(data, row, prompt, shown):
    task = task_of(Record("f", 1, row), data)
    assert (task.prompt, task.shown, task.row) == (prompt, shown, row)


def test_the_prompt_is_what_the_function_makes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def read(row):\n"
        "    made = {'prompt': row['prompt'].upper()}\n"
        "    return {**made, 'completion': row['a']} if 'a' in row else made\n"
    )
    data = Data(function=f"{path}:read")
    both, alone = (task_of(Record("f", 1, row), data) for row in ({"prompt": "p", "a": "C"}, {"prompt": "p"}))
    assert (both.prompt, both.shown) == ("P", "C") and (alone.prompt, alone.demonstration) == ("P", None)


def test_rows_that_ask_nothing_are_refused_or_left_out(tmp_path):
    with pytest.raises(BadRow, match="text has no prompt"):
        task_of(Record("f", 1, {"text": "Once"}), Data(()))
    with pytest.raises(BadInput, match="the prompt is empty"):
        task_of(Record("f", 1, {"prompt": ""}), Data(()))
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"text": "Once"}\n{"question": "Q", "answer": "A"}\n{"prompt": "P"}\n')
    data = Data((str(file),))
    assert [task.where[-2:] for task in read_tasks(data, data.train)] == [":2", ":3"]
    assert len(read_tasks(data, data.train, most=1)) == 1


@pytest.mark.parametrize(
    ("line", "demonstrates"),
    [
        ('{"prompt": "P"}', False),
        ('{"messages": [{"role": "user", "content": "Q"}]}', False),
        ('{"instruction": "I", "output": "O", "prompt": "I"}', True),
        ('{"prompt": "P", "completion": "C"}', True),
        ('{"text": "T"}', True),
        ('{"question": "Q", "answer": "A"}', True),
    ],
)
def test_files_of_prompts_alone_have_no_likelihood(tmp_path, line, demonstrates):
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    assert has_demonstrations(Data((str(file),)), (str(file),)) == demonstrates


def test_tools_that_the_template_drops_stand_in_the_system_turn_of_the_leaderboards_questions_alone(tokenizer):
    tools = [{"type": "function", "function": {"name": "find_it", "parameters": {"type": "object", "properties": {}}}}]
    messages = [{"role": "system", "content": "Be brief."}, USER]
    task = task_of(Record("f", 1, {"messages": messages, "tools": tools}), Data(()))
    trained = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    assert task_tokens(task, tokenizer) == trained, "what training sees"
    question = dataclasses.replace(task, row={"id": "simple_0", "question": [messages], "function": []})
    text = tokenizer.decode(task_tokens(question, tokenizer))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions")
    assert '"name": "find_it"' in text and text.endswith("<|im_start|>assistant\n")


def test_a_prompt_without_room_for_an_answer_is_refused(tokenizer, tiny):
    task = task_of(Record("f", 1, {"messages": [USER]}), Data(()))
    length = len(task_tokens(task, tokenizer))
    model = SimpleNamespace(tokenizer=tokenizer, origin="MODEL", rendering=RenderOptions())
    room = dataclasses.replace(tiny, max_positions=length + 10)
    assert len(prompts_of([task], model, room, 10)[0]) == length
    with pytest.raises(BadInput, match=rf"f:1: a prompt of {length} tokens plus 11 new tokens.* the maximum of MODEL"):
        prompts_of([task], model, room, 11)


def test_bad_rows_are_left_out_where_training_leaves_them_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "?"}\n{"question": "Q", "answer": "A"}\n')
    with pytest.raises(BadRow, match="keys found: query"):
        read_tasks(Data((str(file),)), (str(file),))
    assert [task.where[-2:] for task in read_tasks(Data(bad_rows="skip"), (str(file),))] == [":2"]


def test_a_row_that_the_function_leaves_out_asks_nothing(tmp_path):
    (tmp_path / "mine.py").write_text("def f(row): return None if row['n'] else {'prompt': 'P'}")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 1}\n{"n": 0}\n')
    data = Data(function=f"{tmp_path}/mine.py:f")
    assert [task.prompt for task in read_tasks(data, (str(file),))] == ["P"]
    with pytest.raises(BadRow, match=r"data\.function leaves out has no prompt"):
        task_of(Record("f", 1, {"n": 1}), data)


def test_a_raw_prompt_ends_where_the_model_goes_on(tokenizer):
    from tokenizers.processors import TemplateProcessing

    appends = copy.deepcopy(tokenizer)
    eos = (tokenizer.eos_token, tokenizer.eos_token_id)
    appends.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {eos[0]}", special_tokens=[eos])
    assert appends("ab").input_ids[-1] == tokenizer.eos_token_id
    task = task_of(Record("f", 1, {"prompt": "ab"}), Data())
    assert task_tokens(task, appends) == task_tokens(task, tokenizer) == tokenizer("ab").input_ids
