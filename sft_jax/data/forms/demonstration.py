"""What a record demonstrates: a conversation, prompt and completion, a text, tokens, or two answers to compare."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_jax.config import Format


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; the assistant's train."""

    messages: list[dict[str, Any]]
    """Checked by `check_messages`."""
    tools: list[dict[str, Any]] | None = None
    first: int = 0
    """Assistant messages before this index are part of the prompt."""
    id: str = ""
    form: Format = "messages"
    template_kwargs: dict[str, Any] | None = None
    """What the row gives its chat template besides."""
    empty: int = 0
    """Assistant turns that would train but say nothing: they have the weight 0."""
    nulls: bool = False
    """A null stands in the arguments of a tool call, or in a tool's schema."""


@dataclass(frozen=True)
class PromptCompletion:
    """Two strings, no chat template between them; the second trains."""

    prompt: str
    completion: str
    id: str = ""
    form: Format = "prompt_completion"


@dataclass(frozen=True)
class Text:
    """A string that trains wholly."""

    text: str
    id: str = ""
    form: Format = "text"


@dataclass(frozen=True)
class Tokens:
    """A document that somebody else tokenised."""

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
    """How much better it should score, at least 0."""
    id: str = ""
    form: Format = "pair"


Demonstration = Conversation | PromptCompletion | Text | Tokens | Pair
