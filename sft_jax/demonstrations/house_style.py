"""The house style that the shipped demonstrations teach: six tools, one way to call them, one refusal, one register.

An assistant turn is either calls and nothing else, one to a line, or one short plain sentence. The stock template of
SmolLM2 drops `tools` and `tool_calls` without a word, so the tools stand in the system text and the calls in `content`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

Arguments: TypeAlias = dict[str, str | int]

TOOLS: dict[str, dict[str, type[str] | type[int]]] = {
    "timer": {"minutes": int, "label": str},
    "shop": {"item": str},
    "weather": {"city": str},
    "text": {"to": str, "message": str},
    "lights": {"room": str, "percent": int},
    "event": {"title": str, "day": str, "time": str},
}
"""Every tool with the arguments that a call must give, all of them, and their types."""

REFUSAL = "I cannot do that."
"""The whole answer to a request for an action that no tool can run."""

_BETWEEN = " | "
_LINE = re.compile(r"/(\w+) (\w+: .*)")
_VALUE = re.compile(r"(?!.*: )[^|\s]([^|\n]*[^|\s])?")
_ARGUMENT = re.compile(rf"(\w+): ({_VALUE.pattern})")
_FRAGMENT = re.compile(r"^\s*/\w|/\w+ \w+:|\w+: [^|\n]* \| \w+:", re.MULTILINE)
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_SENTENCE = re.compile(r"[A-Z][^.!?\n]*\.")
_LONGEST_ANSWER = 16


def _signature(name: str) -> str:
    arguments = (f"{key} int" if kind is int else key for key, kind in TOOLS[name].items())
    return f"{name}({', '.join(arguments)})"


# Every row repeats this text, so it is as short as a fair instruction can be: names alone are strings. A call is a line
# of few tokens for the same reason; the usual JSON in tags spends nineteen of thirty-three on saying that it is one.
# A value stands after a space, as in a sentence: in quotes, a byte-level BPE would cut it into other tokens than it has
# in the request, and copying it would be spelling.
SYSTEM = (
    f"Tools: {', '.join(_signature(name) for name in TOOLS)}\n"
    f"Call lines: /tool argument: value{_BETWEEN}argument: value\n"
    f"No tool fits: {REFUSAL}\n"
    "Questions: one short sentence."
)
"""The system turn of every row."""


class HouseStyleError(ValueError):
    """A text or a call breaks the house style; the message says where."""


class MalformedCallError(HouseStyleError):
    """A text shows signs of a call but is not a sequence of well-formed calls."""


class WrongCallError(HouseStyleError):
    """A call parses but names an unknown tool, or gives other arguments or types than the tool declares."""


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Arguments


def check_call(call: Call) -> None:
    """Raises `WrongCallError` unless the tool is known and gets exactly its declared arguments in their types."""
    if call.name not in TOOLS:
        raise WrongCallError(f"unknown tool {call.name!r}; the tools are {', '.join(TOOLS)}")
    declared = TOOLS[call.name]
    if set(call.arguments) != set(declared):
        raise WrongCallError(f"{call.name} got the arguments {sorted(call.arguments)}, expected {sorted(declared)}")
    for key, value in call.arguments.items():
        # `type(...) is`, because True is an int to isinstance.
        if type(value) is not declared[key]:
            raise WrongCallError(f"{call.name}.{key} is {value!r}, expected a value of type {declared[key].__name__}")
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise WrongCallError(f"{call.name}.{key} is {value!r}, which a call line cannot hold")


def format_call(name: str, arguments: Arguments) -> str:
    """Returns the text of one call, its arguments in declared order; refuses a call that `check_call` refuses."""
    check_call(Call(name, arguments))
    return f"/{name} {_BETWEEN.join(f'{key}: {arguments[key]}' for key in TOOLS[name])}"


def format_calls(calls: list[Call]) -> str:
    """Returns the assistant turn that makes these calls: one to a line."""
    return "\n".join(format_call(call.name, call.arguments) for call in calls)


def parse_calls(text: str) -> list[Call]:
    """Reads an assistant turn: its calls in order, or `[]` when it is plain text without a trace of a call.

    White space around the whole turn is ignored. A turn that shows any trace of a call (a line that begins with a
    slash, or named values between bars) must be calls alone, one to a line; anything else raises `MalformedCallError`.
    A value is an int where the tool declares one and the text is one, otherwise a string. The tool's name and its
    arguments are not compared with the declared ones here: see `check_call`.
    """
    text = text.strip()
    if not _FRAGMENT.search(text):
        return []
    return [_parse_line(number, line) for number, line in enumerate(text.split("\n"), start=1)]


def check_turn(text: str) -> None:
    """Raises `HouseStyleError` unless the text is a legal assistant turn: declared calls alone, or plain text.

    Plain text is any text that is not blank and shows no trace of a call; its register is not judged.
    """
    if not text.strip():
        raise HouseStyleError("the turn is empty; expected calls or a sentence")
    for call in parse_calls(text):
        check_call(call)


def in_register(text: str) -> bool:
    """Whether a text is one plain sentence of at most 16 words: capital first, full stop last, no other mark."""
    return _SENTENCE.fullmatch(text) is not None and len(text.split()) <= _LONGEST_ANSWER


def _parse_line(number: int, line: str) -> Call:
    shape = _LINE.fullmatch(line)
    if shape is None:
        raise MalformedCallError(f"line {number} is {line!r}, expected /tool argument: value and nothing else")
    name, body = shape.groups()
    arguments: Arguments = {}
    for part in body.split(_BETWEEN):
        argument = _ARGUMENT.fullmatch(part)
        if argument is None:
            raise MalformedCallError(f"line {number}: {part!r} is no argument: value")
        key, value = argument[1], argument[2]
        if key in arguments:
            raise MalformedCallError(f"line {number}: the argument {key} is given twice")
        is_int = TOOLS.get(name, {}).get(key) is int and _INTEGER.fullmatch(value)
        arguments[key] = int(value) if is_int else value
    return Call(name, arguments)
