"""What attention layers of all networks have in common while a controller is attached to them.

A network's layers come in groups that work on one feature map. The size of the map is known at the
group's entrance (a UNet's transformer, or a whole MM-DiT), whose inputs are read by a pre-hook; the
processors of the group's layers ask the controller with it. See `processor` for the UNet's, `joint`
for the MM-DiT's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, ClassVar, TypeAlias

import torch

from nulltext.attention.controller import AttentionController, Kind, Site


@dataclass(frozen=True)
class Inputs:
    """The arguments of a module's forward pass."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, name: str, place: int) -> Any:
        """Return an argument, given by name or as the one at a place."""
        return self.args[place] if place < len(self.args) else self.kwargs[name]


@dataclass
class Extent:
    """What a group of layers is working on."""

    thread: int
    """The thread that attached; others are passed by."""
    height: int = 0
    """Rows of the feature map, in queries."""
    width: int = 0
    """Columns of it."""
    text_length: int = 0
    """L, where layers are given text and image in one sequence."""

    @property
    def elsewhere(self) -> bool:
        """Whether this is another thread than the one that attached."""
        return get_ident() != self.thread


@dataclass(frozen=True)
class Place:
    """One attention layer of a network."""

    attn: Any
    names: Mapping[Kind, str]
    """What its sites are called, by kind."""


ReadExtent: TypeAlias = Callable[[Extent, Any, Inputs], None]
"""Sets an extent from a group's entrance and its inputs."""


@dataclass(frozen=True)
class Group:
    """Layers that work on one feature map, in the order in which they run."""

    entrance: torch.nn.Module
    read: ReadExtent
    places: Sequence[Place]
    processor: type[ControlledProcessor]
    """Stands in for each layer's own."""

    def hook(self, extent: Extent) -> Callable[..., None]:
        """Return the forward pre-hook of the entrance."""

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not extent.elsewhere:
                self.read(extent, module, Inputs(args, kwargs))

        return hook


@dataclass
class ControlledProcessor:
    """Base of what stands in for a layer's processor while a controller is attached."""

    joint: ClassVar[bool] = False
    """`Site.joint` of its sites."""

    original: Any
    controller: AttentionController
    place: Place
    depths: Mapping[str, float] = field(repr=False)
    """`Site.depth` by site name."""
    extent: Extent = field(repr=False)

    def site(self, kind: Kind) -> Site:
        """Return the layer's site of a kind, at the present size."""
        name, extent = self.place.names[kind], self.extent
        return Site(name, kind, extent.height, extent.width, self.depths[name], self.joint)

    @classmethod
    def check(cls, place: Place) -> None:
        """Refuse a layer whose arithmetic is another than this class's.

        Raises:
            ModelError: the layer or its processor has more to it.
        """
        raise NotImplementedError


def depths_of(groups: Sequence[Group]) -> dict[str, float]:
    """Site name to `Site.depth`."""
    by_kind: dict[Kind, list[str]] = {"cross": [], "self": []}
    for place in (place for group in groups for place in group.places):
        for kind, name in place.names.items():
            by_kind[kind].append(name)
    return {name: i / len(names) for names in by_kind.values() for i, name in enumerate(names)}
