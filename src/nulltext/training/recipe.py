"""A recipe: every number that a model is made from, in one JSON file.

    {"name": "flowers", "resolution": 128, "autoencoder": {"channels": [32, 64, 128, 128], …}, …}

Fields that are left out have the defaults below; an unknown field is refused. The package's recipes
are in `configs/`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nulltext.captioning.caption_files import LABELS
from nulltext.errors import OptionError, closest_name, reason_of, shorten
from nulltext.models.side_files import LEAST, MOST
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

CONFIGS = resources.files("nulltext.training") / "configs"
OPTIMIZERS = ("adamw", "muon")
STAGES_OF = {
    "diffusion": ("autoencoder", "decoder", "denoiser", "export"),
    "flow": ("flow", "export"),
}
"""Stages that make each kind of model."""
MAX_NUMBER = 10**9
"""Largest number in a recipe; the smallest is 0."""
MIN_VIEW = 0.1
"""Smallest share of a photo that a captioner looks at."""
BETA_START, MAX_BETA_END = 0.00085, 0.1
"""Noise of the first timestep (Stable Diffusion's), and the most of the last."""
MAX_LEVELS = 8
"""Resolutions of a network, each half as large as the one before."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast one stage trains."""

    steps: int
    """Updates of the weights, K; 0 keeps what the stage begins with."""
    batch_size: int
    """Crops or latents of one update."""
    learning_rate: float
    """Its highest value, after the warm-up."""
    optimizer: str = "adamw"
    """"adamw", or "muon": matrices and kernels to Muon, the rest to AdamW."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises from 0."""
    final_share: float = 0.02
    """Share of the learning rate that is left at the end of the cosine."""
    cooldown: float = 0.0
    """Share of the training, at its end, over which a constant learning rate falls linearly to 0;
    0 takes the cosine instead."""
    minutes: float = 0.0
    """Minutes after which training has come to its end, however many updates that are; 0 counts
    updates only. Such a run is not repeatable to the bit."""
    weight_decay: float = 0.01
    """Decay of matrices and kernels, per update and unit of learning rate."""
    ema_decay: float = 0.997
    """Decay of the weights' exponential moving average, which is what is exported."""
    clip_norm: float = 1.0
    """Longest gradient that is followed as it is."""
    checkpoint_every: int = 200
    """Updates between two checkpoints."""
    sample_every: int = 1000
    """Updates between two sample pictures."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise OptionError(f"steps is {self.steps}; choose 0 or more.")
        if not 0 <= self.cooldown <= 1:
            raise OptionError(f"cooldown is {self.cooldown}; choose a share from 0 to 1.")
        for name in ("batch_size", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; choose 1 or more.")
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(
                f"optimizer is {shorten(self.optimizer)!r}; choose {' or '.join(OPTIMIZERS)}."
            )


@dataclass(frozen=True)
class TokenizerSettings:
    """Size of the tokenizer."""

    vocabulary: int = 2500
    """Most tokens."""
    length: int = 32
    """Tokens of a padded prompt, begin and end of text included."""


@dataclass(frozen=True)
class CaptionSettings:
    """Probabilities with which captions are varied when they are composed from labels."""

    empty: float = 0.1
    """No caption at all."""
    without_colour: float = 0.12
    """The colour is left out."""
    general: float = 0.2
    """"flower" stands for the kind."""
    plural: float = 0.1
    """The kind is in the plural."""
    without_background: float = 0.25
    """The background is left out."""
    filler: float = 0.12
    """A word of plain English is inserted."""


@dataclass(frozen=True)
class ViewSettings:
    """How photos are varied for the UNet."""

    views: int = 4
    """Encoded versions of each photo."""
    smallest_crop: float = 0.78
    """Side of the smallest random crop, as a share of the photo's."""
    recolour: float = 0.35
    """Probability that a cropped view of a vividly coloured flower gets another colour."""


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the autoencoder's loss; see `training.autoencoder`."""

    gradient: float = 0.5
    """a: errors of the differences between neighbouring pixels."""
    square: float = 5.0
    """b: squared errors."""
    coarse: float = 0.5
    """c: errors at half the resolution."""
    kl: float = 1e-4
    """k: distance of the latents from a standard normal."""
    keep: float = 0.0
    """p: change of the latents of the model that training began with (--init)."""


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
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(6000, 24, 1e-3))
    decoder_loop: LoopSettings = field(default_factory=lambda: LoopSettings(3000, 24, 3e-4))
    """Training of the decoder alone, after that of both, with the same latents."""

    def __post_init__(self) -> None:
        _check_sizes("autoencoder", self.channels, (self.norm_groups,))
        if any(width % self.norm_groups for width in self.channels):
            raise OptionError(
                f"The autoencoder's norm_groups is {self.norm_groups}, which divides "
                f"not all of its channels {list(self.channels)}."
            )

    @property
    def stride(self) -> int:
        """Pixels per latent pixel."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def keeps_latents(self) -> bool:
        return self.loop.steps == 0 or self.loss.keep > 0


@dataclass(frozen=True)
class DenoiserLoss:
    """Weights of the UNet's loss; see `training.denoiser`."""

    min_snr_gamma: float = 5.0
    """gamma: timesteps with a higher signal-to-noise ratio count less."""
    grounding: float = 0.05
    """g: words whose attention leaves their part of the picture; 0 to switch off."""
    grounded_below: int = 800
    """Timesteps from this one on are not grounded: they show nothing yet."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """The UNet, the text encoder, and their stage."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Width at each resolution of the UNet, the latents' first."""
    attention: tuple[bool, ...] = (True, True, False)
    """Resolutions with cross-attention to the words."""
    layers: int = 1
    """Blocks at each resolution."""
    heads: int = 4
    """Heads of each attention layer."""
    text_width: int = 192
    """Width of the text encoder, and of what the UNet reads."""
    text_layers: int = 3
    text_heads: int = 3
    beta_end: float = 0.012
    """Noise of the last timestep. At Stable Diffusion's 0.012, 7% of the latents shine through it,
    and small ones have too few pixels for noise to hide their mean colours behind: samples then
    take theirs from the noise, not from the words (Lin et al. 2024)."""
    loss: DenoiserLoss = field(default_factory=DenoiserLoss)
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(4000, 64, 4e-4))
    prompts: tuple[str, ...] = ("a photo of a flower",) * 8
    """Prompts of the sample pictures."""

    def __post_init__(self) -> None:
        _check_sizes("denoiser", self.channels, (self.heads, self.text_heads))
        if not BETA_START < self.beta_end <= MAX_BETA_END:
            raise OptionError(
                f"The denoiser's beta_end is {self.beta_end}; choose a number above "
                f"{BETA_START} up to {MAX_BETA_END}."
            )
        if len(self.attention) != len(self.channels):
            raise OptionError(
                f"The denoiser has {len(self.channels)} channels and "
                f"{len(self.attention)} attention flags; give one for each."
            )


