"""Registries of inversion methods and editors, which other packages can add to.

A class is registered by a decorator (`nulltext.inversion.register_method`,
`nulltext.editing.register_editor`), for the process that runs it; or by an entry point of an
installed package, for every process and for the command line:

    [project.entry-points."nulltext.methods"]
    my-method = "my_package:MyMethod"

Names are read from the packages' metadata; a class is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from nulltext.errors import OptionError, reason_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

METHODS_GROUP = "nulltext.methods"
EDITORS_GROUP = "nulltext.editors"


class Named(Protocol):
    """A class with a name that people choose it by."""

    name: ClassVar[str]


Kind = TypeVar("Kind", bound=Named)
New = TypeVar("New", bound=Named)


@cache
def installed_entry_points() -> dict[str, dict[str, EntryPoint]]:
    """Read the entry points of all installed packages, once: by group and name."""
    from importlib.metadata import entry_points

    found = entry_points()
    return {
        group: {point.name: point for point in found.select(group=group)}
        for group in (METHODS_GROUP, EDITORS_GROUP)
    }


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; imports none of them."""
    return installed_entry_points()[group]


def members_of(group: str) -> dict[str, str]:
    """Return the names of a group as further members of an enumeration of names.

    A name that the enumeration has already becomes an alias, which changes nothing.
    """
    return {f"INSTALLED_{number}": name for number, name in enumerate(entry_points_of(group))}


class Registry(Mapping[str, type[Kind]], Generic[Kind]):
    """Classes by name: built in, registered, then those of installed packages."""

    def __init__(
        self, what: str, group: str, built_in: list[type[Kind]], required: tuple[str, ...]
    ) -> None:
        """Hold the classes that are built in.

        Args:
            what: what a class is, for messages, such as "inversion method".
            group: group of the entry points.
            required: attributes that a class must have besides its name.
        """
        self._what, self._group, self._required = what, group, ("name", *required)
        self._classes = {kind.name: kind for kind in built_in}

    def register(self, kind: type[New]) -> type[New]:
        """Add a class under its `name`; a decorator.

        Raises:
            OptionError: the class lacks an attribute, or the name is another class's.
        """
        if not isinstance(kind, type):
            raise OptionError(
                f"{kind!r:.80} cannot be registered as {self._what}: it is no class; see "
                "docs/extending.md."
            )
        missing = [name for name in self._required if not hasattr(kind, name)]
        if missing:
            raise OptionError(
                f"{kind.__name__} cannot be registered as {self._what}: it has no "
                f"{', '.join(missing)}; see docs/extending.md."
            )
        if not isinstance(kind.name, str) or not kind.name.strip() or not is_dataclass(kind):
            raise OptionError(
                f"{kind.__name__} cannot be registered as {self._what}: it must be a dataclass "
                "whose name is a text; see docs/extending.md."
            )
        known = self._classes.get(kind.name)
        if known is not None and _path(known) != _path(kind):  # the same: a cell that runs again
            raise OptionError(
                f"The name '{kind.name}' is that of {_path(known)}; give {kind.__name__} another."
            )
        self._classes[kind.name] = kind
        return kind

    def __getitem__(self, name: str) -> type[Kind]:
        if name not in self._classes:
            point = entry_points_of(self._group)[name]
            try:
                kind = point.load()
            except (ImportError, AttributeError) as error:
                raise OptionError(
                    f"The {self._what} '{name}' cannot be imported from {point.value} "
                    f"({reason_of(error)}); install its package again, or choose another."
                ) from error
            if getattr(kind, "name", name) != name:
                raise OptionError(
                    f"The {self._what} '{name}' of {point.value} has the name '{kind.name}'; "
                    "its entry point must have that name, too."
                )
            self.register(kind)
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._classes, **entry_points_of(self._group)})

    def __len__(self) -> int:
        return len(self._classes.keys() | entry_points_of(self._group).keys())


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
