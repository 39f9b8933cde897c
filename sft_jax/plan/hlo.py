"""Parser of optimised HLO text: computations, instructions and trip counts.

Parses only what the planner needs. `compiled.as_text()` has one instruction per line, except where a kernel's metadata
contains newlines.
"""

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%([\w.-]+) .*\{\s*$")
_START = re.compile(r"^\s+(ROOT )?%([\w.-]+) = ")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_NAME = re.compile(r"%([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)")

BITS = {"pred": 8, "bf16": 16, "token": 0}
"""Bits of types whose name does not contain them."""


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    space: int
    """Memory space of its layout: 0 is HBM on TPUs, 1 the vector memory of the core."""

    @property
    def bytes(self) -> float:
        bits = BITS.get(self.dtype) or int(re.sub(r"\D", " ", self.dtype).split()[0])
        return math.prod(self.shape) * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """Arrays of the result; several if it is a tuple."""
    operands: tuple[str, ...]
    """Names of the operands."""
    inside: str
    """Text between the parentheses: the value of a constant, the number of a parameter."""
    attributes: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """Name of the computation in an attribute such as `calls` or `body`."""
        found = re.search(rf"\b{attribute}=%([\w.-]+)", self.attributes)
        return found[1] if found else None


@dataclass
class Module:
    """The computations of a program by name."""

    entry: str = ""
    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    _named: dict[str, dict[str, Instruction]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> dict[str, Instruction]:
        """The instructions of a computation by name."""
        if name not in self._named:
            self._named[name] = {each.name: each for each in self.computations[name]}
        return self._named[name]


def parse(text: str) -> Module:
    """Parse a module."""
    module, lines, current = Module(), [], ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            module.computations[current] = []
            module.entry = current if head[1] else module.entry
        elif current and _START.match(line):
            lines.append((current, line))
        elif current and line.startswith("}") and len(line) == 1:
            current = ""
        elif current and lines:
            lines[-1] = (current, lines[-1][1] + " " + line)
    for computation, line in lines:
        module.computations[computation].append(_instruction(line))
    return module


def _instruction(line: str) -> Instruction:
    start = _START.match(line)
    assert start is not None
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    assert opcode is not None, line
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        arrays=tuple(map(_array, _ARRAY.finditer(rest[:end]))),
        operands=tuple(_NAME.findall(inside)),
        inside=inside,
        attributes=rest[close + 1 :],
        root=bool(start[1]),
    )


def _array(found: re.Match[str]) -> Array:
    dims = tuple(int(n) for n in found[2].split(",")) if found[2] else ()
    space = re.search(r"S\((\d+)\)", found[3] or "")
    return Array(found[1], dims, int(space[1]) if space else 0)


def _closing(text: str, opening: int) -> int:
    """Index of the matching closing parenthesis."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced parentheses in {text[opening : opening + 60]!r}")


def bodies(module: Module, each: Instruction) -> list[tuple[str, int]]:
    """(computation, executions) of each computation that an instruction runs; empty for a simple instruction.

    Raises:
      ValueError: a loop whose trip count cannot be determined.
    """
    if each.opcode == "while":
        body = each.called("body")
        assert body is not None
        return [(body, trips(module, each))]
    if each.opcode in ("call", "async-start"):
        called = each.called("to_apply") or each.called("calls")
        return [(called, 1)] if called else []
    if each.opcode == "conditional":
        return [(branch, 1) for found in _BRANCHES.findall(each.attributes) for branch in _NAME.findall(found)]
    return []


def trips(module: Module, loop: Instruction) -> int:
    """Trip count of a `while`: ceil(limit / step), counting up from 0 as XLA's own loops do.

    Raises:
      ValueError: the condition does not compare a counter with a constant, or the step is not constant.
    """
    condition, body = loop.called("condition"), loop.called("body")
    assert condition is not None and body is not None
    tests, steps = module[condition], module[body]
    test = _resolve(tests, next(each for each in tests.values() if each.root))
    numbers = [_constant(_resolve(tests, tests[name])) for name in test.operands]
    counters = [_counter(tests, tests[name]) for name in test.operands]
    limit = next((n for n in numbers if n is not None), None)
    place = next((n for n in counters if n is not None), None)
    if limit is None or place is None:
        raise ValueError(f"the loop {loop.name} does not compare a counter with a constant")
    root = next(each for each in steps.values() if each.root)
    step = _step(module, steps, steps[root.operands[place]])
    if not step:
        raise ValueError(f"the step of the loop {loop.name} is not constant")
    return -(-limit // step)


def _resolve(of: dict[str, Instruction], each: Instruction) -> Instruction:
    """Follow copies and conversions to the original instruction."""
    while each.opcode in ("copy", "convert", "bitcast") and each.operands:
        each = of[each.operands[0]]
    return each


def _constant(each: Instruction) -> int | None:
    return int(each.inside) if each.opcode == "constant" and re.fullmatch(r"-?\d+", each.inside) else None


def _counter(of: dict[str, Instruction], each: Instruction) -> int | None:
    """Index of a counter in the loop's tuple."""
    each = _resolve(of, each)
    if each.opcode != "get-tuple-element":
        return None
    found = re.search(r"\bindex=(\d+)", each.attributes)
    return int(found[1]) if found else None


def _step(module: Module, of: dict[str, Instruction], each: Instruction) -> int | None:
    each = _resolve(of, each)
    if each.opcode == "fusion" and (called := each.called("calls")):
        inner = module[called]
        parameters = {int(one.inside): one for one in inner.values() if one.opcode == "parameter"}
        given = {parameters[i].name: of[name] for i, name in enumerate(each.operands)}
        root = _resolve(inner, next(one for one in inner.values() if one.root))
        terms = [_resolve(inner, inner[name]) for name in root.operands] if root.opcode == "add" else []
        terms = [_resolve(of, given[term.name]) if term.name in given else term for term in terms]
    else:
        terms = [_resolve(of, of[name]) for name in each.operands] if each.opcode == "add" else []
    return next((n for n in map(_constant, terms) if n is not None), None)
