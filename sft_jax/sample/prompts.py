"""What a model is asked to continue: a conversation rendered up to the assistant's turn, or raw text."""

from collections.abc import Sequence
from typing import Any

from sft_jax.data.chat import generation_prompt
from sft_jax.data.messages import check_messages, check_tools
from sft_jax.data.prepare import check_ids
from sft_jax.data.rendering import Policy
from sft_jax.data.rows import Record
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture


def check_prompts(
    records: Sequence[Record],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    architecture: Architecture,
    model: str,
) -> None:
    """Refuse prompts that leave no room for `max_new_tokens`, or hold ids that the model has no embedding for.

    Raises:
      BadInput: names the prompt and the numbers.
    """
    for record, prompt in zip(records, prompts, strict=True):
        needed = len(prompt) + max_new_tokens
        if needed > architecture.max_positions:
            raise BadInput(
                f"{record.where}: the prompt's {len(prompt)} tokens and --max-new-tokens {max_new_tokens} need "
                f"{needed} positions, {model} has {architecture.max_positions}. Lower "
                "--max-new-tokens or shorten the prompt."
            )
        check_ids(record.where, prompt, architecture.vocab, model)


def prompt_tokens(record: Record, tokenizer: Any, date: str = "") -> list[int]:
    """Token ids of a prompt record; `date` is the day that the chat template prints, YYYY-MM-DD, empty for today.

    `messages` (with `tools`) go through the chat template up to the assistant's turn; assistant turns at the end are
    what is to be generated, so they are left out. `prompt` is raw text with the special tokens the tokenizer adds, or
    a list of messages.

    Raises:
      BadInput: neither key, malformed messages, nothing to continue, or a chat template that is missing or fails.
    """
    key = next((key for key in ("messages", "prompt") if key in record.value), None)
    if key is None:
        found = ", ".join(sorted(record.value)) or "nothing"
        raise BadInput(f"{record.where}: a prompt has `messages` or `prompt`; found {found}")
    if isinstance(record.value[key], str):
        ids = tokenizer(record.value[key])["input_ids"]
    else:
        messages = check_messages(record.where, record.value[key], key)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise BadInput(f"{record.where}: no message to answer before the assistant's")
        tools = check_tools(record.where, record.value.get("tools"))
        ids = generation_prompt(record.where, messages, tools, tokenizer, Policy(date=date))
    if not ids:
        raise BadInput(f"{record.where}: the prompt is empty")
    return ids
