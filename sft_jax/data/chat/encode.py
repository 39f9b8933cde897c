"""A record becomes tokens and loss weights: one render, one tokenisation, spans of characters mapped to tokens."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from sft_jax.data.chat.render_process import Batch, Rendered, Request
from sft_jax.data.chat.rendering import RenderOptions, Template, request_for
from sft_jax.data.chat.spans import NoExactSpan, NoStop, Span, find_span, find_start
from sft_jax.data.chat.special_text import (
    Tokens,
    added_pattern,
    encoded,
    special_ids,
    special_pattern,
    tokens_apart,
    tokens_of,
)
from sft_jax.data.chat.template_coverage import losses, things_said
from sft_jax.data.chat.tokenizer import offset_backend
from sft_jax.data.forms.formats import Conversation, Demonstration, Pair, PromptCompletion, Text
from sft_jax.data.forms.messages import message_weight
from sft_jax.errors import BadInput, BadRow

TrainOn = Literal["assistant", "last_assistant", "completion", "all"]
DEFAULT = RenderOptions()


class Encoded(NamedTuple):
    """One document."""

    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; the weight of a token as a target, 0 where it is not trained."""
    lost: tuple[str, ...] = ()
    """What the chat template leaves out of what should train, a message each; empty unless `allow_lossy`."""


class Written(NamedTuple):
    """One document before it is tokenised: its text, and which characters of it train."""

    text: str
    places: list[tuple[Span, float]]
    """Spans of characters and what their tokens weigh; the last one counts where they overlap."""
    lost: tuple[str, ...] = ()
    """As in `Encoded`."""
    is_chat: bool = True
    """A chat template has written it, with all special tokens that there are to be."""


def encode(
    where: str, demonstration: Demonstration, tokenizer: Any, train_on: TrainOn, options: RenderOptions = DEFAULT
) -> Encoded:
    """Tokens and loss weights of one demonstration: `write`, then `tokenise`.

    Raises:
      BadInput: as `write`.
    """
    return tokenise([write(where, demonstration, tokenizer, train_on, options)], tokenizer)[0]


class Ahead:
    """Conversations that are being rendered for `write` while this process does something else."""

    def __init__(
        self,
        demonstrations: Iterable[Demonstration],
        tokenizer: Any,
        train_on: TrainOn,
        options: RenderOptions = DEFAULT,
    ):
        """Begin with those among the demonstrations, which must live as long as this."""
        requests: dict[int, Request] = {}
        for one in demonstrations:
            parts = (one.chosen, one.rejected) if isinstance(one, Pair) else (one,)
            for part in parts:
                if isinstance(part, Conversation):
                    with suppress(BadInput, ValueError):  # `write` says what is wrong
                        turns = _turns("", part, "all" if len(parts) > 1 else train_on, options)[1]
                        requests[id(part)] = request_for(
                            part.messages, part.tools, tokenizer, options.date, turns=turns
                        )
        self._places = {number: place for place, number in enumerate(requests)}
        self._batch = Batch(list(requests.values())) if requests else None

    def of(self, conversation: Conversation) -> Callable[[], Rendered] | None:
        """Gives its render; None where it is not among them."""
        place = self._places.get(id(conversation))
        return None if place is None or self._batch is None else partial(self._batch.result, place)


