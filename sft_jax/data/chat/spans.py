"""Which characters of a rendered conversation the assistant must produce: located exactly, or rejected.

A turn's span goes from the end of the generation prompt (the header before the model's text) through the turn's stop
token. Templates don't mark it, so it is derived from additional renders with the same template, and each derivation is
checked against the original render:

1. Prefixes: the messages before a turn (with generation prompt) and through it, if each renders to a string prefix of
   the whole text.
2. Substitution: if a template rewrites history, these aren't prefixes. Then the turn is rendered with other content.
   The text that stays the same before and after the content doesn't depend on it: the header ends in the first part,
   where it departs from the generation prompt; the stop token is in the second part, at the same place as in the render
   that ends with this turn.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sft_jax.data.chat.template_coverage import REASONING

Span = tuple[int, int]
Messages = list[dict[str, Any]]
Render = Callable[..., list[str | None]]
"""`render(*conversations, generation_prompt=False)`: the text of each, or None if the template rejects it."""
_MARKS = ("Qz0Q", "Zq1Z")
"""Placeholders for a turn's content. Two, so that no text can begin or end like both."""
_QUESTION = {"role": "user", "content": "?"}


class NoExactSpan(Exception):
    """The assistant's characters cannot be located exactly; the message says why."""


class NoStop(NoExactSpan):
    """The span is known, but it has no stop token."""

    def __init__(self, span: Span):
        super().__init__("the template ends the assistant's turn without a stop token, so the model would never stop")
        self.span = span


class Words(NamedTuple):
    """The boundaries of a turn's content."""

    before: int
    """Up to here the text doesn't depend on the turn's content."""
    behind: int
    """From here on it doesn't either."""


def find_span(
    render: Render,
    messages: Messages,
    i: int,
    whole: str,
    stops: re.Pattern[str],
    added: re.Pattern[str] | None = None,
    ends: re.Pattern[str] | None = None,
) -> Span:
    """Character span [start, end) of assistant message `i` in `whole`, the render of all `messages`.

    Args:
      stops: matches the tokenizer's special tokens, one of which must end the turn. If the template writes none, it is
        the special token that opens the next message (GLM).
      added: matches the tokens that may open a message; default: `stops`.
      ends: matches the special tokens that stop the model, if known; default: `stops`.

    Raises:
      NoStop: no stop token ends the turn, and no following message opens with one.
      NoExactSpan: the turn cannot be located exactly.
    """
    start = find_start(render, messages, i, whole, added or stops)
    through = whole if i + 1 == len(messages) else render(messages[: i + 1])[0]
    if through is None or not whole.startswith(through) or len(through) <= start:
        return start, _end(render, messages, i, whole, start, stops)
    turn = whole[start : len(through)].rstrip()
    found = list(stops.finditer(turn))
    stopped = bool(found) and found[-1].end() == len(turn)
    # More may follow the turn: a second stop token that closes the whole text (Phi-3), or an unrequested generation
    # prompt (Llama 3's first template).
    closes = len(through) == len(whole) and len(found) > 1 and turn[found[-2].end() : found[-1].start()].isspace()
    apart = closes and _words(render, messages, i, whole).behind <= start + found[-2].start()
    if apart or (
        (len(found) > 1 or not stopped) and found and render(messages[: i + 1], generation_prompt=True) == [through]
    ):
        return start, _end(render, messages, i, whole, start, stops)
    if stopped:
        return start, start + len(turn)
    opening = (ends or stops).match(whole, len(through))
    if not opening or _words(render, messages, i + 1, whole).before < opening.end():
        raise NoStop((start, start + len(turn)))
    return start, opening.end()


def find_start(render: Render, messages: Messages, i: int, whole: str, added: re.Pattern[str]) -> int:
    """End of the generation prompt before assistant message `i` in `whole`.

    Args:
      added: matches the tokens that may open a message.

    Raises:
      NoExactSpan: it cannot be located exactly.
    """
    before = render(messages[:i], generation_prompt=True)[0] if i else None
    if before is not None and whole.startswith(before):
        return len(before)
    first = _words(render, messages, i, whole).before
    history = render(messages[:i])[0] if i else None
    if before is not None and history and whole.startswith(history) and before.startswith(history):
        # The generation prompt is longer than this turn's header (DeepSeek's "<think>\n").
        start = _whole_tokens(whole, before, min(_same(whole, before), first), added)
        if start > len(history):
            return start
    return _start_by_header(render, messages, i, whole, first, added)


def _start_by_header(render: Render, messages: Messages, i: int, whole: str, first: int, added: re.Pattern[str]) -> int:
    """For rewritten history: the end of the last header before `first`, the turn's first own character."""
    header = _header(render, messages, added)
    opening = added.match(header)
    at = whole.rfind(opening[0] if opening else header, 0, first) if header else -1
    if at < 0:
        raise NoExactSpan(
            "the text before this turn is neither the render of the messages before it nor a generation prompt"
        )
    same = min(_same(whole[at:], header), first - at)
    start = _whole_tokens(whole, whole[:at] + header, at + same, added)
    if opening is None and same < len(header):
        raise NoExactSpan("only a part of the generation prompt precedes this turn")
    # It must be this turn's header: after everything that depends on the previous message.
    if start <= at or (i and at < _words(render, messages, i - 1, whole).behind):
        raise NoExactSpan("the template writes no header between this turn and the message before it")
    return start


