"""Keys next to a conversation in its row: system prompt, tools, chat template kwargs."""

from typing import Any

from sft_jax.data.forms.messages import check_tools
from sft_jax.data.forms.values import string
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow


def system_turn(record: Record, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row's `system` as a message to prepend to `messages`; [] if they already begin with it.

    Raises:
      BadRow: not a string, or the conversation begins with different instructions.
    """
    system = record.value.get("system")
    if not system or not string(record, system, "system").strip():
        return []
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}]
    if first["content"] != system:
        raise BadRow(
            f"{record.where}: system is {_short(system)}, but the conversation begins with the {first['role']} message "
            f"{_short(first['content'])}: expected only one of them. Remove one, or join them with data.function"
        )
    return []


def check_no_system(record: Record, given: str) -> None:
    """Reject a `system` next to a plain string prompt, unless the string already contains it.

    Raises:
      BadRow: with a fix.
    """
    system = record.value.get("system")
    if system and string(record, system, "system").strip() not in given:
        raise BadRow(
            f"{record.where}: system is {_short(system)}, but a plain string prompt has no system turn. Add it to the "
            'string, or use a conversation: "prompt": [{"role": "user", "content": …}]'
        )


def tools_of(record: Record) -> list[dict[str, Any]] | None:
    """The row's `tools`, or `functions` (OpenAI's older name, with bare schemas) as tools.

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
            f"{record.where}: tools ({next(names)[:60]}) and functions ({next(names)[:60]}) differ, expected only "
            "one of them. functions is the older name: remove it"
        )
    return tools or functions


def holds_null(value: Any) -> bool:
    """Whether any key, at any depth, has the value null."""
    if isinstance(value, dict):
        return any(child is None or holds_null(child) for child in value.values())
    return isinstance(value, list) and any(map(holds_null, value))


def _short(text: Any) -> str:
    return repr(text if len(str(text)) <= 40 else f"{str(text)[:40]}…")