def write(
    where: str,
    demonstration: Demonstration,
    tokenizer: Any,
    train_on: TrainOn,
    options: RenderOptions = DEFAULT,
    ahead: Ahead | None = None,
) -> Written | Encoded:
    """What a demonstration says and what of it trains; every message about it begins with `where`.

    A token trains when it overlaps a trained span of characters. A conversation is rendered whole by the tokenizer's
    own template and tokenised once. Prompt and completion strings are joined and tokenised once with the special
    tokens that the tokenizer adds; the completion and its EOS (appended if absent) train. A text trains wholly. Tokens
    are taken as they are. `train_on="all"` trains every token of any form.

    Differences from TRL's SFTTrainer: where a token straddles the boundary of prompt and completion, TRL trains from
    the first token at which the prompt, tokenised alone, differs, which may lie before the straddling token; and TRL
    trains what a template writes after the stop token (ChatML's newline), this does not. docs/templates.md has more.

    Args:
      options: `rendering.render_options_of(config.data)`.
      ahead: made with this demonstration, and the same other arguments.

    Raises:
      BadInput: no chat template, a template that fails, that loses what should be trained, or that does not tell
        exactly what the assistant says.
    """
    if isinstance(demonstration, Conversation):
        return _conversation(where, demonstration, tokenizer, train_on, options, ahead)
    if isinstance(demonstration, PromptCompletion):
        return _strings(where, demonstration.prompt, demonstration.completion, tokenizer, train_on, options)
    if isinstance(demonstration, Text):
        return _strings(where, "", demonstration.text, tokenizer, train_on, options)
    if isinstance(demonstration, Pair):
        return _pair(where, demonstration, tokenizer, options, ahead)
    weights = np.ones_like(demonstration.weights) if train_on == "all" else demonstration.weights
    return Encoded(demonstration.tokens, weights)


def _strings(
    where: str, prompt: str, completion: str, tokenizer: Any, train_on: TrainOn, options: RenderOptions
) -> Written:
    eos = tokenizer.eos_token
    if not eos:
        raise BadInput(f"{where}: the tokenizer has no EOS token, so the model could never learn to stop")
    if not completion.endswith(eos):
        completion += eos
    start = 0 if train_on == "all" else len(prompt)
    end = len(prompt) + len(completion)
    stop = [] if options.end_of_turn else [((end - len(eos), end), 0.0)]
    return Written(prompt + completion, [((start, end), 1.0), *stop], is_chat=False)


def _pair(where: str, pair: Pair, tokenizer: Any, options: RenderOptions, ahead: Ahead | None) -> Encoded:
    """Both documents behind one another: `weights` is 0 but at their last tokens, where the reward is read.

    The chosen one's end weighs 1 and the rejected one's 1 + margin; `losses/bradley_terry.py` reads them so.
    """
    written = [write(where, one, tokenizer, "all", options, ahead) for one in (pair.chosen, pair.rejected)]
    chosen, rejected = tokenise(written, tokenizer)
    if min(len(chosen.tokens), len(rejected.tokens)) < 2:
        raise BadRow(f"{where}: an answer of one token, expected at least two with the prompt")
    if np.array_equal(chosen.tokens, rejected.tokens):
        raise BadRow(f"{where}: chosen and rejected are the same tokens: nothing tells which is better")
    weights = np.zeros(len(chosen.tokens) + len(rejected.tokens), np.float32)
    weights[len(chosen.tokens) - 1], weights[-1] = 1.0, 1.0 + pair.margin
    return Encoded(np.concatenate([chosen.tokens, rejected.tokens]), weights, chosen.lost + rejected.lost)


def tokenise(documents: Sequence[Written | Encoded], tokenizer: Any) -> list[Encoded]:
    """Tokens and loss weights of documents; of many at once, because the tokenizer then uses every core."""
    made = [one if isinstance(one, Encoded) else None for one in documents]
    for is_chat in (True, False):
        written = [(k, one) for k, one in enumerate(documents) if isinstance(one, Written) and one.is_chat == is_chat]
        if not written:
            continue
        texts = [one.text for _, one in written]
        encodings = offset_backend(tokenizer).encode_batch(texts, add_special_tokens=not is_chat)
        special = _special(tokenizer) if is_chat else frozenset()
        for (k, one), encoding in zip(written, encodings, strict=True):
            tokens = tokens_of(encoding)
            count = len(tokens.ids) - (not is_chat and _appends_eos(encoding, tokenizer.eos_token_id))
            made[k] = Encoded(tokens.ids[:count], _weights(tokens, one.places, special)[:count], one.lost)
    return [one for one in made if one is not None]


