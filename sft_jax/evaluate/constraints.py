"""Constraints on a completion's form: a pattern, JSON, a JSON schema, a number of words."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from sft_jax.data.read import strict_json
from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Answer, Task

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_MISSING = object()


def regex(task: Task, completion: Answer, pattern: str = "") -> Mapping[str, float | None]:
    """`regex`: whether the pattern (given, or from the row's key `regex`) occurs in the text; None without a pattern.

    Raises:
      BadInput: an invalid pattern.
    """
    wanted = pattern or task.row.get("regex")
    if wanted is None:
        return {"regex": None}
    return {"regex": float(bool(_compiled(task.where, str(wanted)).search(completion.text)))}


@lru_cache(maxsize=256)
def _compiled(where: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise BadInput(f"{where}: invalid regex {pattern!r}: {error}") from error


def is_json(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`json`: whether the whole text, or its only fenced block, is JSON without NaN and at most 100 levels deep."""
    del task
    return {"json": float(_parsed(completion.text) is not _MISSING)}


def json_schema(task: Task, completion: Answer, path: str = "") -> Mapping[str, float | None]:
    """`json_schema`: whether the text is JSON valid under the schema (from the file or the row's key `json_schema`).

    Raises:
      BadInput: no such file, an invalid schema, or one with unresolvable or endlessly recursive references.
    """
    import jsonschema
    import referencing.exceptions
    from jsonschema.validators import validator_for

    schema: Any = _schema_file(path) if path else task.row.get("json_schema")
    if schema is None:
        return {"json_schema": None}
    validator = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BadInput(f"{path or task.where}: json_schema is not a valid schema: {error.message}") from error
    value = _parsed(completion.text)
    try:
        return {"json_schema": float(value is not _MISSING and validator(schema).is_valid(value))}
    except (referencing.exceptions.Unresolvable, RecursionError) as error:
        raise BadInput(
            f"{path or task.where}: json_schema cannot be resolved: {error}. Expected every $ref to refer to a part of "
            "the schema itself, without endless recursion"
        ) from error


@lru_cache(maxsize=8)
def _schema_file(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a JSON schema: {error}") from error


def _parsed(text: str) -> Any:
    blocks = _FENCED.findall(text)
    try:
        value = json.loads(blocks[0] if len(blocks) == 1 else text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # a looping model may write endless brackets
        return _MISSING
    return _MISSING if strict_json.unusable(value) else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def length(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """`length`: whether the word count is between the row's `min_words` and `max_words`; None if it has neither.

    Raises:
      BadInput: a bound that is not an integer.
    """
    bounds = [task.row.get(key) for key in ("min_words", "max_words")]
    if bounds == [None, None]:
        return {"length": None}
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise BadInput(f"{task.where}: min_words and max_words are {bounds}, expected whole numbers")
    words = len(completion.text.split())
    low, high = bounds
    return {"length": float((low is None or words >= low) and (high is None or words <= high))}
