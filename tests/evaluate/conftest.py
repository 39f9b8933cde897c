"""Tasks and completions by hand."""

import pytest

from sft_jax.evaluate.task import Answer, Task


@pytest.fixture
def task():
    """(demonstrated text, keys of the row) -> a task."""

    def make(shown: str | None = None, messages=({"role": "user", "content": "?"},), tool_calls=None, **row) -> Task:
        demonstration = None
        if shown is not None or tool_calls is not None:
            demonstration = {"role": "assistant", "content": shown, "tool_calls": tool_calls}
        return Task("rows.jsonl:1", "1", tuple(messages), "", None, demonstration, row)

    return make


@pytest.fixture
def said():
    """text -> a completion."""
    return lambda text, raw="": Answer(text, True, 3, raw)
