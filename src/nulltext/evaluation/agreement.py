"""Does a picture show what the target prompt says? Two judges.

`ClipJudge` asks CLIP: 100 cos(image, target), the CLIP score; it needs CLIP's weights. The
alternative needs no outside weights: the diffusion model itself as a classifier,

    error(C)  = mean over fixed t, eps of || eps - eps(z_t, t, C) ||^2,
                z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps
    agreement = 100 (error(source) - error(target)) / error(source)

per cent by which the target explains the picture better than the source does. It judges pictures of
the model by the model, so it is kind to what the model likes; tables say which judge it was.
Source: Hessel et al. 2021 (CLIPScore), eq. 1 without its factor; Li et al. 2023 (Your diffusion
model is secretly a zero-shot classifier), eq. 4 and sec. 3.2 (the same draws for every class).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nulltext.errors import ModelError
from nulltext.evaluation.pretrained import pretrained
from nulltext.image.images import to_pil
from nulltext.models.checkpoint import first_line, plain_texts, quiet_libraries
from nulltext.models.latent_diffusion import LatentDiffusion

FRACTIONS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Fixed timesteps, as fractions of the training steps: where prompts matter most."""
DRAWS = 2
"""Noises per timestep."""


@dataclass(frozen=True)
class Agreement:
    """A verdict."""

    score: float
    """Higher is nearer to the target; the unit is the judge's."""
    prefers_target: bool
    """Whether the target fits better than the source."""


class Judge(Protocol):
    """Who says whether an edit worked."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def unet_evaluations(self) -> int:
        """Of one verdict."""
        ...

    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        """Look at a picture [3, H, W] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class DiffusionJudge:
    """The model itself; see the module's formula."""

    model: LatentDiffusion
    seed: int = 0

    @property
    def name(self) -> str:
        """What tables call it."""
        return "diffusion classifier (the model itself), %"

    @property
    def unet_evaluations(self) -> int:
        """Two prompts at every draw."""
        return 2 * DRAWS * len(FRACTIONS)

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        """The same timesteps and noises for both prompts and for every picture."""
        model, draw = self.model, torch.Generator().manual_seed(self.seed)
        latents, embeds = model.encode(image[None]), model.embed([source, target])
        errors = torch.zeros(2, dtype=torch.float64)
        for fraction in FRACTIONS:
            level = model.schedule.level_at(fraction)
            for _ in range(DRAWS):
                noise = torch.randn(latents.shape, generator=draw).to(latents)
                noisy = level.add_noise(latents, noise)
                guess = model.predict_noise(noisy.expand(2, -1, -1, -1), level, embeds)
                errors += (noise - guess).square().flatten(1).mean(dim=1).double().cpu()
        wrong, right = errors.tolist()
        return Agreement(score=100 * (wrong - right) / wrong, prefers_target=right < wrong)


def open_judge(clip: str | None, model: LatentDiffusion, seed: int) -> Judge:
    """CLIP of a folder or a hub id; without one, the model itself, whose noise is of the seed.

    Raises:
        ModelError: CLIP cannot be loaded.
    """
    return DiffusionJudge(model, seed) if clip is None else ClipJudge.load(clip, model.device)


@dataclass(frozen=True)
class ClipJudge:
    """CLIP; see the module's formula."""

    clip: Any
    processor: Any
    source: str

    @classmethod
    def load(cls, source: str, device: torch.device, *, local_only: bool = False) -> ClipJudge:
        """Load CLIP from a folder or a hub id; safetensors only.

        Args:
            local_only: do not go to the hub for what is not in its cache.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        clip = pretrained(CLIPModel, source, device, "--clip", local_files_only=local_only)
        try:
            with quiet_libraries(), plain_texts(Path(source)) as texts:
                processor = CLIPProcessor.from_pretrained(
                    texts.as_posix(), local_files_only=local_only
                )
        except Exception as error:  # the library raises many kinds; the reason is in the text
            raise ModelError(
                f"The processor of '{source}' cannot be loaded ({first_line(error)}); pass --clip "
                "a folder with transformers' CLIPModel and its processor, or leave --clip out."
            ) from error
        return cls(clip, processor, str(Path(source)))

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"CLIP score ({Path(self.source).name})"

    @property
    def unet_evaluations(self) -> int:
        """None of the UNet's."""
        return 0

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        """Cosines of the picture with both prompts."""
        wrong, right = self.cosines(image, [source, target]).tolist()
        return Agreement(score=100 * right, prefers_target=right > wrong)

    @torch.no_grad()
    def cosines(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        """Of a picture [3, H, W] in [-1, 1] with each of n prompts: [n], float64."""
        inputs = self.processor(
            text=list(prompts),
            images=to_pil(image),
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.clip.device)
        output = self.clip(**inputs)
        cosines: Tensor = (output.image_embeds @ output.text_embeds.T)[0]
        return cosines.double().cpu()
