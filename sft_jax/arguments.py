"""Command-line arguments -> dataclasses, with tyro; an unknown option names its nearest neighbours."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import tyro

from sft_jax.config import RunConfig, load_config
from sft_jax.errors import BadInput, nearest
from sft_jax.validation import validate


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
    if default is None:
        return tyro.cli(kind, args=list(arguments), prog=program, config=settings)
    return tyro.cli(kind, args=list(arguments), prog=program, default=default, config=settings)


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
    if not arguments:
        raise BadInput(f"{program}: CONFIG is missing: a Python file with get_config(), or a run's config.json")
    if arguments[0] in ("-h", "--help"):
        parse(RunConfig, ["--help"], f"{program} CONFIG", RunConfig())
    if arguments[0].startswith("-"):
        raise BadInput(f"{program}: CONFIG comes first, then the options; found {arguments[0]}")
    config = parse(RunConfig, arguments[1:], f"{program} {arguments[0]}", load_config(arguments[0]))
    validate(config)
    return config


def require(options: Any, name: str) -> None:
    """Refuse a command without this option, for options that come after the positional one but have no default."""
    if not getattr(options, name):
        raise BadInput(f"sft-jax {type(options).__name__.lower()}: --{name.replace('_', '-')} is missing")
