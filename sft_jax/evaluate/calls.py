"""Tool calls in a completion: parsed from the formats that models use, and compared with the expected ones."""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_jax.demonstrations.house_style import HouseStyleError
from sft_jax.demonstrations.house_style import parse_calls as parse_house_style
from sft_jax.errors import BadInput
from sft_jax.evaluate.bfcl import ACCEPTED, ANY_CALL, accepts, properties_of
from sft_jax.evaluate.task import Answer, Task

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(.*)", re.DOTALL)
_FENCED = re.compile(r"```(?:json|python|tool_code)?\s*\n(.*?)```", re.DOTALL)
_PYTHON_CALL = re.compile(r"\[?\s*[A-Za-z_][\w.]*\s*\(.*\)\s*\]?\s*", re.DOTALL)
_PYTHON_TRACE = re.compile(r"\[?\s*[A-Za-z_][\w.]*\(\s*(?:\)|[A-Za-z_]\w*\s*=)")
"""Distinguishes calls from prose such as `Yes (I think so)`: no space before the bracket, and a named argument."""
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
"""Reasoning before the answer; calls in it do not count."""
_HOUSE_LINE = re.compile(r"^/\w+ \w+:", re.MULTILINE)

CALL_SCORES = ("tool_call", "tool_name", "tool_call_read", "no_call")
"""The scores of `tool_calls`."""


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Calls:
    """The calls in a text."""

    calls: tuple[Call, ...]
    malformed: str = ""
    """Why a trace of a call could not be parsed; "" if all could, or if there is none."""


class _Malformed(ValueError):
    """A trace of a call that cannot be parsed."""


def find_calls(text: str) -> Calls:
    """The calls of a completion, in order.

    Supported formats: Hermes and Qwen (`<tool_call>{json}</tool_call>`), Mistral (`[TOOL_CALLS][…]`), Llama 3
    (`{"name": …, "parameters": …}`, several separated by `;` or newlines, optionally after `<|python_tag|>`), a JSON
    list of such objects, and Python calls with literal arguments (`[f(a=1), g(b="x")]`), each also as the only fenced
    block; and this project's own lines (`/timer minutes: 5`). An untagged object is a call if it has a name and
    arguments. `<think>…</think>` before the answer is ignored.
    """
    text = _THOUGHT.sub("", text, count=1) if _THOUGHT.match(text) else text
    text = text.replace("<|python_tag|>", "").strip()
    try:
        return Calls(tuple(_read(text)))
    except (_Malformed, HouseStyleError) as error:
        return Calls((), str(error) or "unreadable")


def _read(text: str) -> list[Call]:
    if tagged := _TAGGED.findall(text):
        if "" in tagged:
            raise _Malformed("nothing between the tags of a tool call")
        return [call for body in tagged for call in _from_json(body)]
    if mistral := _MISTRAL.search(text):
        return _from_json(mistral[1])
    fenced = _FENCED.findall(text)
    if len(fenced) == 1:
        text = fenced[0].strip()
    if text[:1] in ("{", "[") and '"name"' in text:
        return _from_json(text, tagged=False)
    if _PYTHON_CALL.fullmatch(text):
        return _from_python(text)
    if _HOUSE_LINE.search(text):
        return [Call(call.name, dict(call.arguments)) for call in parse_house_style(text)]
    return []


def _from_json(text: str, tagged: bool = True) -> list[Call]:
    """The calls in a sequence of objects and lists of objects; untagged objects without arguments are not calls."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place] in " \t\r\n;,":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:  # a looping model may write endless brackets
            raise _Malformed(f"not JSON at character {place}: {error}") from error
        found += value if isinstance(value, list) else [value]
    if not tagged and not any(isinstance(value, dict) and _ARGUMENTS & value.keys() for value in found):
        return []
    return [_call_of(value) for value in found]


_ARGUMENTS = {"arguments", "parameters", "function"}


def _call_of(value: Any) -> Call:
    """From `{"name", "arguments" or "parameters"}`, or OpenAI's `{"type": "function", "function": {…}}`."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise _Malformed(f"expected an object with a name, found {str(value)[:60]!r}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise _Malformed(f"the arguments of {value['name']} are a string that is not JSON") from error
    if not isinstance(arguments, dict):
        raise _Malformed(f"the arguments of {value['name']} are not an object")
    return Call(value["name"], arguments)