@dataclass(frozen=True)
class FlowLoss:
    """Weights of the transformer's loss; see `training.flow`."""

    grounding: float = 0.05
    """g: words whose attention leaves their part of the picture; 0 to switch off."""
    grounded_below: float = 0.9
    """Levels from this one on are not grounded: they show nothing yet."""


@dataclass(frozen=True)
class FlowRecipe:
    """The rectified-flow transformer, and its stage."""

    layers: int = 6
    """Joint blocks."""
    heads: int = 5
    head_width: int = 48
    """Width of each head; all heads together are the transformer's width."""
    patch: int = 2
    """Side of the square of latent pixels that is one token."""
    shift: float = 2.0
    """k: shift of the levels towards noise, in training and in the exported schedule."""
    most_blank: int = 512
    """Most zeros in T5's place that a row is trained with."""
    teacher_share: float = 1.0
    """Share of rows whose target is the teacher's velocity; 0 trains without."""
    teacher_until: float = 0.75
    """Share of the training after which all targets are plain ones."""
    highest_taught: float = 0.85
    """Levels from this one on have the plain target."""
    loss: FlowLoss = field(default_factory=FlowLoss)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            8000, 16, 1.5e-3, optimizer="muon", ema_decay=0.999, checkpoint_every=100
        )
    )
    prompts: tuple[str, ...] = ("a photo of a flower",) * 8
    """Prompts of the sample pictures."""

    def __post_init__(self) -> None:
        _check_sizes("flow", (self.layers,), (self.heads, self.head_width, self.patch))
        if self.shift <= 0:
            raise OptionError(f"The flow's shift is {self.shift}; choose a number above 0.")
        for name in ("teacher_share", "teacher_until", "highest_taught"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(
                    f"The flow's {name} is {getattr(self, name)}; choose a share from 0 to 1."
                )


@dataclass(frozen=True)
class Augmentation:
    """How photos are varied for the captioner; hues stay, for the words name them."""

    smallest_crop: float = 0.6
    """Side of the smallest random crop, as a share of the photo's."""
    stretch: float = 0.15
    """Largest difference of a crop's width and height, as a share."""
    light: float = 0.15
    """Largest change of the brightness, as a share."""
    off_centre: float = 0.5
    """Largest distance of a crop's middle from the photo's, as a share of the photo's side; keep it
    small where labels speak of the middle."""


@dataclass(frozen=True)
class CaptionerRecipe:
    """The captioner and its stage."""

    vision: str = ""
    """Pretrained vision model that these numbers were chosen for, and that --vision has to name;
    empty: training may also begin with a new CLIP."""
    side: int = 64
    """Pixels of the vision model's square input."""
    view: float = 1.0
    """Side of the input once the captioner is trained, as a share of the photo's largest centred
    square: it reads best at the mean size of its training crops (Touvron et al. 2019)."""
    patch: int = 8
    """Pixels of a patch of a new CLIP."""
    width: int = 192
    """Width of a new CLIP and of its embedding, and of GPT-2."""
    vision_layers: int = 5
    heads: int = 4
    """Heads of each layer of a new CLIP and of GPT-2."""
    language_layers: int = 3
    prefix_length: int = 6
    """Tokens' places that the photo takes."""
    hidden: int = 384
    """Hidden width of the mapper, an MLP."""
    captions: CaptionSettings = CaptionSettings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """By default, everything that is known is named."""
    required: tuple[str, ...] = ()
    """Labels without which a photo teaches no words, so that the captioner does not learn to leave
    out what is merely unknown."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    label_weight: float = 0.5
    """a: weight of the labels' losses."""
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(6000, 64, 6e-4, weight_decay=0.05)
    )

    def __post_init__(self) -> None:
        _check_sizes("captioner", (self.side,), (self.patch, self.heads))
        if self.side % self.patch or self.width % self.heads:
            raise OptionError(
                f"The captioner sees {self.side} pixels in patches of {self.patch} and has "
                f"{self.heads} heads of a width of {self.width}; both must divide."
            )
        if not MIN_VIEW <= self.view <= 1:
            raise OptionError(
                f"The captioner's view is {self.view}; choose a share from {MIN_VIEW} to 1."
            )
        for name in self.required:
            if name not in LABELS:
                raise OptionError(
                    f"The captioner requires the label {shorten(name)!r}; labels are "
                    f"{', '.join(LABELS)}."
                )


