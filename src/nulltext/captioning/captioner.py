"""A photo in, a caption out: a vision model, a mapper and GPT-2, and the search for sentences.

    caption   = beams(GPT-2, p),  p = mapper(vision(photo))
    beams     the k sentences of highest mean log p per token, (1/n) sum_i log p(w_i | p, w_<i),
              found by extending each unfinished one by every token and keeping the k best of all

    CLIPVisionModelWithProjection   f = W norm(h_class), the class token projected
    EfficientNetModel               f = mean of the last feature map over its pixels

    MLP mapper            p = W2 tanh(W1 f + b1) + b2                   as [P, D]
    transformer mapper    x = [W f + b as [K, D] ; c_1 … c_P],  x <- layers(x),  p = x's last P rows
    one layer             x <- x + A(norm x),  x <- x + V2 relu(V1 norm x + a1) + a2
    A(x)                  softmax(Q K' / sqrt(D / heads)) V, heads side by side, then a linear map

f is the image embedding, p the prefix that GPT-2 continues, D GPT-2's width, P the prefix's length;
the constants c are learnt. Queries, keys and values have no bias. Parameters have the names of the
published checkpoints. ClipCap's vision model is CLIP.

The vision model sees the largest centred square of the crop (or a share of it), resized bicubically
and standardised by its own mean and deviation of each channel. A sentence ends with the full stop,
which counts as one of its tokens, or at the longest length; a finished one stays among the k with
the mean that it has, until better ones push it out. With k = 1 the likeliest token follows each
time. The returned caption has no full stop: it is a prompt.
Sources: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3 and 4 (5 beams), and the layout of its
weights and the constants of its published code; Radford et al. 2021 (CLIP), sec. 2.4; Tan and Le
2019 (EfficientNet), table 1.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.captioning.known_photos import KnownPhotos
from nulltext.errors import ModelError, OptionError
from nulltext.image.images import CropBox, largest_centred
from nulltext.image.photos import Photo, PhotoLike, load_photo
from nulltext.image.profiles import as_srgb
from nulltext.logs import timed
from nulltext.words.captions import FRAMES
from nulltext.words.prompts import listed, plain_words

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

LONGEST = 67
"""Most tokens of a caption, as published."""


@dataclass(frozen=True)
class VisionClass:
    """How one of transformers' vision classes is stored and used."""

    folder: str
    """Its folder in a captioner's folder."""
    model_types: tuple[str, ...]
    """`model_type` in its config, also where it is a part of a larger model."""
    embedding: str
    """Field of its output that is the embedding, [B, width]."""
    width: str
    """Setting with the embedding's width."""
    side: str | None
    """Setting with the pixels of its only input size; None if it takes any size."""
    memory_format: torch.memory_format
    """Fastest order of pixels in memory on a CPU."""


CLIP = "CLIPVisionModelWithProjection"
"""The vision class of a captioner whose config names none."""
VISION_CLASSES: Mapping[str, VisionClass] = {
    CLIP: VisionClass(
        folder="clip",
        model_types=("clip_vision_model", "clip"),
        embedding="image_embeds",
        width="projection_dim",
        side="image_size",
        memory_format=torch.contiguous_format,
    ),
    "EfficientNetModel": VisionClass(
        folder="efficientnet",
        model_types=("efficientnet",),
        embedding="pooler_output",
        width="hidden_dim",
        side=None,
        memory_format=torch.channels_last,
    ),
}


def vision_class(vision: Any) -> VisionClass:
    return VISION_CLASSES[type(vision).__name__]


def embedding_width(vision: Any) -> int:
    return int(getattr(vision.config, vision_class(vision).width))


def fixed_side(vision: Any) -> int | None:
    """Read the only input size of a vision model in pixels; None if it takes any size."""
    setting = vision_class(vision).side
    return None if setting is None else int(getattr(vision.config, setting))


def embed(vision: nn.Module, pixels: Tensor) -> Tensor:
    """Compute embeddings [B, width] of standardised pixels [B, 3, side, side]."""
    kind = vision_class(vision)
    output = vision(pixel_values=pixels.contiguous(memory_format=kind.memory_format))
    return getattr(output, kind.embedding)


@dataclass(frozen=True)
class MlpSettings:
    """Sizes of the MLP mapper; the defaults are the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    """Width of the image embedding."""
    hidden: int = 3840
    prefix_length: int = 10
    """P: tokens' places that the photo takes."""
    width: int = 768
    """D: width of GPT-2."""


