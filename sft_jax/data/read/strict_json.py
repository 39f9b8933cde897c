"""Strict JSON parsing. Values that no tokenizer or template accepts are rejected here."""

import json
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Maximum nesting, so that records can be walked recursively."""


def load(text: str) -> Any:
    """Parse a JSON text.

    Raises:
      ValueError: not JSON (a JSONDecodeError with the position), NaN or Infinity, a number too large for a float, a
        duplicate key, more than MAX_DEPTH levels, a lone surrogate, or a NUL character.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    # Cheap pre-check: these characters need an escape, and deep nesting needs many brackets.
    if "\\u0000" in text or "\\ud" in text.lower() or text.count("{") + text.count("[") > MAX_DEPTH:
        problem = unusable(value)
        if problem:
            raise ValueError(problem)
    return value


def unusable(value: Any) -> str:
    """Describes what in `value` no tokenizer or template accepts; empty if nothing."""
    rest = [(value, 1)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, str):
            if "\0" in item:
                return r"a NUL character (\u0000) in a string: remove it"
            if not item.isascii():
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError as error:
                    return f"a lone surrogate {item[error.start]!a} is not a character: remove it"
        elif isinstance(item, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f"nested deeper than {MAX_DEPTH} levels"
            rest += [(child, depth + 1) for child in item]
            if isinstance(item, dict):
                rest += [(child, depth + 1) for child in item.values()]
    return ""


def kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict | str) and not value:
        return {list: "an empty list", dict: "an empty object", str: "an empty string"}[type(value)]
    words = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return words.get(type(value), f"a {type(value).__name__}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"duplicate key {twice!r} in one object. Keep one")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
