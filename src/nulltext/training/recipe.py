"""A recipe: every number that a model is made from, in one JSON file.

    {"name": "flowers", "resolution": 128, "autoencoder": {"channels": [32, 64, 128, 128], …}, …}

Fields that are left out have the defaults below; a field that does not exist is refused, so that a
slip of the pen is not a silent default. The recipes of the package are in `configs/`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nulltext.errors import OptionError, closest_name, reason_of, shorten
from nulltext.models.side_files import LEAST, MOST
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text
from nulltext.training.autoencoder import AutoencoderLoss
from nulltext.training.captioner import LABELS, CaptionerRecipe
from nulltext.training.captions import CaptionSettings
from nulltext.training.denoiser import DenoiserLoss
from nulltext.training.latents import ViewSettings
from nulltext.training.loop import LoopSettings
from nulltext.training.vocabulary import TokenizerSettings

LARGEST = 10**9
"""No number of a recipe is larger, and none is negative."""
SMALLEST_VIEW = 0.1
"""Share of a photo that a captioner looks at, at least."""
BETA_START = 0.00085
"""Noise of the first timestep, Stable Diffusion's."""
MOST_NOISE = 0.1
"""Of the last timestep; nothing of the latents would be left long before it."""
MOST_LEVELS = 8
"""Of a network, each half as large as the one before."""


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The autoencoder and its two stages."""

    channels: tuple[int, ...] = (32, 64, 128, 128)
    """Width at each resolution, the photo's first; each but the last halves it."""
    layers: int = 1
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    latent_channels: int = 16
    """Numbers per latent pixel: more keep more of the photo and are harder to generate."""
    norm_groups: int = 16
    """Groups of its normalisation; divides every width."""
    crop: int = 64
    """Side of the training crops in pixels."""
    loss: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    """What it is punished for."""
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(6000, 24, 1e-3))
    """Encoder and decoder together."""
    decoder_loop: LoopSettings = field(default_factory=lambda: LoopSettings(3000, 24, 3e-4))
    """The decoder alone, after that; the latents do not change any more."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """The UNet, the text encoder, and their stage."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Width at each resolution of the UNet, the latents' first."""
    attention: tuple[bool, ...] = (True, True, False)
    """At which of them pixels look at words."""
    layers: int = 1
    """Blocks at each resolution."""
    heads: int = 4
    """Heads of each attention layer."""
    text_width: int = 192
    """Width of the text encoder, and of what the UNet reads."""
    text_layers: int = 3
    """Layers of the text encoder."""
    text_heads: int = 3
    """Heads of each of them."""
    beta_end: float = 0.012
    """Noise of the last timestep. At Stable Diffusion's 0.012, 7% of the latents shine through it,
    and small ones have too few pixels for noise to hide their mean colours behind: samples then
    take theirs from the noise, not from the words (Lin et al. 2024)."""
    loss: DenoiserLoss = field(default_factory=DenoiserLoss)
    """What the UNet is punished for."""
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(4000, 64, 4e-4))
    """UNet and text encoder together."""
    prompts: tuple[str, ...] = ("a photo of a flower",) * 8
    """What the sample pictures show."""