def _special(tokenizer: Any) -> frozenset[int]:
    return frozenset(special_ids(tokenizer).values())


def _appends_eos(encoding: Any, eos: int) -> bool:
    """Whether the tokenizer has put its EOS behind the one that the text ends with."""
    return encoding.ids[-2:] == [eos, eos] and bool(encoding.special_tokens_mask[-1])


def _conversation(
    where: str,
    conversation: Conversation,
    tokenizer: Any,
    train_on: TrainOn,
    options: RenderOptions,
    ahead: Ahead | None,
) -> Written | Encoded:
    """A conversation, of which the assistant turns from message `first` on train."""
    weights, wanted = _turns(where, conversation, train_on, options)
    template = Template(
        where,
        conversation.messages,
        conversation.tools,
        tokenizer,
        options.date,
        turns=wanted,
        rendered=ahead.of(conversation) if ahead else None,
    )
    trained = [i for i in wanted if weights[i]]
    spans, lost = _turn_spans(template, list(weights), wanted, trained, options.allow_lossy, train_on == "all")
    places: list[tuple[Span, float]] = [((0, len(template.whole)), 1.0)] if train_on == "all" else []
    for i, span in spans.items():
        places.append((span, weights[i]))
        stop = None if options.end_of_turn else _stop_in(template.whole, span, tokenizer)
        if stop:
            places.append((stop, 0.0))
    tokens = tokens_apart(template, options.special_text)
    if tokens is not None:
        return Encoded(tokens.ids, _weights(tokens, places, _special(tokenizer)), tuple(lost))
    return Written(template.whole, places, tuple(lost))


def _turns(
    where: str, conversation: Conversation, train_on: TrainOn, options: RenderOptions
) -> tuple[dict[int, float], list[int]]:
    """Weight of every assistant message, and those whose places must be known."""
    weights = _turn_weights(where, conversation.messages, conversation.first, train_on)
    usual = 1.0 if train_on == "all" else 0.0
    return weights, [i for i, weight in weights.items() if weight != usual or (weight and not options.end_of_turn)]


def _turn_spans(
    template: Template, turns: list[int], wanted: list[int], trained: list[int], allow_lossy: bool, all_needed: bool
) -> tuple[dict[int, Span], list[str]]:
    """Spans of the `wanted` ones of the assistant messages `turns`, and what the template loses of those `trained`.

    A turn of which nothing is left has no span: it would only teach to stop. Unless `all_needed`: then what is in no
    span trains.

    Raises:
      BadInput: a loss, unless `allow_lossy`; a span that cannot be told exactly, unless of a turn with losses.
    """
    lost = {i: losses(template.messages[i], template.whole) for i in trained}
    # First: a template that drops a turn's text would be blamed for hiding where it stands.
    if not allow_lossy:
        _refuse_losses(template, lost)
    spans: dict[int, Span] = {}
    finding = _marked_spans(template, turns) if wanted and template.marks else None
    for i in wanted:
        try:
            span = finding[i] if finding else _derived_span(template, i)
        except NoStop as error:
            if not allow_lossy or i not in lost:
                raise _no_span(template, i, error) from error
            span, lost[i] = error.span, [*lost[i], "the stop token"]
        except NoExactSpan as error:
            if not lost.get(i) or all_needed:
                raise _no_span(template, i, error) from error
            continue  # what is left of the turn cannot be told from the rest
        missing = losses(template.messages[i], template.whole[slice(*span)]) if i in lost else []
        if missing:
            lost[i] = list(dict.fromkeys([*lost[i], *missing]))
        if not missing or all_needed or len(missing) < things_said(template.messages[i]):
            spans[i] = span
    if not allow_lossy:
        _refuse_losses(template, lost)
    return spans, [_loss(template, i, parts) for i, parts in lost.items() if parts]


def _loss(template: Template, i: int, parts: list[str]) -> str:
    return f"{template.where}: messages[{i}] (assistant): the chat template drops {', '.join(parts[:5])}"