@dataclass(frozen=True)
class Recipe:
    """Everything that a model is made from, apart from the photos."""

    name: str
    makes: str = "diffusion"
    """"diffusion": a UNet with autoencoder and text encoder; "flow": a rectified-flow transformer
    beside another model's autoencoder and text encoder."""
    resolution: int = 128
    """Side of its pictures in pixels."""
    photo_side: int = 160
    """Side that photos are shrunk to before crops are taken, at least the resolution."""
    seed: int = 0
    """Seed of all random numbers."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    flow: FlowRecipe = field(default_factory=FlowRecipe)
    captioner: CaptionerRecipe = field(default_factory=CaptionerRecipe)
    guidance_scale: float = 0.0
    """Guidance scale that is suggested for inversions and edits; 0 suggests none."""

    def __post_init__(self) -> None:
        if self.makes not in STAGES_OF:
            raise OptionError(
                f"The recipe makes {shorten(self.makes)!r}; choose {' or '.join(STAGES_OF)}."
            )
        if self.guidance_scale and not LEAST < self.guidance_scale <= MOST:
            raise OptionError(
                f"The recipe's guidance_scale is {self.guidance_scale}; choose a number above "
                f"{LEAST:g} up to {MOST:g}, or 0 to suggest none."
            )
        stride, crop = self.autoencoder.stride, self.autoencoder.crop
        unit = stride * 2 ** (len(self.denoiser.channels) - 1)
        if self.resolution % unit or self.photo_side < self.resolution:
            raise OptionError(
                f"The recipe's resolution is {self.resolution} and its photos have "
                f"{self.photo_side} pixels; the resolution is a multiple of {unit} and no larger "
                "than the photos."
            )
        if not 0 < crop <= self.resolution or crop % stride:
            raise OptionError(
                f"The autoencoder's crops have {crop} pixels; take a multiple of "
                f"{stride} up to {self.resolution}."
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that make the model, in order."""
        return STAGES_OF[self.makes]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def _check_sizes(part: str, channels: tuple[int, ...], others: tuple[int, ...]) -> None:
    if not 1 <= len(channels) <= MAX_LEVELS:
        raise OptionError(
            f"The recipe's {part} has {len(channels)} channels; give 1 to {MAX_LEVELS}."
        )
    if min(*channels, *others) < 1:
        raise OptionError(f"A size of the recipe's {part} is 0; choose 1 or more.")