class MlpMapper(nn.Module):
    """Two linear maps with tanh between them."""

    kind: ClassVar[str] = "mlp"
    settings_class: ClassVar[type] = MlpSettings

    def __init__(self, settings: MlpSettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = nn.Sequential(
            nn.Linear(settings.features, settings.hidden),
            nn.Tanh(),
            nn.Linear(settings.hidden, settings.prefix_length * settings.width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map embeddings [B, features] to prefixes [B, P, D]."""
        return self.model(features).unflatten(1, (self.settings.prefix_length, -1))


@dataclass(frozen=True)
class TransformerSettings:
    """Sizes of the transformer mapper; the published ones, for ViT-B/32 and GPT-2."""

    features: int = 512
    clip_length: int = 40
    """K: rows that the embedding is spread over."""
    prefix_length: int = 40
    """P: learnt constants, and tokens' places that the photo takes."""
    width: int = 768
    layers: int = 8
    heads: int = 8
    """Attention heads of each layer; divides the width."""
    hidden: int = 1536
    """Width of each layer's hidden layer: twice D as published."""


class TransformerMapper(nn.Module):
    """A transformer over the spread embedding and learnt constants, which become the prefix."""

    kind: ClassVar[str] = "transformer"
    settings_class: ClassVar[type] = TransformerSettings

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(settings.features, settings.clip_length * settings.width)
        self.prefix_const = nn.Parameter(torch.randn(settings.prefix_length, settings.width))
        layers = nn.Sequential(*(_Layer(settings) for _ in range(settings.layers)))
        self.transformer = nn.ModuleDict({"layers": layers})

    def forward(self, features: Tensor) -> Tensor:
        """Map embeddings [B, features] to prefixes [B, P, D]."""
        spread = self.linear(features).unflatten(1, (self.settings.clip_length, -1))
        constants = self.prefix_const.expand(len(features), -1, -1)
        rows = self.transformer["layers"](torch.cat([spread, constants], dim=1))
        return rows[:, self.settings.clip_length :]


class _Layer(nn.Module):
    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, settings.heads)
        first, second = nn.Linear(width, settings.hidden), nn.Linear(settings.hidden, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=first, relu=nn.ReLU(), fc2=second))

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        return rows + self.mlp(self.norm2(rows))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        queries = self.to_queries(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        both = self.to_keys_values(rows).unflatten(-1, (2, self.heads, -1))
        keys, values = both.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).flatten(2))


Mapper = MlpMapper | TransformerMapper
MAPPERS: Mapping[str, type[Mapper]] = {m.kind: m for m in (MlpMapper, TransformerMapper)}
"""Mapping networks by the name that a captioner's config has for them."""


class CaptionModel(nn.Module):
    """Vision model, mapper and GPT-2, checked to fit each other."""

    def __init__(
        self, vision: Any, mapper: Mapper, gpt: GPT2LMHeadModel, *, unit_features: bool
    ) -> None:
        """Combine the three networks.

        Args: unit_features: whether embeddings are scaled to length 1.

        Raises:
            ModelError: the networks' sizes do not fit together.
        """
        super().__init__()
        self.vision, self.mapper, self.gpt = vision, mapper, gpt
        self.unit_features = unit_features
        made, wanted = embedding_width(vision), mapper.settings.features
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
        """Compute embeddings [B, features] of standardised pixels [B, 3, side, side]."""
        embeds = embed(self.vision, pixels)
        return functional.normalize(embeds, dim=-1) if self.unit_features else embeds

    def prefix(self, pixels: Tensor) -> Tensor:
        """Compute prefixes [B, P, D] of standardised pixels [B, 3, side, side]."""
        return self.mapper(self.features(pixels))

    @property
    def longest(self) -> int:
        """Most tokens of a caption: as published, or what GPT-2 has positions for."""
        return min(LONGEST, self.gpt.config.n_positions - self.mapper.settings.prefix_length)


logger = logging.getLogger(__name__)

STOP = "."
BEAMS = 5
SURE = 0.97
"""Probability of a word from which it is mostly right; docs/captioning.md has the figures."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """Size and standardisation of a vision model's input; the defaults are CLIP's."""

    side: int = 224
    """Pixels of the square."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Both of each channel of [0, 1] RGB."""
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
        seen = as_srgb(resized, photo.icc_profile)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
        return self.standardise(pixels.float() / 255.0)


