"""Token maps: cross-attention, gathered into one map per token.

With M_s [heads, pixels, L] the probabilities at site s (of the prompt rows, as they acted, word
weights included), and U the bilinear enlargement to the grid of the largest site that is read:

    A_t[l] = mean over sites s of U( mean over heads |M_s[:, :, l]| )         one step
    A[l]   = mean over steps of A_t[l]                                       a whole run

The modulus is for words with a negative weight, which attend somewhere, too. A word's map is the
sum over its tokens, the share of each pixel's attention that the word gets. Of a UNet, only sites
of at most `largest_self_site` pixels are read: that is where words have places. Of an MM-DiT, whose
sites all have one size, each is read.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.1, fig. 4; Tang et al. 2023 (DAAM), eq. 5.
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
    Heads,
    Layer,
    Redirection,
    Site,
)


@dataclass
class StepMaps:
    """What one pass of the UNet attends to, site by site."""

    largest_pixels: int
    """Sites of more pixels are not read, but of an MM-DiT: see `Site.within`."""
    passes: dict[str, list[Tensor]] = field(default_factory=dict)
    """Site name to [rows, L, h, w], float32, >= 0, of each pass: the mean over heads."""

    def wants(self, site: Site) -> bool:
        """Whether a site is read."""
        return site.kind == "cross" and site.within(self.largest_pixels)

    def add(self, probabilities: Tensor, site: Site, heads: Heads) -> None:
        """Take some heads of a site, [rows, heads, pixels, L]; the first begin a pass, whose
        rows go below those of the pass before."""
        maps = (probabilities.abs().sum(dim=1) / heads.total).transpose(1, 2).float()
        maps = maps.unflatten(-1, (site.height, site.width))
        passes = self.passes.setdefault(site.name, [])
        if heads.first == 0:
            passes.append(maps)
        else:
            passes[-1] = passes[-1] + maps

    @property
    def sites(self) -> dict[str, Tensor]:
        """Site name to [rows, L, h, w], the rows of all passes."""
        return {name: torch.cat(passes) for name, passes in self.passes.items()}

    def token_maps(self) -> Tensor:
        """A_t: [rows, L, h, w] on the grid of the largest site."""
        found = list(self.sites.values())
        assert found, f"no cross-attention of at most {self.largest_pixels} pixels was met"
        sizes = [maps.shape[-2:] for maps in found]
        grid = max(sizes, key=lambda size: size[0] * size[1])
        enlarged = [_enlarged(maps, (grid[0], grid[1])) for maps in found]
        return torch.stack(enlarged).mean(dim=0)


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


@dataclass
class RunningMean:
    """The mean over the steps so far: A."""

    total: Tensor | None = None
    count: int = 0

    def add(self, maps: Tensor) -> None:
        """Take one step's maps, always of one shape."""
        self.total = maps.clone() if self.total is None else self.total + maps
        self.count += 1

    @property
    def value(self) -> Tensor:
        """The mean, of one step at least."""
        assert self.total is not None
        return self.total / self.count


def word_map(token_maps: Tensor, tokens: Sequence[int]) -> Tensor:
    """[L, h, w] to [h, w]: the attention that a word's tokens get together."""
    return token_maps[list(tokens)].sum(dim=0)


class NoOpController(AttentionController):
    """A controller that ignores every site."""

    def __init__(self, *, guided: bool) -> None:
        self.guided = guided

    def action(self, site: Site) -> Action:  # noqa: ARG002
        """Ignore the site."""
        return "ignore"


class ProbedController(AttentionController):
    """A controller whose cross-attention is also read into `StepMaps`, after its edits.

    The output is that of the controller alone, bit for bit.
    """

    def __init__(self, controller: AttentionController, maps: StepMaps) -> None:
        self.controller, self.maps = controller, maps
        self.guided = controller.guided

    def action(self, site: Site) -> Action:
        """The controller's action; where it ignores a site that is read, observe."""
        action = self.controller.action(site)
        return "observe" if action == "ignore" and self.maps.wants(site) else action

    def observe(self, layer: Layer, site: Site) -> None:
        """Pass the layer on to the controller, if that observes it."""
        if self.controller.action(site) == "observe":
            self.controller.observe(layer, site)

    def reads(self, site: Site) -> bool:
        """Whether the controller or the maps read there."""
        return self.controller.reads(site) or self.maps.wants(site)

    def read(self, own: Tensor, site: Site, heads: Heads) -> None:
        """Pass the probabilities on to controller and maps."""
        if self.controller.reads(site):
            self.controller.read(own, site, heads)
        if self.maps.wants(site):
            self.maps.add(own, site, heads)

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:
        """Return the controller's probabilities, and read them."""
        edited = self.controller.edit(own, site, heads)
        if self.maps.wants(site):
            self.maps.add(edited, site, heads)
        return edited

    def borrow(self, layer: Layer, site: Site) -> Tensor:
        """Return the controller's hidden states; self-attention is not read."""
        return self.controller.borrow(layer, site)

    def redirect(self, layer: Layer, site: Site) -> Sequence[Redirection]:
        """Return the controller's; only self-attention is redirected, only cross- is read."""
        assert not self.maps.wants(site), f"{site}: redirected cross-attention cannot be read"
        return self.controller.redirect(layer, site)
