"""A conversation through the tokenizer's own chat template: somebody else's program, so it is fenced in.

transformers compiles templates in Jinja's sandbox, where they reach no Python internals. Here they also get a process
with limits on time and memory (`render_process`), and the date that they print is the run's, not the day's.
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
    """How a conversation is read; see the fields of the same names in `config.Data`."""

    end_of_turn: bool = True
    allow_lossy: bool = False
    special_text: Literal["special", "text", "refuse"] = "special"
    date: str = ""
    """The day that templates print, YYYY-MM-DD; empty means today."""
    template_kwargs: tuple[str, ...] = ()
    """Values for the template besides the conversation; a row's own go first."""


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
    """What to ask `render_process` for; see `Template`.

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
    """Whether a template says by `{% generation %}` what the assistant's part is."""
    return bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))


def _shown(messages: list[dict[str, Any]], tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """The messages as `apply_chat_template` hands them on, with parts for contents where the template wants those."""
    if _wants_parts(settings):
        messages = [_in_parts(message) for message in messages]
    if not _deletes_nulls(tokenizer):
        return messages
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


@lru_cache(maxsize=16)
def _wants_parts(settings: Settings) -> bool:
    """Whether the template reads contents as lists of parts alone (SmolVLM, LLaVA): it does not write words that it is
    given as a string, and writes them as a part."""
    words = {"user": "Qz2Q", "assistant": "Zq3Z"}
    talk = [{"role": role, "content": word} for role, word in words.items()]
    for parts in (False, True):
        try:
            text = render(Request(settings, [_in_parts(message) for message in talk] if parts else talk)).text
        except TemplateFails:
            continue
        except OverLimit:  # on the conversation itself, that is an error with a name
            return False
        if all(word in text for word in words.values()):
            return parts
    return False


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


@lru_cache(maxsize=4)
def _deletes_nulls(tokenizer: Any) -> bool:
    """Whether this transformers deletes the null values of messages before it renders them; 5.17 does not."""
    with_null = [{"role": "user", "content": None}]
    return tokenizer.apply_chat_template(with_null, chat_template="{{ messages[0] | length }}", tokenize=False) == "1"


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
        turns: Sequence[int] = (),
        rendered: Callable[[], Rendered] | None = None,
        kwargs: dict[str, Any] | None = None,
    ):
        """Render the conversation.

        Args:
          turns: assistant messages whose places will be looked for: what this needs first is rendered along.
          rendered: gives what has been made of `request_for` the same arguments.
          kwargs: what the template is given besides.

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
            raise BadRow(f"{where}: a conversation without a message")
        try:
            self._request = request_for(messages, tools, tokenizer, date, generation_prompt, turns, kwargs)
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from error
        self.source = self._request.settings.source
        self.marks = has_marks(self.source)
        self.whole, self._beginnings, self._marked, self.unused = self._render_whole(rendered)

    @property
    def name(self) -> str:
        """Which template this is, for messages."""
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
        # The first is about the conversation as it was given; that a null is missing says less than what comes next.
        null = any(message.get("content") is None for message in self.messages)
        raise BadRow(f"{self.where}: the chat template fails on this conversation: {problems[null]}")

    def render(self, *conversations: list[dict[str, Any]], generation_prompt: bool = False) -> list[str | None]:
        """What the template makes of each of some conversations, None where it refuses it."""
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
        """Spans of `whole` inside the template's `{% generation %}` marks; of a template that was made with `turns`.

        Raises:
          BadInput: asked for marks, the template renders another text.
        """
        if self._marked is None or self._marked[0] != self.whole:
            raise BadInput(f"{self.where}: the chat template renders another text when asked for its marks")
        return self._marked[1]


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
