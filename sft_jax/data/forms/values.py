"""Checks that values of a record are strings."""

import json
from typing import Any

from sft_jax.data.read.rows import Record
from sft_jax.data.read.strict_json import kind
from sft_jax.errors import BadRow


def string(record: Record, value: Any, key: str, where: str = "") -> str:
    """Check that a value is a string.

    Args:
      where: location in the message, if not the record itself.

    Raises:
      BadRow: not a string; for numbers, with a conversion.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        cure = f'Write it as "{json.dumps(value)}"'
        if not where and key in record.value:
            cure += (
                f", or set data.function to mine.py:f, with this in mine.py: "
                f'def f(row): return {{**row, "{key}": str(row["{key}"])}}'
            )
        raise BadRow(f"{where or record.where}: {key} is {kind(value)} ({value!r:.40}), expected a string. {cure}")
    raise BadRow(f"{where or record.where}: {key} is {kind(value)}, expected a string")


def answer(record: Record, value: Any, key: str, where: str = "") -> str:
    """Check a string that trains; an empty one would teach the model to say nothing."""
    if not string(record, value, key, where).strip():
        raise BadRow(f"{where or record.where}: {key} is empty: nothing to train. Fill it in or remove the row")
    return value
