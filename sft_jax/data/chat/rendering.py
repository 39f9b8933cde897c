"""A conversation through the tokenizer's own chat template: somebody else's program, so it is fenced in.

transformers compiles templates in Jinja's sandbox, where they reach no Python internals. Here they also get a time
limit, and the date that they print is the run's, not the day's.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date as Date
from typing import Any, Literal

from sft_jax.config import Data
from sft_jax.data.chat.time_limit import Overdue, TimeLimit
from sft_jax.errors import BadInput, BadRow

SECONDS = 10.0
"""A template that renders one conversation longer than this is refused; real ones take milliseconds.

One long operation of the interpreter (`'a' * 10**12`) is not interrupted.
"""
_FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a chat template can raise besides Jinja's own errors."""


@dataclass(frozen=True)
class Policy:
    """How a conversation is read; see the fields of the same names in `config.Data`."""

    end_of_turn: bool = True
    allow_lossy: bool = False
    special_text: Literal["special", "text", "refuse"] = "special"
    date: str = ""
    """The day that templates print, YYYY-MM-DD; empty means today."""


def policy_of(data: Data) -> Policy:
    """The part of the config that rendering and masks depend on."""
    return Policy(data.end_of_turn, data.allow_lossy, data.special_text, data.template_date)


class Template:
    """One conversation, the tokenizer's chat template, and the one true render of the two."""

    def __init__(
        self,
        where: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        tokenizer: Any,
        date: str = "",
        generation_prompt: bool = False,
    ):
        """Render the conversation.

        Raises:
          BadInput: no chat template, or one that fails on this conversation or takes too long; begins with `where`.
        """
        self.where, self.messages, self.tools, self.tokenizer, self.date = where, messages, tools, tokenizer, date
        self.generation_prompt = generation_prompt
        if not tokenizer.chat_template:
            raise BadInput(
                f"{where}: the tokenizer has no chat template to render messages with. "
                "Set --data.chat-template to a Jinja file, or to generic for the one that ships with sft_jax; it is "
                "exported with the model."
            )
        try:
            self.source: str = tokenizer.get_chat_template(tools=tools)
        except ValueError as error:  # several named templates, none of them the default
            raise BadInput(f"{where}: {error}") from error
        self.marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))
        self.whole = self._render_whole()

    @property
    def name(self) -> str:
        """Which template this is, for messages."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()[:8]
        return f"chat template {digest} of {self.tokenizer.name_or_path or 'this tokenizer'}: {self.source[:60]!r}"

    def _render_whole(self) -> str:
        problems = []
        for messages in _spellings(self.messages):
            text, problem = self._try(messages, self.generation_prompt)
            if text is not None:
                self.messages = messages
                return text
            problems.append(problem)
        # The first is about the conversation as it was given; that a null is missing says less than what comes next.
        null = any(message.get("content") is None for message in self.messages)
        raise BadRow(f"{self.where}: the chat template fails on this conversation: {problems[null]}")

    def render(self, messages: list[dict[str, Any]], generation_prompt: bool = False) -> str | None:
        """What the template makes of some messages, None where it refuses them."""
        return self._try(messages, generation_prompt)[0]

    def _try(self, messages: list[dict[str, Any]], generation_prompt: bool) -> tuple[str | None, str]:
        import jinja2

        try:
            with self._fenced():
                return self.tokenizer.apply_chat_template(
                    messages, tools=self.tools, tokenize=False, add_generation_prompt=generation_prompt
                ), ""
        except (jinja2.TemplateError, *_FAILURES) as error:
            return None, f"{type(error).__name__}: {error}"

    def marked(self) -> list[tuple[int, int]]:
        """Spans of `whole` inside the template's `{% generation %}` marks.

        Raises:
          BadInput: asked for marks, the template renders another text.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{key: value for key, value in m.items() if value is not None} for m in self.messages]
        render: Any = render_jinja_template  # typed as giving only the text; it gives the marks as well
        with self._fenced():
            texts, marks = render(
                [messages],
                tools=self.tools,
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        if texts[0] != self.whole:
            raise BadInput(f"{self.where}: the chat template renders another text when asked for its marks")
        return marks[0]

    @contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            with TimeLimit(SECONDS):
                if self.date:
                    with _dated(self.source, self.date):
                        yield
                else:
                    yield
        except Overdue as error:
            raise BadInput(
                f"{self.where}: the {self.name} does not come to an end within {SECONDS:g} s on this conversation. "
                "Use another template (data.chat_template)."
            ) from error


def _spellings(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages, then in the other ways that some templates need them.

    transformers deletes a null content, and templates that join it to a string then fail: give them "". Some join
    tool-call arguments to a string (DeepSeek), so they take no objects: give them JSON.
    """
    yield messages
    filled = messages
    if any(message.get("content") is None for message in messages):
        filled = [{**message, "content": message.get("content") or ""} for message in messages]
        yield filled
    if any(message.get("tool_calls") for message in messages):
        for base in [messages] if filled is messages else [messages, filled]:
            yield [_with_written_arguments(message) if message.get("tool_calls") else message for message in base]


def _with_written_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


@contextmanager
def _dated(source: str, day: str) -> Iterator[None]:
    """Within, the template's `strftime_now` tells `day`.

    transformers turns every value that a template is given into plain JSON, functions included, so the function cannot
    be handed over as an argument. It is set on the compiled template, which transformers keeps.
    """
    from transformers.utils import chat_template_utils

    names: Any = chat_template_utils._compile_jinja_template(source).globals  # this template's own, over the shared
    own, before = "strftime_now" in names.maps[0], names.get("strftime_now")
    names["strftime_now"] = Date.fromisoformat(day).strftime
    try:
        yield
    finally:
        if own:
            names["strftime_now"] = before
        else:
            del names["strftime_now"]
