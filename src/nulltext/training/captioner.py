"""The captioner's stage: vision model, mapper and GPT-2, on captions and labels.

    L = -E (1/n) sum_i log p(w_i | prefix(x), w_1 … w_{i-1})  +  a sum_labels CE(head(f), label)

x is a random crop of a photo, mirrored at random, a little lighter or darker; f its embedding. The
last w is the full stop. The heads read kind, colour and background off f where the photo's label
has them: a shortcut for gradients into a vision model that begins from nothing and has few photos;
they are not exported. The vision model begins from nothing or, like ClipCap's, from weights that
have learnt to see elsewhere (`eyes`); mapper and GPT-2 begin from nothing. There is no dropout,
whose chance is not the step's own, and statistics of batches stay as they came: the networks train
in evaluation mode.
Source: Mokady, Hertz and Bermano 2021 (ClipCap), eq. 1 and sec. 3.1 (all parts are trained here).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.captioning.captioner import STOP, Captioner, CaptionModel, Eyes, stop_token
from nulltext.captioning.decoding import LONGEST
from nulltext.captioning.mapping import MlpMapper, MlpSettings
from nulltext.captioning.vision import width_of
from nulltext.errors import OptionError, shorten
from nulltext.image.images import to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.training.captions import CaptionSettings, compose
from nulltext.training.collection import Example, as_floats
from nulltext.training.eyes import Sight
from nulltext.training.loop import LoopSettings

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SHOWN, COLUMNS = 16, 8
"""Held-out photos in the sample pictures, and how many stand in a row."""
LABELS = ("kind", "colour", "background")
IGNORED = -100
"""Stands for no token and no label in a cross-entropy."""
MLP_RATIO = 4


@dataclass(frozen=True)
class Augmentation:
    """How a photo is varied."""

    smallest_crop: float = 0.6
    """Side of the smallest random crop, as a share of the photo's."""
    stretch: float = 0.15
    """Most that a crop's width and height differ, as a share."""
    light: float = 0.15
    """Most that the brightness changes, as a share; hues stay, for the words name them."""
    off_centre: float = 0.5
    """Most that a crop's middle lies beside the photo's, as a share of the photo's side; where
    labels speak of the middle, keep it small."""


@dataclass(frozen=True)
class CaptionerRecipe:
    """The captioner and its stage."""

    vision: str = ""
    """The vision model that these numbers were chosen for, and without which nothing begins; empty:
    they are for one that begins from nothing as well."""
    side: int = 64
    """Pixels of the square that is looked at."""
    view: float = 1.0
    """Its side once the captioner is trained, as a share of the photo's largest centred square:
    it reads best at the size that its crops had on average, not at their largest (Touvron et al.
    2019)."""
    patch: int = 8
    """Pixels of a patch of CLIP, where CLIP begins from nothing; so the next two."""
    width: int = 192
    """Width of CLIP and of its embedding; also of GPT-2."""
    vision_layers: int = 5
    """Layers of CLIP."""
    heads: int = 4
    """Heads of each layer, of GPT-2 too."""
    language_layers: int = 3
    """Layers of GPT-2."""
    prefix_length: int = 6
    """Words' places that the photo takes."""
    hidden: int = 384
    """Hidden width of the mapper, an MLP."""
    captions: CaptionSettings = field(
        default_factory=lambda: CaptionSettings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    )
    """How captions are composed: by default all that is known is said."""
    required: tuple[str, ...] = ()
    """Labels without which a photo teaches no words: what is not known of it is not what nobody
    would name, and captions that leave it out teach to leave it out."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How photos are varied."""
    label_weight: float = 0.5
    """a: how much the heads count."""
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(6000, 64, 6e-4, weight_decay=0.05)
    )
    """Everything together."""