def bundled_recipes() -> tuple[str, ...]:
    names = (entry.name for entry in CONFIGS.iterdir())
    return tuple(sorted(Path(name).stem for name in names if name.endswith(".json")))


def load_recipe(source: str) -> Recipe:
    """Read a recipe of the package by name, or a JSON file.

    Raises:
        OptionError: there is none, it is no JSON, or a field is unknown or of a wrong type.
    """
    try:
        if source in bundled_recipes():
            text = (CONFIGS / f"{source}.json").read_text(encoding="utf-8")
        else:
            text = read_text(Path(source), MEGABYTE)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"The recipe '{source}' cannot be read ({reason_of(error)}): give a JSON file, or "
            f"one of {', '.join(bundled_recipes())}."
        ) from error
    try:
        data = parse_json(text)
    except ValueError as error:
        raise OptionError(f"The recipe '{source}' is no JSON: {reason_of(error)}.") from error
    recipe: Recipe = from_json(Recipe, data, "recipe")
    return recipe


def from_json(kind: Any, value: Any, place: str) -> Any:
    """Convert parsed JSON to a settings class, or to the type of one of its fields.

    Args:
        place: name of the value in messages.

    Raises:
        OptionError: a field is missing, unknown, or of a wrong type.
    """
    shown = shorten(repr(value))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise OptionError(f"{place} is {shown}; expected an object with fields.")
        types = typing.get_type_hints(kind)
        _check_fields(kind, value, place)
        fields = {name: from_json(types[name], v, f"{place}.{name}") for name, v in value.items()}
        return kind(**fields)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise OptionError(f"{place} is {shown}; expected a list.")
        item = typing.get_args(kind)[0]
        return tuple(from_json(item, entry, f"{place}[{i}]") for i, entry in enumerate(value))
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"{place} is {shown}; expected {kind.__name__}.")
    if kind in (int, float) and not 0 <= value <= MAX_NUMBER:
        raise OptionError(f"{place} is {shown}; expected a number from 0 to {MAX_NUMBER:,}.")
    return kind(value)


def _check_fields(kind: Any, value: Mapping[str, Any], place: str) -> None:
    fields = {own.name: own for own in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            likely = closest_name(name, fields)
            hint = f"perhaps '{likely}' is meant." if likely else f"it has {', '.join(fields)}."
            raise OptionError(f"{place} has no field {shorten(name)!r}; {hint}")
    for own in fields.values():
        required = own.default is own.default_factory is dataclasses.MISSING
        if required and own.name not in value:
            raise OptionError(f"{place} lacks the field '{own.name}'.")
