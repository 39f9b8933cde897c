"""Which form a record has, seen from its keys, and which of its keys that form reads."""

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
"""What a record of each form must hold (of names that mean the same, one), in the order in which `auto` tries them."""
FOR_TEMPLATE = ("tools", "functions", "chat_template_kwargs")
"""Keys beside a conversation that only a chat template can use."""
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
"""What a record of each form may hold besides, and its `id`."""
KNOWN_KEYS = (
    *dict.fromkeys(key for need in (*KEYS.values(), *_MAY.values()) for names in need for key in names),
    "id",
)
"""Every key that some form reads."""
_SHOWN = 80
"""Characters of a record's keys that a message lists."""


def first_of(value: Collection[str], names: tuple[str, ...]) -> str:
    """The first of some names that a record has; the first of all where it has none."""
    return next((name for name in names if name in value), names[0])


def keys_read(form: Format, value: Mapping[str, Any]) -> frozenset[str]:
    """The keys of a record that its form reads."""
    return _keys_read(form, tuple(value))


@lru_cache(maxsize=256)
def _keys_read(form: Format, given: tuple[str, ...]) -> frozenset[str]:
    return frozenset(("id", *(first_of(given, names) for names in (*KEYS[form], *_MAY[form]))))


def columns_read(data: Data) -> frozenset[str] | None:
    """The columns of a table that any form or the field map reads; None where `data.function` may read all of them."""
    if data.function:
        return None
    return frozenset({*KNOWN_KEYS, *(path[0] for path in parse_fields(data.fields, KNOWN_KEYS).values())})


def find_form(value: Mapping[str, Any], declared: str = "auto", mapped: Collection[str] = ()) -> Format | None:
    """Which form a record has: the declared one, or by its keys when that is "auto"; None where it lacks the keys.

    Args:
      mapped: our keys that a field map fills: forms that use one of them are tried first.
    """
    forms = _candidates(declared, mapped)
    found: Format | None = next((form for form in forms if _fits(form, value)), None)
    # Data sets count tokens and score rows under the names of a document's: only lists are one, or a broken one.
    if found is None and "tokens" in forms and _has_keys("tokens", value):
        ids = value[first_of(value, KEYS["tokens"][0])]
        if declared == "tokens" or isinstance(ids, list):
            return "tokens"
    return found


def detect_format(record: Record, declared: str = "auto", mapped: Collection[str] = ()) -> Format:
    """As `find_form`.

    Raises:
      BadRow: the record lacks the keys; lists those found and those expected.
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
        "Name yours with data.fields (prompt=question), or use data.function."
    )


def _spell(need: Collection[tuple[str, ...]], join: str = " and ") -> str:
    return join.join("/".join(names) for names in need)
