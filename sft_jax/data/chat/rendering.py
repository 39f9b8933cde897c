"""Renders a conversation with the tokenizer's own chat template.

transformers runs templates in Jinja's sandbox, without access to Python internals. Here they also run in a process with
limits on time and memory (`render_process`), and print the run's date instead of today's.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from sft_jax.config import Data
from sft_jax.data.chat.render_process import (
    Batch,
    Beginning,
    OverLimit,
    Rendered,
    Request,
    Settings,
    TemplateFails,
    render,
)
from sft_jax.errors import BadInput, BadRow


@dataclass(frozen=True)
class RenderOptions:
    """How a conversation is rendered; see the fields of the same names in `config.Data`."""

    end_of_turn: bool = True
    allow_lossy: bool = False
    special_text: Literal["special", "text", "refuse"] = "special"
    date: str = ""
    """The date that templates print, YYYY-MM-DD; empty means today."""
    template_kwargs: tuple[str, ...] = ()
    """Template kwargs of the run; a row's own take precedence."""


def render_options_of(data: Data) -> RenderOptions:
    """The part of the config that rendering and masks depend on."""
    return RenderOptions(
        data.end_of_turn, data.allow_lossy, data.special_text, data.template_date, data.template_kwargs
    )


def request_for(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
    date: str = "",
    generation_prompt: bool = False,
    turns: Sequence[int] = (),
    kwargs: dict[str, Any] | None = None,
) -> Request:
    """The request to `render_process`; see `Template`.

    Raises:
      ValueError: several named templates, none of them the default.
    """
    source = tokenizer.get_chat_template(tools=tools)
    marks = has_marks(source)
    beginnings: list[Beginning] = []
    for i in turns:
        beginnings += [(i, True)] if i else []
        beginnings += [(i + 1, False)] if i + 1 < len(messages) and not marks else []
    settings = Settings(source, tuple(tokenizer.special_tokens_map.items()), date)
    shown = _shown(messages, tokenizer, settings)
    return Request(settings, shown, tools, generation_prompt, tuple(beginnings), marks and bool(turns), kwargs)


@lru_cache(maxsize=16)
def has_marks(source: str) -> bool:
    """Whether a template marks assistant turns with `{% generation %}`."""
    return bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))


def _shown(messages: list[dict[str, Any]], tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """The messages as `apply_chat_template` passes them on, with content as parts if the template needs that."""
    if _wants_parts(settings):
        messages = [_in_parts(message) for message in messages]
    if not _deletes_nulls(tokenizer):
        return messages
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


@lru_cache(maxsize=16)
def _wants_parts(settings: Settings) -> bool:
    """Whether the template accepts content only as a list of parts (SmolVLM, LLaVA): it renders words given as a part,
    but not as a string."""
    words = {"user": "Qz2Q", "assistant": "Zq3Z"}
    talk = [{"role": role, "content": word} for role, word in words.items()]
    for parts in (False, True):
        try:
            text = render(Request(settings, [_in_parts(message) for message in talk] if parts else talk)).text
        except TemplateFails:
            continue
        except OverLimit:  # reported later, on the conversation itself
            return False
        if all(word in text for word in words.values()):
            return parts
    return False


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


@lru_cache(maxsize=4)
def _deletes_nulls(tokenizer: Any) -> bool:
    """Whether this transformers version drops null values of messages before rendering; 5.17 doesn't."""
    with_null = [{"role": "user", "content": None}]
    return tokenizer.apply_chat_template(with_null, chat_template="{{ messages[0] | length }}", tokenize=False) == "1"


class Template:
    """A conversation rendered with the tokenizer's chat template."""

    def __init__(
        self,
        where: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        tokenizer: Any,
        date: str = "",
        generation_prompt: bool = False,
        turns: Sequence[int] = (),
        rendered: Callable[[], Rendered] | None = None,
        kwargs: dict[str, Any] | None = None,
    ):
        """Render the conversation.

        Args:
          turns: assistant messages to locate later; their prefixes are rendered in the same request.
          rendered: returns the result of `request_for` with the same arguments.
          kwargs: template kwargs.

        Raises:
          BadInput: no chat template, or one that fails on this conversation or takes too much time or memory; begins
            with `where`.
        """
        self.where, self.messages, self.tools, self.tokenizer = where, messages, tools, tokenizer
        self.generation_prompt = generation_prompt
        if not tokenizer.chat_template:
            raise BadInput(
                f"{where}: the tokenizer has no chat template to render messages with. "
                "Set --data.chat-template to a Jinja file, or to generic for the one that ships with sft_jax; it is "
                "exported with the model."
            )
        if not messages:
            raise BadRow(f"{where}: the conversation has no messages")
        try:
            self._request = request_for(messages, tools, tokenizer, date, generation_prompt, turns, kwargs)
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from error
        self.source = self._request.settings.source
        self.marks = has_marks(self.source)
        self.whole, self._beginnings, self._marked, self.unused = self._render_whole(rendered)

    @property
    def name(self) -> str:
        """Identifies the template in error messages."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()[:8]
        origin = Path(self.tokenizer.name_or_path).name or "this tokenizer"
        return f"chat template {digest} of {origin}: {self.source[:22]!r}"

    def _render_whole(self, rendered: Callable[[], Rendered] | None) -> Rendered:
        problems = []
        for messages in _spellings(self.messages):
            request = self._request
            if messages is not self.messages:
                rendered, request = None, request._replace(messages=_shown(messages, self.tokenizer, request.settings))
            try:
                found = self._limited(rendered or partial(render, request))
            except TemplateFails as error:
                problems.append(error)
            else:
                self.messages = messages
                return found
        # Report the error on the original conversation, unless it is only about a null that the next attempt fills.
        null = any(message.get("content") is None for message in self.messages)
        raise BadRow(f"{self.where}: the chat template fails on this conversation: {problems[null]}")

    def render(self, *conversations: list[dict[str, Any]], generation_prompt: bool = False) -> list[str | None]:
        """Render several conversations; None for those that the template rejects."""
        asked = len(conversations[0]), generation_prompt
        if asked in self._beginnings and conversations == (self.messages[: asked[0]],):
            return [self._beginnings[asked]]
        settings, tools, kwargs = self._request.settings, self.tools, self._request.kwargs
        shown = [_shown(messages, self.tokenizer, settings) for messages in conversations]
        batch = Batch([Request(settings, messages, tools, generation_prompt, kwargs=kwargs) for messages in shown])
        texts: list[str | None] = []
        for place in range(len(shown)):
            try:
                texts.append(self._limited(partial(batch.result, place)).text)
            except TemplateFails:
                texts.append(None)
        return texts

    def _limited(self, rendered: Callable[[], Rendered]) -> Rendered:
        try:
            return rendered()
        except OverLimit as error:
            raise BadInput(
                f"{self.where}: the {self.name} {error} on this conversation. Use another template "
                "(data.chat_template)."
            ) from error

    def marked(self) -> list[tuple[int, int]]:
        """Spans of `whole` inside the template's `{% generation %}` marks; requires `turns`.

        Raises:
          BadInput: the template renders a different text with marks.
        """
        if self._marked is None or self._marked[0] != self.whole:
            raise BadInput(f"{self.where}: the chat template renders a different text with generation marks")
        return self._marked[1]


def _spellings(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages, followed by the variants that some templates need.

    transformers drops null content, and templates that concatenate it then fail: use "". Some concatenate tool-call
    arguments (DeepSeek) and fail on objects: use JSON text.
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
