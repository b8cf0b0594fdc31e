"""Judges of how well a picture agrees with the prompt of an edit.

`ClipJudge` gives the CLIP score, 100 cos(image, target), and needs CLIP's weights. `DiffusionJudge`
needs no other weights: it takes the diffusion model itself as a classifier,

    error(C)  = mean over fixed t, eps of || eps - eps(z_t, t, C) ||^2,
                z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps
    agreement = 100 (error(source) - error(target)) / error(source)

per cent by which the target explains the picture better than the source does. It judges pictures of
the model by the model and is biased towards them; tables name the judge.
Source: Hessel et al. 2021 (CLIPScore), eq. 1 without its factor; Li et al. 2023 (Your diffusion
model is secretly a zero-shot classifier), eq. 4 and sec. 3.2 (the same draws for every class).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from nulltext.errors import ModelError
from nulltext.image.images import to_pil
from nulltext.models.checkpoint import first_line, plain_texts, quiet_libraries
from nulltext.models.latent_diffusion import LatentDiffusion

FRACTIONS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Fixed timesteps, as fractions of the training steps: where prompts matter most."""
DRAWS = 2
"""Noises per timestep."""


@dataclass(frozen=True)
class Agreement:
    """How well a picture agrees with the prompt of an edit."""

    score: float
    """Higher agrees better with the target; the unit depends on the judge."""
    prefers_target: bool
    """Whether the target fits better than the source."""


class Judge(Protocol):
    """A measure of whether an edit followed its prompt."""

    @property
    def name(self) -> str:
        """Name in tables and settings."""
        ...

    @property
    def unet_evaluations(self) -> int:
        """UNet evaluations of one call of `judge`."""
        ...

    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        """Compare a picture [3, H, W] in [-1, 1] with both prompts."""
        ...


def load_judge(clip: str | None, model: LatentDiffusion, seed: int) -> Judge:
    """Load CLIP from a folder or a hub id; without one, use the model, with noise from the seed.

    Raises:
        ModelError: CLIP cannot be loaded.
    """
    return DiffusionJudge(model, seed) if clip is None else ClipJudge.load(clip, model.device)


@dataclass(frozen=True)
class DiffusionJudge:
    """The diffusion model as a classifier of its own pictures."""

    name: ClassVar[str] = "diffusion classifier (the model itself), %"
    unet_evaluations: ClassVar[int] = 2 * DRAWS * len(FRACTIONS)  # two prompts at every draw

    model: LatentDiffusion
    seed: int = 0

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
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


@dataclass(frozen=True)
class ClipJudge:
    """CLIP score."""

    unet_evaluations: ClassVar[int] = 0

    clip: Any
    """transformers' CLIPModel."""
    processor: Any
    source: str

    @classmethod
    def load(cls, source: str, device: torch.device, *, local_only: bool = False) -> ClipJudge:
        """Load CLIP from a folder or a hub id; safetensors only.

        Args:
            local_only: use only what is in the hub's cache.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        clip = load_pretrained(
            CLIPModel, source, device, option="--clip", local_files_only=local_only
        )
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
        return f"CLIP score ({Path(self.source).name})"

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        wrong, right = self.cosines(image, [source, target]).tolist()
        return Agreement(score=100 * right, prefers_target=right > wrong)

    @torch.no_grad()
    def cosines(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the cosines of a picture [3, H, W] in [-1, 1] with n prompts: [n], float64."""
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


def load_pretrained(
    network_class: Any, source: str, device: torch.device, *, option: str, **options: Any
) -> Any:
    """Load a network of a transformers class, frozen, on the device, in float32.

    Args:
        source: a folder, or a hub id.
        option: what the command line calls it, for messages.
        options: of the class's `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, is not in safetensors, or lacks a weight.
    """
    name = network_class.__name__
    wanted: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
        **options,
    }
    try:
        with quiet_libraries():
            if Path(source).is_dir():
                with plain_texts(Path(source)) as texts:
                    wanted["config"] = network_class.config_class.from_pretrained(str(texts))
            network, info = network_class.from_pretrained(source, **wanted)
    except Exception as error:  # the library raises many kinds; the reason is in the text
        raise ModelError(
            f"'{source}' cannot be loaded as {name} ({first_line(error)}); pass {option} a "
            f"folder with transformers' {name} in safetensors."
        ) from error
    lacking = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    if lacking:
        raise ModelError(
            f"'{source}' is no {name}: it lacks {len(lacking)} weights "
            f"({min(lacking)}, …); pass {option} a folder that has them."
        )
    return network.to(device).eval().requires_grad_(False)
