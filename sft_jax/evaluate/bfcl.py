"""The files of the Berkeley Function Calling Leaderboard as shipped (PyPI: bfcl-eval), and its rules.

Questions are JSON lines of `id`, `question` (turns of messages) and `function` (schemas with Python's types); accepted
answers are in `possible_answer/` next to them, under the same file name. All single-turn categories are supported. The
rules are those of its `ast_checker`. For Java and JavaScript the leaderboard parses the language's literals; here a
value is accepted if it equals an accepted one, directly or as text (`true`, `5L`), and types are not checked.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sft_jax.data.read.rows import Record
from sft_jax.errors import BadInput
from sft_jax.evaluate.task import Task

ACCEPTED = "accepted_calls"
"""Key that `bfcl_task` adds to a row: [{name: {argument: [accepted values]}}], [] if no call is right, ANY_CALL if the
leaderboard only checks that there is one."""
ANY_CALL = "any"

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
    "object": dict,
    "number": float,
}
"""Types whose values are compared by type; the last two occur in users' own schemas."""
_JSON_TYPES = {
    **dict.fromkeys(("dict", "HashMap", "Hashtable"), "object"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("tuple", "Array", "ArrayList", "Queue", "Set", "Stack"), "array"),
    **dict.fromkeys(("String", "char"), "string"),
    "Boolean": "boolean",
    **dict.fromkeys(("any", "Any", ""), ""),
}
_NEED_ENVIRONMENT = ("multi_turn", "memory", "web_search", "format_sensitivity")
_PUNCTUATION = re.compile(r"[ ,./\-_*^]")
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[lLfFdDn]?")
"""A Java or JavaScript number with its type suffix."""


def is_bfcl(row: Mapping[str, Any]) -> bool:
    """Whether a record is one of the leaderboard's questions."""
    return isinstance(row.get("question"), list) and "id" in row and ("function" in row or "involved_classes" in row)


def bfcl_task(record: Record) -> Task:
    """A question as a task with tools; for irrelevance categories the expected result is no call.

    Raises:
      BadInput: a category that must be executed or has several turns, or missing accepted answers.
    """
    row = record.value
    name = str(row["id"])
    # Also use the id, so that a subset saved under another file name is judged the same.
    category = f"{Path(record.source).stem} ({re.sub(r'_[0-9].*', '', name)})"
    turns = row["question"]
    if "function" not in row or len(turns) != 1 or any(word in category for word in _NEED_ENVIRONMENT):
        raise BadInput(
            f"{record.where}: {category} needs an environment that executes calls over several turns. "
            "Supported are single-turn categories: simple, multiple, parallel, parallel_multiple, irrelevance, live_*."
        )
    if "irrelevance" in category:
        accepted: Any = []
    elif "relevance" in category:
        accepted = ANY_CALL
    else:
        accepted = _answers(record.source).get(name)
        if accepted is None:
            raise BadInput(f"{record.where}: no accepted answer for {name} in {_answer_file(record.source)}")
    tools = tuple({"type": "function", "function": _json_schema(function)} for function in row["function"])
    return Task(record.where, name, tuple(turns[0]), "", tools, None, {**row, ACCEPTED: accepted})


def _answer_file(source: str) -> Path:
    return Path(source).parent / "possible_answer" / Path(source).name


@lru_cache(maxsize=32)
def _answers(source: str) -> dict[str, Any]:
    path = _answer_file(source)
    if not path.is_file():
        raise BadInput(f"{source}: the accepted answers are missing: {path}. Keep both files where the wheel has them")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["ground_truth"] for row in map(json.loads, filter(None, lines))}


def _json_schema(value: Any) -> Any:
    """Convert Python, Java and JavaScript type names to JSON schema's; `any` becomes no type."""
    if isinstance(value, list):
        return [_json_schema(child) for child in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    changed = {key: _json_schema(child) for key, child in value.items()}
    if isinstance(kind, str) and kind in _JSON_TYPES:
        changed.pop("type")
        if _JSON_TYPES[kind]:
            changed["type"] = _JSON_TYPES[kind]
    return changed


def system_prompt(tools: list[dict[str, Any]]) -> str:
    """The system prompt that describes tools if the chat template does not support them."""
    functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions, one JSON schema to a line:\n"
        f"{functions}\n"
        "Where functions serve the request, answer with nothing but the calls, as a list: "
        '[name(argument=1, other="text"), name(argument=2)]. Where none does, answer in words and call nothing.'
    )


