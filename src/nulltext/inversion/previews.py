"""What a long loop has come to so far: now and then a decoded picture, and its PSNR.

A preview costs a pass through the decoder, so one is made only every `INTERVAL` seconds, less often
where decoding is slow, and after a stage's last step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from nulltext.diffusion.loops import StepInfo
from nulltext.image.images import psnr
from nulltext.models.latent_diffusion import LatentDiffusion

INTERVAL = 1.0
"""Least seconds between two previews."""

SHARE = 0.05
"""Share of the time that previews may take, where decoding is slow."""


@dataclass(frozen=True)
class Preview:
    """How far a loop is from the photo."""

    psnr: float
    """Decibels of what it would end at, against the photo."""
    picture: Tensor
    """[1, 3, H, W] in about [-1, 1], on the CPU."""


class Previews:
    """Decodes what steps estimate, when it is time to."""

    def __init__(
        self,
        model: LatentDiffusion,
        photo: Tensor,
        *,
        interval: float = INTERVAL,
        share: float = SHARE,
    ) -> None:
        """Args: photo: [1, 3, H, W] in [-1, 1], as the model sees it."""
        self.model, self.photo = model, photo
        self.interval, self.share = interval, share
        self.due = time.monotonic() + interval

    def of(self, info: StepInfo) -> Preview | None:
        """The preview of a step, where it has an estimate and it is time for one."""
        started = time.monotonic()
        wanted = started > self.due or info.index == info.total
        if info.clean_estimate is None or not wanted:
            return None
        picture = self.model.decode(info.clean_estimate).cpu()
        preview = Preview(psnr(picture, self.photo), picture)
        now = time.monotonic()
        self.due = now + max(self.interval, (now - started) / self.share)
        return preview
