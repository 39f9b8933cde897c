"""The stop token of a last turn whose template writes none.

In GLM, a turn ends with the token that opens the next message: `<|user|>` or `<|observation|>`. After the last turn the
template writes nothing, so nothing would stop the model. We append the stop token (from the model's generation config)
that would open the next message, or else the first.
"""

from functools import lru_cache
from typing import Any

from sft_jax.data.chat.render_process import OverLimit, TemplateFails, render
from sft_jax.data.chat.rendering import request_for
from sft_jax.data.chat.special_text import special_ids, special_pattern
from sft_jax.data.chat.tokenizer import model_stops

_LAST, _NEXT = "Qz4Q", "Zq5Z"
"""Content of the last turn, and of the message that would follow it."""
_TAIL = 1000
"""Characters at the end of a text that are searched for a special token."""


def appended_stop(message: dict[str, Any], tokenizer: Any) -> int | None:
    """The stop token to append to an assistant message whose template writes none; None if the model has none."""
    calls = bool(message.get("tool_calls"))
    return _stop_behind(tokenizer, str(tokenizer.chat_template), model_stops(tokenizer), calls)


def ends_with_special(text: str, tokenizer: Any) -> bool:
    """Whether a text ends with a special token, ignoring white space."""
    return text[-_TAIL:].rstrip().endswith(tuple(special_ids(tokenizer)))


def stops_that_matter(tokenizer: Any) -> list[int]:
    """The model's stop tokens if examples depend on them (the template leaves the last turn open), else []."""
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
