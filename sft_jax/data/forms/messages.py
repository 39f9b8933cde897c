"""Checks conversations in common formats and normalises them to OpenAI's, with content as text."""

import json
import sys
from typing import Any, Literal

from sft_jax.data.read import strict_json
from sft_jax.data.read.strict_json import kind
from sft_jax.errors import BadRow, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response"), "tool"),
}
_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("reasoning", "thinking"), "reasoning"),
    "tool_call": "tool_call",
}
"""`type` of a content part -> what it becomes."""
_ORDER = ("reasoning", "text", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "train", "loss_weight")


def check_messages(where: str, messages: Any, key: str = "messages") -> list[dict[str, Any]]:
    """Check and normalise a conversation: roles from ROLES, content as one string, tool calls in OpenAI's format with
    arguments as an object.

    Messages given as a JSON string are parsed. So are arguments: chat templates serialise them, and would quote a
    string again. Content parts become `reasoning_content`, `content` and `tool_calls`. ShareGPT's `from` and `value`
    become `role` and `content`, its function calls `tool_calls`. The role `function` becomes `tool`.

    Raises:
      BadRow: not a non-empty list of messages, an unknown role, content that is missing or not convertible to a string,
        malformed tool calls, or a weight that is not a number; names `where` and the message's index.
    """
    if isinstance(messages, str) and messages.strip():
        messages = _json_string(messages, f"{where}: {key}")
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where}: {key} is {kind(messages)}, expected a non-empty list of messages")
    return [_message(f"{where}: {key}[{i}]", message) for i, message in enumerate(messages)]


def check_tools(where: str, tools: Any, key: str = "tools") -> list[dict[str, Any]] | None:
    """Convert tool schemas (a list or its JSON string) to OpenAI's format; None if there are none.

    Raises:
      BadRow: not a list of objects.
    """
    if isinstance(tools, str):
        tools = _json_string(tools, f"{where}: {key}") if tools.strip() else None
    if tools is None:
        return None
    if isinstance(tools, list):
        tools = [_json_string(tool, f"{where}: {key}") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"{where}: {key} is {kind(tools)}, expected a list of objects or a JSON string of one")
    bare = ("name" in tool and "function" not in tool and "type" not in tool for tool in tools)
    wrapped = ({"type": "function", "function": tool} if b else tool for tool, b in zip(tools, bare, strict=True))
    return list(wrapped) or None


def message_weight(where: str, message: dict[str, Any]) -> float:
    """The loss weight of a message: the product of `weight`, `train` and `loss_weight`, 1 by default.

    Raises:
      BadRow: neither a boolean nor a finite number >= 0, or a weight above 0 on a message of another role.
    """
    weight = 1.0
    for key in _WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise BadRow(f"{where}: {key} is {value!r}, expected true, false or a number of at least 0")
        if value and message["role"] != "assistant":
            raise BadRow(f"{where} ({message['role']}): {key} is {value!r}: only assistant messages train")
        weight *= float(value)
    return weight


TrainOn = Literal["assistant", "last_assistant", "completion", "all"]


