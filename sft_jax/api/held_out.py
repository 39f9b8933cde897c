"""Answers to held-out prompts during training (`train.eval_samples`)."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sft_jax.distributed.agree import is_first_process
from sft_jax.evaluate.checks import check_answers, make_checks, summarise
from sft_jax.evaluate.complete import answer_of
from sft_jax.evaluate.evaluation import read_tasks
from sft_jax.sample.draw import Sampling
from sft_jax.train.metrics import truncate_after

if TYPE_CHECKING:
    from sft_jax.api.run import Run

SAMPLES = "samples.jsonl"
"""In a workdir: the answers to held-out prompts at each evaluation, with their scores."""


def answer_held_out(run: "Run") -> Callable[["Run", int], Mapping[str, Any]]:
    """Greedy answers to held-out prompts, judged: their texts into samples.jsonl, their mean scores into the row.

    The answers are made on the training mesh from the parameters as they lie there; the next batch is prepared
    meanwhile.
    """
    config = run.config
    train = config.train
    tasks = read_tasks(config.data, config.data.eval, train.eval_samples)
    checks = make_checks(train.eval_checks, train.eval_scorer, tasks)
    path = run.workdir.local() / SAMPLES
    if is_first_process():
        truncate_after(path, run.steps_done)
    model, sampling = run.model, Sampling(train.eval_new_tokens)
    model.prompts(tasks, sampling)  # a prompt that leaves no room is refused now

    def measure(run: "Run", step: int) -> dict[str, Any]:
        answers = model.answer(tasks, sampling, batch_size=min(32, len(tasks)))
        completions = [answer_of(one, model.tokenizer) for [one] in answers]
        scores = check_answers(tasks, completions, checks)
        if is_first_process():
            with path.open("a", encoding="utf-8") as file:
                for task, one, row in zip(tasks, completions, scores, strict=True):
                    line = {"step": step, "id": task.id, "text": one.text, "demonstration": task.shown, "scores": row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return {f"eval/{name}": mean.value for name, mean in summarise(scores).items()}

    return measure
