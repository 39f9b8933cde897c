"""Text in a message that looks like a special token. By default it becomes the token, as in transformers.

With `data.special_text="text"` it stays ordinary text, and only the template's own special tokens are special: the text
is cut at these, and the pieces in between are tokenised without special tokens. Each step is checked against the usual
render and tokenisation.
"""

import copy
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sft_jax.data.chat.rendering import Template
from sft_jax.data.chat.template_coverage import REASONING
from sft_jax.data.chat.tokenizer import model_stops, offset_backend
from sft_jax.errors import BadRow

Span = tuple[int, int]


class Tokens(NamedTuple):
    """A tokenised text."""

    ids: np.ndarray
    """int32 [length]."""
    offsets: np.ndarray
    """int64 [length, 2]: the characters of each token."""


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The tokenizer's special tokens and their ids."""
    return _special(tokenizer)[0]


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the tokenizer's special tokens, the longest first."""
    return _special(tokenizer)[1]


@lru_cache(maxsize=4)
def added_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches every token added to the vocabulary, special or not (DeepSeek's headers are not)."""
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return re.compile("|".join(re.escape(token) for token in _longest_first(added)) or "(?!)")


def stops_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the stop tokens of the tokenizer's model; None if they are unknown."""
    return _stops_pattern(tokenizer, model_stops(tokenizer))


@lru_cache(maxsize=4)
def _stops_pattern(tokenizer: Any, stops: tuple[int, ...]) -> re.Pattern[str] | None:
    named = [name for name, token in special_ids(tokenizer).items() if token in stops]
    return re.compile("|".join(map(re.escape, named))) if named else None


@lru_cache(maxsize=4)
def _special(tokenizer: Any) -> tuple[dict[str, int], re.Pattern[str]]:
    ids = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokenizer.eos_token:
        ids[tokenizer.eos_token] = tokenizer.eos_token_id
    return ids, re.compile("|".join(re.escape(token) for token in _longest_first(ids)) or "(?!)")


def _longest_first(tokens: dict[str, int]) -> list[str]:
    return sorted(tokens, key=lambda token: (-len(token), token))


def special_text_tokens(template: Template, policy: str) -> Tokens | None:
    """The tokens of a template's text if they differ from the usual tokenisation, else None.

    Args:
      policy: for text in messages that looks like a special token: `data.special_text`.

    Raises:
      BadRow: such text with policy "refuse"; with "text", if it is not distinguishable from the template's own tokens.
    """
    if policy == "special" or not any(found for found in _found(template)):
        return None
    if policy == "refuse":
        i, text = next((i, texts[0]) for i, texts in enumerate(_found(template)) if texts)
        raise BadRow(
            f"{template.where}: messages[{i}] ({template.messages[i]['role']}) contains {text!r}, which would become a "
            'special token. Remove the text, or set data.special_text to "text" or "special".'
        )
    return _as_text(template, _literal(template))


def _found(template: Template) -> list[list[str]]:
    """The texts in each message that look like special tokens."""
    pattern = special_pattern(template.tokenizer)
    found: list[list[str]] = [[] for _ in template.messages]
    for texts, message in zip(found, template.messages, strict=True):
        _edited(message, lambda text, texts=texts: texts.extend(pattern.findall(text)) or text)
    return found


def _edited(message: dict[str, Any], edit: Callable[[str], str]) -> dict[str, Any]:
    """The message with all its texts edited: content, reasoning and tool calls."""
    keys = ("content", "tool_calls", *REASONING)
    return {key: _deep(value, edit) if key in keys else value for key, value in message.items()}


def _deep(value: Any, edit: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return edit(value)
    if isinstance(value, list):
        return [_deep(child, edit) for child in value]
    if isinstance(value, dict):  # the names of keys belong to the format, but those of arguments come from the model
        return {edit(key): _deep(child, edit) for key, child in value.items()}
    return value


def _literal(template: Template) -> list[Span]:
    """Spans of the messages' special-looking texts in the template's text, found by rendering with placeholders.

    Raises:
      BadRow: substituting the texts back does not give the template's text.
    """
    stem = "Qs"
    while stem in template.whole:
        stem += "Qs"
    texts: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        texts.append(match[0])
        return f"{stem}{len(texts) - 1}sQ"

    pattern = special_pattern(template.tokenizer)
    messages = [_edited(message, lambda text: pattern.sub(stand_in, text)) for message in template.messages]
    [other] = template.render(messages, generation_prompt=template.generation_prompt)
    spans: list[Span] = []
    at, back = 0, []
    for match in re.finditer(stem + r"(\d+)sQ", other or ""):
        back += [other[at : match.start()] if other else "", texts[int(match[1])]]
        start = sum(map(len, back[:-1]))
        spans.append((start, start + len(back[-1])))
        at = match.end()
    if other is None or "".join(back) + other[at:] != template.whole:
        raise _ambiguous(template)
    return spans


def _ambiguous(template: Template) -> BadRow:
    shown = next(texts[0] for texts in _found(template) if texts)
    return BadRow(
        f"{template.where}: cannot distinguish the text {shown!r} in a message from the chat template's special tokens "
        f'({template.name}). Remove the text, or set data.special_text="special".'
    )


def _as_text(template: Template, literal: list[Span]) -> Tokens:
    whole, tokenizer = template.whole, template.tokenizer
    matches = [match.span() for match in _swallowing_pattern(tokenizer).finditer(whole)]
    own = [(a, b) for a, b in matches if not any(a < end and start < b for start, end in literal)]
    usual = encoded(offset_backend(tokenizer), whole)
    ids = list(special_ids(tokenizer).values())
    pieces = _piecewise(tokenizer, whole, own)
    # Cutting at every special token must give the usual tokenisation, and ordinary text must give no special tokens.
    if _piecewise(tokenizer, whole, matches).ids.tolist() != usual.ids.tolist() or np.isin(
        pieces.ids, ids
    ).sum() != np.isin(usual.ids, ids).sum() - (len(matches) - len(own)):
        raise _ambiguous(template)
    return pieces


@lru_cache(maxsize=4)
def _swallowing_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches special tokens, including the surrounding white space that they absorb."""
    tokens = {str(token): token for token in tokenizer.added_tokens_decoder.values()}

    def written(name: str) -> str:
        left, right = (
            r"\s*" if name in tokens and getattr(tokens[name], side) else "" for side in ("lstrip", "rstrip")
        )
        return left + re.escape(name) + right

    return re.compile("|".join(map(written, _longest_first(special_ids(tokenizer)))) or "(?!)")


@lru_cache(maxsize=4)
def _plain_backend(tokenizer: Any) -> Any:
    """The tokenizer's backend, treating special tokens as text."""
    backend = copy.deepcopy(offset_backend(tokenizer))
    backend.encode_special_tokens = True
    return backend


def _piecewise(tokenizer: Any, text: str, cuts: list[Span]) -> Tokens:
    """Tokenise `text` cut at special tokens, the rest without special tokens."""
    plain, usual = _plain_backend(tokenizer), offset_backend(tokenizer)
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    offsets: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    at = 0
    for start, end in [*cuts, (len(text), len(text))]:
        for backend, a, b in ((plain, at, start), (usual, start, end)):
            if a < b:
                piece = encoded(backend, text[a:b])
                ids.append(piece.ids)
                offsets.append(piece.offsets + a)
        at = end
    return Tokens(np.concatenate(ids), np.concatenate(offsets))


def encoded(backend: Any, text: str) -> Tokens:
    """The tokens of a text, without added BOS or EOS."""
    return tokens_of(backend.encode(text, add_special_tokens=False))


def tokens_of(encoding: Any) -> Tokens:
    """A `tokenizers.Encoding` as arrays."""
    return Tokens(np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2))
