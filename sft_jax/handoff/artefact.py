"""handoff.json, which tells the RL stage where a run's policy, tokenizer and stop tokens are.

The RL policy starts from these weights and its KL term uses them, frozen, as the reference. The fingerprint lets a
loader verify that they are the same weights.
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
    """The content of handoff.json; paths are relative to its directory."""
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
    """Write handoff.json atomically."""
    write_json(Path(directory) / HANDOFF, dict(content))
