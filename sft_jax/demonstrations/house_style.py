"""The house style that the shipped demonstrations teach: six tools, one way to call them, one refusal, one register.

An assistant turn is either only calls, one per line, or one short plain sentence. SmolLM2's stock template silently
drops `tools` and `tool_calls`, so the tools are in the system text and the calls in `content`.
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
"""Every tool with its arguments, all of them required, and their types."""

REFUSAL = "I cannot do that."
"""The complete answer to a request for an action that no tool can perform."""

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


# Every row repeats this text, so it is as short as a fair instruction can be: untyped arguments are strings. Calls are
# short lines for the same reason; the usual JSON in tags spends 19 of 33 tokens on markup. A value follows a space, as
# in a sentence: in quotes, byte-level BPE would tokenise it differently from the request, and the model would have to
# spell it instead of copying it.
SYSTEM = (
    f"Tools: {', '.join(_signature(name) for name in TOOLS)}\n"
    f"Call lines: /tool argument: value{_BETWEEN}argument: value\n"
    f"No tool fits: {REFUSAL}\n"
    "Questions: one short sentence."
)
"""The system turn of every row."""


class HouseStyleError(ValueError):
    """A text or a call violates the house style; the message says where."""


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
    """The text of one call, with arguments in declared order. Raises as `check_call`."""
    check_call(Call(name, arguments))
    return f"/{name} {_BETWEEN.join(f'{key}: {arguments[key]}' for key in TOOLS[name])}"


def format_calls(calls: list[Call]) -> str:
    """The assistant turn that makes these calls, one per line."""
    return "\n".join(format_call(call.name, call.arguments) for call in calls)


def parse_calls(text: str) -> list[Call]:
    """Parse an assistant turn: its calls in order, or `[]` for plain text without any trace of a call.

    White space around the turn is ignored. A turn with any trace of a call (a line that starts with a slash, or named
    values between bars) must consist of calls only, one per line; otherwise `MalformedCallError` is raised. A value is
    an int if the tool declares one and the text is one, otherwise a string. Names and arguments are not validated
    here; see `check_call`.
    """
    text = text.strip()
    if not _FRAGMENT.search(text):
        return []
    return [_parse_line(number, line) for number, line in enumerate(text.split("\n"), start=1)]


def check_turn(text: str) -> None:
    """Raises `HouseStyleError` unless the text is a legal assistant turn: only declared calls, or plain text.

    Plain text is any non-blank text without a trace of a call; its register is not checked.
    """
    if not text.strip():
        raise HouseStyleError("the turn is empty; expected calls or a sentence")
    for call in parse_calls(text):
        check_call(call)


def in_register(text: str) -> bool:
    """Whether a text is one plain sentence of at most 16 words, capitalised and ending with its only full stop."""
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
            raise MalformedCallError(f"line {number}: {part!r} is not `argument: value`")
        key, value = argument[1], argument[2]
        if key in arguments:
            raise MalformedCallError(f"line {number}: the argument {key} is given twice")
        is_int = TOOLS.get(name, {}).get(key) is int and _INTEGER.fullmatch(value)
        arguments[key] = int(value) if is_int else value
    return Call(name, arguments)
