"""Which characters of a rendered conversation an assistant must produce: found exactly, or refused.

A turn's span goes from the end of the generation prompt (the header that the template writes before the model speaks)
through the turn's stop token. Templates do not say where that is, so it is derived from further renders by the same
template, and each derivation is checked against the one true render before it counts:

1. a template with `{% generation %}` marks says it itself;
2. prefix renders: the render of the messages before a turn (with generation prompt) and through it, when each is a
   true string prefix of the whole render;
3. a literal render: the turn's content, or the name of its last tool call, replaced by a unique mark. Putting the
   text back must give the true render character for character; then the mark's place is the text's place, and what
   follows it in this render and in the render that ends with this turn tells where the turn stops.
"""

import re
from collections.abc import Callable
from typing import Any

Span = tuple[int, int]
Render = Callable[..., str | None]
"""`render(messages, generation_prompt=False)`: the template's text, or None where the template refuses them."""


class NoExactSpan(Exception):
    """The template gives no way to tell exactly which characters are the assistant's; the message says why."""


def find_span(render: Render, messages: list[dict[str, Any]], i: int, whole: str, stops: re.Pattern[str]) -> Span:
    """Character span [start, end) of assistant message `i` in `whole`, the render of all `messages`.

    Args:
      stops: matches the tokenizer's special tokens, one of which must end the turn.

    Raises:
      NoExactSpan: neither prefix renders nor a literal render locate the turn exactly.
    """
    start = _start(render, messages, i, whole)
    through = whole if i + 1 == len(messages) else render(messages[: i + 1])
    if through is None or not whole.startswith(through) or len(through) <= start:
        return start, _literal_end(render, messages, i, whole, start, stops)
    turn = whole[start : len(through)].rstrip()
    found = list(stops.finditer(turn))
    stopped = bool(found) and found[-1].end() == len(turn)
    if len(through) == len(whole) and found:
        apart = len(found) > 1 and turn[found[-2].end() : found[-1].start()].isspace()
        # The last render may go on after the turn: a second stop token that closes the whole text (Phi-3), or a
        # generation prompt that nobody asked for (Llama 3's first template).
        if apart or ((len(found) > 1 or not stopped) and render(messages, generation_prompt=True) == whole):
            return start, _literal_end(render, messages, i, whole, start, stops)
    if not stopped:
        raise NoExactSpan("the template ends the assistant's turn without a stop token, so the model would never stop")
    return start, start + len(turn)


def _start(render: Render, messages: list[dict[str, Any]], i: int, whole: str) -> int:
    before = render(messages[:i], generation_prompt=True) if i else None
    if before is not None and whole.startswith(before):
        return len(before)
    text = messages[i].get("content")
    if not text:
        raise NoExactSpan("the render of the messages before this turn is not how the whole conversation begins")
    at, _ = _locate(render, messages, i, whole, "content", text)
    if before is not None and before[:at] == whole[:at]:
        return at  # the generation prompt says more than the header in front of this turn (DeepSeek's "<think>")
    prompted = render(messages, generation_prompt=True)
    opening = prompted[len(whole) :] if prompted is not None and prompted.startswith(whole) else ""
    if opening and whole[:at].endswith(opening):
        return at  # the generation prompt itself stands in front of the content
    raise NoExactSpan(
        "what stands before this turn is neither the render of the messages before it nor a generation prompt"
    )


def _locate(
    render: Render, messages: list[dict[str, Any]], i: int, whole: str, field: str, text: str
) -> tuple[int, str]:
    """Where `text`, the `field` of message `i`, begins in `whole`, and what follows it there."""
    mark = "Qz0"
    while any(mark in known for known in (whole, text)):
        mark += "Qz0"
    marked = render(_replaced(messages, i, field, mark))
    if marked is None or mark not in marked:
        raise NoExactSpan(f"the template does not render this turn's {field}")
    trims = (text, text.strip(), text.lstrip(), text.rstrip(), text.strip("\n"), text.lstrip("\n"))
    for shown in dict.fromkeys(trims):  # templates may trim what they render
        if marked.replace(mark, shown) == whole:
            at = marked.index(mark)
            return at, marked[at + len(mark) :].replace(mark, shown)
    raise NoExactSpan(f"the template renders this turn differently depending on its {field}")


def _replaced(messages: list[dict[str, Any]], i: int, field: str, mark: str) -> list[dict[str, Any]]:
    message = dict(messages[i])
    if field == "content":
        message["content"] = mark
    else:
        *calls, last = message["tool_calls"]
        message["tool_calls"] = [*calls, {**last, "function": {**last["function"], "name": mark}}]
    return [*messages[:i], message, *messages[i + 1 :]]


def _literal_end(
    render: Render, messages: list[dict[str, Any]], i: int, whole: str, start: int, stops: re.Pattern[str]
) -> int:
    calls = messages[i].get("tool_calls")
    text = calls[-1]["function"]["name"] if calls else messages[i].get("content")
    field = "tool call" if calls else "content"
    if not text:
        raise NoExactSpan("the turn is empty and the template renders it differently at the end of a conversation")
    following = messages
    if i + 1 == len(messages):  # what follows a last turn is told apart from what closes the text
        following = [*messages, {"role": "user", "content": "?"}]
    longer = whole if following is messages else render(following)
    if longer is None:
        raise NoExactSpan("the template writes several stop tokens and takes no further message to tell them apart")
    at, after = _locate(render, following, i, longer, field, text)
    last = messages[: i + 1]
    alone = render(last)
    if alone is None:
        raise NoExactSpan("the template cannot render a conversation that ends with this turn")
    _, closing = _locate(render, last, i, alone, field, text)
    end = (
        len(longer)
        - len(after)
        + _stop(after, closing, stops, not calls, prompted=render(last, generation_prompt=True) == alone)
    )
    if at < start or longer[:end] != whole[:end]:
        raise NoExactSpan("the turn is rendered differently when another message follows it")
    return end


def _stop(after: str, closing: str, stops: re.Pattern[str], bare: bool, prompted: bool) -> int:
    """Length of what belongs to a turn in `after`, the text behind it mid-conversation; `closing` is the text behind
    it at the end of one.

    Args:
      bare: nothing but white space may stand between the turn's text and its stop token.
      prompted: `closing` may end in a generation prompt, so that it shares the start of a header with `after`.
    """
    pairs = enumerate(zip(after, closing, strict=False))
    common = next((k for k, (a, b) in pairs if a != b), min(len(after), len(closing)))
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
