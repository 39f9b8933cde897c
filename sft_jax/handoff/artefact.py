"""What a run hands to the RL stage: handoff.json says where policy, tokenizer and stop tokens are, and which weights.

The policy of an RL run starts as a copy of these weights, and its KL term is taken against them, frozen: whoever loads
them can tell by the fingerprint that they are the same ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.tokenizer import fingerprint as tokenizer_fingerprint
from sft_jax.data.forms.template_kwargs import merged
from sft_jax.storage.atomic import write_json

HANDOFF = "handoff.json"


def describe_handoff(
    tokenizer: Any,
    stop_ids: tuple[int, ...],
    fingerprint: str,
    policy: str,
    tokenizer_directory: str,
    rendering: RenderOptions,
) -> dict[str, Any]:
    """The content of handoff.json; paths are relative to where it lies."""
    return {
        "format": 1,
        "policy": policy,
        "tokenizer": tokenizer_directory,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template": tokenizer.chat_template,
        "template_date": rendering.date,
        "template_kwargs": merged(rendering.template_kwargs, None) or {},
        "stop_token_ids": list(stop_ids),
        "stop_tokens": tokenizer.convert_ids_to_tokens(list(stop_ids)),
        "pad_token_id": tokenizer.pad_token_id,
        "weights_fingerprint": fingerprint,
    }


def write_handoff(directory: str | Path, content: Mapping[str, Any]) -> None:
    """Write handoff.json, whole or not at all."""
    write_json(Path(directory) / HANDOFF, dict(content))