def build_captioner(
    recipe: CaptionerRecipe,
    tokenizer: CLIPTokenizer,
    *,
    name: str,
    seed: int,
    sight: Sight | None = None,
) -> Captioner:
    """The captioner with weights drawn from a seed, its vision model a copy of `sight`'s if given.

    Raises:
        OptionError: see `eyes_of`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    eyes = eyes_of(recipe, sight)
    language = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.prefix_length + LONGEST,
        n_embd=recipe.width,
        n_layer=recipe.language_layers,
        n_head=recipe.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = _new_clip(recipe) if sight is None else copy.deepcopy(sight.module)
        sizes = MlpSettings(width_of(vision), recipe.hidden, recipe.prefix_length, recipe.width)
        model = CaptionModel(
            vision, MlpMapper(sizes), GPT2LMHeadModel(language), unit_features=False
        )
    return Captioner(name, model, tokenizer, eyes)


def eyes_of(recipe: CaptionerRecipe, sight: Sight | None) -> Eyes:
    """The pixels that a recipe's captioner looks at.

    Raises:
        OptionError: the vision model looks at another size than the recipe's, or the recipe is for
            one that has learnt to see and there is none.
        ModelError: the vision model makes no embeddings.
    """
    if sight is not None:
        return sight.at(recipe.side, recipe.view)
    if recipe.vision:
        raise OptionError(
            f"The recipe's captioner is made to begin with {shorten(recipe.vision)}, and no "
            "vision model is given: pass its folder with --vision, or write "
            '"captioner": {"vision": ""} into a recipe of your own to train a CLIP from nothing.'
        )
    return Eyes(recipe.side, share=recipe.view)


def _new_clip(recipe: CaptionerRecipe) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=MLP_RATIO * recipe.width,
        projection_dim=recipe.width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.side,
        patch_size=recipe.patch,
    )
    return CLIPVisionModelWithProjection(sizes)


class CaptionerStage:
    """Trains a captioner on labelled or captioned photos."""

    stage = "captioner"

    def __init__(
        self,
        captioner: Captioner,
        pixels: tuple[Tensor, Tensor],
        examples: Sequence[Example],
        recipe: CaptionerRecipe,
    ) -> None:
        """Args: pixels: of the examples and of held-out photos, [N, 3, S, S], uint8."""
        self.captioner, self.recipe, self.examples = captioner, recipe, examples
        self.pixels, held_out = pixels
        self.device = captioner.model.gpt.device
        self.shown = as_floats(held_out[:SHOWN])
        self.stop = stop_token(captioner.tokenizer)
        self.known: dict[str, list[int]] = {}
        self.labels = {name: _classes(examples, name) for name in LABELS}
        width = captioner.model.mapper.settings.features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heads = {
                name: nn.Linear(width, int(labels.max()) + 1)
                for name, labels in self.labels.items()
                if int(labels.max()) > 0
            }
        self.heads = nn.ModuleDict(heads).to(self.device)
        self.module: nn.Module = nn.ModuleDict({"model": captioner.model, "heads": self.heads})

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of `batch_size` varied photos under freshly composed captions."""
        rows = torch.randint(len(self.examples), (batch_size,), generator=rng)
        pixels = torch.cat([self._varied(self.pixels[row], rng) for row in rows])
        seen = [self.examples[row] for row in rows]
        captions = [compose(example, self.recipe.captions, (), rng).text for example in seen]
        model = self.captioner.model
        features = model.features(self.captioner.eyes.standardised(pixels).to(self.device))
        tokens = self._tokens(captions).to(self.device)
        silent = torch.tensor([self._is_silent(example) for example in seen], device=self.device)
        tokens = tokens.masked_fill(silent[:, None], IGNORED)
        words = word_loss(model, features, tokens)
        loss, parts = words, {"words": float(words.detach())}
        for name, head in self.heads.items():
            labels = self.labels[name][rows].to(self.device)
            scores, known = head(features).float(), max(int((labels != IGNORED).sum()), 1)
            # A sum over none is 0 with a gradient, which keeps the optimiser's count of updates.
            astray = functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
            loss = loss + self.recipe.label_weight * astray / known
            parts[name] = float((scores.argmax(-1) == labels).sum()) / known
        return loss, parts

    def picture(self) -> Image.Image:
        """Held-out photos above what the captioner says of them."""
        eyes, tiles = self.captioner.eyes, []
        margin = round(self.shown.shape[-1] * (1 - eyes.share) / 2)
        inside = slice(margin, self.shown.shape[-1] - margin)
        for photo in self.shown:
            middle = photo[None, :, inside, inside]
            seen = _resized(middle * 0.5 + 0.5, eyes.side)
            text = self.captioner.read(eyes.standardised(seen), beams=1)
            tiles.append(Tile(to_pil(photo[None]), text or "(nothing)"))
        return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])

    def _varied(self, pixels: Tensor, rng: torch.Generator) -> Tensor:
        """A crop of a photo [3, S, S], uint8, as [1, 3, side, side] in [0, 1]."""
        own, side = self.recipe.augmentation, pixels.shape[-1]
        size, stretch, across, down, light, mirrored = torch.rand(6, generator=rng).tolist()
        largest = own.smallest_crop + (1 - own.smallest_crop) * size
        narrow = 1 - own.stretch * abs(2 * stretch - 1)
        wide, tall = (largest, largest * narrow) if stretch < 0.5 else (largest * narrow, largest)
        width, height = max(1, round(side * wide)), max(1, round(side * tall))
        left = _start(side - width, own.off_centre * side, across)
        top = _start(side - height, own.off_centre * side, down)
        cut = pixels[:, top : top + height, left : left + width].float()[None] / 255.0
        seen = _resized(cut, self.recipe.side) * (1 + own.light * (2 * light - 1))
        return (seen.flip(-1) if mirrored < 0.5 else seen).clamp(0, 1)

    def _is_silent(self, example: Example) -> bool:
        """Whether a photo's composed caption would leave out what is wanted."""
        required = self.recipe.required
        return not example.captions and any(getattr(example, name) is None for name in required)

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids with the full stop, [B, longest], padded with IGNORED."""
        for text in captions:
            if text not in self.known:
                ids = self.captioner.tokenizer.encode(
                    text.rstrip(f" {STOP}"), add_special_tokens=False
                )
                self.known[text] = [*ids[: self.captioner.model.longest - 1], self.stop]
        rows = [torch.tensor(self.known[text]) for text in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def word_loss(model: CaptionModel, features: Tensor, tokens: Tensor) -> Tensor:
    """Mean -log p per token of captions that follow their photos' prefixes; 0 for no tokens.

    Args:
        features: [B, features]. tokens: [B, n], the full stop included, then IGNORED.
    """
    prefix = model.mapper(features)
    read = model.gpt.get_input_embeddings()(tokens.clamp(min=0))
    logits = model.gpt(inputs_embeds=torch.cat([prefix.to(read.dtype), read], dim=1)).logits
    before = prefix.shape[1] - 1  # what the prefix's last place predicts is the first word
    scores = logits[:, before : before + tokens.shape[1]].float()
    wanted = tokens.flatten()
    total = functional.cross_entropy(
        scores.flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum"
    )
    return total / (wanted != IGNORED).sum().clamp(min=1)


def _start(free: int, off_centre: float, chance: float) -> int:
    """Where a crop begins that leaves `free` pixels, its middle so far off the centre at most."""
    first, last = max(0.0, free / 2 - off_centre), min(float(free), free / 2 + off_centre)
    return int(first + chance * (last - first + 1))


def _classes(examples: Sequence[Example], name: str) -> Tensor:
    """Each example's label as a number in the order of the alphabet, IGNORED where unknown."""
    values = sorted({value for e in examples if (value := getattr(e, name)) is not None})
    numbers = {value: number for number, value in enumerate(values)}
    return torch.tensor([numbers.get(getattr(e, name), IGNORED) for e in examples])


def _resized(pixels: Tensor, side: int) -> Tensor:
    """[B, 3, H, W] in [0, 1], bicubic and antialiased, to [B, 3, side, side]."""
    return functional.interpolate(
        pixels, (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
