"""What stands beside a conversation in its row: a system prompt, tools, values for the chat template."""

from typing import Any

from sft_jax.data.forms.messages import check_tools
from sft_jax.data.forms.values import string
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow


def system_turn(record: Record, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row's `system` as the message that goes before `messages`; none where they begin with it already.

    Raises:
      BadRow: not a string, or the conversation begins with other instructions.
    """
    system = record.value.get("system")
    if not system or not string(record, system, "system").strip():
        return []
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}]
    if first["content"] != system:
        raise BadRow(
            f"{record.where}: system is {_short(system)}, and the conversation begins with the {first['role']} message "
            f"{_short(first['content'])}: expected one of them. Remove one, or join them with data.function"
        )
    return []


def check_no_system(record: Record, given: str) -> None:
    """Refuse a `system` beside a prompt that is a plain string, unless the string has it already.

    Raises:
      BadRow: with the cure.
    """
    system = record.value.get("system")
    if system and string(record, system, "system").strip() not in given:
        raise BadRow(
            f"{record.where}: system is {_short(system)}, and a plain string has no place for it. Write it into the "
            'string, or make it a conversation: "prompt": [{"role": "user", "content": …}]'
        )


def tools_of(record: Record) -> list[dict[str, Any]] | None:
    """The row's `tools`, or `functions` (OpenAI's older name for bare schemas) as tools.

    Raises:
      BadRow: malformed, or both are given and differ.
    """
    value = record.value
    tools = check_tools(record.where, value.get("tools"))
    if value.get("functions") is None:
        return tools
    functions = check_tools(record.where, value["functions"], "functions")
    if tools and functions and tools != functions:
        names = ("/".join(str(one.get("function", one).get("name")) for one in each) for each in (tools, functions))
        raise BadRow(
            f"{record.where}: tools ({next(names)[:60]}) and functions ({next(names)[:60]}) differ, expected one of "
            "them. functions is the older name: remove it"
        )
    return tools or functions


def holds_null(value: Any) -> bool:
    """Whether some key within has the value null."""
    if isinstance(value, dict):
        return any(child is None or holds_null(child) for child in value.values())
    return isinstance(value, list) and any(map(holds_null, value))


def _short(text: Any) -> str:
    return repr(text if len(str(text)) <= 40 else f"{str(text)[:40]}…")
