from types import SimpleNamespace

import pytest

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput
from sft_jax.evaluate.sampled import check_sampled, pairs, sampled_row, select
from sft_jax.evaluate.task import sampled_task, task_of
from sft_jax.sample.generate import Generated


def _row(*texts: str, **more):
    asked = more or {"messages": [{"role": "user", "content": "Q"}], "answer": "4"}
    return {"id": "7", **asked, "completions": [{"text": text} for text in texts]}


def test_the_best_completion_becomes_a_demonstration_that_training_reads():
    made, about = select([_row("a", "b", "c"), _row("d", "e")], [[0, 1, 1], [0, 0]], "best", 0.5)
    assert [row["messages"][-1]["content"] for row in made] == ["b"]  # the first of the best
    assert (about.prompts, about.kept, about.without) == (2, 1, 1)
    assert (about.first, about.mean, about.best) == (0.0, pytest.approx(1 / 3), 0.5)
    [whole] = demonstrations(Record("f", 1, made[0]), Data(()))
    assert whole.id == "7#1" and made[0]["answer"] == "4" and made[0]["score"] == 1


def test_every_different_passing_completion_is_kept_once():
    made, about = select([_row("a", "b", "a", "c")], [[1, 0, 1, 0.5]], "passing", 0.5)
    assert [row["messages"][-1]["content"] for row in made] == ["a", "c"]
    assert (about.kept, about.without) == (2, 0)
    made, _ = select([_row("a", "a", prompt="P")], [[1, 0]], "all", float("-inf"))
    assert [(row["prompt"], row["completion"]) for row in made] == [("P", "a"), ("P", "a")]


def test_pairs_set_the_best_against_the_worst_where_they_differ():
    made, about = pairs([_row("a", "b", "c"), _row("d", "e"), _row("x", "y", prompt="P")], [[0, 2, 1], [1, 1], [3, 0]])
    assert [(row["chosen"], row["rejected"]) for row in made] == [
        ([{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "a"}]),
        ("x", "y"),
    ]
    assert about.without == 1
    [pair] = demonstrations(Record("f", 1, made[0]), Data((), format="pair"))
    assert pair.chosen.messages[-1]["content"] == "b" and pair.rejected.messages[-1]["content"] == "a"


def test_a_sampled_row_keeps_what_its_answers_are_judged_by():
    record = Record("f", 3, {"question": "2 + 2?", "answer": "#### 4"})
    task = task_of(record, Data(()))
    one = Generated([5, 6], True, [-0.5, -0.25, -0.125], "stop", [5, 6, 2])
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: f"{ids}")
    row = sampled_row(task, [one], tokenizer)
    check_sampled("f:3", row)
    assert row["answer"] == row["demonstration"] == "#### 4" and row["messages"][-1]["content"] == "2 + 2?"
    completion = row["completions"][0]
    assert completion["text"] == "[5, 6]" and completion["tokens"] == [5, 6, 2]
    assert completion["logprob"] == -0.875 and len(completion["logprobs"]) == 3 and completion["finish"] == "stop"
    again = sampled_task(Record("s", 1, row), Data(()))
    assert again.shown == "#### 4" and again.messages == task.messages


def test_other_files_are_refused():
    with pytest.raises(BadInput, match=r"f:1: expected id.*found messages"):
        check_sampled("f:1", {"messages": []})
    with pytest.raises(BadInput, match="as sft-jax sample writes them"):
        check_sampled("f:1", _row() | {"completions": [{"score": 1}]})
