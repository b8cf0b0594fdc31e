"""The target rows of an edit on their way through the grid.

All targets take a step as a batch, under the inversion's null embeddings and the attention that
Prompt-to-Prompt carries over from the source; see `editing` for the formulae.
Source: Hertz et al. 2022, alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nulltext.attention.maps import RunningMean, StepMaps, Watched
from nulltext.attention.processor import AttentionController, attach
from nulltext.attention.prompt_to_prompt import Injection, MapInjector, largest_self_site
from nulltext.finite import check_finite
from nulltext.guidance import CONDITIONAL_ONLY, guided_noise
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.record import Inversion
from nulltext.regions import Region
from nulltext.sampling import start_latents

TARGETS_PER_BATCH = 4
"""Targets that go through the UNet together; more only costs memory on small devices."""

OnMaps = Callable[[Tensor, Tensor], None]
"""Shown one step's token maps of the source [1, L, h, w] and of the targets [K, L, h, w]."""


class Eyes:
    """Looks at the attention of source and targets, if anybody wants to know."""

    def __init__(self, largest_pixels: int, on_maps: OnMaps | None, *, needed: bool) -> None:
        self.largest_pixels, self.on_maps = largest_pixels, on_maps
        self.wanted = needed or on_maps is not None
        self.source: StepMaps | None = None
        self.targets: StepMaps | None = None
        self.means = (RunningMean(), RunningMean())

    def open(self) -> None:
        """Begin a step."""
        if self.wanted:
            self.source, self.targets = (StepMaps(self.largest_pixels) for _ in range(2))

    def close(self) -> None:
        """Take what the step has shown."""
        if self.source is None or self.targets is None:
            return
        maps = self.source.token_maps(), self.targets.token_maps()
        for mean, value in zip(self.means, maps, strict=True):
            mean.add(value)
        if self.on_maps is not None:
            self.on_maps(*maps)

    def of(self, row: int) -> tuple[Tensor, Tensor] | None:
        """Mean token maps [L, h, w] of the source and of a target; None if nobody looked."""
        if not self.wanted:
            return None
        source, targets = self.means
        return source.value[0], targets.value[row]


@dataclass
class Targets:
    """Latents of all targets, at one place of the grid."""

    latents: Tensor
    """[K, C, h, w]."""
    prompt_embeds: Tensor
    """[K, L, D]."""
    injections: Sequence[Injection]
    """K of them."""
    guidance_scale: float
    num_steps: int
    self_pixels: int
    """Most pixels of a site at which self-attention is injected."""
    regions: Sequence[Region]
    """K of them: where each may depart from the source."""
    shares: Tensor = field(init=False)
    """[K, h, w] in [0, 1]: where each was free at the last step."""

    def __post_init__(self) -> None:
        self.shares = torch.ones_like(self.latents[:, 0])

    @classmethod
    def start(
        cls,
        model: LatentDiffusion,
        inversion: Inversion,
        prompts: Sequence[str],
        injections: Sequence[Injection],
        regions: Sequence[Region],
    ) -> Targets:
        """All targets at z*_T."""
        latents = start_latents(model, inversion)
        return cls(
            latents=latents.repeat(len(prompts), 1, 1, 1),
            prompt_embeds=model.embed(prompts),
            injections=injections,
            guidance_scale=inversion.header.guidance_scale,
            num_steps=inversion.num_steps,
            self_pixels=largest_self_site(*latents.shape[-2:]),
            regions=regions,
        )

    @property
    def guided(self) -> bool:
        """Whether the UNet sees null rows."""
        return self.guidance_scale != CONDITIONAL_ONLY

    def step(
        self,
        model: LatentDiffusion,
        null_embed: Tensor,
        index: int,
        timestep: int,
        maps: dict[str, Tensor],
        watch: StepMaps | None = None,
    ) -> Tensor:
        """Take one step with all rows; returns their estimates of x0, [K, C, h, w].

        Args:
            null_embed: [1, L, D]. maps: the source's, by site. watch: shown the cross-attention.
        """
        schedule, moved, estimates = model.schedule, [], []
        for first in range(0, len(self.injections), TARGETS_PER_BATCH):
            rows = slice(first, first + TARGETS_PER_BATCH)
            latents, injections = self.latents[rows], self.injections[rows]
            injector = MapInjector(injections, index, self.self_pixels, self.guided, maps)
            with attach(model.unet, watched(injector, watch)):
                noise_pred = guided_noise(
                    model,
                    latents,
                    timestep,
                    null_embeds=null_embed,
                    prompt_embeds=self.prompt_embeds[rows],
                    guidance_scale=self.guidance_scale,
                )
            cleaner = schedule.cleaner(timestep, self.num_steps)
            moved.append(schedule.step(latents, noise_pred, noisier=timestep, cleaner=cleaner))
            estimates.append(schedule.clean_estimate(latents, noise_pred, timestep))
        self.latents = torch.cat(moved)
        check_finite(self.latents, "The edit", timestep)
        return torch.cat(estimates)

    def follow(self, source: Tensor, index: int, eyes: Eyes) -> None:
        """Lead the targets back to the source [1, C, h, w] where they may not depart from it."""
        rows = []
        for row, region in enumerate(self.regions):
            target = self.latents[row : row + 1]
            if not region.free:
                self.shares[row] = region.share(index, eyes.of(row), target)
                # lerp: the ends 0 and 1 give source and target bit for bit
                target = torch.lerp(source, target, self.shares[row] * region.rate)
            rows.append(target)
        self.latents = torch.cat(rows)


def watched(controller: AttentionController, watch: StepMaps | None) -> AttentionController:
    """A controller, with an eye on its maps if one is wanted."""
    return controller if watch is None else Watched(controller, watch)