# --- the leaderboard's rules ------------------------------------------------------------------------------------------


def properties_of(row: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], list[str]]:
    """(parameter schemas of a function as shipped, required names); types are dropped for Java and JavaScript."""
    function = next((f for f in row["function"] if f["name"] == name), row["function"][0])
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties", {})
    if re.match("(simple_)?java", str(row.get("id"))):
        properties = {key: {} for key in properties}
    return properties, parameters.get("required", [])


def accepts(
    given: Mapping[str, Any], accepted: Mapping[str, list[Any]], properties: Mapping[str, Any], required: list[str]
) -> bool:
    """Whether arguments are accepted: none missing or unexpected, and every value has the right type and is accepted.

    A parameter may be omitted if "" is among its accepted values and the schema does not require it.
    """
    if any(name not in given for name in required):
        return False
    if any(name not in given and "" not in values for name, values in accepted.items()):
        return False
    return all(
        name in properties and name in accepted and _value_accepted(value, accepted[name], properties[name])
        for name, value in given.items()
    )


def _value_accepted(value: Any, accepted: list[Any], schema: Mapping[str, Any]) -> bool:
    named = schema.get("type")
    kind = _TYPES.get(named) if isinstance(named, str) else None
    if kind is None:
        return any(_loosely_accepted(value, one) for one in accepted)
    if named == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind is float and type(value) is int:
        value = float(value)
    shown = next((type(one) for one in accepted if one != ""), None)
    item = _TYPES.get(schema.get("items", {}).get("type")) if kind is list else None
    is_variable = shown is not None and shown is not kind
    if type(value) is not kind or not _items_typed(value, accepted, item):
        if type(value) is not shown or type(value) is kind:
            return False
        is_variable = True
    if not is_variable:
        if kind is dict:
            return any(_dict_accepted(value, one) for one in accepted if one != "")
        if kind is list and item is dict:
            return any(len(value) == len(one) and all(map(_dict_accepted, value, one)) for one in accepted if one != "")
        if kind is str:
            return _plain(value) in [_plain(one) for one in accepted if isinstance(one, str)]
        if kind is list:
            return list(map(_plain, value)) in [list(map(_plain, one)) for one in accepted]
    return value in accepted


def _items_typed(value: Any, accepted: list[Any], item: type | None) -> bool:
    """Whether elements have the schema's type, or that of an accepted list's first element (a variable name)."""
    if item is None or not isinstance(value, list):
        return True

    def fits(one: Any) -> bool:
        if not isinstance(one, list):
            return True
        shown = next((type(element) for element in one if element != ""), None)
        return all(type(element) is item or type(element) is shown for element in value)

    return any(fits(one) for one in accepted)


def _dict_accepted(value: Any, accepted: Mapping[str, list[Any]]) -> bool:
    """Whether every key is known and has an accepted value, and missing keys may be omitted."""
    if not isinstance(value, dict) or any(key not in accepted for key in value):
        return False
    # A few answers have a plain value instead of a list of accepted ones.
    choices = {key: values if isinstance(values, list) else [values] for key, values in accepted.items()}
    if any(key not in value and "" not in values for key, values in choices.items()):
        return False
    return all(_plain(one) in [_plain(each) for each in choices[key]] for key, one in value.items())


def _loosely_accepted(value: Any, one: Any) -> bool:
    """Equal directly or as text; compares objects and lists element by element."""
    if isinstance(one, dict):
        if not isinstance(value, dict) or any(key not in one for key in value):
            return False
        choices = {key: values if isinstance(values, list) else [values] for key, values in one.items()}
        return all(
            any(_loosely_accepted(value[key], each) for each in each_of) if key in value else "" in each_of
            for key, each_of in choices.items()
        )
    if isinstance(one, list):
        same_length = isinstance(value, list | tuple) and len(value) == len(one)
        return same_length and all(map(_loosely_accepted, value, one))
    texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in (value, one)]
    numbers = [_NUMBER.fullmatch(text) for text in texts]
    if numbers[0] and numbers[1]:  # not as text: without punctuation 4.5 would equal 45
        return float(numbers[0][1]) == float(numbers[1][1])
    return _plain(texts[0]) == _plain(texts[1])


def _plain(value: Any) -> Any:
    """Normalise text: no spaces, most punctuation or case, and one kind of quotes; other values unchanged."""
    return _PUNCTUATION.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
