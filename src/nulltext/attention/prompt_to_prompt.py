"""Prompt-to-Prompt: the source's attention, carried over to the targets.

Each step has two passes. The source passes alone, watched by a `MapRecorder` that leaves it bit
for bit what a replay is; the targets follow under a `MapInjector`. With M the source's map, M* the
target's own, A the token map (see `alignment`), g its gate and c the word weights:

    cross   N(g (M A) + (1 - g) M*) c    while the step is below cross_until, else M* c
    self    M                            while the step is below self_until, at small sites

N scales each pixel's row to sum to 1, as attention does. It changes nothing where the prompts have
equally many tokens; where words were added or removed, their attention would otherwise come on top
of, or be missing from, the source's, and shift the colours of the whole picture.
Source: Hertz et al. 2022, sec. 3.2: word swap, refinement and re-weighting are the same formula
with other data (N is ours). As there, weights may be negative and their rows stay as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nulltext.attention.processor import Action, Site

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
    """What one target takes from the source, as data."""

    mapping: Tensor
    """[L, L], source token to target token; see `alignment.AttentionMap`."""
    gate: Tensor
    """[L], 1 where the target token takes the source's attention."""
    weights: Tensor
    """[L], factors on the target's cross-attention."""
    cross_until: int
    """First step index at which cross-attention is no longer injected."""
    self_until: int
    """First step index at which self-attention is no longer injected."""


@dataclass
class MapRecorder:
    """Shown the source pass of one step, it keeps the maps that a target of this step needs."""

    injections: Sequence[Injection]
    step: int
    self_pixels: int
    guided: bool
    maps: dict[str, Tensor] = field(default_factory=dict)

    def action(self, site: Site) -> Action:
        """Observe where some target will inject."""
        return (
            "observe" if _wanted(self.injections, self.step, site, self.self_pixels) else "ignore"
        )

    def observe(self, probabilities: Tensor, site: Site) -> None:
        """Keep [1, heads, queries, keys] under the site's name."""
        assert probabilities.shape[0] == 1, f"one source at a time, not {probabilities.shape[0]}"
        self.maps[site.name] = probabilities

    def edit(self, own: Callable[[], Tensor], site: Site) -> Tensor:  # noqa: ARG002
        """Never called: a recorder only observes."""
        raise AssertionError(site)


@dataclass
class MapInjector:
    """Gives the target rows of one step their attention; one injection per row."""

    injections: Sequence[Injection]
    step: int
    self_pixels: int
    guided: bool
    maps: dict[str, Tensor]

    def action(self, site: Site) -> Action:
        """Edit where some target injects or re-weights."""
        reweighted = site.kind == "cross" and any(
            bool((i.weights != 1).any()) for i in self.injections
        )
        wanted = _wanted(self.injections, self.step, site, self.self_pixels)
        return "edit" if wanted or reweighted else "ignore"

    def observe(self, probabilities: Tensor, site: Site) -> None:  # noqa: ARG002
        """Never called: an injector only edits."""
        raise AssertionError(site)

    def edit(self, own: Callable[[], Tensor], site: Site) -> Tensor:
        """Probabilities [targets, heads, queries, keys] by the module's formula."""
        return self._edit_cross(own(), site) if site.kind == "cross" else self._edit_self(own, site)

    def _edit_cross(self, own: Tensor, site: Site) -> Tensor:
        rows = []
        for injection, row in zip(self.injections, own, strict=True):
            if self.step < injection.cross_until:
                carried = self.maps[site.name][0] @ injection.mapping
                row = injection.gate * carried + (1 - injection.gate) * row
                row = row / row.sum(dim=-1, keepdim=True).clamp_min(torch.finfo().tiny)
            rows.append(row * injection.weights)
        return torch.stack(rows)

    def _edit_self(self, own: Callable[[], Tensor], site: Site) -> Tensor:
        source = self.maps[site.name]
        injected = [self.step < i.self_until for i in self.injections]
        if all(injected):
            return source.expand(len(injected), -1, -1, -1)
        mask = torch.tensor(injected, device=source.device)[:, None, None, None]
        return torch.where(mask, source, own())


def _wanted(injections: Sequence[Injection], step: int, site: Site, self_pixels: int) -> bool:
    if site.kind == "cross":
        return any(step < i.cross_until for i in injections)
    return site.pixels <= self_pixels and any(step < i.self_until for i in injections)
