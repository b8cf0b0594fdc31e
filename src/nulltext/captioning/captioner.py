"""A photo in, a sentence out.

    caption = beams(GPT-2, mapper(CLIP(photo)))

CLIP, or another vision model in its place (`vision`), sees the largest centred square of the crop
(or, where its `Eyes` say so, the middle of that), shrunk bicubically and standardised by its own
mean and deviation of each channel. A caption here has no full stop: it is a prompt.
Sources: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3; Radford et al. 2021 (CLIP).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.captioning.decoding import BEAMS, LONGEST, beam_search, greedy
from nulltext.captioning.mapping import Mapper
from nulltext.captioning.vision import embed, width_of
from nulltext.errors import ModelError, OptionError
from nulltext.image.images import CropBox, largest_centred_square
from nulltext.image.photos import Photo, PhotoLike, load_photo
from nulltext.logs import timed

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

logger = logging.getLogger(__name__)

STOP = "."
"""What ends a sentence."""


@dataclass(frozen=True)
class Eyes:
    """How the vision model wants its pixels; the defaults are CLIP's."""

    side: int = 224
    """Pixels of the square."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Of each channel of [0, 1] RGB."""
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Of each channel of [0, 1] RGB."""
    share: float = 1.0
    """Side of what is seen, as a share of the largest centred square's."""

    def standardised(self, pixels: Tensor) -> Tensor:
        """RGB [B, 3, H, W] in [0, 1] as the vision model reads it."""
        mean, deviation = (pixels.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def look(self, photo: Photo, box: CropBox) -> Tensor:
        """[1, 3, side, side]: the middle of the largest centred square of a crop, standardised."""
        square = largest_centred_square(box.width, box.height)
        size = max(1, round(square.width * self.share))
        margin = (square.width - size) // 2
        left, top = box.x + square.x + margin, box.y + square.y + margin
        cut = photo.image.crop((left, top, left + size, top + size))
        seen = cut.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
        return self.standardised(pixels.float() / 255.0)


class CaptionModel(nn.Module):
    """The three networks; what is trained."""

    def __init__(
        self,
        vision: Any,
        mapper: Mapper,
        gpt: GPT2LMHeadModel,
        *,
        unit_features: bool,
    ) -> None:
        """Args: vision: one of `VISIONS`. unit_features: whether embeddings are scaled to length 1.

        Raises:
            ModelError: the networks' sizes do not fit together.
        """
        super().__init__()
        self.vision, self.mapper, self.gpt = vision, mapper, gpt
        self.unit_features = unit_features
        made, wanted = width_of(vision), mapper.settings.features
        if made != wanted:
            raise ModelError(
                f"The vision model makes embeddings of {made} numbers and the mapper reads "
                f"{wanted}; take the one that the mapper was trained with."
            )
        width, read = mapper.settings.width, gpt.config.n_embd
        if width != read:
            raise ModelError(
                f"The mapper makes prefixes of width {width} and GPT-2 reads {read}; take the "
                "GPT-2 that the mapper was trained with."
            )

    def features(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, features] of standardised pixels [B, 3, side, side]."""
        embeds = embed(self.vision, pixels)
        return functional.normalize(embeds, dim=-1) if self.unit_features else embeds

    @property
    def longest(self) -> int:
        """Most tokens of a caption: as published, or what GPT-2 has positions for."""
        return min(LONGEST, self.gpt.config.n_positions - self.mapper.settings.prefix_length)


@dataclass(frozen=True)
class Captioner:
    """A captioner that is ready to look at photos; `load_captioner` makes one."""

    name: str
    model: CaptionModel
    tokenizer: Any
    """transformers' tokenizer of the language model."""
    eyes: Eyes

    def __repr__(self) -> str:
        return f"Captioner({self.name!r})"

    @property
    def stop(self) -> int:
        """The token that ends a sentence."""
        return stop_token(self.tokenizer)

    @torch.no_grad()
    def caption(
        self,
        photo: PhotoLike,
        crop: CropBox | None = None,
        beams: int = BEAMS,
    ) -> str:
        """What the photo shows, without a full stop; may be empty.

        Args:
            photo: see `load_photo`.
            crop: the part that is looked at; by default all, of which the middle is seen.
            beams: sentences kept side by side; 1 takes the likeliest token each time.

        Raises:
            ImageError: the photo cannot be read, or the crop does not lie within it.
            OptionError: `beams` is below 1.
        """
        if beams < 1:
            raise OptionError(f"The number of beams is {beams}; expected 1 or more.")
        seen = load_photo(photo)
        box = crop or CropBox(0, 0, *seen.size)
        box.check_inside(seen.size)
        with timed(logger, "caption: %s, %d beams", self.name, beams):
            return self.read(self.eyes.look(seen, box), beams=beams)

    def read(self, pixels: Tensor, *, beams: int) -> str:
        """The caption of standardised pixels [1, 3, side, side]."""
        model = self.model
        prefix = model.mapper(model.features(pixels.to(model.gpt.device)))
        options = {"stop": self.stop, "longest": model.longest}
        if beams == 1:
            sentence = greedy(model.gpt, prefix, **options)
        else:
            sentence = beam_search(model.gpt, prefix, beams=beams, **options)[0]
        words = [token for token in sentence.tokens if token != self.stop]
        text = self.tokenizer.decode(words, skip_special_tokens=True)
        return " ".join(text.split())


def stop_token(tokenizer: Any) -> int:
    """The token of a full stop that stands alone."""
    token: int = tokenizer.encode(STOP, add_special_tokens=False)[0]
    return token
