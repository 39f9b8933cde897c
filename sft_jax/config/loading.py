"""A run's config as files: Python that returns one, and the JSON of a resolved one."""

import dataclasses
import json
import re
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sft_jax.config.aliases import did_you_mean
from sft_jax.config.kinds import ADAPTERS, OPTIMIZERS, AdamW
from sft_jax.config.run import RunConfig, leaf_fields
from sft_jax.errors import BadInput, nearest

FIELDS = [name for name, _, _ in leaf_fields(RunConfig())]
"""Every field of a run, dotted."""
SECTIONS = {
    field.name: type(field.default)
    for field in dataclasses.fields(RunConfig)
    if dataclasses.is_dataclass(field.default)
}


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
    return _build(RunConfig, _of_0_1(tree), origin, "")


def _of_0_1(tree: Any) -> Any:
    """A config as sft_jax 0.1 wrote it, which had AdamW's settings whatever the optimizer was."""
    if not isinstance(tree, dict) or "loss" in tree or not isinstance(tree.get("optimizer"), dict):
        return tree
    kind = OPTIMIZERS.settings_type(tree["optimizer"].get("name", "adamw"))
    own, before = {field.name for field in dataclasses.fields(kind)}, dataclasses.asdict(AdamW())
    kept = {key: value for key, value in tree["optimizer"].items() if key in own or before.get(key) != value}
    return {**tree, "optimizer": kept}


def _build(cls: type, tree: Any, origin: str, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise BadInput(f"{origin}: {prefix or 'the config'} is {type(tree).__name__}, expected an object")
    types = get_type_hints(cls)
    values = {}
    for name, value in tree.items():
        if name not in types:
            raise BadInput(f"{origin}: unknown field {prefix + name!r}. {did_you_mean(prefix + name, FIELDS)}")
        if dataclasses.is_dataclass(types[name]):
            values[name] = _build(types[name], value, origin, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            values[name] = _leaf(types[name], value, origin, prefix + name)
    return cls(**values)


def _leaf(kind: Any, value: Any, origin: str, name: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        [kind] = [one for one in get_args(kind) if one is not type(None)]
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
    """Run a config file and return its `get_config()`; a `.json` file is a resolved config, and a workdir has one.

    Raises:
      BadInput: the file is missing, cannot be executed, or has no `get_config() -> RunConfig`.
    """
    path = Path(path)
    if (path / "config.json").is_file():  # moved, perhaps, since the run began in it
        resolved = from_json((path / "config.json").read_text(encoding="utf-8"), str(path / "config.json"))
        return dataclasses.replace(resolved, workdir=str(path))
    if path.name.endswith((".jsonl", ".parquet", ".jsonl.gz", ".jsonl.zst")):
        raise BadInput(f"{path}: this is data, not a config. Use configs/quickstart.py --data.train {path}")
    if path.suffix == ".gguf":
        raise BadInput(f"{path}: this is a model, not a config. Use configs/quickstart.py --model.path {path}")
    if not path.is_file():
        raise BadInput(f"{path}: no such config file. Start from configs/quickstart.py, or leave CONFIG out")
    if path.suffix == ".json":
        return from_json(path.read_text(encoding="utf-8"), str(path))
    if path.suffix in (".yaml", ".yml", ".toml", ".ini", ".cfg"):
        raise BadInput(
            f"{path}: a config is a Python file with `def get_config() -> RunConfig`, or a run's config.json; "
            f"{path.suffix} files are not read. Start from configs/quickstart.py, or give options alone: "
            "sft-jax train --model.path MODEL --data.train mine.jsonl"
        )
    try:
        scope = _executed(path)
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


def _executed(path: Path) -> dict[str, Any]:
    """The globals of a config file; it may import config files from its directory."""
    folder, known = str(path.resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(path))
    finally:
        sys.path.remove(folder)
        # Another folder may have a config of the same name.
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None)
            if file and str(Path(file).resolve().parent) == folder:
                del sys.modules[name]


def _line_of(error: BaseException, path: Path) -> str:
    """`:12`, the last line of the config file that the error came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f":{lines[-1]}" if lines else ""


def _field_hint(error: BaseException) -> str:
    """Suggests a field for an unknown field of a section."""
    named = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if named is None:
        return ""
    section = next((one for one, kind in SECTIONS.items() if kind.__name__ == named[1]), "")
    return f". {did_you_mean(f'{section}.{named[2]}', FIELDS)}"


def identity_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """One line for each identity field that differs, `name: old -> new`; a field left out has its kind's default."""
    before, after = _effective(old), _effective(new)
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name, field, _ in leaf_fields(new)
        if field.metadata.get("identity") and before[name] != after[name]
    ]


def _effective(config: RunConfig) -> dict[str, Any]:
    values = {name: value for name, _, value in leaf_fields(config)}
    for registry, name, section in (
        (OPTIMIZERS, config.optimizer.name, config.optimizer),
        (ADAPTERS, config.adapter.kind, config.adapter),
    ):
        settings = dataclasses.asdict(registry.settings(name, section))
        values |= {f"{registry.section}.{field}": value for field, value in settings.items()}
    return values


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The config with fields set by their dotted names, as `--section.field` does.

    A number of epochs makes the steps of a resolved config void: they are counted anew.

    Raises:
      BadInput: an unknown field, or a value of the wrong type.
    """
    if not overrides:
        return config
    tree = json.loads(to_json(config))
    known = [name for name, _, _ in leaf_fields(config)]
    values = dict(overrides)
    if "train.epochs" in values:
        values.setdefault("train.steps", 0)
    for name, value in values.items():
        if name not in known:
            raise BadInput(f"unknown field {name!r}. {did_you_mean(name, known)}")
        *sections, field = name.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[field] = list(value) if isinstance(value, tuple) else value
    return _build(RunConfig, tree, "overrides", "")
