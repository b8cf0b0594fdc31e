"""Where, and how far, a target may depart from its source.

After every step each target is led back to the source, by a weight per latent pixel:

    z^tgt <- z^src + r m (z^tgt - z^src),      m = m_mask m_words,      r = exp(-pull / T)

m_mask is a mask supplied by a person, at each latent cell the maximum over the pixels in it; it
holds at every step. m_words is the local blend of `attention.blend`, from its start step on. The
pull makes the target follow its source: a departure decays by exp(-pull) over the run, and at an
infinite pull the target *is* the source.

Source: Hertz et al. 2022, sec. 3.2 (words); Avrahami et al. 2022 (Blended Diffusion), sec. 3 (masks
at every step). The pull is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from nulltext.attention.blend import PromptTokens, blend_mask
from nulltext.errors import OptionError
from nulltext.image.images import CropBox, same_proportions
from nulltext.image.masks import load_mask, mask_on_crop
from nulltext.image.opening import ImageLike
from nulltext.inversion.record import Inversion


@dataclass(frozen=True)
class Words:
    """A local blend in numbers."""

    tokens: tuple[PromptTokens, PromptTokens]
    """Of source and target."""
    threshold: float
    first_step: int
    """Index of the first step at which it acts."""


@dataclass(frozen=True)
class Region:
    """One target's."""

    mask: Tensor | None
    """[h, w] in [0, 1] on the latents' grid."""
    words: Words | None
    rate: float
    """r, in [0, 1]."""

    @property
    def free(self) -> bool:
        """Whether the target may depart everywhere and all the way."""
        return self.mask is None and self.words is None and self.rate == 1.0

    def share(self, index: int, maps: tuple[Tensor, Tensor] | None, like: Tensor) -> Tensor:
        """m at a step: [h, w] for latents `like` [..., h, w].

        Args:
            maps: mean token maps [L, h', w'] of source and target; needed with words.
        """
        size = (like.shape[-2], like.shape[-1])
        share = torch.ones(size, device=like.device)
        if self.mask is not None:
            share = share * self.mask.to(like.device)
        if self.words is not None and index >= self.words.first_step:
            assert maps is not None
            share = share * blend_mask(maps, self.words.tokens, self.words.threshold, size)
        return share


def mask_for(inversion: Inversion, mask: ImageLike) -> Tensor:
    """A mask of the whole photo, or of its crop, as `EditSpec` takes it: over the crop.

    Args: mask: see `read_mask`; of the photo's or the crop's proportions.

    Returns: [H, W], float32, in [0, 1].

    Raises:
        ImageError: it cannot be read, has other proportions, or marks nothing inside the crop.
    """
    header = inversion.header
    size = (header.image_size[0], header.image_size[1])
    return mask_on_crop(load_mask(mask), size, CropBox.from_list(header.crop))


def check_lies_on(mask: Tensor, inversion: Inversion) -> None:
    """Refuse a mask of the photo's proportions where the crop has others.

    Raises:
        OptionError: so it is.
    """
    header, shape = inversion.header, (mask.shape[-1], mask.shape[-2])
    crop = CropBox.from_list(header.crop)
    photo_size = (header.image_size[0], header.image_size[1])
    if not same_proportions(shape, (crop.width, crop.height)) and same_proportions(
        shape, photo_size
    ):
        raise OptionError(
            f"The mask is {shape[0]} x {shape[1]} px, of the photo's proportions, but only the "
            f"crop {crop} was inverted: pass mask_for(inversion, mask)."
        )


def on_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [H, W] on the latents' grid [h, w]: the maximum over each cell."""
    if mask.shape[0] < size[0] or mask.shape[1] < size[1]:
        larger = (max(mask.shape[0], size[0]), max(mask.shape[1], size[1]))
        mask = interpolate(mask[None, None], size=larger, mode="nearest")[0, 0]
    return adaptive_max_pool2d(mask[None].float(), size)[0]


def rate(pull: float, num_steps: int) -> float:
    """r: what is left of a departure after one of T steps; 1 at pull 0, 0 at an infinite pull."""
    return math.exp(-pull / num_steps)
