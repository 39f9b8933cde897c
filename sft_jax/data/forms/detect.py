"""Detects a record's form from its keys, and knows which keys each form reads."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from sft_jax.config import Data, Format
from sft_jax.data.forms.mapping import parse_fields
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow

KEYS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations", "conversation"),),
    "tokens": (("input_ids", "tokens"), ("labels", "weights", "loss_mask", "assistant_masks")),
    "preference": (("chosen",), ("rejected",)),
    "pair": (("chosen",), ("rejected",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "alpaca": (("instruction",), ("output", "response")),
    "seed_task": (("instruction",), ("instances",)),
    "question_answer": (("question",), ("answer",)),
    "text": (("text",),),
}
"""Required keys of each form (one of each group of synonyms), in the order in which `auto` tries the forms."""
FOR_TEMPLATE = ("tools", "functions", "chat_template_kwargs")
"""Keys next to a conversation that only a chat template can use."""
_BESIDE = (("system",), *((key,) for key in FOR_TEMPLATE))
_MAY: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": _BESIDE,
    "sharegpt": _BESIDE,
    "tokens": (("attention_mask",),),
    "preference": (("prompt",), *_BESIDE),
    "pair": (("prompt",), ("margin",), *_BESIDE),
    "prompt_completion": _BESIDE,
    "alpaca": (("input", "context"), ("history",), *_BESIDE),
    "seed_task": _BESIDE,
    "question_answer": _BESIDE,
    "text": (),
}
"""Optional keys of each form, in addition to `id`."""
KNOWN_KEYS = (
    *dict.fromkeys(key for need in (*KEYS.values(), *_MAY.values()) for names in need for key in names),
    "id",
)
"""Every key that any form reads."""
_SHOWN = 80
"""Maximum length of the list of keys in a message."""


def first_of(value: Collection[str], names: tuple[str, ...]) -> str:
    """The first of `names` that the record has; `names[0]` if it has none."""
    return next((name for name in names if name in value), names[0])


def keys_read(form: Format, value: Mapping[str, Any]) -> frozenset[str]:
    """The keys of a record that its form reads."""
    return _keys_read(form, tuple(value))


@lru_cache(maxsize=256)
def _keys_read(form: Format, given: tuple[str, ...]) -> frozenset[str]:
    return frozenset(("id", *(first_of(given, names) for names in (*KEYS[form], *_MAY[form]))))


def columns_read(data: Data) -> frozenset[str] | None:
    """The columns that any form or the field map reads; None with `data.function`, which may read all of them."""
    if data.function:
        return None
    return frozenset({*KNOWN_KEYS, *(path[0] for path in parse_fields(data.fields, KNOWN_KEYS).values())})


def find_form(value: Mapping[str, Any], declared: str = "auto", mapped: Collection[str] = ()) -> Format | None:
    """The form of a record: the declared one, or detected from its keys for "auto"; None if it lacks the keys.

    Args:
      mapped: our keys in the field map; forms that use one of them are tried first.
    """
    forms = _candidates(declared, mapped)
    found: Format | None = next((form for form in forms if _fits(form, value)), None)
    # Some datasets store token counts and scores under these keys; only lists can be a (broken) document.
    if found is None and "tokens" in forms and _has_keys("tokens", value):
        ids = value[first_of(value, KEYS["tokens"][0])]
        if declared == "tokens" or isinstance(ids, list):
            return "tokens"
    return found


def detect_format(record: Record, declared: str = "auto", mapped: Collection[str] = ()) -> Format:
    """As `find_form`.

    Raises:
      BadRow: the record lacks the keys; lists the keys found and expected.
    """
    form = find_form(record.value, declared, mapped)
    if form is None:
        raise BadRow(_unknown(record, declared, mapped))
    return form


def _candidates(declared: str, mapped: Collection[str]) -> list[Format]:
    forms: list[Format] = [form for form in KEYS if declared in ("auto", form)]
    if mapped:
        forms.sort(key=lambda form: not any(key in mapped for names in KEYS[form] for key in names))
    return forms


def _fits(form: Format, value: Mapping[str, Any]) -> bool:
    if not _has_keys(form, value):
        return False
    return form != "tokens" or all(isinstance(value[first_of(value, names)], list) for names in KEYS[form])


def _has_keys(form: Format, value: Mapping[str, Any]) -> bool:
    return all(any(key in value for key in names) for names in KEYS[form])


def _unknown(record: Record, declared: str, mapped: Collection[str]) -> str:
    found = ", ".join(map(str, record.value)) or "none"
    if len(found) > _SHOWN:
        found = f"{found[:_SHOWN].rpartition(', ')[0] or found[:_SHOWN]}, …"
    if declared == "auto":
        forms: tuple[Format, ...] = ("messages", "sharegpt", "prompt_completion", "question_answer", "alpaca", "text")
        expected = "; ".join(_spell([names[:1] for names in KEYS[form]]) for form in forms)
        lacks = f"expected {expected}; or see docs/data.md"
    else:
        need = KEYS[_candidates(declared, mapped)[0]]
        missing = [names for names in need if not any(key in record.value for key in names)]
        lacks = f'data.format "{declared}" expects {_spell(need)}: no key {_spell(missing, " or ")}'
    filled = f" (data.fields fills {', '.join(mapped)})" if mapped else ""
    return (
        f"{record.where}: keys found: {found}; {lacks}{filled}. "
        "Map your keys with data.fields (prompt=question), or use data.function."
    )


def _spell(need: Collection[tuple[str, ...]], join: str = " and ") -> str:
    return join.join("/".join(names) for names in need)
