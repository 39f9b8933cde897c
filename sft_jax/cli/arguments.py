"""Command-line arguments -> dataclasses, with tyro; an unknown option names its nearest neighbours."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from sft_jax.config import RunConfig, load_config, validate
from sft_jax.errors import BadInput, nearest
from sft_jax.storage.location import Location


def parse(kind: type, arguments: Sequence[str], program: str, default: Any = None) -> Any:
    """A dataclass from command-line arguments (tyro); unknown options name the nearest known ones.

    Raises:
      BadInput: an option that does not exist.
    """
    known = _option_names(kind if default is None else default)
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in known and name != "--help":
            raise BadInput(f"{program}: unknown option {argument.split('=')[0]}. {nearest(name, known)}")
    settings = (tyro.conf.FlagConversionOff,)
    arguments = _with_values(kind, arguments)
    if default is None:
        return tyro.cli(kind, args=list(arguments), prog=program, config=settings)
    return tyro.cli(kind, args=list(arguments), prog=program, default=default, config=settings)


def _with_values(kind: type, arguments: Sequence[str]) -> list[str]:
    """A command's own booleans need no value on the command line: `--json` is `--json True`."""
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(kind) if isinstance(field.default, bool)}
    made: list[str] = []
    for number, argument in enumerate(arguments, start=1):
        made.append(argument)
        if argument in flags and arguments[number : number + 1] not in (["True"], ["False"]):
            made.append("True")
    return made


def _option_names(config: Any) -> list[str]:
    names: list[str] = []
    for each in fields(config):
        value = getattr(config, each.name, each.default if each.default_factory is MISSING else each.default_factory())
        spelled = each.name.replace("_", "-")
        if is_dataclass(value):
            names += [f"--{spelled}.{inner[2:]}" for inner in _option_names(value)]
        else:
            names.append(f"--{spelled}")
    return names


def resolve_config(arguments: Sequence[str], program: str) -> RunConfig:
    """CONFIG [--section.field value ...] -> a validated RunConfig."""
    return config_with_options(RunConfig, arguments, program)[0]


Options = TypeVar("Options", bound=RunConfig)


def config_with_options(kind: type[Options], arguments: Sequence[str], program: str) -> tuple[RunConfig, Options]:
    """CONFIG [--section.field value ...] with a command's own options -> (validated RunConfig, all of it).

    Args:
      kind: RunConfig, or a subclass whose own fields are the options.
    """
    if not arguments:
        raise BadInput(f"{program}: CONFIG is missing: a Python file with get_config(), or a run's config.json")
    if arguments[0] in ("-h", "--help"):
        parse(kind, ["--help"], f"{program} CONFIG", kind())
    if arguments[0].startswith("-"):
        raise BadInput(f"{program}: CONFIG comes first, then the options; found {arguments[0]}")
    base = load_config(arguments[0])
    default = kind(**{field.name: getattr(base, field.name) for field in fields(RunConfig)})
    options = parse(kind, arguments[1:], f"{program} {arguments[0]}", default)
    config = RunConfig(**{field.name: getattr(options, field.name) for field in fields(RunConfig)})
    validate(config)
    return config, options


def require(options: Any, name: str, program: str) -> None:
    """Refuse a command without this option, for options that come after the positional one but have no default."""
    if not getattr(options, name):
        raise BadInput(f"{program}: --{name.replace('_', '-')} is missing")


def check_writable(path: str, directory: bool = False, option: str = "--out") -> None:
    """Refuse an output path that cannot be made, before the work is done whose result would be lost.

    Args:
      directory: it names a directory, not a file.
    """
    if not path:
        return
    if "://" in path:
        location = Location(path)
        if not location.is_remote:
            raise BadInput(f"{option} {path}: expected a path of this machine or gs://bucket/path")
        location.check_writable(directory)
        return
    place = Path(path)
    if not directory and place.is_dir():
        raise BadInput(f"{option} {path} is a directory, expected a file to write")
    for parent in place.absolute().parents:
        if parent.is_dir():
            break
        if parent.exists():
            raise BadInput(f"{option} {path}: {parent} is a file, so nothing can be written below it")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{option} {path}: {place.parent} cannot be created: {error.strerror}") from error
