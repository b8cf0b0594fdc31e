"""PIE-Bench's eight metrics of one edit, on 8-bit pictures.

With K = 1 where the mask leaves the picture alone, x the photo and y the edit in [0, 1] RGB,

    MSE   = mean over ALL pixels of (K x - K y)^2          PSNR = -10 log10 MSE
    SSIM  = SSIM(K x, K y)                                  LPIPS = LPIPS(K x, K y)
    structure = structure distance(x, y)
    CLIP  = 100 max(0, cos(picture, prompt))    of (x, source), (y, target), ((1 - K) y, target)

Masked pixels are black in both and count as equal, as in the published evaluation: an edit with a
large mask scores better for it, so these figures compare with the published ones and not with a
mean over the kept pixels alone. A metric whose network is not there is `Undefined`, never a number.
Source: Ju et al. 2024 (Direct Inversion), sec. 5.2, and its published evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from nulltext.errors import ModelError
from nulltext.evaluation.agreement import ClipJudge
from nulltext.evaluation.extras import require
from nulltext.evaluation.measures import GAUSSIAN_SIGMA, WINDOW, Figure, Undefined
from nulltext.evaluation.pie.dataset import fitted, with_border
from nulltext.evaluation.pie.lpips import SqueezeLpips
from nulltext.evaluation.pie.structure import DINO_SOURCE, StructureDistance
from nulltext.image.images import from_uint8, to_uint8

CLIP_SOURCE = "openai/clip-vit-large-patch14"
NONE = "none"
"""In place of a network: leave its metrics out."""

COVERED = Undefined("the mask covers the whole picture")
UNMARKED = Undefined("the mask marks nothing")

Network = TypeVar("Network")


class Distance(Protocol):
    """A network that compares two pictures."""

    @property
    def name(self) -> str:
        """What the settings call it."""
        ...

    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Of pictures [3, H, W] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Networks:
    """What looks at the pictures, or why it is missing."""

    structure: Distance | Undefined
    lpips: Distance | Undefined
    clip: ClipJudge | Undefined

    @property
    def names(self) -> dict[str, str]:
        """What each of them is, or "missing"."""
        found = {"dino": self.structure, "lpips": self.lpips, "clip": self.clip}
        return {k: "missing" if isinstance(x, Undefined) else x.name for k, x in found.items()}

    @property
    def missing(self) -> dict[str, str]:
        """Reasons by network."""
        found = {"dino": self.structure, "lpips": self.lpips, "clip": self.clip}
        return {name: x.reason for name, x in found.items() if isinstance(x, Undefined)}


def open_networks(
    dino: str | None, clip: str | None, lpips: Path | None, device: torch.device
) -> Networks:
    """Load what can be had.

    Args:
        dino, clip: a folder or a hub id that must be there; "none" to do without; None for the
            published network if this machine has it already: nothing is downloaded unasked.
        lpips: a safetensors file; None to do without.

    Raises:
        ModelError: one that was asked for by name cannot be loaded.
    """
    return Networks(
        structure=_tried(
            *(dino, DINO_SOURCE, "--dino"),
            lambda source, local: StructureDistance.load(source, device, local_only=local),
        ),
        clip=_tried(
            *(clip, CLIP_SOURCE, "--clip"),
            lambda source, local: ClipJudge.load(source, device, local_only=local),
        ),
        lpips=Undefined("no LPIPS weights were given; pass --lpips FILE")
        if lpips is None
        else SqueezeLpips.load(lpips, device),
    )


def _tried(
    asked: str | None, usual: str, option: str, load: Callable[[str, bool], Network]
) -> Network | Undefined:
    if asked == NONE:
        return Undefined(f"left out ({option} {NONE})")
    if asked is not None:
        return load(asked, False)
    absent = Undefined(f"{usual} is not on this machine; pass {option} {usual} to download it")
    if not isinstance(try_to_load_from_cache(usual, "config.json"), str):
        return absent
    try:
        return load(usual, True)
    except ModelError:
        return absent


def pie_figures(
    photo: Tensor, edited: Tensor, mask: Tensor, prompts: tuple[str, str], networks: Networks
) -> dict[str, Figure]:
    """The eight metrics, by name.

    Args:
        photo, edited: [3, H, W] in [-1, 1]. mask: [512, 512] as decoded, border not yet set.
        prompts: the source's and the target's.
    """
    inside = fitted(with_border(mask), (photo.shape[1], photo.shape[2]))
    x, y = (from_uint8(to_uint8(image))[0] for image in (photo, edited))
    source, target = prompts
    return {
        "structure_distance": _of(networks.structure, x, y),
        **_unedited(x, y, ~inside, networks.lpips),
        "clip_source": _clip(networks.clip, x, source),
        "clip_target": _clip(networks.clip, y, target),
        "clip_target_edited": (
            _clip(networks.clip, blackened(y, inside), target) if mask.any() else UNMARKED
        ),
    }


def _unedited(x: Tensor, y: Tensor, kept: Tensor, lpips: Distance | Undefined) -> dict[str, Figure]:
    """PSNR, LPIPS, MSE and SSIM of what the mask leaves alone."""
    names = ("psnr_unedited", "lpips_unedited", "mse_unedited", "ssim_unedited")
    if not kept.any():
        return dict.fromkeys(names, COVERED)
    a, b = blackened(x, kept), blackened(y, kept)
    mse = float(((a.double() - b.double()) / 2).square().mean())
    psnr: Figure = -10 * math.log10(mse) if mse else Undefined("equal outside the mask")
    return dict(zip(names, (psnr, _of(lpips, a, b), mse, _ssim(a, b)), strict=True))


def blackened(image: Tensor, kept: Tensor) -> Tensor:
    """[3, H, W] in [-1, 1], black where `kept` [H, W] is not set."""
    return torch.where(kept, image, torch.full_like(image, -1))


def _of(distance: Distance | Undefined, a: Tensor, b: Tensor) -> Figure:
    return distance if isinstance(distance, Undefined) else distance(a, b)


def _clip(clip: ClipJudge | Undefined, image: Tensor, prompt: str) -> Figure:
    if isinstance(clip, Undefined):
        return clip
    return max(0.0, 100 * float(clip.cosines(image, [prompt])[0]))


def _ssim(a: Tensor, b: Tensor) -> Figure:
    """Mean SSIM where the whole window lies in the picture."""
    metrics = require("skimage.metrics", "study", "SSIM")
    if min(a.shape[1:]) < WINDOW:
        return Undefined(f"the pictures are smaller than {WINDOW} px")
    return float(
        metrics.structural_similarity(
            *(((i.double() + 1) / 2).permute(1, 2, 0).numpy() for i in (a, b)),
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=GAUSSIAN_SIGMA,
            use_sample_covariance=False,
        )
    )
