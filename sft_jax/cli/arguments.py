"""Command-line arguments -> dataclasses. A wrong name or value is answered in one line, with what was expected.

The parser is argparse, told what it knows by the dataclasses: their defaults are the only ones.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from sft_jax.cli.fields import Option, options_of
from sft_jax.cli.help import HELP_OPTIONS, show_help
from sft_jax.config import RunConfig, load_config, validate
from sft_jax.config.aliases import did_you_mean
from sft_jax.errors import BadInput
from sft_jax.storage.location import Location

Parsed = TypeVar("Parsed")


def parse(
    kind: type[Parsed],
    arguments: Sequence[str],
    program: str,
    default: Parsed | None = None,
    usual: Sequence[str] = (),
) -> Parsed:
    """A dataclass from command-line arguments.

    Args:
      program: what the user typed to get here: `sft-jax sample`.
      default: what the arguments change; without it the fields' own defaults, and the positional one must be given.
      usual: the options of sections that `--help` shows; `--help-all` shows every one.

    Raises:
      BadInput: an option that does not exist, or a value that is not of its type.
      SystemExit: of status 0, after printing the help that was asked for.
    """
    options = options_of(kind, default)
    if asked := [argument for argument in arguments if argument in HELP_OPTIONS]:
        show_help(kind, options, program, usual, everything="--help-all" in asked)
    parser = _Parser(program, options)
    given = parser.values(arguments)
    positional = [option for option in options if option.positional]
    for option in positional:
        if option.default is MISSING and option.name not in given:
            raise BadInput(f"{program}: {option.positional} is missing. See {program} --help")
    if default is None:
        default = kind(**{option.name.replace("-", "_"): given[option.name] for option in positional})
    return _changed(default, given)


def _changed(config: Any, given: dict[str, Any]) -> Any:
    """The dataclass with the options in `given`, by their dotted names."""
    own: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        section, dot, rest = name.replace("-", "_").partition(".")
        if dot:
            sections.setdefault(section, {})[rest] = value
        else:
            own[section] = value
    return replace(config, **own, **{name: _changed(getattr(config, name), inner) for name, inner in sections.items()})


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def __init__(self, program: str, options: Sequence[Option]):
        super().__init__(prog=program, add_help=False, allow_abbrev=False, exit_on_error=False)
        self._options = {f"--{option.name}": option for option in options if not option.positional}
        for option in options:
            convert, several = _converter(option)
            if option.positional:
                self.add_argument(option.name, nargs="?", default=argparse.SUPPRESS, type=convert)
            else:
                nargs = "*" if several else None
                flag = f"--{option.name}"
                self.add_argument(flag, dest=option.name, nargs=nargs, default=argparse.SUPPRESS, type=convert)

    def values(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Option name -> value, of those that are given."""
        try:
            found = vars(self.parse_args(self._spelled(arguments)))
        except argparse.ArgumentError as error:
            raise BadInput(f"{self.prog}: {error.argument_name}: {error.message}") from error
        for name, value in found.items():
            if isinstance(value, list):
                empty = value == ["none"] and self._options[f"--{name}"].none_empties
                found[name] = () if empty else tuple(value)
        return found

    def _spelled(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with options as we spell them, and with the value of a bare `--json`, which is True.

        Raises:
          BadInput: an option that does not exist.
        """
        made: list[str] = []
        for number, argument in enumerate(arguments, start=1):
            if not argument.startswith("--"):
                made.append(argument)
                continue
            name, equals, value = argument.partition("=")
            spelled = name.replace("_", "-")
            if spelled not in self._options:
                raise BadInput(f"{self.prog}: unknown option {name}. {did_you_mean(name, list(self._options))}".strip())
            made.append(spelled + equals + value)
            following = arguments[number].lower() if number < len(arguments) else ""
            if self._options[spelled].kind is bool and not equals and following not in ("true", "false"):
                made.append("True")
        return made

    def error(self, message: str) -> NoReturn:
        """What argparse would print before it exits."""
        stray = message.removeprefix("unrecognized arguments: ")
        if stray != message:
            raise BadInput(f"{self.prog}: did not expect {stray!r}; a value follows its option, and CONFIG comes first")
        raise BadInput(f"{self.prog}: {message}")


def _converter(option: Option) -> tuple[Callable[[str], Any], bool]:
    """(text -> value, whether the option takes several of them)."""
    several = get_origin(option.kind) is tuple
    kind = get_args(option.kind)[0] if several else option.kind

    def convert(text: str) -> Any:
        if option.optional and text == "none":
            return None
        value = _value(kind, text)
        if value is None:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {_expected(kind)}")
        return value

    return convert, several


def _value(kind: Any, text: str) -> Any:
    """Parse the text as a value of a type; None if it is not one."""
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        return kind(text)
    except ValueError:
        return None


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {bool: "True or False", int: "a whole number", float: "a number"}[kind]


def resolve_config(arguments: Sequence[str], program: str, usual: Sequence[str] = ()) -> RunConfig:
    """CONFIG [--section.field value ...] -> a validated RunConfig."""
    return config_with_options(RunConfig, arguments, program, usual)[0]


Options = TypeVar("Options", bound=RunConfig)


def config_with_options(
    kind: type[Options],
    arguments: Sequence[str],
    program: str,
    usual: Sequence[str] = (),
    check: Callable[[RunConfig], None] = validate,
) -> tuple[RunConfig, Options]:
    """[CONFIG] [--section.field value ...] with a command's own options -> (validated RunConfig, all of it).

    Args:
      kind: RunConfig, or a subclass whose own fields are the options.
      usual: as `parse`.
      check: raises BadInput for a config that the command cannot work with.
    """
    if not arguments:
        raise BadInput(
            f"{program}: CONFIG is missing: a Python file with get_config(), such as configs/quickstart.py, a run's "
            f"workdir or config.json; or give every option yourself. See {program} --help"
        )
    rest = list(arguments)
    base = RunConfig() if rest[0].startswith("-") else load_config(rest.pop(0))
    default = kind(**{field.name: getattr(base, field.name) for field in fields(RunConfig)})
    options = parse(kind, rest, program, default, usual)
    config = RunConfig(**{field.name: getattr(options, field.name) for field in fields(RunConfig)})
    check(config)
    return config, options


def require(options: Any, name: str, program: str) -> None:
    """Reject a command without this option, for options that come after the positional one but have no default."""
    if not getattr(options, name):
        raise BadInput(f"{program}: --{name.replace('_', '-')} is missing. See {program} --help")


def check_writable(path: str, directory: bool = False, option: str = "--out") -> None:
    """Reject an output path that cannot be created, before doing the work whose result would be lost.

    Args:
      directory: it names a directory, not a file.
    """
    if not path:
        return
    if "://" in path:
        location = Location(path)
        if not location.is_remote:
            raise BadInput(f"{option} {path}: expected a local path or gs://bucket/path")
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
