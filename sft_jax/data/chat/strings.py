"""Plain strings without a chat template: prompt and completion, texts, and raw prompts."""

from typing import Any

from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.spans import Span
from sft_jax.data.chat.tokenizer import offset_backend
from sft_jax.errors import BadInput


def written_strings(
    where: str, prompt: str, completion: str, tokenizer: Any, all_trains: bool, options: RenderOptions
) -> tuple[str, list[tuple[Span, float]]]:
    """Prompt and completion as one text that ends with EOS, and which characters train.

    White space after an EOS that the completion already has does not train, since the model stops before it.

    Raises:
      BadInput: the tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token
    if not eos:
        raise BadInput(f"{where}: the tokenizer has no EOS token, so the model could never learn to stop")
    bare = completion.rstrip()
    if not bare.endswith(eos):
        completion = bare = completion + eos
    start, end = len(prompt), len(prompt) + len(bare)
    text = prompt + completion
    stop = [] if options.end_of_turn else [((end - len(eos), end), 0.0)]
    return text, [((0, len(text)) if all_trains else (start, end), 1.0), *stop]


def own_tokens(encoding: Any, tokenizer: Any) -> slice:
    """The tokens to keep of a text that ends with EOS: drops a BOS or EOS that the tokenizer adds to the text's own.

    Args:
      encoding: with the tokenizer's special tokens.
    """
    ids, added = encoding.ids, encoding.special_tokens_mask
    doubled = len(ids) > 1 and bool(added[0]) and ids[0] == ids[1] == tokenizer.bos_token_id
    appended = bool(ids) and bool(added[-1]) and ids[-1] == tokenizer.eos_token_id
    return slice(int(doubled), len(ids) - appended)


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a raw prompt, as training has them before a completion: without EOS."""
    encoding = offset_backend(tokenizer).encode(text, add_special_tokens=True)
    kept = own_tokens(encoding, tokenizer)
    return encoding.ids[kept]
