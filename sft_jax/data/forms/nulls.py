"""A function for `data.function` that drops nulls, which tables write if other rows have the key.

--data.function sft_jax.data.forms.nulls:without_nulls
"""

from typing import Any


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row without keys whose value is null, at any depth."""
    return {key: _without(child) for key, child in row.items() if child is not None}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nulls(value)
    return [_without(child) for child in value] if isinstance(value, list) else value
