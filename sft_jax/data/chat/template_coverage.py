"""What a chat template drops from an assistant message."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which datasets keep what a model thinks before it answers."""


def losses(message: dict[str, Any], shown: str) -> list[str]:
    """The parts of an assistant message that are missing from `shown`, the text of its turn."""
    leaves, lost = _called(message), []
    for name, part in _parts(message):
        # The same text may also be in an argument: one occurrence is not enough for both.
        if shown.count(part) < 1 + sum(times for (_, leaf), times in leaves.items() if part in leaf):
            lost.append(f"its {name} {part[:40]!r}")
    for (name, written), times in leaves.items():
        leaf = json.loads(written)
        spellings = {str(leaf), written, json.dumps(leaf, ensure_ascii=False)}
        spellings |= {spelling[1:-1] for spelling in spellings if _is_text(leaf) and spelling[:1] == '"'}
        if max(shown.count(spelling) for spelling in spellings) < times:
            lost.append(f"the {name} {leaf!r:.45}")
    return lost


def things_said(message: dict[str, Any]) -> int:
    """The number of `losses` if nothing of the message is shown."""
    return len(_parts(message)) + len(_called(message))


def _called(message: dict[str, Any]) -> Counter[tuple[str, str]]:
    """The names, keys and values of the message's tool calls, as JSON, and how often each occurs."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    leaves = Counter(("tool call", json.dumps(call["name"])) for call in calls)
    for call in calls:
        arguments = call["arguments"]
        tree = json.loads(arguments) if _is_text(arguments) else arguments
        leaves.update(("argument", leaf) for leaf in _leaves(tree))
    return leaves


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _parts(message: dict[str, Any]) -> list[tuple[str, str]]:
    """All texts of the message, each with its key."""
    content = message.get("content") or ""
    texts = [content] if _is_text(content) else [part.get("text") or "" for part in content if isinstance(part, dict)]
    # Templates may reformat a think block in the content, with different white space around it.
    parts = [("content", part.strip()) for text in texts for part in re.split(r"</?think>", text)]
    parts += [(key, message[key].strip()) for key in REASONING if _is_text(message.get(key))]
    return [(name, part) for name, part in dict.fromkeys(parts) if part]


def _leaves(value: Any) -> Iterator[str]:
    """All keys and values, at any depth, as JSON: in Python True, 1 and 1.0 are equal."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield json.dumps(key)
            yield from _leaves(child)
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child)
    else:
        yield json.dumps(value)
