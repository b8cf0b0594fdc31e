"""What a row of the batch lends to the rows that are edited from it, during one step.

Rows are sampled parents first: the source, then its targets, then the targets of these (see
`lineage`). A row that has children keeps, while it passes the UNet, what they will take, at the
sites where they will take it and nowhere else, until the step is over:

    Prompt-to-Prompt   cross-attention's probabilities, and for self-attention's the hidden states
                       of which queries and keys are made: N C numbers instead of heads N^2
    MasaCtrl           the hidden states of self-attention layers, of the null branch as well

`memory` has the arithmetic of what that is in bytes.
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
        """Not None if the plan looks at token maps."""
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
    queries: dict[str, Tensor] = field(default_factory=dict)
    """Site name to hidden states [1, N, C] that its queries and keys are made of."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Site name to hidden states [1 or 2, N, C], of the null branch first if there is one."""

    def wants_maps(self, site: Site) -> bool:
        """Whether a child takes attention maps there."""
        return any(taker.takes_maps(self.step, site) for taker in self.takers)

    def wants_queries(self, site: Site) -> bool:
        """Whether a child attends with its queries and keys there."""
        return any(taker.takes_queries(self.step, site) for taker in self.takers)

    def wants_inputs(self, site: Site) -> bool:
        """Whether a child takes hidden states there."""
        return any(taker.takes_inputs(self.step, site) for taker in self.takers)

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
        loan = self.loan
        wanted = loan.wants_maps(site) or loan.wants_queries(site) or loan.wants_inputs(site)
        return "observe" if wanted else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        """Keep the hidden states that will be taken."""
        assert layer.rows == 1, f"one source at a time, not {layer.rows}"
        if self.loan.wants_queries(site):
            self.loan.keep_queries(layer, 0, site)
        if self.loan.wants_inputs(site):
            self.loan.inputs[site.name] = layer.inputs_of(0)

    def reads(self, site: Site) -> bool:
        """Whether maps will be taken."""
        return self.loan.wants_maps(site)

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        """Keep them."""
        self.loan.keep_maps(own[0], site, heads)


def lend_maps(
    turns: Sequence[Turn[Any]], site: Site, heads: Heads, probabilities: Sequence[Tensor]
) -> None:
    """Keep each row's probabilities [heads, queries, keys] for its children."""
    for turn, row in zip(turns, probabilities, strict=True):
        if turn.own.wants_maps(site):
            turn.own.keep_maps(row, site, heads)


def lend_inputs(turns: Sequence[Turn[Any]], layer: Layer, site: Site) -> None:
    """Keep each row's hidden states for its children."""
    for row, turn in enumerate(turns):
        if turn.own.wants_inputs(site):
            turn.own.inputs[site.name] = layer.inputs_of(row)
