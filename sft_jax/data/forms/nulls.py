"""A function for `data.function`: rows without the nulls that a table writes where other rows have a value.

--data.function sft_jax.data.forms.nulls:without_nulls
"""

from typing import Any


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the keys, at any depth, whose value is null."""
    return {key: _without(child) for key, child in row.items() if child is not None}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nulls(value)
    return [_without(child) for child in value] if isinstance(value, list) else value
