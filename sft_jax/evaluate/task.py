"""Evaluation tasks: a prompt, and what is known about a good answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft_jax.config import Data
from sft_jax.data.forms.formats import forms_of
from sft_jax.data.forms.prompts import prompts
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow


@dataclass(frozen=True)
class Task:
    """A prompt, and what its row says about the answer."""

    where: str
    """demos.jsonl:17."""
    id: str
    messages: tuple[dict[str, Any], ...]
    """Before the assistant's turn; () for raw text."""
    prompt: str
    """Raw text; "" for messages."""
    tools: tuple[dict[str, Any], ...] | None
    demonstration: dict[str, Any] | None
    """The demonstrated assistant message, if any."""
    row: Mapping[str, Any]
    """The record as read from the file."""
    template_kwargs: Mapping[str, Any] | None = None
    """The row's `chat_template_kwargs`."""

    @property
    def shown(self) -> str:
        """The demonstrated text; "" if there is none."""
        content = (self.demonstration or {}).get("content")
        return content if isinstance(content, str) else ""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a task."""

    text: str
    """Without special tokens."""
    stopped: bool
    """Whether it ended with a stop token rather than at the limit."""
    tokens: int = 0
    """Number of tokens."""
    raw: str = ""
    """With special tokens, which some families use for tool calls."""


def tasks_of(record: Record, data: Data) -> list[Task]:
    """The tasks in a record: its demonstrations up to the first trained turn, or a prompt-only record. None for records
    without a prompt (text, tokens, rows that data.function leaves out).

    Raises:
      BadInput: as `forms.prompts.prompts`; names file:line.
    """
    return [
        Task(
            record.where,
            one.id or record.where,
            tuple(one.messages),
            one.text,
            tuple(one.tools) if one.tools else None,
            one.shown,
            record.value,
            one.template_kwargs,
        )
        for one in prompts(record, data)
    ]


def task_of(record: Record, data: Data) -> Task:
    """The first task of a record.

    Raises:
      BadInput: as `tasks_of`, and if there is none.
    """
    found = tasks_of(record, data)
    if not found:
        forms = [form for _, form in forms_of(record, data) if form]
        what = forms[0] if forms else "a row that data.function leaves out"
        raise BadRow(
            f"{record.where}: {what} has no prompt to answer. Expected messages, prompt and completion, "
            "question and answer, or another form with a prompt"
        )
    return found[0]


def sampled_task(record: Record, data: Data) -> Task:
    """The task of a row written by `sft-jax sample`, with its demonstration."""
    task = task_of(record, data)
    shown = record.value.get("demonstration")
    return replace(task, demonstration={"role": "assistant", "content": shown}) if isinstance(shown, str) else task
