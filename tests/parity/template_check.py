"""One conversation through one family: our ids and mask against transformers and trl's marked twin."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_jax.data.chat.encode import encode
from sft_jax.data.forms.formats import Conversation
from sft_jax.data.forms.messages import check_messages
from sft_jax.errors import BadInput
from tests.parity.template_cases import CASES, FAMILIES, Family, load

Span = tuple[int, int]
_EMPTY_THOUGHTS = ("<think>\n\n</think>\n\n", "<think></think>", "<think></think>\n")


@dataclass(frozen=True)
class Outcome:
    """What came of a conversation."""

    refusal: str = ""
    """Our reason; empty where ids and mask are verified."""
    mismatch: str = ""
    """What differs from the reference: a defect."""


def as_template_wants(
    messages: list[dict[str, Any]], strings: bool, filled: bool, parts: bool = False
) -> list[dict[str, Any]]:
    """What one calls `apply_chat_template` with: arguments as strings or as objects, null content left out or `filled`
    with an empty string, contents as strings or as `parts`."""
    result = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        if filled:
            message.setdefault("content", "")
        if parts and "content" in message:
            message["content"] = [{"type": "text", "text": message["content"]}]
        calls = []
        for call in message.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            if strings and not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            elif not strings and isinstance(arguments, str):
                arguments = json.loads(arguments)
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        result.append({**message, "tool_calls": calls} if calls else message)
    return result


def marked(tokenizer: Any, twin: str, messages: list[dict[str, Any]], tools: Any) -> tuple[str, list[Span]]:
    """The twin's text and the spans that it marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template
    texts, spans = render(
        [messages], tools=tools, chat_template=twin, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    return texts[0], [span for span in spans[0] if span[0] < span[1]]


def carried_over(text: str, spans: list[Span], stock: str) -> list[Span] | None:
    """Marks of the twin's text on the stock text, which in history has no think block where the twin writes one, and
    may keep newlines in front of the content that the twin strips there; None where more than that differs."""
    if text == stock:
        return spans
    pattern, at = "", 0
    for start, end in spans:
        block = text[start:end]
        shorter = {block.replace(thought, "", 1) for thought in _EMPTY_THOUGHTS} | {block}
        shorter |= {re.sub(r"(?s)<think>.*?</think>\s*", "", block, count=1)}
        choices = "|".join(re.escape(choice) for choice in sorted(shorter, key=len, reverse=True))
        pattern, at = pattern + re.escape(text[at:start]) + rf"(\n*(?:{choices}))", end
    found = re.fullmatch(pattern + re.escape(text[at:]), stock)
    return found and [found.span(k + 1) for k in range(len(spans))]


def by_our_convention(tokenizer: Any, family: Family, text: str, spans: list[Span]) -> list[Span]:
    """The twin's marks less what the model is given (headers) and less white space after the stop token.

    Pieces that touch are one turn, unless a header stands between. Phi's twin marks the EOS that closes the whole text
    too: not the turn's.
    """
    joined: list[Span] = []
    for start, end in spans:
        header = next(filter(None, (re.compile(h).match(text, start, end) for h in family.headers)), None)
        if joined and joined[-1][1] == start and not header:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((header.end() if header else start, end))
    stops = tuple(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
    result = []
    for start, end in joined:
        turn = text[start:end].rstrip()
        if family.stock.startswith("phi") and turn.endswith("<|end|>\n<|endoftext|>"):
            turn = turn[: -len("\n<|endoftext|>")]
        result.append((start, start + len(turn) if turn.endswith(stops) else end))
    return result


def reference(tokenizer: Any, text: str, spans: list[Span]) -> np.ndarray:
    """bool [tokens]: tokens that overlap a span; a special token only where it begins inside."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    mask = []
    for number, (start, end) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
        inside = [(a, b) for a, b in spans if max(a, start) < min(b, max(end, start + 1))]
        mask.append(any(number not in special or a <= start for a, _ in inside))
    return np.asarray(mask)


def examine(
    family: Family, messages: list[dict[str, Any]], tools: Any, tokenizer: Any, twin: str, by_marks: bool
) -> Outcome:
    """Encode a conversation and compare.

    Args:
      by_marks: the tokenizer's template is the twin itself, so that our spans come from its marks.
    """
    try:
        # Not through a row: an empty answer would be refused there, and templates are to be right about it as well.
        conversation = Conversation(check_messages("row:1", messages), tools)
        encoded = encode("row:1", conversation, tokenizer, "assistant")
    except BadInput as error:
        return Outcome(refusal=str(error))
    strings = family.string_arguments and not by_marks
    given = as_template_wants(messages, strings, family.needs_content, family.parts)
    whole = tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
    ids = tokenizer.apply_chat_template(given, tools=tools, return_dict=False)
    as_objects = as_template_wants(messages, False, family.needs_content, family.parts)
    text, spans = marked(tokenizer, twin, as_objects, tools)
    closing = next((stop for stop in family.stops if text.endswith(stop) and not whole.endswith(stop)), "")
    if closing:
        whole, ids = whole + closing, [*ids, tokenizer.convert_tokens_to_ids(closing)]
    if encoded.tokens.tolist() != ids:
        return Outcome(mismatch=f"ids: {tokenizer.decode(encoded.tokens)!r} reference {tokenizer.decode(ids)!r}")
    carried = carried_over(text, spans, whole)
    if carried is None:
        return Outcome(mismatch="the twin's text differs by more than empty think blocks: no reference")
    expected = reference(tokenizer, whole, by_our_convention(tokenizer, family, whole, carried))
    if ((encoded.weights > 0) != expected).any():
        ours, theirs = (_runs(tokenizer, ids, mask) for mask in (encoded.weights > 0, expected))
        return Outcome(mismatch=f"mask: {ours} reference {theirs}")
    return Outcome()


def _runs(tokenizer: Any, ids: list[int], mask: np.ndarray) -> list[str]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def outcomes(name: str, by_marks: bool = False) -> dict[str, Outcome]:
    """What becomes of every case in a family, by the stock template or by its marked twin."""
    family = FAMILIES[name]
    tokenizer, twin = load(family)
    if by_marks:
        tokenizer.chat_template = twin
    return {case: examine(family, *talk, tokenizer, twin, by_marks) for case, talk in CASES.items()}


LETTERS = {
    "R": r"the chat template drops .*its (reasoning_content|content \S*\b(A city|Hm))",
    "A": r"the chat template drops .*the (tool call|argument) ",
    "C": r"the chat template drops .*its content ",
    "T": r"the chat template fails on this conversation: (TemplateError|UndefinedError)",
    "S": r"ends the assistant's turn without a stop token",
    "X": r"cannot locate the assistant's text exactly|the chat template marks \d+ turns with",
}
"""What a refusal is about: reasoning, tool calls or content lost; the template itself refuses; no stop token; no exact
span."""


def cell(outcome: Outcome) -> str:
    """A cell of the table: a tick where verified, otherwise the letter of the refusal."""
    if not outcome.refusal:
        return "✓"
    return next(letter for letter, pattern in LETTERS.items() if re.search(pattern, outcome.refusal))


def row(name: str) -> str:
    """A family's line of the table in docs/templates.md: by the stock template, then by the marked twin if different.

    Raises:
      AssertionError: something is neither verified nor refused.
    """
    by_renders, by_marks = outcomes(name), outcomes(name, by_marks=True)
    for kind, found in (("renders", by_renders), ("marks", by_marks)):
        wrong = {case: outcome.mismatch for case, outcome in found.items() if outcome.mismatch}
        assert not wrong, f"{name}, by {kind}: {json.dumps(wrong, indent=1, ensure_ascii=False)[:4000]}"
    pairs = [(cell(by_renders[case]), cell(by_marks[case])) for case in CASES]
    counts = [sum(not o.refusal for o in found.values()) for found in (by_renders, by_marks)]
    cells = [one if one == other else f"{one}/{other}" for one, other in pairs]
    return f"| {name} | " + " | ".join([*map(str, counts), *cells]) + " |"


def table() -> str:
    """The head of the table and the key to its columns."""
    key = "\n".join(f"{k}. {case}" for k, case in enumerate(CASES, start=1))
    numbers = " | ".join(map(str, range(1, len(CASES) + 1)))
    return f"{key}\n\n| Family | ✓ stock | ✓ twin | {numbers} |\n|---|{'---|' * (len(CASES) + 2)}\n"
