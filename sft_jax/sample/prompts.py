"""What a model is asked to continue: a conversation rendered up to the assistant's turn, or raw text."""

from typing import Any

from sft_jax.data.records import Record, read_tools, validate_messages
from sft_jax.errors import BadInput


def conversation_prompt(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict] | None = None) -> list[int]:
    """Token ids of a conversation by the tokenizer's own template, the generation prompt included."""
    ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    return list(ids)


def prompt_tokens(record: Record, tokenizer: Any) -> list[int]:
    """Token ids of a prompt record.

    `messages` (with `tools`) go through the chat template up to the assistant's turn; assistant turns at the end are
    what is to be generated, so they are left out. `prompt` is raw text with the special tokens the tokenizer adds, or
    a list of messages.

    Raises:
      BadInput: neither key, malformed messages, or nothing to continue.
    """
    key = next((key for key in ("messages", "prompt") if key in record.value), None)
    if key is None:
        found = ", ".join(sorted(record.value)) or "nothing"
        raise BadInput(f"{record.where}: a prompt has `messages` or `prompt`; found {found}")
    if isinstance(record.value[key], str):
        ids = tokenizer(record.value[key])["input_ids"]
    else:
        messages = validate_messages(record, key)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise BadInput(f"{record.where}: no message to answer before the assistant's")
        ids = conversation_prompt(tokenizer, messages, read_tools(record))
    if not ids:
        raise BadInput(f"{record.where}: the prompt is empty")
    return ids
