"""The target rows of an edit on their way through the grid.

All targets take a step as a batch, under the inversion's null embeddings and the attention that
Prompt-to-Prompt carries over from the source; see `editing` for the formulae.
Source: Hertz et al. 2022, alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.attention.maps import StepMaps, Watched
from nulltext.attention.processor import AttentionController, attach
from nulltext.attention.prompt_to_prompt import Injection, MapInjector, largest_self_site
from nulltext.guidance import CONDITIONAL_ONLY, guided_noise
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.record import Inversion
from nulltext.sampling import check_finite, start_latents

TARGETS_PER_BATCH = 4
"""Targets that go through the UNet together; more only costs memory on small devices."""


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

    @classmethod
    def start(
        cls,
        model: LatentDiffusion,
        inversion: Inversion,
        prompts: Sequence[str],
        injections: Sequence[Injection],
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


def watched(controller: AttentionController, watch: StepMaps | None) -> AttentionController:
    """A controller, with an eye on its maps if one is wanted."""
    return controller if watch is None else Watched(controller, watch)
