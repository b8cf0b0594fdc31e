"""What is to be inverted, checked, and what its inversion is known by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nulltext.defaults import NUM_STEPS
from nulltext.errors import OptionError
from nulltext.image.framing import SizeChoice, box_for
from nulltext.image.images import CropBox
from nulltext.image.photos import Photo, PhotoLike, load_photo
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.budgets import Budget, planned
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.version import __version__
from nulltext.words.invisible import clean


@dataclass(frozen=True)
class InversionRequest:
    """A checked call of `invert`, for one photo."""

    photo: Photo
    box: CropBox
    size: tuple[int, int]
    """(height, width) that the model works at."""
    prompt: str
    method: InversionMethod
    num_steps: int
    guidance_scale: float
    seed: int

    @classmethod
    def checked(
        cls,
        model: LatentDiffusion,
        photo: PhotoLike,
        prompt: str,
        method: str | InversionMethod | None,
        num_steps: int | None,
        guidance_scale: float | None,
        crop: CropBox | None,
        size: SizeChoice,
        seed: int,
    ) -> InversionRequest:
        """Check what can be checked before any work.

        Args: as in `invert.invert`.

        Raises:
            UserError: one of `ImageError`, `PromptError`, `OptionError`.
        """
        plan = (
            planned(method, num_steps=num_steps)
            if method is None or isinstance(method, str)
            else Budget(method, NUM_STEPS if num_steps is None else num_steps)
        )
        scale = model.guidance_scale if guidance_scale is None else guidance_scale
        _check_guidance(scale)
        _check_seed(seed)
        plan.method.check(scale)
        model.schedule.grid(plan.num_steps)
        model.tokenize(prompt, allow_empty=True)
        loaded = load_photo(photo)
        box = crop or box_for(loaded.size, size)
        box.check_inside(loaded.size)
        seen_at = model.sizes.of(box, size)
        own = (plan.method, plan.num_steps, scale, seed)
        return cls(loaded, box, seen_at, clean(prompt), *own)

    def identity(self, model: LatentDiffusion) -> dict[str, Any]:
        """All that the result depends on, as JSON: equal identities, equal inversions.

        (To rounding, where devices or numbers of threads differ.)
        """
        return {
            "nulltext": __version__,
            "fingerprint": model.fingerprint,
            "precision": str(model.unet.dtype),
            "image_sha256": self.photo.sha256,
            "crop": self.box.as_list(),
            "size": list(self.size),
            "prompt": self.prompt,
            "method": self.method.name,
            "options": repr(self.method),
            "levels": [step.noisier.fed for step in model.schedule.grid(self.num_steps)],
            "guidance_scale": float(self.guidance_scale),
            "seed": self.seed,
        }


def _check_guidance(guidance_scale: float) -> None:
    if not math.isfinite(guidance_scale) or guidance_scale < 0:
        raise OptionError(f"The guidance scale is {guidance_scale:g}; choose a number from 0 up.")


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise OptionError(
            f"The seed is {seed}; choose a whole number of at most 63 bits, such as 0."
        )
