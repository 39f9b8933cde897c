"""Encodes demonstrations as tokens and loss weights: one render, one tokenisation, character spans mapped to tokens."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sft_jax.data.chat.last_stop import appended_stop
from sft_jax.data.chat.render_process import Batch, Rendered, Request
from sft_jax.data.chat.rendering import RenderOptions, Template, request_for
from sft_jax.data.chat.spans import Span
from sft_jax.data.chat.special_text import (
    Tokens,
    encoded,
    special_ids,
    special_text_tokens,
    tokens_of,
)
from sft_jax.data.chat.strings import own_tokens, written_strings
from sft_jax.data.chat.tokenizer import offset_backend
from sft_jax.data.chat.turns import is_open, stop_in, turn_spans
from sft_jax.data.forms.demonstration import Conversation, Demonstration, Pair, PromptCompletion, Text
from sft_jax.data.forms.messages import TrainOn, turn_weights
from sft_jax.data.forms.template_kwargs import merged
from sft_jax.errors import BadInput, BadRow

DEFAULT = RenderOptions()


class Encoded(NamedTuple):
    """One document."""

    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; the weight of each token as a target, 0 if untrained."""
    lost: tuple[str, ...] = ()
    """What the chat template drops from trained turns, one message each; empty unless `allow_lossy`."""
    unused: tuple[str, ...] = ()
    """Template kwargs that the chat template never uses."""


class Written(NamedTuple):
    """One document before tokenisation: its text, and which characters train."""

    text: str
    places: list[tuple[Span, float]]
    """Character spans and the weights of their tokens; the last one wins if they overlap."""
    lost: tuple[str, ...] = ()
    """As in `Encoded`."""
    is_chat: bool = True
    """Rendered by a chat template, including all special tokens."""
    unused: tuple[str, ...] = ()
    """As in `Encoded`."""
    stop: tuple[int, float] | None = None
    """A stop token to append, which the chat template does not write, and its weight."""


def encode(
    where: str, demonstration: Demonstration, tokenizer: Any, train_on: TrainOn, options: RenderOptions = DEFAULT
) -> Encoded:
    """Tokens and loss weights of one demonstration: `write`, then `tokenise`.

    Raises:
      BadInput: as `write`.
    """
    return tokenise([write(where, demonstration, tokenizer, train_on, options)], tokenizer)[0]


