"""Evaluate a model on held-out rows (likelihood, checked completions, register), and compare two models row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from sft_jax.config import Data
from sft_jax.data.pack.store import Example
from sft_jax.data.read.readers import read_records
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow
from sft_jax.evaluate.bfcl import bfcl_task, is_bfcl
from sft_jax.evaluate.bootstrap import Interval, paired_difference
from sft_jax.evaluate.checks import Check, Scores, check_answers, summarise
from sft_jax.evaluate.complete import complete, prompts_of
from sft_jax.evaluate.held_out import DocumentLoss, document_losses, summarise_losses
from sft_jax.evaluate.register import register
from sft_jax.evaluate.task import Answer, Task, tasks_of
from sft_jax.model.architecture import Architecture
from sft_jax.model.layers import Compute
from sft_jax.sample.draw import Sampling
from sft_jax.sample.generate import generator_of
from sft_jax.weights.pretrained import Pretrained


@dataclass(frozen=True)
class Rows:
    """Held-out rows as documents with trained tokens, and as tasks; either may be empty."""

    examples: tuple[Example, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Measured:
    """Results of one model on the rows."""

    losses: list[DocumentLoss]
    completions: list[Answer]
    scores: list[Scores]


def read_tasks(data: Data, files: tuple[str, ...], most: int = 0) -> tuple[Task, ...]:
    """The first `most` rows as tasks (0: all); rows without a prompt (text, tokens) are skipped.

    Raises:
      BadInput: a row in no known form unless data.bad_rows is "skip", or a question whose accepted answers are missing.
    """
    tasks: list[Task] = []
    for record in read_records(files):
        try:
            tasks += _tasks(record, data)
        except BadRow:
            if data.bad_rows == "error":
                raise
        if most and len(tasks) >= most:
            return tuple(tasks[:most])
    return tuple(tasks)


def _tasks(record: Record, data: Data) -> list[Task]:
    return [bfcl_task(record)] if is_bfcl(record.value) else tasks_of(record, data)


def has_demonstrations(data: Data, files: tuple[str, ...]) -> bool:
    """Whether the rows demonstrate answers, judged by the first one; bare prompts and BFCL questions do not."""
    record = next(iter(read_records(files)))
    if is_bfcl(record.value):
        return False
    tasks = tasks_of(record, data)
    earlier = any(message["role"] == "assistant" for task in tasks for message in task.messages)
    return not tasks or earlier or any(task.demonstration is not None for task in tasks)


def evaluate(
    rows: Rows,
    pretrained: Pretrained,
    architecture: Architecture,
    parameters: Mapping[str, jax.Array],
    compute: Compute,
    sampling: Sampling,
    checks: Sequence[Check],
    batch_size: int,
) -> Measured:
    """Losses of the documents, and completions of the tasks with their scores.

    Raises:
      BadInput: a prompt that leaves no room for a completion, or a row that a check cannot score.
    """
    losses = document_losses(architecture, compute, parameters, rows.examples, batch_size) if rows.examples else []
    if not rows.tasks:
        return Measured(losses, [], [])
    prompts = prompts_of(rows.tasks, pretrained, architecture, sampling.max_new_tokens)
    generator = generator_of(pretrained, architecture, compute, batch_size)
    made = complete(generator, parameters, pretrained.tokenizer, prompts, sampling)
    completions = [one for [one] in made]
    return Measured(losses, completions, check_answers(rows.tasks, completions, checks))


def summary(rows: Rows, found: Measured) -> dict[str, Any]:
    """`held_out` (loss and its parts), `scores` (name -> Interval), `register` and `register_demonstrated`."""
    about: dict[str, Any] = {}
    if found.losses:
        about["held_out"] = summarise_losses(found.losses)
    if found.completions:
        about["scores"] = summarise(found.scores)
        about["register"] = register([one.text for one in found.completions])
        shown = [task.shown for task in rows.tasks if task.shown]
        if shown:
            about["register_demonstrated"] = register(shown)
    return about


def differences(a: Measured, b: Measured) -> dict[str, Interval]:
    """Difference a - b of each measure on the same rows, with paired bootstrap intervals; the loss as `loss`."""
    found = {}
    if a.losses and b.losses:
        found["loss"] = paired_difference(
            [one.nll for one in a.losses],
            [one.nll for one in b.losses],
            [one.weight for one in a.losses],
            [one.weight for one in b.losses],
        )
    names = dict.fromkeys(name for row in a.scores for name in row)
    for name in names:
        pairs = [
            (x, y)
            for one, other in zip(a.scores, b.scores, strict=True)
            if (x := one.get(name)) is not None and (y := other.get(name)) is not None
        ]
        if pairs:
            found[name] = paired_difference([x for x, _ in pairs], [y for _, y in pairs])
    return found


def check_prompts_exist(rows: Rows, file: str) -> None:
    """Raises BadInput if there is nothing to measure."""
    if not rows.examples and not rows.tasks:
        raise BadInput(f"{file}: nothing to measure: found no demonstrations and no prompts")
