"""Where demonstrations come from: JSONL lines that remember their file and line, and what may stand in them."""

import glob
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from sft_jax.errors import BadInput, nearest

Format = Literal["messages", "prompt_completion", "text"]

ROLES = ("system", "developer", "user", "assistant", "tool")
KEYS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""What a record of each format must hold, in the order in which `auto` tries them."""


@dataclass(frozen=True)
class Record:
    """One demonstration as it stands in its file."""

    source: str
    """The file's path as the user gave it (or as the glob spelled it)."""
    line: int
    """Line number, from 1."""
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """`demos.jsonl:17`: how every message names this record."""
        return f"{self.source}:{self.line}"


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """The JSONL files that `patterns` name, each glob's matches sorted.

    Raises:
      BadInput: nothing has that name (with the nearest names that exist), or it is no `.jsonl` file.
    """
    files = []
    for pattern in patterns:
        if os.path.isfile(pattern):
            matches = [pattern]
        elif glob.has_magic(pattern):
            matches = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
            if not matches:
                raise BadInput(f"{pattern}: no file matches this pattern. {_neighbours(pattern)}")
        else:
            kind = "is a directory, expected a .jsonl file" if os.path.isdir(pattern) else "no such file"
            raise BadInput(f"{pattern}: {kind}. {_neighbours(pattern)}")
        for path in matches:
            if not path.endswith(".jsonl"):
                raise BadInput(f"{path}: expected a .jsonl file (one JSON object a line), found {Path(path).suffix!r}")
        files += matches
    return files


def read_records(patterns: tuple[str, ...]) -> Iterator[Record]:
    """The records of every `.jsonl` path or glob, in the order given; blank lines are skipped.

    Raises:
      BadInput: a file is missing or holds no record, or a line is not valid UTF-8, not valid JSON or no object;
        names file, line and column, what was found and what was expected.
    """
    for path in find_files(patterns):
        empty = True
        with open(path, "rb") as file:
            offset = 0
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    empty = False
                    yield Record(path, number, _parse(path, number, offset, raw))
                offset += len(raw)
        if empty:
            raise BadInput(f"{path}: the file is empty ({offset} bytes), expected one JSON object a line")


def _parse(path: str, number: int, offset: int, raw: bytes) -> dict[str, Any]:
    try:
        # Without its line end, or JSON would count what is missing there as a second line.
        text = raw.rstrip(b"\r\n").decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}:{number}: not valid UTF-8: byte 0x{raw[error.start]:02x} at byte {offset + error.start} of the "
            "file. Convert the file to UTF-8."
        ) from error
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        found = text[error.pos : error.pos + 20]
        raise BadInput(
            f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}, found "
            f"{repr(found) if found else 'the end of the line'}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}:{number}:1: not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}:{number}:1: found {_kind(value)}, expected one JSON object a line")
    if "\\ud" in text.lower():  # only an escape can smuggle in half a surrogate pair, which no tokenizer accepts
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{path}:{number}: a lone surrogate {error.object[error.start]!a} is no character"
            ) from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _neighbours(pattern: str) -> str:
    """Files that exist near a name that does not."""
    folder = Path(pattern).parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".jsonl"))
    if not names:
        return f"There is no .jsonl file in {folder.resolve()}."
    return f"In {folder}: {nearest(Path(pattern).name, names[:50])}"


def detect_format(record: Record, declared: str = "auto") -> Format:
    """Which form the record has: the declared one, or by its keys when that is "auto".

    Raises:
      BadInput: the record lacks the keys; lists those found and those expected.
    """
    found = ", ".join(record.value) or "none"
    for form, keys in KEYS.items():
        if declared == form or (declared == "auto" and all(key in record.value for key in keys)):
            missing = [key for key in keys if key not in record.value]
            if missing:
                raise BadInput(
                    f"{record.where}: no key {' or '.join(missing)}: keys found: {found}; "
                    f'data.format "{form}" expects {" and ".join(keys)}'
                )
            return form
    expected = "; ".join(f"{' and '.join(keys)} ({form})" for form, keys in KEYS.items())
    raise BadInput(f"{record.where}: keys found: {found}; expected one of: {expected}")