def _refuse_losses(template: Template, lost: dict[int, list[str]]) -> None:
    for i, parts in lost.items():
        if parts:
            raise BadRow(
                f"{_loss(template, i, parts)}: it would never be trained ({template.name}). Use a template that "
                "renders it (data.chat_template), write it into content, or set data.allow_lossy to go without it."
            )


def _no_span(template: Template, i: int, error: NoExactSpan) -> BadRow:
    return BadRow(
        f"{template.where}: messages[{i}]: cannot tell exactly which characters of the chat template's text "
        f"are the assistant's: {error} ({template.name}). Use a template with {{% generation %}} marks "
        "(data.chat_template)."
    )


def _derived_span(template: Template, i: int) -> Span:
    stops, added = special_pattern(template.tokenizer), added_pattern(template.tokenizer)
    return find_span(template.render, template.messages, i, template.whole, stops, added)


def _marked_spans(template: Template, turns: list[int]) -> dict[int, Span]:
    """Spans of assistant messages by the template's own marks, less the generation prompt before a turn and the white
    space behind its stop token.

    Raises:
      BadInput: there are more or fewer marks than turns.
    """
    marked = template.marked()
    if len(marked) != len(turns):  # a turn may be marked in pieces
        marked = _joined(marked)
    if len(marked) != len(turns):
        raise BadRow(
            f"{template.where}: the chat template marks {len(marked)} turns with {{% generation %}}, the "
            f"conversation has {len(turns)} assistant messages: cannot tell which is which"
        )
    return {i: _less_given(template, i, span) for i, span in zip(turns, marked, strict=True)}


def _less_given(template: Template, i: int, marked: Span) -> Span:
    """The marked span of assistant message `i` from where its generation prompt ends, through its stop token."""
    stops, added, whole = special_pattern(template.tokenizer), added_pattern(template.tokenizer), template.whole
    start, end = marked
    with suppress(NoExactSpan):  # the marks say it themselves
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


def _stop_in(text: str, span: Span, tokenizer: Any) -> Span | None:
    """The stop token with which a turn ends."""
    stops = special_pattern(tokenizer).finditer(text, *span)
    return next((stop.span() for stop in stops if stop.end() == span[1]), None)


def rendered(where: str, messages: list[dict[str, Any]], tokenizer: Any, options: RenderOptions = DEFAULT) -> str:
    """A conversation's text by the tokenizer's own template.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    return Template(where, messages, None, tokenizer, options.date).whole


def generation_prompt(
    where: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
    options: RenderOptions = DEFAULT,
) -> list[int]:
    """Token ids of a conversation up to where the assistant speaks next, by the tokenizer's own template.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    template = Template(where, messages, tools, tokenizer, options.date, generation_prompt=True)
    tokens = tokens_apart(template, options.special_text) or encoded(offset_backend(tokenizer), template.whole)
    return tokens.ids.tolist()


def _turn_weights(where: str, messages: list[dict[str, Any]], first: int, train_on: TrainOn) -> dict[int, float]:
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
    return {i: message_weight(f"{where}: messages[{i}]", messages[i]) if i in trained else 0.0 for i in turns}


def _weights(tokens: Tokens, places: list[tuple[Span, float]], special: Collection[int]) -> np.ndarray:
    """float32 [tokens]: each token gets the weight of the last span in `places` that it overlaps, else 0.

    A token of `special` counts only where it begins inside: one that swallows white space behind it (Phi-3's
    `<|assistant|>`) reaches into the turn, yet the model is given it.
    """
    starts, ends = tokens.offsets.T
    weights = np.zeros(len(starts), np.float32)
    for (start, end), weight in places:
        # A token without characters (a word-start mark of its own) belongs where it stands.
        inside = (starts < end) & ((ends > start) | ((starts == ends) & (starts >= start)))
        for k in np.flatnonzero(inside & (starts < start)):
            inside[k] = tokens.ids[k] not in special
        weights[inside] = weight
    return weights
