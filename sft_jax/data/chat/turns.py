"""Locates the trained turns in a conversation's text, and finds what the template drops from them."""

from contextlib import suppress
from typing import Any

from sft_jax.data.chat.last_stop import ends_with_special
from sft_jax.data.chat.rendering import Template
from sft_jax.data.chat.spans import NoExactSpan, NoStop, Span, find_span, find_start
from sft_jax.data.chat.special_text import added_pattern, special_pattern, stops_pattern
from sft_jax.data.chat.template_coverage import losses, things_said
from sft_jax.data.chat.tokenizer import model_stops
from sft_jax.errors import BadRow

_LISTED = 80
"""Maximum length of the list of losses in a message."""


def turn_spans(
    template: Template,
    turns: list[int],
    wanted: list[int],
    trained: list[int],
    allow_lossy: bool,
    all_needed: bool,
) -> tuple[dict[int, Span], list[str]]:
    """Spans of the `wanted` assistant messages among `turns`, and what the template drops from the `trained` ones.

    A turn that is dropped completely has no span, since it would only teach the model to stop, except with
    `all_needed`, where text outside all spans trains.

    Raises:
      BadInput: a loss, unless `allow_lossy`; a turn that cannot be located exactly, unless it has losses.
    """
    lost = {i: losses(template.messages[i], template.whole) for i in trained}
    # Check losses first: otherwise dropped text would be reported as a turn that can't be located.
    if not allow_lossy:
        _refuse_losses(template, lost)
    spans: dict[int, Span] = {}
    finding = _marked_spans(template, turns) if wanted and template.marks else None
    for i in wanted:
        try:
            span = finding[i] if finding else _derived_span(template, i)
        except NoStop as error:
            if i + 1 == len(template.messages) and model_stops(template.tokenizer):
                span = error.span[0], len(template.whole)  # `encode` appends a stop token
            elif not allow_lossy or i not in lost:
                raise _no_span(template, i, error) from error
            else:
                span, lost[i] = error.span, [*lost[i], "the stop token"]
        except NoExactSpan as error:
            if not lost.get(i) or all_needed:
                raise _no_span(template, i, error) from error
            continue  # the rest of the turn cannot be located
        missing = losses(template.messages[i], template.whole[slice(*span)]) if i in lost else []
        if missing:
            lost[i] = list(dict.fromkeys([*lost[i], *missing]))
        if not missing or all_needed or len(missing) < things_said(template.messages[i]):
            spans[i] = span
    if not allow_lossy:
        _refuse_losses(template, lost)
    return spans, [_loss(template, i, parts) for i, parts in lost.items() if parts]


def is_open(template: Template, i: int) -> bool:
    """Whether the template ends assistant message `i`, the last one, without a stop token that the model has."""
    if not model_stops(template.tokenizer) or template.marks or ends_with_special(template.whole, template.tokenizer):
        return False
    try:
        _derived_span(template, i)
    except NoStop:
        return True
    except NoExactSpan:
        pass
    return False


def _loss(template: Template, i: int, parts: list[str]) -> str:
    shown = [parts[0]]
    for part in parts[1:]:
        if len(", ".join([*shown, part])) > _LISTED:
            break
        shown.append(part)
    more = f" and {len(parts) - len(shown)} more" if len(parts) > len(shown) else ""
    return f"{template.where}: messages[{i}] (assistant): the chat template drops {', '.join(shown)}{more}"


def _refuse_losses(template: Template, lost: dict[int, list[str]]) -> None:
    for i, parts in lost.items():
        if parts:
            raise BadRow(
                f"{_loss(template, i, parts)}, so it would not train ({template.name}). Use another template "
                "(data.chat_template), move it into content, or accept the loss (data.allow_lossy)."
            )


def _no_span(template: Template, i: int, error: NoExactSpan) -> BadRow:
    return BadRow(
        f"{template.where}: messages[{i}]: cannot locate the assistant's text exactly: {error} "
        f"({template.name}). Use a template with {{% generation %}} marks (data.chat_template)."
    )


def _derived_span(template: Template, i: int) -> Span:
    stops, added = special_pattern(template.tokenizer), added_pattern(template.tokenizer)
    ends = stops_pattern(template.tokenizer)
    return find_span(template.render, template.messages, i, template.whole, stops, added, ends)


def _marked_spans(template: Template, turns: list[int]) -> dict[int, Span]:
    """Spans of assistant messages from the template's generation marks, without the generation prompt and the white
    space after the stop token.

    Raises:
      BadInput: the number of marks differs from the number of turns.
    """
    marked = template.marked()
    if len(marked) != len(turns):  # a turn may be marked in pieces
        marked = _joined(marked)
    if len(marked) != len(turns):
        raise BadRow(
            f"{template.where}: the chat template marks {len(marked)} turns with {{% generation %}}, but the "
            f"conversation has {len(turns)} assistant messages"
        )
    return {i: _without_prompt(template, i, span) for i, span in zip(turns, marked, strict=True)}


def _without_prompt(template: Template, i: int, marked: Span) -> Span:
    """The marked span of assistant message `i`, from the end of the generation prompt through the stop token."""
    stops, added, whole = special_pattern(template.tokenizer), added_pattern(template.tokenizer), template.whole
    start, end = marked
    with suppress(NoExactSpan):  # then the mark is the start
        given = find_start(template.render, template.messages, i, whole, added)
        start = given if start < given <= end else start
    turn = whole[start:end].rstrip()
    found = list(stops.finditer(turn))
    if not found or found[-1].end() != len(turn):
        return start, end
    if len(found) > 1 and turn[found[-2].end() : found[-1].start()].isspace():
        with suppress(NoExactSpan):  # the last token may close the whole text (Phi-3)
            stop = _derived_span(template, i)[1]
            return start, stop if start < stop < start + len(turn) else start + len(turn)
    return start, start + len(turn)


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in spans:
        joined[-1:] = [(joined[-1][0], end)] if joined and joined[-1][1] == start else [*joined[-1:], (start, end)]
    return joined


def stop_in(text: str, span: Span, tokenizer: Any) -> Span | None:
    """The stop token that ends a turn."""
    stops = special_pattern(tokenizer).finditer(text, *span)
    return next((stop.span() for stop in stops if stop.end() == span[1]), None)
