"""A run's config as files: Python that returns one, and the JSON of a resolved one."""

import dataclasses
import json
import re
import traceback
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sft_jax.config.run import Data, Distributed, Mesh, Model, Optimizer, RunConfig, Sharding, Train, leaf_fields
from sft_jax.errors import BadInput, nearest


def to_json(config: RunConfig) -> str:
    """The config as indented JSON; `from_json` reads it back to an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, origin: str) -> RunConfig:
    """The config written by `to_json`.

    Raises:
      BadInput: not JSON, an unknown field, or a value of the wrong type; names `origin` and the field.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{origin}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    return _build(RunConfig, tree, origin, "")


def _build(cls: type, tree: Any, origin: str, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise BadInput(f"{origin}: {prefix or 'the config'} is {type(tree).__name__}, expected an object")
    types = get_type_hints(cls)
    values = {}
    for name, value in tree.items():
        if name not in types:
            raise BadInput(f"{origin}: unknown field {prefix + name!r}. {nearest(name, list(types))}")
        if dataclasses.is_dataclass(types[name]):
            values[name] = _build(types[name], value, origin, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            values[name] = _leaf(types[name], value, origin, prefix + name)
    return cls(**values)


def _leaf(kind: Any, value: Any, origin: str, name: str) -> Any:
    if get_origin(kind) is tuple:
        of = get_args(kind)[0]
        if isinstance(value, list) and of is float and all(type(v) in (int, float) for v in value):
            return tuple(float(v) for v in value)
        if isinstance(value, list) and of is str and all(isinstance(v, str) for v in value):
            return tuple(value)
        example = "strings such as ('demos.jsonl',)" if of is str else "numbers such as (0.7, 0.3)"
        raise BadInput(f"{origin}: {name} is {value!r}, expected a tuple of {example}")
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise BadInput(f"{origin}: {name} is {value!r}. {nearest(str(value), [str(a) for a in get_args(kind)])}")
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise BadInput(
        f"{origin}: {name} is {value!r} ({type(value).__name__}), expected {getattr(kind, '__name__', kind)}"
    )


def load_config(path: str | Path) -> RunConfig:
    """Run a config file and return its `get_config()`; a `.json` file is a resolved config.

    Raises:
      BadInput: the file is missing, cannot be executed, or has no `get_config() -> RunConfig`.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such config file. Configs shipped: configs/quickstart.py, configs/llama31_8b.py")
    if path.suffix == ".json":
        return from_json(path.read_text(encoding="utf-8"), str(path))
    import runpy

    try:
        scope = runpy.run_path(str(path))
        if "get_config" not in scope:
            raise BadInput(
                f"{path}: defines no get_config(). A config file is Python with `def get_config() -> RunConfig`."
            )
        config = scope["get_config"]()
        if not isinstance(config, RunConfig):
            raise BadInput(f"{path}: get_config() returned {type(config).__name__}, expected RunConfig")
        # Python checks no types; the way through JSON does, and makes the lists that people write tuples.
        return from_json(to_json(config), str(path))
    except (
        SyntaxError,
        ImportError,
        NameError,
        TypeError,
        AttributeError,
        ValueError,
        LookupError,
        ArithmeticError,
        OSError,
    ) as error:
        problem = f"{type(error).__name__}: {error}"
        raise BadInput(f"{path}{_line_of(error, path)}: cannot be executed: {problem}{_field_hint(error)}") from error


def _line_of(error: BaseException, path: Path) -> str:
    """`:12`, the last line of the config file that the error came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f":{lines[-1]}" if lines else ""


def _field_hint(error: BaseException) -> str:
    """The nearest fields where a section was given one that it does not have."""
    named = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    sections: tuple[type, ...] = (RunConfig, Model, Data, Optimizer, Train, Mesh, Sharding, Distributed)
    known = {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in sections}
    if named is None or named[1] not in known:
        return ""
    return f". {nearest(named[2], known[named[1]])}"


def identity_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """One line for each identity field that differs, `name: old -> new`."""
    before = {name: value for name, _, value in leaf_fields(old)}
    return [
        f"{name}: {before[name]!r} -> {value!r}"
        for name, field, value in leaf_fields(new)
        if field.metadata.get("identity") and before[name] != value
    ]
