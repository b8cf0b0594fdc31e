"""Mutual self-attention control: a target attends to its parent's keys and values.

In a self-attention layer, from step S and layer L on, with Q the target's queries and K^p, V^p the
keys and values of its parent in the same layer, branch by branch (null rows attend to null rows,
conditional rows to conditional ones, both to the only ones of a parent that is not guided):

    out = softmax(Q K^p^T / sqrt(d)) V^p

So the layout is the target words' own, grown in the steps before S, while shapes and textures are
fetched from the parent. With foreground masks m^p and m of parent and target, found where given
words look (A: token maps, averaged over the steps so far; U bilinear, to the layer's size):

    h = U sum over the words' tokens of A,    m = [(h - min h) / (max h - min h) > k]
    out = m softmax(Q K^p^T / sqrt(d) + ln m^p) V^p + (1 - m) softmax(… + ln (1 - m^p)) V^p

A parent without foreground, or all foreground, is attended without a mask.
Source: Cao et al. 2023 (MasaCtrl), "mutual self-attention control" and its mask-guided form; step
S = 4 of 50, layer L = 10 of 16 and k = 0.1 as in the published code, whose token maps are those of
the present step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nulltext.attention.controller import (
    Action,
    AttentionController,
    Layer,
    Redirection,
    Site,
)
from nulltext.attention.maps import word_map
from nulltext.attention.store import TargetControl, store_inputs

FOREGROUND = 0.1
"""k."""


@dataclass(frozen=True)
class Mutual:
    """What one target takes from its parent, as data: a `store.Plan`."""

    first_step: int
    """S."""
    first_depth: float
    """L as a share of the UNet's self-attention layers."""
    foreground: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Tokens of the foreground's words in parent and target; None: no masks."""

    def takes_maps(self, step: int, site: Site) -> bool:  # noqa: ARG002
        """False: no maps are taken."""
        return False

    def takes_queries(self, step: int, site: Site) -> bool:  # noqa: ARG002
        """False: the target's own queries are kept."""
        return False

    def takes_inputs(self, step: int, site: Site) -> bool:
        """Whether the target attends to its parent there."""
        return site.kind == "self" and step >= self.first_step and site.depth >= self.first_depth

    @classmethod
    def controller(
        cls, controls: Sequence[TargetControl[Mutual]], step: int, *, guided: bool
    ) -> MutualAttention:
        """Return the controller of these rows."""
        return MutualAttention(controls, step, guided)


@dataclass
class MutualAttention(AttentionController):
    """Lets the target rows of one step attend to their parents; one control per row."""

    controls: Sequence[TargetControl[Mutual]]
    step: int
    guided: bool
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor] | None] = field(default_factory=dict)
    """Masks by row, height and width: layers of one size share them."""

    def action(self, site: Site) -> Action:
        """Redirect where a row attends to its parent; observe where a store wants inputs."""
        if any(control.plan.takes_inputs(self.step, site) for control in self.controls):
            return "redirect"
        wanted = any(control.own.wants_inputs(site) for control in self.controls)
        return "observe" if wanted else "ignore"

    def observe(self, layer: Layer, site: Site) -> None:
        """Store the rows' inputs."""
        store_inputs(self.controls, layer, site)

    def redirect(self, layer: Layer, site: Site) -> Sequence[Redirection]:
        """Keys and values by the module's formula; other rows keep their own."""
        store_inputs(self.controls, layer, site)
        attended = [self._attended(layer, row, site) for row in range(layer.rows)]
        hidden_states = self._batched([row[0] for row in attended], [row[-1] for row in attended])
        masks = [self._masks(row, site) for row in range(layer.rows)]
        if all(mask is None for mask in masks):
            return [Redirection(hidden_states)]
        ones = hidden_states.new_ones(site.pixels)
        pairs = [(ones, ones) if mask is None else mask for mask in masks]
        parents, targets = (self._batched(each, each) for each in zip(*pairs, strict=True))
        return [
            self._part(hidden_states, parents, targets),
            self._part(hidden_states, 1 - parents, 1 - targets),
        ]

    def _batched(self, null: Sequence[Tensor], prompt: Sequence[Tensor]) -> Tensor:
        """Rows in the order of the UNet's batch."""
        return torch.stack([*null, *prompt] if self.guided else [*prompt])

    def _attended(self, layer: Layer, row: int, site: Site) -> Tensor:
        """[1 or 2, N, C]: what a row attends to, its null branch's first if there are two."""
        control = self.controls[row]
        if control.plan.takes_inputs(self.step, site):
            return control.parent.inputs[site.name]
        return layer.inputs_of(row)

    def _masks(self, row: int, site: Site) -> tuple[Tensor, Tensor] | None:
        """m^p and m, [N] of 0 and 1 each; None where a row is not masked here."""
        control = self.controls[row]
        plan = control.plan
        if plan.foreground is None or control.maps is None:
            return None
        if not plan.takes_inputs(self.step, site):
            return None
        key = (row, site.height, site.width)
        if key not in self.found:
            parent, target = (
                foreground(word_map(maps, tokens), (site.height, site.width)).flatten()
                for maps, tokens in zip(control.maps, plan.foreground, strict=True)
            )
            one_kind = bool(parent.all()) or not bool(parent.any())
            self.found[key] = None if one_kind else (parent, target)
        return self.found[key]

    @staticmethod
    def _part(hidden_states: Tensor, keys: Tensor, queries: Tensor) -> Redirection:
        """Foreground or background: masks [rows, N]."""
        # Without a single key a row would be NaN: it attends to all of them, at a share of 0.
        keys = torch.where(keys.any(dim=1, keepdim=True), keys, torch.ones_like(keys))
        dtype = hidden_states.dtype
        return Redirection(
            hidden_states,
            bias=keys.to(dtype).log()[:, None, :],
            share=queries.to(dtype)[:, :, None],
        )


def foreground(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """m of the module's formula: [H, W], 0 or 1, of a word's map [h, w]."""
    enlarged = interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    low, high = enlarged.min(), enlarged.max()
    return (enlarged - low > FOREGROUND * (high - low)).float()
