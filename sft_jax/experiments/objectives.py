"""The tokens that each objective trains, on one conversation."""

from typing import Any

from sft_jax.config import Data
from sft_jax.data.pack.prepare import encode_rows
from sft_jax.data.read.rows import Row
from sft_jax.report.plots import TokenRow

MESSAGES = [
    {"role": "user", "content": "Is it cold?"},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "Tea for 4 minutes."},
    {"role": "assistant", "content": "/timer minutes: 4 | label: tea"},
]


def objectives(tokenizer: Any) -> list[TokenRow]:
    """The same text tokenised for pretraining and for each way of imitation.

    Args:
      tokenizer: a tokenizer with a chat template.
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
        made.append(TokenRow(label, [tokenizer.decode([token]) for token in example.tokens], example.weights.tolist()))
    return made