def turn_weights(where: str, messages: list[dict[str, Any]], first: int, train_on: TrainOn) -> dict[int, float]:
    """Weight of every assistant message, by index; 0 if it does not train.

    Args:
      first: assistant messages before this index are part of the prompt.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = {i for i in turns if i >= first}
    if train_on == "last_assistant":
        trained &= set(turns[-1:])
    elif train_on == "completion":
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
        trained = {i for i in trained if i > last_user}
    elif train_on == "all":
        trained = set(turns)
    return {i: message_weight(f"{where}: messages[{i}]", messages[i]) if i in trained else 0.0 for i in turns}


def says_nothing(message: dict[str, Any]) -> bool:
    """Whether a checked message has neither text, nor reasoning, nor a tool call."""
    texts = (message.get(key) for key in ("content", *_REASONING))
    return not message.get("tool_calls") and not any(isinstance(text, str) and text.strip() for text in texts)


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"{where} is {kind(message)}, expected an object with role and content")
    if "role" not in message and "from" in message:
        message = _from_sharegpt(where, message)
    role = message.get("role")
    role = "tool" if role == "function" else role
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else f"Known: {', '.join(ROLES)}."
        raise BadRow(f"{where}: unknown role {role!r}. {hint} Roles: {', '.join(ROLES)}.")
    # Tables contain nulls for missing keys, and templates test whether a key is defined.
    checked = {key: value for key, value in message.items() if value is not None or key == "content"} | {"role": role}
    if isinstance(checked.get("content"), list):
        checked = _join_parts(where, checked)
    if "function_call" in checked:  # OpenAI's older format
        call = checked.pop("function_call")
        checked["tool_calls"] = [*(checked.get("tool_calls") or []), {"type": "function", "function": call}]
    if checked.get("tool_calls") == []:  # tables write an empty list where a message has none
        del checked["tool_calls"]
    calls = checked.get("tool_calls")
    if calls is not None and role != "assistant":
        raise BadRow(f"{where} has the role {role!r} and tool_calls: only an assistant calls tools")
    for key in _REASONING:
        if not isinstance(checked.get(key, ""), str):
            raise BadRow(f"{where} ({role}): {key} is {kind(checked[key])}, expected a string")
    content = checked.get("content")
    if not isinstance(content, str) and not (content is None and (calls or any(map(checked.get, _REASONING)))):
        found = "missing" if "content" not in checked else kind(content)
        written = f'. Write it as "{json.dumps(content)}"' if isinstance(content, int | float) else ""
        raise BadRow(f"{where} ({role}): content is {found}, expected a string (or null with tool_calls){written}")
    message_weight(where, checked)
    if calls is None:
        return checked
    if not isinstance(calls, list):
        raise BadRow(f"{where}: tool_calls is {kind(calls)}, expected a list")
    called = [_tool_call(f"{where}.tool_calls[{k}]", call) for k, call in enumerate(calls)]
    return {**checked, "content": content, "tool_calls": called}


def _from_sharegpt(where: str, message: dict[str, Any]) -> dict[str, Any]:
    speaker, value = message["from"], message.get("value")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = tuple(_SHAREGPT_ROLES)
        hint = nearest(speaker, known) if isinstance(speaker, str) else f"Known: {', '.join(known)}."
        raise BadRow(f"{where}: unknown speaker {speaker!r} in from. {hint}")
    rest = {key: child for key, child in message.items() if key not in ("from", "value")}
    turn = {**rest, "role": _SHAREGPT_ROLES[speaker]}
    if "value" in message:
        turn["content"] = value
    if speaker == "function_call":
        turn |= {"content": None, "tool_calls": _bare_calls(f"{where} (function_call)", value)}
    return turn


def _bare_calls(where: str, value: Any) -> list[Any]:
    """Convert `{"name": …, "arguments": …}`, a list of these, or the JSON string of either to OpenAI's format."""
    value = _json_string(value, where) if isinstance(value, str) else value
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise BadRow(f"{where} is an empty list, expected at least one call")
    return [{"type": "function", "function": call} for call in calls]


def _join_parts(where: str, message: dict[str, Any]) -> dict[str, Any]:
    """Merge a message's content parts into one text, one reasoning and a list of calls."""
    content, texts, calls, last = message["content"], {"text": [], "reasoning": []}, [], 0
    for k, part in enumerate(content):
        here = f"{where}.content[{k}]"
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        type_ = part.get("type") if isinstance(part, dict) else None
        if not isinstance(type_, str) or type_ not in _PARTS:
            found = f"a part of type {type_!r}" if isinstance(part, dict) else kind(part)
            raise BadRow(f"{here} is {found}: only text can be trained. Known types: {', '.join(_PARTS)}.")
        becomes = _PARTS[type_]
        if _ORDER.index(becomes) < last:
            raise BadRow(
                f"{here}: {type_} after {_ORDER[last]}: chat templates write reasoning, then text, then tool calls. "
                "Move the rest to a separate message."
            )
        last = _ORDER.index(becomes)
        value = next((part[key] for key in (becomes, type_, "value", "text") if part.get(key) is not None), None)
        if becomes == "tool_call":
            calls += _bare_calls(here, value)
        elif isinstance(value, str):
            texts[becomes].append(value)
        else:
            raise BadRow(f"{here}: its {type_} is {kind(value)}, expected a string under text or value")
    joined = {**message, "content": "".join(texts["text"]) if texts["text"] or not calls else None}
    if texts["reasoning"]:
        joined["reasoning_content"] = "".join(texts["reasoning"])
    if calls:
        joined["tool_calls"] = [*(message.get("tool_calls") or []), *calls]
    return joined


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(
            f"{where} is {json.dumps(call, default=str)[:80]}, expected "
            '{"type": "function", "function": {"name": …, "arguments": …}}'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}  # several APIs write a call without arguments this way
    elif isinstance(arguments, str):
        arguments = _json_string(arguments, f"{where} ({function['name']}): arguments")
    if not isinstance(arguments, dict):
        raise BadRow(
            f"{where} ({function['name']}): arguments is {kind(arguments)}, expected an object or a JSON string of one"
        )
    return {**call, "function": {**function, "arguments": arguments}}


def _json_string(text: str, where: str) -> Any:
    try:
        return strict_json.load(text)
    except ValueError as error:
        raise BadRow(f"{where} is a string but not valid JSON ({error}): {text[:60]!r}") from error
