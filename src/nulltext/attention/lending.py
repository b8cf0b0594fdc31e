"""What a row of the batch lends to the rows that are edited from it, during one step.

Rows are sampled parents first: the source, then its targets, then the targets of these (see
`lineage`). A row that has children keeps, while it passes the UNet, what they will take: attention
maps (Prompt-to-Prompt) or the inputs of self-attention layers (MasaCtrl), at the sites where they
will take it and nowhere else, until the step is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from nulltext.attention.controller import Action, AttentionController, Layer, Site


class Plan(Protocol):
    """What one target takes from its parent, as data; made by an `editors.Editor`."""

    @property
    def foreground(self) -> object | None:
        """Not None if the plan looks at token maps."""
        ...

    def takes_maps(self, step: int, site: Site) -> bool:
        """Whether it needs its parent's attention probabilities there."""
        ...

    def takes_inputs(self, step: int, site: Site) -> bool:
        """Whether it needs its parent's hidden states there."""
        ...

    @classmethod
    def controller(
        cls, turns: Sequence[Turn[Self]], step: int, *, guided: bool
    ) -> AttentionController:
        """What steers the rows that have plans of this class through one step."""
        ...


P = TypeVar("P")


@dataclass
class Loan:
    """What a row lends in one step."""

    takers: Sequence[Plan]
    """The plans of its children."""
    step: int
    maps: dict[str, Tensor] = field(default_factory=dict)
    """Site name to probabilities [1, heads, queries, keys], before word weights."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Site name to hidden states [1 or 2, N, C], of the null branch first if there is one."""

    def wants_maps(self, site: Site) -> bool:
        """Whether a child takes attention maps there."""
        return any(taker.takes_maps(self.step, site) for taker in self.takers)

    def wants_inputs(self, site: Site) -> bool:
        """Whether a child takes hidden states there."""
        return any(taker.takes_inputs(self.step, site) for taker in self.takers)


@dataclass(frozen=True)
class Turn(Generic[P]):
    """One target at one step."""

    plan: P
    parent: Loan
    """What it may take."""
    own: Loan
    """What it lends; nothing where it has no children."""
    maps: tuple[Tensor, Tensor] | None = None
    """Token maps [L, h, w] of parent and target, averaged over the steps before this one."""


@dataclass
class Recorder(AttentionController):
    """Watches the source's pass, which stays bit for bit what a replay is."""

    loan: Loan
    guided: bool

    def action(self, site: Site) -> Action:
        """Observe where some target will take something."""
        wanted = self.loan.wants_maps(site) or self.loan.wants_inputs(site)
        return "observe" if wanted else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        """Keep what will be taken."""
        assert layer.rows == 1, f"one source at a time, not {layer.rows}"
        if self.loan.wants_maps(site):
            self.loan.maps[site.name] = layer.probabilities()
        if self.loan.wants_inputs(site):
            self.loan.inputs[site.name] = layer.inputs_of(0)


def lend_maps(turns: Sequence[Turn[Any]], site: Site, probabilities: Sequence[Tensor]) -> None:
    """Keep each row's probabilities [heads, queries, keys] for its children."""
    for turn, row in zip(turns, probabilities, strict=True):
        if turn.own.wants_maps(site):
            turn.own.maps[site.name] = row[None]


def lend_inputs(turns: Sequence[Turn[Any]], layer: Layer, site: Site) -> None:
    """Keep each row's hidden states for its children."""
    for row, turn in enumerate(turns):
        if turn.own.wants_inputs(site):
            turn.own.inputs[site.name] = layer.inputs_of(row)