def _header(render: Render, messages: Messages, added: re.Pattern[str]) -> str:
    """The template's generation prompt; empty if it writes none."""
    users = [k for k, message in enumerate(messages) if message["role"] == "user"]
    asked = messages[: users[-1] + 1] if users else [*messages, _QUESTION]
    [plain], [prompted] = render(asked), render(asked, generation_prompt=True)
    if plain is None or prompted is None:
        return ""
    return prompted[_whole_tokens(plain, prompted, _same(plain, prompted), added) :]


def _end(render: Render, messages: Messages, i: int, whole: str, start: int, stops: re.Pattern[str]) -> int:
    following = messages
    if i + 1 == len(messages):  # to separate what follows a turn from what closes the text
        following = [*messages, _QUESTION]
    longer = whole if following is messages else render(following)[0]
    if longer is None:
        raise NoExactSpan("the template writes several stop tokens and accepts no further message to distinguish them")
    behind = _words(render, following, i, longer).behind
    last, k = messages[: i + 1], i
    [alone] = render(last)
    if alone is None:  # some templates require a user turn
        last, k = [_QUESTION, *last], i + 1
        [alone] = render(last)
    if alone is None:
        raise NoExactSpan("the template cannot render a conversation that ends with this turn")
    closing = alone[_words(render, last, k, alone).behind :]
    prompted = render(last, generation_prompt=True) == [alone]
    end = behind + _stop(longer[behind:], closing, stops, not messages[i].get("tool_calls"), prompted)
    if behind < start or longer[:end] != whole[:end]:
        raise NoExactSpan("the turn is rendered differently when another message follows it")
    return end


def _stop(after: str, closing: str, stops: re.Pattern[str], bare: bool, prompted: bool) -> int:
    """Length of the part of `after` that belongs to a turn. `after` follows the turn in mid-conversation, `closing` at
    the end of a conversation.

    Args:
      bare: only white space may separate the turn's text and its stop token.
      prompted: `closing` may end in a generation prompt and so share the start of a header with `after`.
    """
    common = _same(after, closing)
    inside = {m.span() for m in stops.finditer(after)} & {
        m.span() for m in stops.finditer(closing) if m.end() <= common
    }
    if inside:
        first, last = min(inside), max(inside)
        if not closing[last[1] :].strip():
            return last[1]
        if bare and not closing[: first[0]].strip() and (first == last or prompted):
            return first[1]
    elif bare:
        first, last = stops.search(after), stops.search(closing)
        if first and last and not after[: first.start()].strip() and not closing[: last.start()].strip():
            return first.end()  # earlier turns end with a different stop token than the last (gpt-oss)
    raise NoExactSpan("this turn ends differently in mid-conversation and at the end of a conversation")


def _words(render: Render, messages: Messages, i: int, whole: str) -> Words:
    """The parts of `whole`, the render of `messages`, that don't depend on the content of message `i`."""
    others: list[tuple[str, Messages]] = []
    for mark in _MARKS:
        for edit in (lambda text, mark=mark: mark + text + mark, lambda _, mark=mark: mark):
            others.append((mark, [*messages[:i], _edited(messages[i], edit), *messages[i + 1 :]]))
    before, behind = len(whole), 0
    for (mark, _), text in zip(others, render(*(other for _, other in others)), strict=True):
        if text is None or mark not in text:
            raise NoExactSpan("the template does not render the turn with different content")
        before = min(before, _same(whole, text))
        behind = max(behind, len(whole) - _same(whole[::-1], text[::-1]))
    return Words(min(before, behind), behind)


def _edited(message: dict[str, Any], edit: Callable[[str], str]) -> dict[str, Any]:
    result = dict(message)
    for key in ("content", *REASONING):
        value = message.get(key)
        if isinstance(value, str) and (value or not message.get("tool_calls")):
            result[key] = edit(value)
        elif isinstance(value, list):
            result[key] = [{**part, "text": edit(part["text"])} if "text" in part else part for part in value]
    if message.get("tool_calls"):
        result["tool_calls"] = [
            {**call, "function": {**call["function"], "name": edit(call["function"]["name"])}}
            for call in message["tool_calls"]
        ]
    return result


def _same(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # bisection: comparing slices is much faster than comparing characters
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _whole_tokens(one: str, other: str, end: int, stops: re.Pattern[str]) -> int:
    """`end`, moved back to the start of a special token that it would cut in either text."""
    for text in (one, other):
        end = next((m.start() for m in stops.finditer(text) if m.start() < end < m.end()), end)
    return end
