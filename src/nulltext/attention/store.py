"""The attention of a row that its children take, kept for the length of one step.

Rows are sampled parents first: the source, then its targets, then the targets of these (see
`editing.targets`). While a row with children passes the network, its `AttentionStore` keeps what
they will take, at the sites where they will take it:

    Prompt-to-Prompt   cross-attention's probabilities, and for self-attention's the hidden states
                       of which queries and keys are made: N C numbers instead of heads N^2
    MasaCtrl           the hidden states of self-attention layers, of the null branch as well

`models.memory` has the arithmetic of what that is in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from nulltext.attention.controller import Action, AttentionController, Heads, Layer, Site


class Plan(Protocol):
    """What one target takes from its parent, as data; made by an `editing.editors.Editor`."""

    @property
    def foreground(self) -> object | None:
        """Tokens whose maps the plan needs, or None."""
        ...

    def takes_maps(self, step: int, site: Site) -> bool:
        """Whether it needs its parent's attention probabilities there."""
        ...

    def takes_queries(self, step: int, site: Site) -> bool:
        """Whether it attends with its parent's queries and keys there."""
        ...

    def takes_inputs(self, step: int, site: Site) -> bool:
        """Whether it needs its parent's hidden states there."""
        ...

    @classmethod
    def controller(
        cls, controls: Sequence[TargetControl[Self]], step: int, *, guided: bool
    ) -> AttentionController:
        """Return the controller of the rows with plans of this class, for one step."""
        ...


P = TypeVar("P")


@dataclass
class AttentionStore:
    """What a row keeps for its children in one step."""

    children: Sequence[Plan]
    """The plans of its children."""
    step: int
    maps: dict[str, Tensor] = field(default_factory=dict)
    """Site name to probabilities [1, heads, queries, keys], before word weights."""
    queries: dict[str, Tensor] = field(default_factory=dict)
    """Site name to hidden states [1, N, C] that its queries and keys are made of."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Site name to hidden states [1 or 2, N, C], of the null branch first if there is one."""

    def wants_maps(self, site: Site) -> bool:
        """Whether a child takes attention maps there."""
        return any(child.takes_maps(self.step, site) for child in self.children)

    def wants_queries(self, site: Site) -> bool:
        """Whether a child attends with its queries and keys there."""
        return any(child.takes_queries(self.step, site) for child in self.children)

    def wants_inputs(self, site: Site) -> bool:
        """Whether a child takes hidden states there."""
        return any(child.takes_inputs(self.step, site) for child in self.children)

    def keep_maps(self, row: Tensor, site: Site, heads: Heads) -> None:
        """Keep probabilities of some heads, [heads, queries, keys]."""
        if heads.stop - heads.first == heads.total:
            self.maps[site.name] = row[None]
            return
        if heads.first == 0:
            self.maps[site.name] = row.new_empty(1, heads.total, *row.shape[1:])
        self.maps[site.name][0, heads.span] = row

    def keep_queries(self, layer: Layer, row: int, site: Site) -> None:
        """Keep a row's own hidden states, of the prompt branch alone."""
        self.queries[site.name] = layer.inputs_of(row)[-1:].clone()  # and not the batch they are of


@dataclass(frozen=True)
class TargetControl(Generic[P]):
    """One target at one step: its plan, and the stores that it reads and fills."""

    plan: P
    parent: AttentionStore
    """The parent's, which it takes from."""
    own: AttentionStore
    """Its own, empty where it has no children."""
    maps: tuple[Tensor, Tensor] | None = None
    """Token maps [L, h, w] of parent and target, averaged over the steps before this one."""


@dataclass
class Recorder(AttentionController):
    """Fills the source's store; the pass stays bit for bit that of a replay."""

    store: AttentionStore
    guided: bool

    def action(self, site: Site) -> Action:
        """Observe where a target takes something."""
        store = self.store
        wanted = store.wants_maps(site) or store.wants_queries(site) or store.wants_inputs(site)
        return "observe" if wanted else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        """Keep the hidden states that targets take."""
        assert layer.rows == 1, f"one source at a time, not {layer.rows}"
        if self.store.wants_queries(site):
            self.store.keep_queries(layer, 0, site)
        if self.store.wants_inputs(site):
            self.store.inputs[site.name] = layer.inputs_of(0)

    def reads(self, site: Site) -> bool:
        """Whether a target takes maps there."""
        return self.store.wants_maps(site)

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        """Keep the probabilities."""
        self.store.keep_maps(own[0], site, heads)


def store_maps(
    controls: Sequence[TargetControl[Any]],
    site: Site,
    heads: Heads,
    probabilities: Sequence[Tensor],
) -> None:
    """Keep each row's probabilities [heads, queries, keys] for its children."""
    for control, row in zip(controls, probabilities, strict=True):
        if control.own.wants_maps(site):
            control.own.keep_maps(row, site, heads)


def store_inputs(controls: Sequence[TargetControl[Any]], layer: Layer, site: Site) -> None:
    """Keep each row's hidden states for its children."""
    for row, control in enumerate(controls):
        if control.own.wants_inputs(site):
            control.own.inputs[site.name] = layer.inputs_of(row)
