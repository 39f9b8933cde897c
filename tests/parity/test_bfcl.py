"""The Berkeley Function Calling Leaderboard's own files, judged by us and by its own checker.

The wheel is installed without its dependencies, so the one module of its checker that needs them, a table of models, is
replaced by a model whose function names keep their dots.
"""

import copy
import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sft_jax.data.read.readers import read_records
from sft_jax.errors import BadInput
from sft_jax.evaluate.bfcl import ACCEPTED, bfcl_task
from sft_jax.evaluate.calls import tool_calls
from sft_jax.evaluate.task import Answer, Task

PYTHON = {
    "simple_python": 400,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}
"""Categories that the checker judges as Python, and how many questions each has."""


def _tasks(category: str) -> list[Task]:
    spec = importlib.util.find_spec("bfcl_eval")
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps bfcl-eval"
    file = Path(spec.submodule_search_locations[0]) / "data" / f"BFCL_v4_{category}.json"
    return [bfcl_task(record) for record in read_records((str(file),))]


@pytest.fixture(scope="module")
def their_verdict():
    """(task, category, calls) -> whether the leaderboard accepts them."""
    models: Any = types.ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"any": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules["bfcl_eval.constants.model_config"] = models
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(task: Task, category: str, calls: list[dict]) -> bool:
        output = [{call["name"]: copy.deepcopy(call["arguments"])} for call in calls]
        found = ast_checker(task.row["function"], output, task.row[ACCEPTED], Language.PYTHON, category, "any")
        return found["valid"]

    yield check
    del sys.modules["bfcl_eval.constants.model_config"]


def _first(choices: Any) -> Any:
    """The first accepted value; None where there is none but leaving it out."""
    if not isinstance(choices, list):
        return _plain(choices)
    return next((_plain(one) for one in choices if one != ""), None)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: one for key, choices in value.items() if (one := _first(choices)) is not None}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _changed(calls: list[dict], draw: random.Random) -> list[dict]:
    """The calls with one argument left out, added, of another value or of another type."""
    calls = copy.deepcopy(calls)
    arguments = draw.choice(calls)["arguments"]
    how = draw.random()
    if not arguments or how < 0.2:
        arguments["no_such"] = 1
        return calls
    key = draw.choice(list(arguments))
    value = arguments[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if how < 0.4:
        del arguments[key]
    elif how < 0.7:
        arguments[key] = value + 1 if is_number else not value if isinstance(value, bool) else [value]
        if isinstance(value, str):
            arguments[key] = value + "x"
    else:
        arguments[key] = float(value) if is_number else value.upper() if isinstance(value, str) else str(value)
    return calls


@pytest.mark.parametrize("category", PYTHON)
def test_every_verdict_on_right_and_changed_calls_is_the_leaderboards(category, their_verdict):
    tasks, draw, accepted = _tasks(category), random.Random(0), 0
    assert len(tasks) == PYTHON[category]
    for task in tasks:
        wanted = ((name, arguments) for one in task.row[ACCEPTED] for name, arguments in one.items())
        right = [{"name": name, "arguments": _plain(arguments)} for name, arguments in wanted]
        for number in range(6):
            calls = _changed(right, draw) if number else right
            ours = tool_calls(task, Answer(json.dumps(calls), True, 1))["tool_call"]
            assert bool(ours) == their_verdict(task, category, calls), (task.where, calls)
            accepted += bool(ours)
    # Nearly every first accepted answer is accepted (the leaderboard refuses a few of its own), most changes are not.
    assert 0.99 * len(tasks) <= accepted <= 3 * len(tasks)


@pytest.mark.parametrize(("category", "rows"), [("irrelevance", 240), ("live_irrelevance", 884)])
def test_where_no_function_fits_a_sentence_is_right_and_a_call_wrong(category, rows):
    tasks = _tasks(category)
    assert len(tasks) == rows
    for task in tasks:
        assert tool_calls(task, Answer("None of them fits.", True, 1))["no_call"] == 1.0
        assert tool_calls(task, Answer("[f(a=1)]", True, 1))["no_call"] == 0.0


@pytest.mark.parametrize("category", ["simple_java", "simple_javascript"])
def test_other_languages_are_judged_by_their_values(category):
    scores = []
    for task in _tasks(category):
        [(name, arguments)] = task.row[ACCEPTED][0].items()
        calls = [{"name": name, "arguments": {key: _first(choices) for key, choices in arguments.items()}}]
        scores.append(tool_calls(task, Answer(json.dumps(calls), True, 1))["tool_call"])
        spoilt = [{"name": name, "arguments": {**calls[0]["arguments"], "no_such": 1}}]
        assert tool_calls(task, Answer(json.dumps(spoilt), True, 1))["tool_call"] == 0.0
    print(f"{category}: {sum(scores):.0f} of {len(scores)} first accepted answers accepted")
    assert sum(scores) >= 0.7 * len(scores)


@pytest.mark.parametrize("category", ["multi_turn_base", "memory", "web_search"])
def test_what_must_be_executed_is_refused(category):
    with pytest.raises(BadInput, match="needs an environment"):
        _tasks(category)
