"""Kinds that a section chooses among by name: optimizers, losses, adapters, metric sinks.

A kind is a frozen dataclass of its settings, with its defaults, and a function that makes the thing from them. On the
command line the fields of all kinds lie flat in their section (`--optimizer.name muon --optimizer.momentum 0.95`): the
section has a field, None by default, for each field of each kind, and what the chosen kind lacks is refused by name.

    @OPTIMIZERS.kind("lion")                     # config/kinds.py
    @dataclass(frozen=True)
    class Lion:
        b1: float = 0.9

    @OPTIMIZERS.maker("lion")                    # train/optimizers.py
    def lion(settings: Lion, ...) -> optax.GradientTransformation: ...
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from sft_jax.errors import BadInput, nearest


class Registry:
    """Name -> settings and maker, of one section."""

    def __init__(self, chosen_by: str):
        """`chosen_by` is the field that names the kind, such as `optimizer.name`."""
        self.chosen_by = chosen_by
        self.section = chosen_by.partition(".")[0]
        self._settings: dict[str, type] = {}
        self._makers: dict[str, Callable[..., Any]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._settings)

    def kind(self, name: str) -> Callable[[type], type]:
        """Registers a dataclass as the settings of the kind `name`."""

        def register(settings: type) -> type:
            self._settings[name] = settings
            return settings

        return register

    def maker(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers the function that makes the thing: (settings, whatever its room passes) -> the thing."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            if name not in self._settings:
                raise KeyError(f"{self.chosen_by} {name!r} has a maker and no settings; register its dataclass first")
            self._makers[name] = function
            return function

        return register

    def settings_type(self, name: str) -> type:
        """The dataclass of a kind.

        Raises:
          BadInput: an unknown kind.
        """
        if name not in self._settings:
            raise BadInput(f"{self.chosen_by} is {name!r}. {nearest(name, self.names)}")
        return self._settings[name]

    def settings(self, name: str, section: Any = None) -> Any:
        """The settings of a kind: its defaults, overridden by the section.

        Raises:
          BadInput: an unknown kind, or a field set that this kind lacks.
        """
        kind = self.settings_type(name)
        own = {field.name for field in dataclasses.fields(kind)}
        given = {} if section is None else {field: getattr(section, field) for field in self.flat_fields(section)}
        given = {field: value for field, value in given.items() if value not in (None, ())}
        for field in given:
            if field not in own:
                with_it = [other for other, settings in self._settings.items() if _has(settings, field)]
                lacks = f"has {', '.join(sorted(own))}" if own else "has no settings of its own"
                raise BadInput(
                    f"{self.section}.{field} is set, but {self.chosen_by} {name!r} {lacks}. {field} belongs to "
                    f"{', '.join(with_it)}"
                )
        return kind(**given)

    def flat_fields(self, section: Any) -> list[str]:
        """The fields of a section that belong to some kind and not to all."""
        of_kinds = {field.name for kind in self._settings.values() for field in dataclasses.fields(kind)}
        return [field.name for field in dataclasses.fields(section) if field.name in of_kinds]

    def make(self, name: str, section: Any, *arguments: Any) -> Any:
        """The thing itself.

        Raises:
          BadInput: as `settings`.
        """
        settings = self.settings(name, section)
        return self._makers[name](settings, *arguments)


def _has(settings: type, field: str) -> bool:
    return any(own.name == field for own in dataclasses.fields(settings))