class Ahead:
    """Renders conversations for `write` in the background."""

    def __init__(
        self,
        demonstrations: Iterable[Demonstration],
        tokenizer: Any,
        train_on: TrainOn,
        options: RenderOptions = DEFAULT,
    ):
        """Start rendering the conversations in `demonstrations`, which must outlive this object."""
        requests: dict[int, Request] = {}
        for one in demonstrations:
            parts = (one.chosen, one.rejected) if isinstance(one, Pair) else (one,)
            for part in parts:
                if isinstance(part, Conversation):
                    with suppress(BadInput, ValueError):  # `write` reports the error
                        turns = _turns("", part, "all" if len(parts) > 1 else train_on, options)[1]
                        kwargs = merged(options.template_kwargs, part.template_kwargs)
                        requests[id(part)] = request_for(
                            part.messages, part.tools, tokenizer, options.date, turns=turns, kwargs=kwargs
                        )
        self._places = {number: place for place, number in enumerate(requests)}
        self._batch = Batch(list(requests.values())) if requests else None

    def of(self, conversation: Conversation) -> Callable[[], Rendered] | None:
        """A function that returns its render; None if it was not submitted."""
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
    """Render a demonstration and mark what trains; every error message begins with `where`.

    A token trains when it overlaps a trained span of characters. A conversation is rendered whole by the tokenizer's
    own template and tokenised once. Prompt and completion strings are joined and tokenised once with the special
    tokens that the tokenizer adds; the completion and its EOS (appended if absent) train. A text trains entirely.
    Tokens are used unchanged. `train_on="all"` trains every token of any form.

    Differences from TRL's SFTTrainer: if a token straddles prompt and completion, TRL trains from the first token that
    differs from the prompt tokenised alone, which may come before the straddling token; TRL also trains what a template
    writes after the stop token (ChatML's newline), this doesn't. See docs/templates.md.

    Args:
      options: `rendering.render_options_of(config.data)`.
      ahead: created with this demonstration and the same other arguments.

    Raises:
      BadInput: no chat template, or a template that fails, drops something that should train, or allows no exact mask.
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
    text, places = written_strings(where, prompt, completion, tokenizer, train_on == "all", options)
    return Written(text, places, is_chat=False)


def _pair(where: str, pair: Pair, tokenizer: Any, options: RenderOptions, ahead: Ahead | None) -> Encoded:
    """Both documents concatenated. `weights` is 0 except at their last tokens, where the reward is read.

    The last token of the chosen one has weight 1, of the rejected one 1 + margin, as `losses/bradley_terry.py` expects.
    """
    written = [write(where, one, tokenizer, "all", options, ahead) for one in (pair.chosen, pair.rejected)]
    chosen, rejected = tokenise(written, tokenizer)
    if min(len(chosen.tokens), len(rejected.tokens)) < 2:
        raise BadRow(f"{where}: prompt and answer have one token, expected at least two")
    if np.array_equal(chosen.tokens, rejected.tokens):
        raise BadRow(f"{where}: chosen and rejected have the same tokens, so neither can be preferred")
    weights = np.zeros(len(chosen.tokens) + len(rejected.tokens), np.float32)
    weights[len(chosen.tokens) - 1], weights[-1] = 1.0, 1.0 + pair.margin
    unused = tuple(dict.fromkeys(chosen.unused + rejected.unused))
    return Encoded(np.concatenate([chosen.tokens, rejected.tokens]), weights, chosen.lost + rejected.lost, unused)


def tokenise(documents: Sequence[Written | Encoded], tokenizer: Any) -> list[Encoded]:
    """Tokens and loss weights of documents. In batches, since the tokenizer then uses every core."""
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
            kept = slice(None) if is_chat else own_tokens(encoding, tokenizer)
            weights = _weights(tokens, one.places, special)[kept]
            made[k] = _stopped(Encoded(tokens.ids[kept], weights, one.lost, one.unused), one.stop)
    return [one for one in made if one is not None]


def _special(tokenizer: Any) -> frozenset[int]:
    return frozenset(special_ids(tokenizer).values())


def _stopped(encoded: Encoded, stop: tuple[int, float] | None) -> Encoded:
    """Append the stop token that the template does not write."""
    if stop is None:
        return encoded
    tokens = np.append(encoded.tokens, np.int32(stop[0]))
    return encoded._replace(tokens=tokens, weights=np.append(encoded.weights, np.float32(stop[1])))


def _conversation(
    where: str,
    conversation: Conversation,
    tokenizer: Any,
    train_on: TrainOn,
    options: RenderOptions,
    ahead: Ahead | None,
) -> Written | Encoded:
    """Render a conversation; assistant turns train from message `first` on."""
    weights, wanted = _turns(where, conversation, train_on, options)
    template = Template(
        where,
        conversation.messages,
        conversation.tools,
        tokenizer,
        options.date,
        turns=wanted,
        rendered=ahead.of(conversation) if ahead else None,
        kwargs=merged(options.template_kwargs, conversation.template_kwargs),
    )
    trained = [i for i in wanted if weights[i]]
    spans, lost = turn_spans(template, list(weights), wanted, trained, options.allow_lossy, train_on == "all")
    last = len(template.messages) - 1
    stop = None
    if weights.get(last) and options.end_of_turn and is_open(template, last):
        token = appended_stop(template.messages[last], tokenizer)
        stop = None if token is None else (token, weights[last])
    places: list[tuple[Span, float]] = [((0, len(template.whole)), 1.0)] if train_on == "all" else []
    for i, span in spans.items():
        places.append((span, weights[i]))
        end = None if options.end_of_turn else stop_in(template.whole, span, tokenizer)
        if end:
            places.append((end, 0.0))
    tokens = special_text_tokens(template, options.special_text)
    if tokens is not None:
        special = _special(tokenizer)
        return _stopped(Encoded(tokens.ids, _weights(tokens, places, special), tuple(lost), template.unused), stop)
    return Written(template.whole, places, tuple(lost), unused=template.unused, stop=stop)


def _turns(
    where: str, conversation: Conversation, train_on: TrainOn, options: RenderOptions
) -> tuple[dict[int, float], list[int]]:
    """Weight of every assistant message, and the messages whose spans are needed."""
    weights = turn_weights(where, conversation.messages, conversation.first, train_on)
    usual = 1.0 if train_on == "all" else 0.0
    return weights, [i for i, weight in weights.items() if weight != usual or (weight and not options.end_of_turn)]


def rendered(where: str, messages: list[dict[str, Any]], tokenizer: Any, options: RenderOptions = DEFAULT) -> str:
    """A conversation's text by the tokenizer's own template.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    kwargs = merged(options.template_kwargs, None)
    return Template(where, messages, None, tokenizer, options.date, kwargs=kwargs).whole


def generation_prompt(
    where: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
    options: RenderOptions = DEFAULT,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation with the generation prompt, rendered with the tokenizer's own template.

    Args:
      template_kwargs: the row's own.

    Raises:
      BadInput: no chat template, or one that fails on this conversation; begins with `where`.
    """
    kwargs = merged(options.template_kwargs, template_kwargs)
    template = Template(where, messages, tools, tokenizer, options.date, generation_prompt=True, kwargs=kwargs)
    tokens = special_text_tokens(template, options.special_text) or encoded(offset_backend(tokenizer), template.whole)
    return tokens.ids.tolist()


def _weights(tokens: Tokens, places: list[tuple[Span, float]], special: Collection[int]) -> np.ndarray:
    """float32 [tokens]: each token gets the weight of the last span in `places` that it overlaps, else 0.

    A token of `special` counts only if it begins inside the span: one that includes the white space after it (Phi-3's
    `<|assistant|>`) extends into the turn, although the model doesn't generate it.
    """
    starts, ends = tokens.offsets.T
    weights = np.zeros(len(starts), np.float32)
    for (start, end), weight in places:
        # A token without characters (a separate word-start marker) belongs to the span at its position.
        inside = (starts < end) & ((ends > start) | ((starts == ends) & (starts >= start)))
        for k in np.flatnonzero(inside & (starts < start)):
            inside[k] = tokens.ids[k] not in special
        weights[inside] = weight
    return weights