@dataclass(frozen=True)
class Recipe:
    """What a model is made from."""

    name: str
    """What the model is called."""
    resolution: int = 128
    """Side of its pictures in pixels."""
    photo_side: int = 160
    """Side that photos are shrunk to before crops are taken, at least the resolution."""
    seed: int = 0
    """Where all chance comes from."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """Size of the vocabulary and of a prompt."""
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    """How captions are composed from labels."""
    views: ViewSettings = field(default_factory=ViewSettings)
    """How photos are cropped and recoloured."""
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    """Pixels to latents and back."""
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    """Latents from noise and words."""
    captioner: CaptionerRecipe = field(default_factory=CaptionerRecipe)
    """Words from photos."""
    guidance_scale: float = 0.0
    """That is suggested for inversions and edits with this model; 0 suggests none."""

    def __post_init__(self) -> None:
        self._check_sizes()
        stride = 2 ** (len(self.autoencoder.channels) - 1)
        halves = stride * 2 ** (len(self.denoiser.channels) - 1)
        if self.resolution % halves or self.photo_side < self.resolution:
            raise OptionError(
                f"The recipe's resolution is {self.resolution} and its photos have "
                f"{self.photo_side} pixels; the resolution is a multiple of {halves} and no larger "
                "than the photos."
            )
        if not 0 < self.autoencoder.crop <= self.resolution or self.autoencoder.crop % stride:
            raise OptionError(
                f"The autoencoder's crops have {self.autoencoder.crop} pixels; take a multiple of "
                f"{stride} up to {self.resolution}."
            )
        if any(width % self.autoencoder.norm_groups for width in self.autoencoder.channels):
            raise OptionError(
                f"The autoencoder's norm_groups is {self.autoencoder.norm_groups}, which divides "
                f"not all of its channels {list(self.autoencoder.channels)}."
            )
        if len(self.denoiser.attention) != len(self.denoiser.channels):
            raise OptionError(
                f"The denoiser has {len(self.denoiser.channels)} channels and "
                f"{len(self.denoiser.attention)} attention flags; give one for each."
            )

        self._check_captioner()

    def _check_captioner(self) -> None:
        """Refuse sizes of the captioner that do not fit together, and labels that there are not."""
        eyes = self.captioner
        if eyes.side % eyes.patch or eyes.width % eyes.heads:
            raise OptionError(
                f"The captioner sees {eyes.side} pixels in patches of {eyes.patch} and has "
                f"{eyes.heads} heads of a width of {eyes.width}; both must divide."
            )
        if not SMALLEST_VIEW <= eyes.view <= 1:
            raise OptionError(
                f"The captioner's view is {eyes.view}; choose a share from {SMALLEST_VIEW} to 1."
            )
        unknown = [name for name in eyes.required if name not in LABELS]
        if unknown:
            raise OptionError(
                f"The captioner requires the label {shorten(unknown[0])!r}; labels are "
                f"{', '.join(LABELS)}."
            )

    def _check_sizes(self) -> None:
        """Refuse networks without levels, sizes of 0, by which others are divided, and no noise."""
        if self.guidance_scale and not LEAST < self.guidance_scale <= MOST:
            raise OptionError(
                f"The recipe's guidance_scale is {self.guidance_scale}; choose a number above "
                f"{LEAST:g} up to {MOST:g}, or 0 to suggest none."
            )
        if not BETA_START < self.denoiser.beta_end <= MOST_NOISE:
            raise OptionError(
                f"The denoiser's beta_end is {self.denoiser.beta_end}; choose a number above "
                f"{BETA_START} up to {MOST_NOISE}."
            )
        for part, sizes in {
            "autoencoder": (*self.autoencoder.channels, self.autoencoder.norm_groups),
            "denoiser": (*self.denoiser.channels, self.denoiser.heads, self.denoiser.text_heads),
            "captioner": (self.captioner.patch, self.captioner.heads, self.captioner.side),
        }.items():
            if min(sizes) < 1:
                raise OptionError(f"A size of the recipe's {part} is 0; choose 1 or more.")
        for part, channels in {
            "autoencoder": self.autoencoder.channels,
            "denoiser": self.denoiser.channels,
        }.items():
            if not 1 <= len(channels) <= MOST_LEVELS:
                raise OptionError(
                    f"The recipe's {part} has {len(channels)} channels; give 1 to {MOST_LEVELS}."
                )

    def to_json(self) -> str:
        """All fields, defaults included."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def recipes() -> tuple[str, ...]:
    """Names of the package's own recipes."""
    folder = resources.files("nulltext.training").joinpath("configs")
    return tuple(sorted(Path(str(p)).stem for p in folder.iterdir() if p.name.endswith(".json")))


def load_recipe(source: str) -> Recipe:
    """Read a recipe of the package by name, or a JSON file.

    Raises:
        OptionError: there is none, it is no JSON, or a field is unknown or of a wrong type.
    """
    if source in recipes():
        own = resources.files("nulltext.training").joinpath(f"configs/{source}.json")
        text = own.read_text(encoding="utf-8")
    else:
        try:
            text = read_text(Path(source), MEGABYTE)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"The recipe '{source}' cannot be read ({reason_of(error)}): give a JSON file, or "
                f"one of {', '.join(recipes())}."
            ) from error
    try:
        data = parse_json(text)
    except ValueError as error:
        raise OptionError(f"The recipe '{source}' is no JSON: {reason_of(error)}.") from error
    recipe: Recipe = built(Recipe, data, "recipe")
    return recipe


def built(kind: Any, value: Any, place: str) -> Any:
    """A value of a dataclass field's type from JSON."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise OptionError(f"{place} is {_shown(value)}; expected a list.")
        item = typing.get_args(kind)[0]
        return tuple(built(item, entry, f"{place}[{i}]") for i, entry in enumerate(value))
    assert origin is not types.UnionType, place
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"{place} is {_shown(value)}; expected {kind.__name__}.")
    if kind in (int, float) and not 0 <= value <= LARGEST:
        raise OptionError(f"{place} is {_shown(value)}; expected a number from 0 to {LARGEST:,}.")
    return kind(value)


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise OptionError(f"{place} is {_shown(value)}; expected an object with fields.")
    known = typing.get_type_hints(kind)
    for name in value:
        if name not in known:
            likely = closest_name(name, known)
            said = f"perhaps '{likely}' is meant." if likely else f"it has {', '.join(known)}."
            raise OptionError(f"{place} has no field {shorten(name)!r}; {said}")
    required = [f.name for f in dataclasses.fields(kind) if _required(f)]
    for name in required:
        if name not in value:
            raise OptionError(f"{place} lacks the field '{name}'.")
    return kind(
        **{name: built(known[name], entry, f"{place}.{name}") for name, entry in value.items()}
    )


def _shown(value: object) -> str:
    return shorten(repr(value))


def _required(entry: Any) -> bool:
    missing = dataclasses.MISSING
    return entry.default is missing and entry.default_factory is missing
