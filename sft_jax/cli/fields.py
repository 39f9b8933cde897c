"""The options of a command: the fields of its dataclass and of the sections of that, with their documentation."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class Positional(NamedTuple):
    """Marks the field that is given without a name: `Annotated[str, Positional("MODEL")]`."""

    name: str


class Option(NamedTuple):
    """One field of a dataclass, or of a section of it."""

    name: str
    """Dotted, with dashes: `optimizer.learning-rate`."""
    kind: Any
    """Its type: str, int, float, bool, a Literal, or a tuple of these."""
    default: Any
    """MISSING where it must be given."""
    doc: str
    positional: str = ""
    """What the usage line calls it, where it is given without a name."""
    optional: bool = False
    """None is a value too, spelled `none`."""
    none_empties: bool = False
    """A tuple of a config that is empty by default: `none` empties it again."""


def options_of(kind: type, default: Any = None, prefix: str = "") -> list[Option]:
    """The options that a dataclass takes, in the order of its fields; those of a section are dotted.

    Args:
      default: an instance whose values are the defaults, instead of the fields' own.
    """
    types, docs, found = get_type_hints(kind, include_extras=True), field_docs(kind), []
    for field in fields(kind):
        given = field.default_factory() if field.default_factory is not MISSING else field.default
        value = given if default is None else getattr(default, field.name)
        name, type_, positional = prefix + field.name.replace("_", "-"), types[field.name], ""
        if is_dataclass(value):
            found += options_of(type(value), value, f"{name}.")
            continue
        if get_origin(type_) is Annotated:
            type_, mark = get_args(type_)
            positional = mark.name
        optional = get_origin(type_) in (Union, UnionType)
        if optional:
            [type_] = [one for one in get_args(type_) if one is not type(None)]
        empty = given == () and bool(prefix)
        found.append(Option(name, type_, value, docs.get(field.name, ""), positional, optional, empty))
    return found


def field_docs(kind: type) -> dict[str, str]:
    """Field name -> the string that stands below it in the source, in one line."""
    docs: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        [node] = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, below in pairwise(body):
            is_doc = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if is_doc and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                docs[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return docs
