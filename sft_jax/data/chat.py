"""A record becomes tokens and loss weights: one render, one tokenisation, spans of characters mapped to tokens."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from sft_jax.data.records import Format, Record, message_weight, read_tools, text_value, validate_messages
from sft_jax.data.spans import NoExactSpan, Span, find_span
from sft_jax.data.tokenizer import offset_backend
from sft_jax.errors import BadInput

TrainOn = Literal["assistant", "last_assistant", "completion", "all"]

_TEMPLATE_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a chat template can raise besides Jinja's own errors: it is a program that other people wrote."""
_REASONING = ("reasoning_content", "reasoning", "thinking")


class Encoded(NamedTuple):
    """One document."""

    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; the weight of a token as a target, 0 where it is not trained."""


def encode(record: Record, form: Format, tokenizer: Any, train_on: TrainOn) -> Encoded:
    """Tokens and loss weights of one record.

    A token trains when it overlaps a trained span of characters. `messages` are rendered whole by the tokenizer's own
    template and tokenised once. `prompt` and `completion` strings are joined and tokenised once with the special
    tokens that the tokenizer adds; the completion and its EOS (appended if absent) train. `text` trains wholly.
    `train_on="all"` trains every token of any format.

    Differences from TRL's SFTTrainer: where a token straddles the boundary of prompt and completion, TRL trains from
    the first token at which the prompt, tokenised alone, differs, which may lie before the straddling token; and TRL
    trains what a template writes after the stop token (ChatML's newline), this does not.

    Raises:
      BadInput: a malformed record, no chat template, a template that fails, that loses what should be trained, or
        that does not tell exactly what the assistant says; names file:line.
    """
    if form == "text":
        return _strings(record, "", text_value(record, "text"), tokenizer, train_on)
    if form == "messages":
        return _conversation(record, validate_messages(record), 0, tokenizer, train_on)
    prompt, completion = record.value["prompt"], record.value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = validate_messages(record, "prompt")
        return _conversation(record, turns + validate_messages(record, "completion"), len(turns), tokenizer, train_on)
    return _strings(record, text_value(record, "prompt"), text_value(record, "completion"), tokenizer, train_on)


def _strings(record: Record, prompt: str, completion: str, tokenizer: Any, train_on: TrainOn) -> Encoded:
    eos = tokenizer.eos_token
    if not eos:
        raise BadInput(f"{record.where}: the tokenizer has no EOS token, so the model could never learn to stop")
    if not completion.endswith(eos):
        completion += eos
    encoding = offset_backend(tokenizer).encode(prompt + completion, add_special_tokens=True)
    count = len(encoding.ids)
    if (
        count > 1
        and encoding.special_tokens_mask[-1]
        and encoding.ids[-1] == encoding.ids[-2] == tokenizer.eos_token_id
    ):
        count -= 1  # the tokenizer appends EOS itself
    start = 0 if train_on == "all" else len(prompt)
    weights = _weights(encoding, [((start, len(prompt) + len(completion)), 1.0)])
    return Encoded(np.asarray(encoding.ids[:count], np.int32), weights[:count])


def _conversation(
    record: Record, messages: list[dict[str, Any]], first: int, tokenizer: Any, train_on: TrainOn
) -> Encoded:
    """Encode a conversation of which the assistant turns from message `first` on train."""
    template = _Template(record.where, messages, read_tools(record), tokenizer)
    weights = _turn_weights(record, messages, first, train_on)
    wanted = [i for i, weight in weights.items() if weight != (1.0 if train_on == "all" else 0.0)]
    trained = [i for i in wanted if weights[i]]
    for i in trained:  # first: a template that drops a turn's text would be blamed for hiding where it stands
        template.check_nothing_lost(i, template.whole)
    spans: dict[int, Span] = {}
    if wanted:
        spans = template.marked_spans(list(weights), wanted) if template.marks else template.derived_spans(wanted)
    for i in trained:
        template.check_nothing_lost(i, template.whole[slice(*spans[i])])
    encoding = offset_backend(tokenizer).encode(template.whole, add_special_tokens=False)
    everything = [((0, len(template.whole)), 1.0)] if train_on == "all" else []
    return Encoded(
        np.asarray(encoding.ids, np.int32),
        _weights(encoding, everything + [(spans[i], weights[i]) for i in wanted]),
    )


def rendered(where: str, messages: list[dict[str, Any]], tokenizer: Any) -> str:
    """A conversation's text by the tokenizer's own template.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    return _Template(where, messages, None, tokenizer).whole


def generation_prompt(
    where: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, tokenizer: Any
) -> list[int]:
    """Token ids of a conversation up to where the assistant speaks next, by the tokenizer's own template.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    text = _Template(where, messages, tools, tokenizer, generation_prompt=True).whole
    # The template writes BOS itself where the family has one.
    return list(offset_backend(tokenizer).encode(text, add_special_tokens=False).ids)


def _turn_weights(record: Record, messages: list[dict[str, Any]], first: int, train_on: TrainOn) -> dict[int, float]:
    """Weight of every assistant message, by index: 0 where it does not train."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = {i for i in turns if i >= first}
    if train_on == "last_assistant":
        trained &= set(turns[-1:])
    elif train_on == "completion":
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
        trained = {i for i in trained if i > last_user}
    elif train_on == "all":
        trained = set(turns)
    where = f"{record.where}: messages"
    return {i: message_weight(f"{where}[{i}]", messages[i]) if i in trained else 0.0 for i in turns}


def _weights(encoding: Any, spans: list[tuple[Span, float]]) -> np.ndarray:
    """float32 [tokens]: each token gets the weight of the last span in `spans` that it overlaps, else 0."""
    starts, ends = np.asarray(encoding.offsets, np.int64).reshape(-1, 2).T
    weights = np.zeros(len(starts), np.float32)
    for (start, end), weight in spans:
        # A token without characters (a word-start mark of its own) belongs where it stands.
        weights[(starts < end) & np.where(starts == ends, starts >= start, ends > start)] = weight
    return weights


@lru_cache(maxsize=4)
def _stop_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the tokenizer's special tokens, the longest first."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {tokenizer.eos_token} if tokenizer.eos_token else set()
    if not special:
        return re.compile(r"(?!)")
    return re.compile("|".join(re.escape(token) for token in sorted(special, key=lambda t: (-len(t), t))))


class _Template:
    """One conversation and the tokenizer's chat template."""

    def __init__(
        self,
        where: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        tokenizer: Any,
        generation_prompt: bool = False,
    ):
        self.where, self.messages, self.tools, self.tokenizer = where, messages, tools, tokenizer
        if not tokenizer.chat_template:
            raise BadInput(
                f"{where}: the tokenizer has no chat template to render messages with. "
                "Set data.chat_template to a Jinja file."
            )
        try:
            self.source: str = tokenizer.get_chat_template(tools=tools)
        except ValueError as error:  # several named templates, none of them the default
            raise BadInput(f"{where}: {error}") from error
        self.marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))
        self.whole = self._render_whole(generation_prompt)

    def _render_whole(self, generation_prompt: bool) -> str:
        text, problem = self._try(self.messages, generation_prompt)
        if text is None and any(message.get("content") is None for message in self.messages):
            # transformers deletes a null content, and templates that join it to a string then fail: give them "".
            self.messages = [{**message, "content": message.get("content") or ""} for message in self.messages]
            text, problem = self._try(self.messages, generation_prompt)
        if text is None:
            raise BadInput(f"{self.where}: the chat template fails on this conversation: {problem}")
        return text

    def _try(self, messages: list[dict[str, Any]], generation_prompt: bool = False) -> tuple[str | None, str]:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=self.tools, tokenize=False, add_generation_prompt=generation_prompt
            ), ""
        except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
            return None, f"{type(error).__name__}: {error}"

    def render(self, messages: list[dict[str, Any]], generation_prompt: bool = False) -> str | None:
        """What the template makes of some messages, None where it refuses them."""
        return self._try(messages, generation_prompt)[0]

    def derived_spans(self, wanted: list[int]) -> dict[int, Span]:
        """Spans of the `wanted` assistant messages, from the renders of a template without marks."""
        spans, stops = {}, _stop_pattern(self.tokenizer)
        for i in wanted:
            try:
                spans[i] = find_span(self.render, self.messages, i, self.whole, stops)
            except NoExactSpan as error:
                raise BadInput(
                    f"{self.where}: messages[{i}]: cannot tell exactly which characters of the chat template's text "
                    f"are the assistant's: {error}. Use a template with {{% generation %}} marks (data.chat_template)."
                ) from error
        return spans

    def marked_spans(self, turns: list[int], wanted: list[int]) -> dict[int, Span]:
        """Spans of assistant messages from a template's `{% generation %}` marks, less white space after a stop."""
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{key: value for key, value in m.items() if value is not None} for m in self.messages]
        render: Any = render_jinja_template  # typed as giving only the text; it gives the marks as well
        texts, marks = render(
            [messages],
            tools=self.tools,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        joined: list[Span] = []
        for start, end in marks[0]:  # a turn may be marked in pieces
            joined[-1:] = [(joined[-1][0], end)] if joined and joined[-1][1] == start else [*joined[-1:], (start, end)]
        if texts[0] != self.whole or len(joined) != len(turns):
            raise BadInput(
                f"{self.where}: the chat template marks {len(joined)} turns with {{% generation %}}, the "
                f"conversation has {len(turns)} assistant messages: cannot tell which is which"
            )
        spans = {}
        for i, (start, end) in zip(turns, joined, strict=True):
            turn = self.whole[start:end].rstrip()
            stopped = any(stop.end() == len(turn) for stop in _stop_pattern(self.tokenizer).finditer(turn))
            spans[i] = (start, start + len(turn)) if stopped else (start, end)
        return {i: spans[i] for i in wanted}

    def check_nothing_lost(self, i: int, shown: str) -> None:
        """Refuse a template that leaves out what message `i` should teach.

        Raises:
          BadInput: names what is missing from `shown`, the text of the turn.
        """
        message = self.messages[i]
        content = message.get("content") or ""
        # Templates may set a think block in the content anew, with other white space around it.
        parts = [("content", part.strip()) for part in re.split(r"</?think>", content)]
        parts += [(key, message[key].strip()) for key in _REASONING if isinstance(message.get(key), str)]
        lost = [f"its {name} {part[:40]!r}" for name, part in parts if part and part not in shown]
        calls = [call["function"] for call in message.get("tool_calls") or []]
        leaves = Counter(("tool call", json.dumps(call["name"])) for call in calls)
        for call in calls:
            leaves.update(("argument", leaf) for leaf in _leaves(call["arguments"]))
        for (name, written), times in leaves.items():
            leaf = json.loads(written)
            spellings = {str(leaf), written, json.dumps(leaf, ensure_ascii=False)}
            spellings |= {spelling[1:-1] for spelling in spellings if isinstance(leaf, str) and spelling[:1] == '"'}
            if max(shown.count(spelling) for spelling in spellings) < times:
                lost.append(f"the {name} {leaf!r}")
        if lost:
            raise BadInput(
                f"{self.where}: messages[{i}] (assistant): the chat template drops {', '.join(lost[:5])}: it would "
                "never be trained. Use a template that renders it (data.chat_template), or write it into content."
            )


def _leaves(value: Any) -> Iterator[str]:
    """The keys and values within, as JSON: Python takes True, 1 and 1.0 for one and the same."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield json.dumps(key)
            yield from _leaves(child)
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child)
    else:
        yield json.dumps(value)
