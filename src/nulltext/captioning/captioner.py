"""A photo in, a caption out.

    caption   = beams(GPT-2, p),  p = mapper(vision(photo))
    beams     the k sentences of highest mean log p per token, (1/n) sum_i log p(w_i | p, w_<i),
              found by extending each unfinished one by every token and keeping the k best of all

The vision model sees the largest centred square of the crop (or a share of it), resized bicubically
and standardised by its own mean and deviation of each channel. A sentence ends with the full stop,
which counts as one of its tokens, or at the longest length; a finished one stays among the k with
the mean that it has, until better ones push it out. With k = 1 the likeliest token follows each
time. The returned caption has no full stop: it is a prompt.
Sources: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3 and 4 (5 beams), and the constants of its
published code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nulltext.captioning.networks import LONGEST, CaptionModel
from nulltext.errors import OptionError
from nulltext.image.images import CropBox, largest_centred
from nulltext.image.photos import Photo, PhotoLike, load_photo
from nulltext.logs import timed

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

logger = logging.getLogger(__name__)

STOP = "."
"""The end of a sentence."""
BEAMS = 5


@dataclass(frozen=True)
class ImagePreprocessing:
    """Size and standardisation of a vision model's input; the defaults are CLIP's."""

    side: int = 224
    """Pixels of the square."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Of each channel of [0, 1] RGB."""
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Of each channel of [0, 1] RGB."""
    share: float = 1.0
    """Side of the square that is cut out, as a share of the largest centred square's."""

    def standardise(self, pixels: Tensor) -> Tensor:
        """Standardise RGB [B, 3, H, W] in [0, 1]."""
        mean, deviation = (pixels.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def apply(self, photo: Photo, box: CropBox) -> Tensor:
        """Cut the middle of a crop's largest centred square out: [1, 3, side, side]."""
        square = largest_centred(box.width, box.height)
        size = max(1, round(square.width * self.share))
        margin = (square.width - size) // 2
        left, top = box.x + square.x + margin, box.y + square.y + margin
        cut = photo.image.crop((left, top, left + size, top + size))
        resized = cut.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
        return self.standardise(pixels.float() / 255.0)


@dataclass(frozen=True)
class Captioner:
    """A captioner that is ready for photos; `load_captioner` makes one."""

    name: str
    model: CaptionModel
    tokenizer: Any
    """transformers' tokenizer of the language model."""
    preprocessing: ImagePreprocessing

    def __repr__(self) -> str:
        return f"Captioner({self.name!r})"

    @property
    def stop(self) -> int:
        return int(self.tokenizer.encode(STOP, add_special_tokens=False)[0])

    @torch.no_grad()
    def caption(self, photo: PhotoLike, crop: CropBox | None = None, beams: int = BEAMS) -> str:
        """Describe a photo, without a full stop; the caption may be empty.

        Args:
            photo: see `load_photo`.
            crop: the part that is described, of which the middle is seen; by default everything.
            beams: sentences kept side by side; 1 takes the likeliest token each time.

        Raises:
            ImageError: the photo cannot be read, or the crop does not lie within it.
            OptionError: `beams` is below 1.
        """
        if beams < 1:
            raise OptionError(f"The number of beams is {beams}; expected 1 or more.")
        loaded = load_photo(photo)
        box = crop or CropBox(0, 0, *loaded.size)
        box.check_inside(loaded.size)
        with timed(logger, "caption: %s, %d beams", self.name, beams):
            return self.read(self.preprocessing.apply(loaded, box), beams=beams)

    def read(self, pixels: Tensor, *, beams: int) -> str:
        """Caption standardised pixels [1, 3, side, side]."""
        model = self.model
        prefix = model.prefix(pixels.to(model.gpt.device))
        longest = model.longest
        best = beam_search(model.gpt, prefix, stop=self.stop, beams=beams, longest=longest)[0]
        words = [token for token in best.tokens if token != self.stop]
        text = self.tokenizer.decode(words, skip_special_tokens=True)
        return " ".join(text.split())


@dataclass(frozen=True)
class Sentence:
    """A caption so far."""

    tokens: tuple[int, ...] = ()
    log_prob: float = 0.0
    """Sum over the tokens."""
    finished: bool = False

    @property
    def mean(self) -> float:
        """Mean log-probability per token, by which beams are ranked."""
        return self.log_prob / max(len(self.tokens), 1)


def beam_search(
    language: GPT2LMHeadModel,
    prefix: Tensor,
    *,
    stop: int,
    beams: int = BEAMS,
    longest: int = LONGEST,
) -> list[Sentence]:
    """Find up to `beams` sentences, the best first.

    Args:
        prefix: [1, P, D]. stop: the token that ends a sentence. beams: at least 1.
    """
    kept = [Sentence()]
    for _ in range(longest):
        unfinished = [sentence for sentence in kept if not sentence.finished]
        if not unfinished:
            break
        candidates = [sentence for sentence in kept if sentence.finished]
        scores = next_log_probs(language, prefix, unfinished)
        best = scores.topk(min(beams, scores.shape[1]))  # no more of one sentence can be kept
        for sentence, values, tokens in zip(unfinished, best.values, best.indices, strict=True):
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                log_prob = sentence.log_prob + value
                candidates.append(Sentence((*sentence.tokens, token), log_prob, token == stop))
        kept = sorted(candidates, key=lambda sentence: sentence.mean, reverse=True)[:beams]
    return kept


@torch.no_grad()
def next_log_probs(language: GPT2LMHeadModel, prefix: Tensor, sentences: list[Sentence]) -> Tensor:
    """Compute log p of every next token, [len(sentences), vocabulary], float64.

    Args:
        prefix: [1, P, D]. sentences: of one length.
    """
    embeds = prefix.expand(len(sentences), -1, -1)
    tokens = torch.tensor([sentence.tokens for sentence in sentences], device=prefix.device)
    if tokens.numel():
        embeds = torch.cat([embeds, language.get_input_embeddings()(tokens)], dim=1)
    logits = language(inputs_embeds=embeds, use_cache=False).logits[:, -1]
    return logits.double().log_softmax(-1)
