"""Which tokens each objective trains: one conversation under each, as a picture."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.config import Data
from sft_jax.data.pack.prepare import encode_rows
from sft_jax.data.read.rows import Row

WIDTH, LINE, LETTER = 760, 26, 7.3
MESSAGES = [
    {"role": "user", "content": "Is it cold?"},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "Tea for 4 minutes."},
    {"role": "assistant", "content": "/timer minutes: 4 | label: tea"},
]


class Trained(NamedTuple):
    """A document under one objective."""

    label: str
    tokens: list[str]
    weights: np.ndarray


def objectives(tokenizer: Any) -> list[Trained]:
    """The same text as pretraining takes it, and as each way of imitation does.

    Args:
      tokenizer: with a chat template.
    """
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    ways: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("text (pretraining): every token but the first", {"text": text}, {}),
        ("messages, train_on assistant: what the assistant says, and that it stops", {"messages": MESSAGES}, {}),
        ("messages, train_on last_assistant", {"messages": MESSAGES}, {"train_on": "last_assistant"}),
    ]
    made = []
    for label, row, settings in ways:
        data = Data(("row",), sequence_length=10_000, **settings)
        [example] = encode_rows([Row("row", 1, row)], data, tokenizer).examples
        made.append(Trained(label, [tokenizer.decode([token]) for token in example.tokens], example.weights))
    return made


def draw(documents: Sequence[Trained]) -> str:
    """An `<svg>`: trained tokens on colour, the others plain."""
    parts: list[str] = []
    y = 20.0
    for label, tokens, weights in documents:
        parts.append(f'<text x="4" y="{y:.0f}" font-weight="bold" fill="#888">{html.escape(label)}</text>')
        x, y = 4.0, y + LINE
        for token, weight in zip(tokens, weights, strict=True):
            shown = token.replace("\n", "↵").replace(" ", "·")
            width = LETTER * len(shown) + 5
            if x + width > WIDTH - 4:
                x, y = 4.0, y + LINE
            fill = 'fill="#2563eb"' if weight else 'fill="none" stroke="#8886"'
            colour = "#fff" if weight else "#888"
            parts.append(
                f'<rect x="{x:.1f}" y="{y - 15:.1f}" width="{width - 2:.1f}" height="20" rx="3" {fill}/>'
                f'<text x="{x + 2:.1f}" y="{y:.1f}" fill="{colour}">{html.escape(shown)}</text>'
            )
            x += width
            if token.endswith("\n"):
                x, y = 4.0, y + LINE
        y += LINE + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" role="img" '
        f'aria-label="Tokens that each objective trains" font-family="ui-monospace, monospace" font-size="12">'
        f"{''.join(parts)}</svg>"
    )
