"""The stage of the captioner: vision model, mapper and GPT-2, on captions and labels.

    L = -E (1/n) sum_i log p(w_i | prefix(x), w_1 … w_{i-1})  +  a sum_labels CE(head(f), label)

x is a random crop of a photo, mirrored at random, a little lighter or darker; f its embedding. The
last w is the full stop. The heads read kind, colour and background off f where the photo's label
has them: a shortcut for gradients into a vision model that begins from nothing and has few photos;
they are not exported. Few captioned photos suffice for words, not for vision: like ClipCap's, the
vision model may begin with weights that were trained elsewhere (`PretrainedVision`), which then go
on training; mapper and GPT-2 begin from nothing. There is no dropout, whose randomness is not the
step's own, and batch statistics stay as they came: the networks train in evaluation mode.
Source: Mokady, Hertz and Bermano 2021 (ClipCap), eq. 1 and sec. 3.1 (all parts are trained here).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.captioning.caption_files import LABELS
from nulltext.captioning.captioner import (
    LONGEST,
    STOP,
    VISION_CLASSES,
    Captioner,
    CaptionModel,
    ImagePreprocessing,
    MlpMapper,
    MlpSettings,
    embed,
    embedding_width,
    fixed_side,
)
from nulltext.captioning.folder import CONFIG, PREPROCESSOR, read_preprocessing
from nulltext.captioning.known_photos import KnownPhotos
from nulltext.errors import ModelError, OptionError, shorten
from nulltext.image.images import CropBox, to_pil
from nulltext.image.photos import load_photo
from nulltext.image.strip import Tile, tile_grid
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries
from nulltext.storage.untrusted import MEGABYTE, read_text
from nulltext.training.components import MLP_RATIO, seeded
from nulltext.training.dataset import Example, as_floats, compose, resize
from nulltext.training.recipe import CaptionerRecipe

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SHOWN, COLUMNS = 16, 8
"""Held-out photos in the sample pictures, and how many stand in a row."""
LOOKED_AT, FEWEST_HELD_OUT = 1000, 20
"""Training photos by which known photos are told, and the least held-out photos beside them."""
IGNORED = -100
"""Stands for no token and no label in a cross-entropy."""
LICENCE = "LICENSE"


@dataclass(frozen=True)
class PretrainedVision:
    """A vision model that a captioner begins with, and its preprocessing."""

    module: Any
    """An instance of one of `VISION_CLASSES`, on the CPU, in float32."""
    preprocessing: ImagePreprocessing
    fingerprint: str
    """Digest of its weights, its config and its preprocessing."""
    name: str
    """Name of its folder."""
    licence: str | None
    """Text of the licence in its folder, if there is one."""

    @classmethod
    def load(cls, folder: Path) -> PretrainedVision:
        """Load a vision model as transformers writes it.

        Raises:
            OptionError: there is no such folder.
            ModelError: it is another kind of model, damaged, or not in safetensors.
        """
        place = folder.expanduser().resolve()
        if not (place / CONFIG).is_file():
            raise OptionError(
                f"'{folder}' is no folder of a vision model: it has no {CONFIG}. Give one as "
                "transformers writes it (openai/clip-vit-base-patch32, google/efficientnet-b0)."
            )
        checkpoint = Checkpoint.at(place.parent)
        config = checkpoint.json(f"{place.name}/{CONFIG}")
        classes = {kind: c for c, own in VISION_CLASSES.items() for kind in own.model_types}
        model_type = str(config.get("model_type"))
        if model_type not in classes:
            raise OptionError(
                f"'{folder}' holds a model of the type {shorten(model_type)!r}; a captioner "
                f"looks with {', '.join(classes)}."
            )
        with quiet_libraries():
            module = checkpoint.component(place.name, classes[model_type])
        preprocessing = read_preprocessing(place / PREPROCESSOR)
        settings = json.dumps([config, asdict(preprocessing)], sort_keys=True)
        digest = hashlib.sha256(settings.encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        try:
            licence = read_text(place / LICENCE, MEGABYTE)
        except (OSError, ValueError):  # there is none, or it is no text
            licence = None
        return cls(module, preprocessing, digest.hexdigest()[:16], place.name, licence)


def preprocessing_for(
    recipe: CaptionerRecipe, vision: PretrainedVision | None
) -> ImagePreprocessing:
    """Return the preprocessing of a recipe's captioner, after trying the vision model on it.

    Raises:
        OptionError: the vision model takes another size than the recipe's, or the recipe is for
            a pretrained one and there is none.
        ModelError: the vision model makes no embeddings.
    """
    side = recipe.side
    if vision is None:
        if recipe.vision:
            raise OptionError(
                f"The recipe's captioner is made to begin with {shorten(recipe.vision)}, and no "
                "vision model is given: pass its folder with --vision, or write "
                '"captioner": {"vision": ""} into a recipe of your own to train a CLIP from '
                "nothing."
            )
        return ImagePreprocessing(side, share=recipe.view)
    wanted = fixed_side(vision.module)
    if wanted not in (None, side):
        raise OptionError(
            f"The vision model looks at {wanted} pixels and the recipe's captioner at {side}; "
            f'write "captioner": {{"side": {wanted}}} into the recipe.'
        )
    try:
        with torch.no_grad():
            embed(vision.module, torch.zeros(1, 3, side, side))
    except Exception as error:  # the library raises many kinds
        raise ModelError(
            f"The vision model '{vision.name}' makes no embeddings of {side} pixels "
            f"({first_line(error)}); get it again."
        ) from error
    return replace(vision.preprocessing, side=side, share=recipe.view)


def build_captioner(
    recipe: CaptionerRecipe,
    tokenizer: CLIPTokenizer,
    *,
    name: str,
    seed: int,
    vision: PretrainedVision | None = None,
) -> Captioner:
    from transformers import GPT2Config, GPT2LMHeadModel

    preprocessing = preprocessing_for(recipe, vision)
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
    with seeded(seed):
        module = _new_clip(recipe) if vision is None else copy.deepcopy(vision.module)
        width = embedding_width(module)
        sizes = MlpSettings(width, recipe.hidden, recipe.prefix_length, recipe.width)
        model = CaptionModel(
            module, MlpMapper(sizes), GPT2LMHeadModel(language), unit_features=False
        )
    return Captioner(name, model, tokenizer, preprocessing)


def _new_clip(recipe: CaptionerRecipe) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=MLP_RATIO * recipe.width,
        projection_dim=recipe.width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.side,
        patch_size=recipe.patch,
    )
    return CLIPVisionModelWithProjection(config)


class CaptionerStage:
    """Training of a captioner on labelled or captioned photos."""

    stage = "captioner"

    def __init__(
        self,
        captioner: Captioner,
        pixels: Tensor,
        held_out: Tensor,
        examples: Sequence[Example],
        recipe: CaptionerRecipe,
    ) -> None:
        """Args: pixels, held_out: [N, 3, S, S], uint8."""
        self.captioner, self.recipe, self.examples = captioner, recipe, examples
        self.pixels, self.shown = pixels, as_floats(held_out[:SHOWN])
        self.device = captioner.model.gpt.device
        self.token_ids: dict[str, list[int]] = {}
        self.labels = {name: _label_numbers(examples, name) for name in LABELS}
        counts = {name: int(numbers.max()) + 1 for name, numbers in self.labels.items()}
        width = captioner.model.mapper.settings.features
        with seeded(0):
            heads = {name: nn.Linear(width, n) for name, n in counts.items() if n > 1}
        self.heads = nn.ModuleDict(heads).to(self.device)
        self.module: nn.Module = nn.ModuleDict({"model": captioner.model, "heads": self.heads})

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(self.examples), (batch_size,), generator=rng)
        pixels = torch.cat([self.vary(self.pixels[row], rng) for row in rows])
        examples = [self.examples[row] for row in rows]
        captions = [compose(example, self.recipe.captions, (), rng).text for example in examples]
        model = self.captioner.model
        pixels = self.captioner.preprocessing.standardise(pixels)
        features = model.features(pixels.to(self.device))
        wordless = torch.tensor(
            [
                not e.captions and any(getattr(e, name) is None for name in self.recipe.required)
                for e in examples
            ]
        )  # a composed caption would leave out a required label
        tokens = self._tokenize(captions).masked_fill(wordless[:, None], IGNORED)
        loss = word_loss(model, features, tokens.to(self.device))
        parts = {"words": float(loss.detach())}
        for name, head in self.heads.items():
            labels = self.labels[name][rows].to(self.device)
            scores, known = head(features).float(), max(int((labels != IGNORED).sum()), 1)
            # A sum over none is 0 with a gradient, which keeps the optimiser's count of updates.
            error = functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
            loss = loss + self.recipe.label_weight * error / known
            parts[name] = float((scores.argmax(-1) == labels).sum()) / known
        return loss, parts

    def picture(self) -> Image.Image:
        preprocessing, side = self.captioner.preprocessing, self.shown.shape[-1]
        margin = round(side * (1 - preprocessing.share) / 2)
        inside = slice(margin, side - margin)
        tiles = []
        for photo in self.shown.split(1):
            middle = resize(photo[..., inside, inside] * 0.5 + 0.5, preprocessing.side)
            said = self.captioner.read(preprocessing.standardise(middle.clamp(0, 1)), beams=1)
            tiles.append(Tile(to_pil(photo), said.text or "(nothing)"))
        return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])

    def vary(self, pixels: Tensor, rng: torch.Generator) -> Tensor:
        """Draw a crop of a photo [3, S, S], uint8: [1, 3, side, side] in [0, 1]."""
        limits, side = self.recipe.augmentation, pixels.shape[-1]
        size, stretch, across, down, light, mirrored = torch.rand(6, generator=rng).tolist()
        long = limits.smallest_crop + (1 - limits.smallest_crop) * size
        short = long * (1 - limits.stretch * abs(2 * stretch - 1))
        wide, tall = (long, short) if stretch < 0.5 else (short, long)
        width, height = max(1, round(side * wide)), max(1, round(side * tall))
        left = _crop_start(side - width, limits.off_centre * side, across)
        top = _crop_start(side - height, limits.off_centre * side, down)
        cut = pixels[:, top : top + height, left : left + width].float()[None] / 255.0
        varied = resize(cut, self.recipe.side).clamp(0, 1) * (1 + limits.light * (2 * light - 1))
        return (varied.flip(-1) if mirrored < 0.5 else varied).clamp(0, 1)

    def _tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return token ids with the full stop, [B, longest], padded with IGNORED."""
        tokenizer, most = self.captioner.tokenizer, self.captioner.model.longest - 1
        for text in captions:
            if text not in self.token_ids:
                ids = tokenizer.encode(text.rstrip(f" {STOP}"), add_special_tokens=False)
                self.token_ids[text] = [*ids[:most], self.captioner.stop]
        rows = [torch.tensor(self.token_ids[text]) for text in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def word_loss(model: CaptionModel, features: Tensor, tokens: Tensor) -> Tensor:
    """Compute the mean -log p per token of captions after their photos' prefixes; 0 for no tokens.

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


@torch.no_grad()
def find_known_photos(
    captioner: Captioner,
    trained: Sequence[Example],
    held_out: Sequence[Example],
    rng: torch.Generator,
) -> KnownPhotos | None:
    """Learn which photos a trained captioner knows; None where too few are held out to tell.

    Args: rng: draws the training photos that are looked at.
    """
    if len(held_out) < FEWEST_HELD_OUT:
        return None
    drawn = torch.randperm(len(trained), generator=rng)[:LOOKED_AT].tolist()
    photos = [trained[index] for index in drawn]
    return KnownPhotos.of(*(_embeddings(captioner, part) for part in (photos, held_out)))


def _embeddings(captioner: Captioner, examples: Sequence[Example]) -> Tensor:
    """Compute the embeddings [N, features] of whole photos, as they are captioned."""
    rows = []
    for example in examples:
        photo = load_photo(example.path)
        pixels = captioner.preprocessing.apply(photo, CropBox(0, 0, *photo.size))
        rows.append(captioner.model.features(pixels.to(captioner.model.gpt.device)).cpu())
    return torch.cat(rows)


def _crop_start(free: int, off_centre: float, position: float) -> int:
    """Place a crop that leaves `free` pixels, its middle at most `off_centre` pixels off."""
    first, last = max(0.0, free / 2 - off_centre), min(float(free), free / 2 + off_centre)
    return int(first + position * (last - first + 1))


def _label_numbers(examples: Sequence[Example], name: str) -> Tensor:
    """Number each example's label in the order of the alphabet, IGNORED where unknown."""
    values = sorted({value for e in examples if (value := getattr(e, name)) is not None})
    numbers = {value: number for number, value in enumerate(values)}
    return torch.tensor([numbers.get(getattr(e, name), IGNORED) for e in examples])