def _from_python(text: str) -> list[Call]:
    """The calls in a list, a tuple, or expressions separated by newlines or `;`; [] for prose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model may write invalid escapes such as "\\d"
            lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if not _PYTHON_TRACE.match(text):
            return []
        raise _Malformed(f"not Python calls: {error}") from error
    nodes: list[ast.expr] = []
    for line in lines:
        if not isinstance(line, ast.Expr):
            raise _Malformed("expected only calls")
        nodes += line.value.elts if isinstance(line.value, ast.List | ast.Tuple) else [line.value]
    if not text.startswith("[") and not _PYTHON_TRACE.match(text) and " (" in text:
        return []  # Python parses `Hello (there)` as a call
    return [_call_node(node) for node in nodes]


def _call_node(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise _Malformed("expected calls with named arguments only")
    name = ast.unparse(node.func)
    if not re.fullmatch(r"[\w.]+", name):
        raise _Malformed(f"{name!r} is not a function name")
    if len({keyword.arg for keyword in node.keywords}) < len(node.keywords):
        raise _Malformed(f"{name} is given an argument twice")
    return Call(name, {keyword.arg or "": _literal(keyword.value) for keyword in node.keywords})


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ast.unparse(node)  # a variable name, as on the leaderboard


def tool_calls(task: Task, completion: Answer) -> Mapping[str, float | None]:
    """Whether the right tools are called, and none if none is right.

    If calls are expected: `tool_call`: exactly the expected calls with the right names and arguments, in any order;
    `tool_name`: the same for names only; `tool_call_read`: a call was found and parsed. If no call is expected:
    `no_call`: 1 if the completion makes none. The other scores are None.

    Raises:
      BadInput: the row does not say which calls are expected.
    """
    found = find_calls(completion.raw or completion.text)
    if not found.calls and completion.raw:
        found = find_calls(completion.text)  # special tokens at the end of a turn can break parsing
    if task.row.get(ACCEPTED) == ANY_CALL:
        made = float(bool(found.calls))
        return {"tool_call": made, "tool_name": None, "tool_call_read": made, "no_call": None}
    wanted = wanted_calls(task)
    if not wanted:
        made = bool(found.calls or found.malformed)
        return {"tool_call": None, "tool_name": None, "tool_call_read": None, "no_call": float(not made)}
    names = sorted(_plain_name(call.name) for call in found.calls)
    return {
        "tool_call": float(_all_match(found.calls, wanted, task)),
        "tool_name": float(names == sorted(_plain_name(name) for name, _ in wanted)),
        "tool_call_read": float(bool(found.calls)),
        "no_call": None,
    }


def wanted_calls(task: Task) -> list[tuple[str, Any]]:
    """(name, accepted arguments) of every expected call; [] if none is expected.

    From BFCL's accepted answers, the demonstration's `tool_calls`, or the calls in its text.
    """
    accepted = task.row.get(ACCEPTED)
    if accepted is not None:
        if not isinstance(accepted, list) or not all(_is_accepted_call(one) for one in accepted):
            raise BadInput(
                f"{task.where}: {ACCEPTED} is {str(accepted)[:80]!r}, expected a list of "
                '{"name": {"argument": [accepted values]}}, empty if no call is expected'
            )
        return [(name, arguments) for one in accepted for name, arguments in one.items()]
    if task.demonstration is None:
        raise BadInput(f"{task.where}: the check tool_calls needs a demonstrated answer or accepted answers")
    given = task.demonstration.get("tool_calls")
    if given:
        try:
            return [(call.name, call.arguments) for call in map(_call_of, given)]
        except _Malformed as error:
            raise BadInput(f"{task.where}: the demonstrated tool calls cannot be parsed: {error}") from error
    shown = find_calls(task.shown)
    if shown.malformed:
        raise BadInput(f"{task.where}: the demonstrated tool calls cannot be parsed: {shown.malformed}")
    return [(call.name, call.arguments) for call in shown.calls]


def _is_accepted_call(one: Any) -> bool:
    """Whether it is {name: {argument: [values]}}."""
    if not isinstance(one, dict) or not all(isinstance(arguments, dict) for arguments in one.values()):
        return False
    return all(isinstance(values, list) for arguments in one.values() for values in arguments.values())


def _all_match(calls: Sequence[Call], wanted: Sequence[tuple[str, Any]], task: Task) -> bool:
    """Match each expected call with the first unused call that fits, as the leaderboard does."""
    left = list(calls)
    if len(left) != len(wanted):
        return False
    for name, arguments in wanted:
        fitting = next((place for place, call in enumerate(left) if _fits(call, name, arguments, task)), None)
        if fitting is None:
            return False
        del left[fitting]  # by index: calls with 10 and 10.0 compare equal
    return True


def _fits(call: Call, name: str, arguments: Any, task: Task) -> bool:
    if _plain_name(call.name) != _plain_name(name):
        return False
    if task.row.get(ACCEPTED) is not None:
        return accepts(call.arguments, arguments, *_parameters(task, name, arguments))
    return _same(call.arguments, arguments)


def _parameters(task: Task, name: str, accepted: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """(parameter schemas, required names); any type is accepted if the row's tools do not define the function."""
    functions = task.row.get("function") or [tool.get("function", tool) for tool in task.tools or ()]
    if any(function.get("name") == name for function in functions):
        return properties_of({**task.row, "function": functions}, name)
    return {key: {} for key in accepted}, []


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: 5 equals 5.0, but true is not 1; tuples equal lists."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _plain_name(name: str) -> str:
    """`math.factorial` may be written math_factorial: many APIs do not allow dots."""
    return name.replace(".", "_")
