"""What is asked of a model, and what is known of a good answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft_jax.config import Data
from sft_jax.data.forms.formats import (
    KNOWN_KEYS,
    Conversation,
    PromptCompletion,
    demonstrations,
    detect_format,
    record_id,
)
from sft_jax.data.forms.mapping import apply_function, parse_fields, rename
from sft_jax.data.forms.messages import check_messages, check_tools
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput, BadRow


@dataclass(frozen=True)
class Task:
    """One prompt, and what its row says of the answer."""

    where: str
    """demos.jsonl:17."""
    id: str
    messages: tuple[dict[str, Any], ...]
    """Before the assistant's turn; () for raw text."""
    prompt: str
    """Raw text; "" for messages."""
    tools: tuple[dict[str, Any], ...] | None
    demonstration: dict[str, Any] | None
    """The demonstrated assistant message; None where nobody shows one."""
    row: Mapping[str, Any]
    """The record as it stands in its file."""

    @property
    def shown(self) -> str:
        """The demonstrated text; "" where there is none."""
        content = (self.demonstration or {}).get("content")
        return content if isinstance(content, str) else ""


@dataclass(frozen=True)
class Answer:
    """What a model wrote for a task."""

    text: str
    """Without special tokens."""
    stopped: bool
    """A stop token ended it, not the limit."""
    tokens: int = 0
    """How many."""
    raw: str = ""
    """With special tokens: some families write tool calls with them."""


def task_of(record: Record, data: Data) -> Task:
    """The first trained assistant turn of a record as a task; a record that ends with the user's turn is one too.

    Raises:
      BadInput: a record that asks for nothing (text, tokens), or in no known form; names file:line.
    """
    value = record.value
    open_ended = _open_ended(record, data)
    if open_ended is not None:
        return open_ended
    made = demonstrations(record, data)
    if not made or not isinstance(made[0], Conversation | PromptCompletion):
        form = detect_format(record, data.format) if made else "a row that data.function left out"
        raise BadRow(
            f"{record.where}: {form} has no prompt that a model could answer. Expected messages, prompt and "
            "completion, question and answer, or another form with a prompt"
        )
    one = made[0]
    if isinstance(one, PromptCompletion):
        shown = {"role": "assistant", "content": one.completion}
        return Task(record.where, one.id or record.where, (), one.prompt, None, shown, value)
    turn = next((i for i, m in enumerate(one.messages) if i >= max(1, one.first) and m["role"] == "assistant"), None)
    if turn is None:
        raise BadRow(f"{record.where}: no assistant turn behind a user's, so there is nothing to compare with")
    tools = tuple(one.tools) if one.tools else None
    return Task(record.where, one.id or record.where, tuple(one.messages[:turn]), "", tools, one.messages[turn], value)


def sampled_task(record: Record, data: Data) -> Task:
    """A row of `sft-jax sample` as the task that its completions answer, with the demonstration that it carries."""
    task = task_of(record, data)
    shown = record.value.get("demonstration")
    return replace(task, demonstration={"role": "assistant", "content": shown}) if isinstance(shown, str) else task


def _open_ended(record: Record, data: Data) -> Task | None:
    """A record of a prompt alone: `messages` that end with the user, or `prompt` in a record of no form with an answer.

    Public data carry `prompt` beside a whole demonstration, and some repeat the answer in it: any form that the record
    has goes first. What is looked at is what `data.function` and `data.fields` make of the record.
    """
    where, row = record.where, record.value
    made = apply_function(record, data.function) if data.function else [record]
    if not made:
        return None
    paths = parse_fields(data.fields, KNOWN_KEYS)
    named = rename(made[0], paths) if paths else made[0]
    value, form = named.value, _form(named, data, tuple(paths))
    key = "messages" if form in ("messages", "") and "messages" in value else "prompt"
    given = value.get(key)
    if form not in ("", "text", "tokens", key) or not isinstance(given, str | list):
        return None
    if isinstance(given, str):
        if not given:
            raise BadInput(f"{where}: the prompt is empty")
        return Task(where, record_id(record), (), given, None, None, row) if key == "prompt" else None
    messages = check_messages(where, given, key)
    if messages[-1]["role"] == "assistant":
        return None
    tools = check_tools(where, value.get("tools"))
    return Task(where, record_id(record), tuple(messages), "", tuple(tools) if tools else None, None, row)


def _form(record: Record, data: Data, mapped: tuple[str, ...]) -> str:
    """The record's form; "" where it has none, or not the declared one."""
    try:
        return detect_format(record, data.format, mapped)
    except BadRow:
        return ""
