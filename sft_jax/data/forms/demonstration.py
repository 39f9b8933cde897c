"""Kinds of demonstrations: a conversation, prompt and completion, text, tokens, or two answers to compare."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_jax.config import Format


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; the assistant's messages train."""

    messages: list[dict[str, Any]]
    """Checked by `check_messages`."""
    tools: list[dict[str, Any]] | None = None
    first: int = 0
    """Assistant messages before this index are part of the prompt."""
    id: str = ""
    form: Format = "messages"
    template_kwargs: dict[str, Any] | None = None
    """The row's `chat_template_kwargs`."""
    empty: int = 0
    """Number of empty assistant turns that would train; their weight is 0."""
    nulls: bool = False
    """The arguments of a tool call or a tool's schema contain a null."""


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings, without a chat template; the second trains."""

    prompt: str
    completion: str
    id: str = ""
    form: Format = "prompt_completion"


@dataclass(frozen=True)
class Text:
    """A string that trains entirely."""

    text: str
    id: str = ""
    form: Format = "text"


@dataclass(frozen=True)
class Tokens:
    """A pre-tokenised document."""

    tokens: np.ndarray
    """int32 [length]."""
    weights: np.ndarray
    """float32 [length]; the weight of each token as a target."""
    id: str = ""
    form: Format = "tokens"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    chosen: Conversation | PromptCompletion | Text
    rejected: Conversation | PromptCompletion | Text
    margin: float = 0.0
    """By how much its score should exceed the other's; at least 0."""
    id: str = ""
    form: Format = "pair"


Demonstration = Conversation | PromptCompletion | Text | Tokens | Pair
