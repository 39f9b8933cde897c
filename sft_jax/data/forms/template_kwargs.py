"""Extra keyword arguments for the chat template: those of a row and those of the run."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sft_jax.data.read import strict_json
from sft_jax.data.read.strict_json import kind
from sft_jax.errors import BadInput, BadRow

RESERVED = frozenset(
    (
        *("messages", "conversation", "conversations", "tools", "chat_template", "tokenize", "add_generation_prompt"),
        *("continue_final_message", "return_assistant_tokens_mask", "return_dict", "return_tensors"),
        *("padding", "truncation", "max_length", "tokenizer_kwargs", "sanitize_control_tokens"),
    )
)
"""Arguments of `apply_chat_template` that are not template variables, or that rows give under other keys."""


def check_template_kwargs(where: str, value: Any) -> dict[str, Any] | None:
    """A row's `chat_template_kwargs` (an object or its JSON string); None if there are none.

    Nulls are dropped: in tables they only mean that other rows have a value, and templates test whether a name is
    defined.

    Raises:
      BadRow: not an object, or a reserved name.
    """
    if isinstance(value, str):
        try:
            value = strict_json.load(value) if value.strip() else None
        except ValueError as error:
            raise BadRow(f"{where}: chat_template_kwargs is a string but not valid JSON ({error})") from error
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRow(f"{where}: chat_template_kwargs is {kind(value)}, expected an object")
    if reserved := sorted(RESERVED & value.keys()):
        raise BadRow(
            f"{where}: chat_template_kwargs has {', '.join(reserved)}, expected only template variables. "
            "Remove it; messages and tools are keys of the row"
        )
    return {name: child for name, child in value.items() if child is not None} or None


@lru_cache(maxsize=8)
def parse_template_kwargs(given: Sequence[str]) -> Mapping[str, Any]:
    """`("enable_thinking=false",)` as {"enable_thinking": False}. Values are parsed as JSON, or else kept as text.

    Raises:
      BadInput: not `name=value`, a name given twice, or a reserved name.
    """
    values: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name.isidentifier():
            raise BadInput(f"data.template_kwargs: found {one!r}, expected name=value, such as enable_thinking=false")
        if name in RESERVED or name in values:
            why = "is given twice" if name in values else "is reserved and not a template variable"
            raise BadInput(f"data.template_kwargs: {name!r} {why}. Remove it")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def merged(run: Sequence[str], row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The run's values updated with the row's; None if there are none."""
    if not run:
        return dict(row) if row else None
    return {**parse_template_kwargs(tuple(run)), **(row or {})}
