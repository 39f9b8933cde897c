"""Which characters of a rendered conversation an assistant must produce: found exactly, or refused.

A turn's span goes from the end of the generation prompt (the header that the template writes before the model speaks)
through the turn's stop token. Templates do not say where that is, so it is derived from further renders by the same
template, and each derivation is checked against the one true render before it counts:

1. Prefix renders: the render of the messages before a turn (with generation prompt) and through it, when each is a
   true string prefix of the whole render.
2. Where a template rewrites history, those are no prefixes. Then the turn is rendered with other words. Whatever comes
   out the same before and behind them, the template writes whatever the turn says: the header ends in the first part,
   where it leaves the generation prompt; the stop token stands in the second, where the render that ends with this
   turn has it too.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sft_jax.data.chat.template_coverage import REASONING

Span = tuple[int, int]
Messages = list[dict[str, Any]]
Render = Callable[..., list[str | None]]
"""`render(*conversations, generation_prompt=False)`: the template's text of each, or None where it refuses it."""
_MARKS = ("Qz0Q", "Zq1Z")
"""Words that stand in for a turn's own. Two, so that no text can begin or end like both."""
_QUESTION = {"role": "user", "content": "?"}


class NoExactSpan(Exception):
    """The template gives no way to tell exactly which characters are the assistant's; the message says why."""


class NoStop(NoExactSpan):
    """The span is known, but nothing in it makes the model stop."""

    def __init__(self, span: Span):
        super().__init__("the template ends the assistant's turn without a stop token, so the model would never stop")
        self.span = span


class Words(NamedTuple):
    """What surrounds a turn's own words."""

    before: int
    """Up to here the text does not depend on what the turn says."""
    behind: int
    """From here on it does not."""


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
      stops: matches the tokenizer's special tokens, one of which must end the turn. Where a template writes none, the
        special token that opens the next message is what the model must end with (GLM).
      added: matches the tokens that may open a message; None for `stops`.
      ends: matches those special tokens at which the model is stopped, where that is known; None for `stops`.

    Raises:
      NoStop: no stop token ends the turn, which ends the text or is followed by a message that opens with none.
      NoExactSpan: its place cannot be told exactly.
    """
    start = find_start(render, messages, i, whole, added or stops)
    through = whole if i + 1 == len(messages) else render(messages[: i + 1])[0]
    if through is None or not whole.startswith(through) or len(through) <= start:
        return start, _end(render, messages, i, whole, start, stops)
    turn = whole[start : len(through)].rstrip()
    found = list(stops.finditer(turn))
    stopped = bool(found) and found[-1].end() == len(turn)
    # The render may go on after the turn: a second stop token that closes the whole text (Phi-3), or a generation
    # prompt that nobody asked for (Llama 3's first template).
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
    """Where the generation prompt in front of assistant message `i` ends in `whole`.

    Args:
      added: matches the tokens that may open a message.

    Raises:
      NoExactSpan: it cannot be told exactly.
    """
    before = render(messages[:i], generation_prompt=True)[0] if i else None
    if before is not None and whole.startswith(before):
        return len(before)
    first = _words(render, messages, i, whole).before
    history = render(messages[:i])[0] if i else None
    if before is not None and history and whole.startswith(history) and before.startswith(history):
        # The generation prompt says more than the header in front of this turn (DeepSeek's "<think>\n").
        start = _whole_tokens(whole, before, min(_same(whole, before), first), added)
        if start > len(history):
            return start
    return _start_by_header(render, messages, i, whole, first, added)


def _start_by_header(render: Render, messages: Messages, i: int, whole: str, first: int, added: re.Pattern[str]) -> int:
    """Where history is rewritten: behind the last header before the turn's `first` own character."""
    header = _header(render, messages, added)
    opening = added.match(header)
    at = whole.rfind(opening[0] if opening else header, 0, first) if header else -1
    if at < 0:
        raise NoExactSpan(
            "what stands before this turn is neither the render of the messages before it nor a generation prompt"
        )
    same = min(_same(whole[at:], header), first - at)
    start = _whole_tokens(whole, whole[:at] + header, at + same, added)
    if opening is None and same < len(header):
        raise NoExactSpan("only a part of the generation prompt stands before this turn")
    # It must be this turn's header: behind everything that the message before depends on.
    if start <= at or (i and at < _words(render, messages, i - 1, whole).behind):
        raise NoExactSpan("the template writes no header between this turn and the message before it")
    return start


def _header(render: Render, messages: Messages, added: re.Pattern[str]) -> str:
    """What the generation prompt is for this template; empty where it writes none."""
    users = [k for k, message in enumerate(messages) if message["role"] == "user"]
    asked = messages[: users[-1] + 1] if users else [*messages, _QUESTION]
    [plain], [prompted] = render(asked), render(asked, generation_prompt=True)
    if plain is None or prompted is None:
        return ""
    return prompted[_whole_tokens(plain, prompted, _same(plain, prompted), added) :]


def _end(render: Render, messages: Messages, i: int, whole: str, start: int, stops: re.Pattern[str]) -> int:
    following = messages
    if i + 1 == len(messages):  # what follows a last turn is told apart from what closes the text
        following = [*messages, _QUESTION]
    longer = whole if following is messages else render(following)[0]
    if longer is None:
        raise NoExactSpan("the template writes several stop tokens and takes no further message to tell them apart")
    behind = _words(render, following, i, longer).behind
    last, k = messages[: i + 1], i
    [alone] = render(last)
    if alone is None:  # some templates want a user turn somewhere
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
    """Length of what belongs to a turn in `after`, the text behind it mid-conversation; `closing` is the text behind
    it at the end of one.

    Args:
      bare: nothing but white space may stand between the turn's text and its stop token.
      prompted: `closing` may end in a generation prompt, so that it shares the start of a header with `after`.
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
            return first.end()  # a turn in the history stops with another token than the last one (gpt-oss)
    raise NoExactSpan("what ends this turn in the conversation is not what ends it at the end of one")


def _words(render: Render, messages: Messages, i: int, whole: str) -> Words:
    """What of `whole`, the render of `messages`, stays as it is whatever message `i` says."""
    others: list[tuple[str, Messages]] = []
    for mark in _MARKS:
        for edit in (lambda text, mark=mark: mark + text + mark, lambda _, mark=mark: mark):
            others.append((mark, [*messages[:i], _edited(messages[i], edit), *messages[i + 1 :]]))
    before, behind = len(whole), 0
    for (mark, _), text in zip(others, render(*(other for _, other in others)), strict=True):
        if text is None or mark not in text:
            raise NoExactSpan("the template does not render the turn when it says something else")
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
    """Length of what two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: comparing slices is far quicker than comparing characters
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _whole_tokens(one: str, other: str, end: int, stops: re.Pattern[str]) -> int:
    """`end`, or the start of the special token that it would cut in either text."""
    for text in (one, other):
        end = next((m.start() for m in stops.finditer(text) if m.start() < end < m.end()), end)
    return end
