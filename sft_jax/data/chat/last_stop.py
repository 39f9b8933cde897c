"""The stop token of a last turn whose template writes none.

GLM's turns end where the next message begins: `<|user|>` or `<|observation|>` is what the model writes last. Behind the
last turn of a conversation no message begins, so the template writes nothing there that stops the model. The model's
own generation config names its stop tokens: the one that would open the next message is appended, else the first.
"""

from functools import lru_cache
from typing import Any

from sft_jax.data.chat.render_process import OverLimit, TemplateFails, render
from sft_jax.data.chat.rendering import request_for
from sft_jax.data.chat.special_text import special_ids, special_pattern
from sft_jax.data.chat.tokenizer import model_stops

_LAST, _NEXT = "Qz4Q", "Zq5Z"
"""Words of the last turn, and of the message that would follow it."""
_TAIL = 1000
"""Characters in which a special token and the white space behind it are looked for."""


def appended_stop(message: dict[str, Any], tokenizer: Any) -> int | None:
    """The stop token that the model writes behind an assistant message where its template writes none; None where the
    model names no stop token."""
    calls = bool(message.get("tool_calls"))
    return _stop_behind(tokenizer, str(tokenizer.chat_template), model_stops(tokenizer), calls)


def ends_with_special(text: str, tokenizer: Any) -> bool:
    """Whether a text ends with a special token, but for white space."""
    return text[-_TAIL:].rstrip().endswith(tuple(special_ids(tokenizer)))


def stops_that_matter(tokenizer: Any) -> list[int]:
    """The model's stop tokens where examples depend on them: where the chat template leaves a last turn open."""
    stops = model_stops(tokenizer)
    if not stops or not tokenizer.chat_template:
        return []
    talk = [{"role": "user", "content": _NEXT}, {"role": "assistant", "content": _LAST}]
    text = _rendered(talk, tokenizer)
    return [] if text and ends_with_special(text, tokenizer) else list(stops)


@lru_cache(maxsize=16)
def _stop_behind(tokenizer: Any, _: str, stops: tuple[int, ...], calls: bool) -> int | None:
    asked = {"role": "user", "content": "?"}
    answer: dict[str, Any] = {"role": "assistant", "content": _LAST}
    following = {"role": "tool" if calls else "user", "content": _NEXT}
    if calls:
        function = {"name": "f", "arguments": {"x": _LAST}}
        answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    text = _rendered([asked, answer, following], tokenizer)
    between = text.rpartition(_NEXT)[0].rpartition(_LAST)[2]
    ids = special_ids(tokenizer)
    opening = (ids[match[0]] for match in special_pattern(tokenizer).finditer(between))
    return next((token for token in opening if token in stops), stops[0] if stops else None)


def _rendered(messages: list[dict[str, Any]], tokenizer: Any) -> str:
    try:
        return render(request_for(messages, None, tokenizer)).text
    except (TemplateFails, OverLimit, ValueError):
        return ""