@dataclass(frozen=True)
class CaptionWord:
    """A word of a caption."""

    text: str
    probability: float
    """Product of its tokens' probabilities, each after those before."""

    @property
    def sure(self) -> bool:
        """Whether it is likely; of several ways to say "a photo of", any will do."""
        return self.probability >= SURE or FRAMES.issuperset(plain_words(self.text))


@dataclass(frozen=True)
class Caption:
    """What a captioner says of a photo, and how far it can be relied on."""

    words: tuple[CaptionWord, ...]
    captioner: str
    """Name of the captioner."""
    known: bool | None = None
    """Whether the photo is like those that it was trained on; None where it cannot tell."""

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The caption without a full stop; it may be empty."""
        return " ".join(word.text for word in self.words)

    @property
    def doubts(self) -> dict[str, Any]:
        """Whether the photo is known, and the words to look at twice; empty if it cannot tell."""
        if self.known is None:
            return {}
        return {"known": self.known, "unsure": [word.text for word in self.words if not word.sure]}

    @property
    def note(self) -> str | None:
        """The doubts in one sentence; None where there are none."""
        if self.known is False:
            return (
                f"Note: this photo is unlike those that the captioner '{self.captioner}' was "
                "trained on; its words may be wrong."
            )
        unsure = [f'"{word}"' for word in self.doubts.get("unsure", ())]
        if not unsure:
            return None
        return f"Note: the captioner '{self.captioner}' is not sure of {listed(unsure)}."


@dataclass(frozen=True)
class Captioner:
    """A captioner that is ready for photos; `load_captioner` makes one."""

    name: str
    model: CaptionModel
    tokenizer: Any
    """transformers' tokenizer of the language model."""
    preprocessing: ImagePreprocessing
    known_photos: KnownPhotos | None = None
    """Tells which photos are like those that it was trained on; None where that is not kept."""

    def __repr__(self) -> str:
        return f"Captioner({self.name!r})"

    @property
    def stop(self) -> int:
        return int(self.tokenizer.encode(STOP, add_special_tokens=False)[0])

    def caption(self, photo: PhotoLike, crop: CropBox | None = None, beams: int = BEAMS) -> str:
        """Describe a photo, without a full stop; the caption may be empty. See `describe`."""
        return self.describe(photo, crop, beams).text

    @torch.no_grad()
    def describe(
        self, photo: PhotoLike, crop: CropBox | None = None, beams: int = BEAMS
    ) -> Caption:
        """Describe a photo, and tell how far the words can be relied on.

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

    def read(self, pixels: Tensor, *, beams: int) -> Caption:
        """Caption standardised pixels [1, 3, side, side]."""
        model = self.model
        features = model.features(pixels.to(model.gpt.device))
        prefix, longest = model.mapper(features), model.longest
        best = beam_search(model.gpt, prefix, stop=self.stop, beams=beams, longest=longest)[0]
        known = None if self.known_photos is None else self.known_photos.knows(features)
        return Caption(tuple(self._words(best)), self.name, known)

    def _words(self, sentence: Sentence) -> list[CaptionWord]:
        """Split a sentence into words; a token belongs to the last word of the text up to it."""
        said: list[int] = []
        words: list[str] = []
        log_probs: list[float] = []
        for token, log_prob in zip(sentence.tokens, sentence.log_probs, strict=True):
            if token == self.stop:
                continue
            said.append(token)
            words = self.tokenizer.decode(said, skip_special_tokens=True).split()
            log_probs += [0.0] * (len(words) - len(log_probs))
            if log_probs:
                log_probs[len(words) - 1] += log_prob
        return [
            CaptionWord(word, math.exp(log_prob))
            for word, log_prob in zip(words, log_probs, strict=False)
        ]


@dataclass(frozen=True)
class Sentence:
    """A caption so far."""

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    """log p of each token after those before."""
    finished: bool = False

    @property
    def mean(self) -> float:
        return sum(self.log_probs) / max(len(self.tokens), 1)


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
                longer, log_probs = (*sentence.tokens, token), (*sentence.log_probs, value)
                candidates.append(Sentence(longer, log_probs, token == stop))
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