def text_value(record: Record, key: str) -> str:
    """The string at `key`. Raises BadInput when it is something else."""
    value = record.value[key]
    if not isinstance(value, str):
        raise BadInput(f"{record.where}: {key} is {_kind(value)}, expected a string")
    return value


def read_tools(record: Record) -> list[dict[str, Any]] | None:
    """The record's `tools`, given as a list or as a JSON string of one; None where it has none.

    Raises:
      BadInput: not a list of objects.
    """
    tools = record.value.get("tools")
    if isinstance(tools, str):
        tools = _json_string(tools, f"{record.where}: tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadInput(f"{record.where}: tools is {_kind(tools)}, expected a list of objects or a JSON string of one")
    return tools


def validate_messages(record: Record, key: str = "messages") -> list[dict[str, Any]]:
    """The conversation at `key`, checked, with every tool call's arguments as an object.

    Arguments given as a JSON string are parsed: chat templates serialise them, and would quote the string again.

    Raises:
      BadInput: not a non-empty list of messages, an unknown role, content that is missing or no string, tool calls
        not in the OpenAI form, or a weight that is no number; names file:line and the message's index.
    """
    messages = record.value[key]
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{record.where}: {key} is {_kind(messages)}, expected a non-empty list of messages")
    return [_message(f"{record.where}: {key}[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadInput(f"{where} is {_kind(message)}, expected an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else f"Known: {', '.join(ROLES)}."
        raise BadInput(f"{where}: unknown role {role!r}. {hint} Roles: {', '.join(ROLES)}.")
    calls = message.get("tool_calls")
    if calls == []:  # tables write an empty list where a message has none
        calls, message = None, {key: value for key, value in message.items() if key != "tool_calls"}
    if calls is not None and role != "assistant":
        raise BadInput(f"{where} has the role {role!r} and tool_calls: only an assistant calls tools")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and calls):
        found = "missing" if "content" not in message else _kind(content)
        raise BadInput(f"{where} ({role}): content is {found}, expected a string (or null beside tool_calls)")
    message_weight(where, message)
    if calls is None:
        return dict(message)
    if not isinstance(calls, list):
        raise BadInput(f"{where}: tool_calls is {_kind(calls)}, expected a list")
    return {**message, "tool_calls": [_tool_call(f"{where}.tool_calls[{k}]", call) for k, call in enumerate(calls)]}


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadInput(
            f"{where} is {json.dumps(call)[:80]}, expected "
            '{"type": "function", "function": {"name": …, "arguments": …}}'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json_string(arguments, f"{where} ({function['name']}): arguments")
    if not isinstance(arguments, dict):
        raise BadInput(
            f"{where} ({function['name']}): arguments is {_kind(arguments)}, expected an object or a JSON string of one"
        )
    return {**call, "function": {**function, "arguments": arguments}}


def message_weight(where: str, message: dict[str, Any]) -> float:
    """What `weight` and `train` on a message multiply its loss by; 1 when it has neither.

    Raises:
      BadInput: not a finite number >= 0 or boolean, or a weight above 0 on a message that is not the assistant's.
    """
    weight = 1.0
    for key in ("weight", "train"):
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise BadInput(f"{where}: {key} is {value!r}, expected true, false or a number of at least 0")
        if value and message["role"] != "assistant":
            raise BadInput(f"{where} ({message['role']}): {key} is {value!r}: only assistant messages train")
        weight *= float(value)
    return weight


def _json_string(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} is a string but not valid JSON ({error}): {text[:60]!r}") from error


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict | str) and not value:
        return {list: "an empty list", dict: "an empty object", str: "an empty string"}[type(value)]
    return {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]
