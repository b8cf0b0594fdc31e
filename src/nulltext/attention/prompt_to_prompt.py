"""Prompt-to-Prompt: a row's attention, carried over to the targets that are edited from it.

With M the parent's map (the source's, or in a chain that of the target before, without its word
weights), M* the target's own, A the token map (see `alignment`), g its gate and c the word weights:

    cross   N(g (M A) + (1 - g) M*) c    while the step is below cross_until, else M* c
    self    M                            while the step is below self_until, at small sites of a
                                         UNet, at all of an MM-DiT

N scales each pixel's row to sum to 1, as attention does. It changes nothing where every word of the
target takes one of the parent's and none is left over; elsewhere (words added or removed, or other
words of the same number under the alignment "refine") the attention of the words that differ would
come on top of, or be missing from, the parent's, and shift the colours of the whole picture. A
pixel of an MM-DiT attends to text and image at once: there N scales to the sum of M*, the share of
the text, and the attention to the image stays the target's.
Source: Hertz et al. 2022, sec. 3.2: word swap, refinement and re-weighting are the same formula
with other data (N and chains are ours). As there, weights may be negative and their rows stay as
they come.

The parent's self-attention M is not kept as a tensor of heads N^2 numbers: it follows again from
the parent's hidden states, whose queries and keys meet the target's values in the fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nulltext.attention.controller import Action, AttentionController, Heads, Layer, Site
from nulltext.attention.store import TargetControl, store_maps

SELF_DIVISOR = 4
"""Self-attention is injected at or below this fraction of the latents' side (16 x 16 of 64)."""

SELF_SIDE_FLOOR = 16
"""Sites up to 16 x 16 always qualify: the size at which layout lives in Stable Diffusion at 512 px
(Hertz et al. 2022, sec. 4), and all there is in a model with smaller latents."""


def largest_self_site(height: int, width: int) -> int:
    """Most pixels that a site may have for self-attention to be injected there.

    UNets halve odd sides upwards: latents of 65 x 97 have a site of 17 x 25.
    """
    rows, columns = (math.ceil(side / SELF_DIVISOR) for side in (height, width))
    return max(rows * columns, SELF_SIDE_FLOOR**2)


@dataclass(frozen=True)
class Injection:
    """What one target takes from its parent, as data: a `store.Plan`."""

    mapping: Tensor
    """[L, L], parent token to target token; see `alignment.AttentionMap`."""
    gate: Tensor
    """[L], 1 where the target token takes the parent's attention."""
    weights: Tensor
    """[L], factors on the target's cross-attention."""
    cross_until: int
    """First step index at which cross-attention is no longer injected."""
    self_until: int
    """First step index at which self-attention is no longer injected."""
    self_pixels: int
    """Most pixels of a UNet's site at which self-attention is injected; see `Site.within`."""

    @property
    def foreground(self) -> None:
        """None: no token maps are needed."""
        return

    @cached_property
    def reweights(self) -> bool:
        """Whether a weight is not 1."""
        return bool((self.weights != 1).any())

    def takes_maps(self, step: int, site: Site) -> bool:
        """Whether the parent's cross-attention is injected there."""
        return site.kind == "cross" and step < self.cross_until

    def takes_queries(self, step: int, site: Site) -> bool:
        """Whether the parent's self-attention is injected there."""
        return site.kind == "self" and step < self.self_until and site.within(self.self_pixels)

    def takes_inputs(self, step: int, site: Site) -> bool:  # noqa: ARG002
        """False: no inputs are taken."""
        return False

    @classmethod
    def controller(
        cls, controls: Sequence[TargetControl[Injection]], step: int, *, guided: bool
    ) -> MapInjector:
        """Return the controller of these rows."""
        return MapInjector(controls, step, guided)


@dataclass
class MapInjector(AttentionController):
    """Gives the target rows of one step their attention; one control per row."""

    controls: Sequence[TargetControl[Injection]]
    step: int
    guided: bool

    def action(self, site: Site) -> Action:
        """Edit cross-attention where some row injects or re-weights, borrow self-attention where
        some row injects; observe where a store wants something."""
        if any(self._changes(control.plan, site) for control in self.controls):
            return "edit"
        if any(control.plan.takes_queries(self.step, site) for control in self.controls):
            return "borrow"
        wanted = any(t.own.wants_maps(site) or t.own.wants_queries(site) for t in self.controls)
        return "observe" if wanted else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        """Store the rows' own queries."""
        for row, control in enumerate(self.controls):
            if control.own.wants_queries(site):
                control.own.keep_queries(layer, row, site)

    def reads(self, site: Site) -> bool:
        """Whether a store wants maps there."""
        return any(control.own.wants_maps(site) for control in self.controls)

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        """Store the rows' own attention."""
        store_maps(self.controls, site, heads, list(own))

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:
        """Return cross-attention [targets, heads, queries, keys] by the module's formula."""
        rows = []
        for control, row in zip(self.controls, own, strict=True):
            plan = control.plan
            if plan.takes_maps(self.step, site):
                carried = control.parent.maps[site.name][0, heads.span] @ plan.mapping
                share = row.sum(dim=-1, keepdim=True) if site.joint else 1.0
                row = plan.gate * carried + (1 - plan.gate) * row
                row = row / row.sum(dim=-1, keepdim=True).clamp_min(torch.finfo().tiny) * share
            rows.append(row)
        store_maps(self.controls, site, heads, rows)
        return torch.stack(
            [row * control.plan.weights for control, row in zip(self.controls, rows, strict=True)]
        )

    def borrow(self, layer: Layer, site: Site) -> Tensor:
        """Return the parents' hidden states, or a row's own where it injects nothing."""
        rows = []
        for row, control in enumerate(self.controls):
            if control.plan.takes_queries(self.step, site):
                taken = control.parent.queries[site.name]
                if control.own.wants_queries(site):
                    control.own.queries[site.name] = taken
            else:
                taken = layer.inputs_of(row)[-1:]
                if control.own.wants_queries(site):
                    control.own.keep_queries(layer, row, site)
            rows.append(taken)
        return torch.cat(rows)

    def _changes(self, plan: Injection, site: Site) -> bool:
        return site.kind == "cross" and (plan.reweights or plan.takes_maps(self.step, site))
