"""Photos as the UNet sees them: cropped, mirrored, recoloured, and encoded once.

Of each photo the first two views are the whole square and its mirror image; the others are random
crops, mirrored at random, and some of them recoloured: the hue of the flower's pixels is turned, so
that the caption's colour word and the picture change together and nothing else does. That is how
the model sees kinds in colours that they rarely have.

Labels say what a photo shows, not where. A rough split of the pixels into what may be petal
(warm, purple or bright) and what hardly is (foliage, sky, shade) starts a graph cut (GrabCut),
which finds the outline. From the two parts the words for their colours are read off: that which
most of the pixels have, if one clearly has the most.
Sources: Rother et al. 2004 (GrabCut), by way of OpenCV; Nilsback and Zisserman 2008, on flowers.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nulltext.storage.files import replace_file
from nulltext.training.dataset import Example, as_floats, below, chance, shrink
from nulltext.training.loop import TrainInfo, step_generator
from nulltext.training.recipe import Recipe, ViewSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

ENCODED_TOGETHER = 32
GRABCUT_ROUNDS = 3
MIN_SHARE, MAX_SHARE = 0.03, 0.9
"""Shares of the picture between which an outline is plausible."""
LEAST_PIXELS = 0.01
"""Share of the picture that flower and background each need before the cut can start."""
HOLE, SPECK = 0.06, 0.004
"""Shares of the picture up to which holes are filled, and specks dropped."""
CENTRE = 0.8
"""Squared radius (1 at the middle of an edge) within which the flower is looked for first."""
CLEAR_MAJORITY = 0.5
"""Share of a part's pixels that must have a colour for its word to be used."""
HUES = {"red": 358.0, "orange": 26.0, "yellow": 52.0, "pink": 335.0, "purple": 285.0, "blue": 228.0}
"""Hues of flowers of each colour, in degrees."""
HUE_SPREAD = 24.0
"""Degrees from the middle within which a hue belongs to the flower's own colour."""
VIVID, VIVID_SHARE = 0.35, 0.6
"""Least saturation, and share of the flower's pixels that must have it, for a new colour."""


class Segmentation(NamedTuple):
    """Flower and background of a photo."""

    mask: Mask | None = None
    """[H, W], true at the flower; None without a plausible outline."""
    colour: str | None = None
    background: str | None = None


def segment(pixels: Pixels) -> Segmentation:
    """Find flower and background of an RGB photo [H, W, 3], and their colours.

    Raises:
        ExtraError: OpenCV is not installed.
    """
    mask = outline(pixels)
    if mask is None:
        return Segmentation()
    colours = hsv(pixels)
    return Segmentation(mask, _flower_word(*colours[:, mask]), _background_word(*colours[:, ~mask]))


def hsv(pixels: Pixels) -> Floats:
    """Convert RGB [H, W, 3] to hue in degrees, saturation and value in [0, 1]: [3, H, W]."""
    cv2 = _opencv()
    converted: Floats = cv2.cvtColor(pixels.astype(np.float32) / 255.0, cv2.COLOR_RGB2HSV)
    return np.moveaxis(converted, -1, 0)


def rgb(hue: Floats, saturation: Floats, value: Floats) -> Pixels:
    """Convert hue in degrees (any turn), saturation and value in [0, 1] to RGB [H, W, 3]."""
    cv2 = _opencv()
    channels = np.stack([hue % 360.0, saturation, value], -1).astype(np.float32)
    pixels: Pixels = np.round(cv2.cvtColor(channels, cv2.COLOR_HSV2RGB) * 255.0).astype(np.uint8)
    return pixels


def outline(pixels: Pixels) -> Mask | None:
    """Find the flower's pixels [H, W]; None without a plausible outline."""
    cv2 = _opencv()
    labels = _first_guess(cv2, pixels)
    possible = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).mean()
    if not LEAST_PIXELS < possible < 1.0 - LEAST_PIXELS:
        return None
    cv2.setRNGSeed(0)  # GrabCut's mixtures are seeded by k-means
    models = [np.zeros((1, 65)) for _ in range(2)]
    bgr = pixels[..., ::-1].copy()
    cv2.grabCut(bgr, labels, None, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    mask: Mask = _without_specks(cv2, _without_holes(cv2, found)).astype(bool)
    return mask if MIN_SHARE <= mask.mean() <= MAX_SHARE else None


def _first_guess(cv2: Any, pixels: Pixels) -> Pixels:
    hue, saturation, value = hsv(cv2.GaussianBlur(pixels, (3, 3), 0))
    foliage = (hue > 65) & (hue < 255) & (saturation > 0.22)
    dull = (saturation < 0.35) & (value < 0.55)
    brown = (hue > 10) & (hue < 60) & (value < 0.45)
    petal = ~(foliage | dull | brown | (value < 0.22))
    height, width = petal.shape
    y, x = np.mgrid[0:height, 0:width]
    radius = ((2 * y - height) / height) ** 2 + ((2 * x - width) / width) ** 2
    labels = np.full(petal.shape, cv2.GC_PR_BGD, np.uint8)
    labels[petal & (radius < CENTRE)] = cv2.GC_PR_FGD
    labels[(foliage & (saturation > 0.3)) | ((value < 0.1) & (radius > 0.5))] = cv2.GC_BGD
    border = np.ones(petal.shape, bool)
    border[2:-2, 2:-2] = False
    labels[border & ~petal] = cv2.GC_BGD
    return labels


def _without_holes(cv2: Any, found: Pixels) -> Pixels:
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(1 - found)
    left, top, width, height, area = boxes.T
    enclosed = (left > 0) & (left + width < found.shape[1])
    enclosed &= (top > 0) & (top + height < found.shape[0])
    holes = enclosed & (area < HOLE * found.size)
    holes[0] = False  # the flower itself
    return np.where(holes[labels], 1, found).astype(np.uint8)


def _without_specks(cv2: Any, found: Pixels) -> Pixels:
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(found)
    kept = boxes[:, cv2.CC_STAT_AREA] >= SPECK * found.size
    kept[0] = False  # everything else
    return kept[labels].astype(np.uint8)


def _flower_word(hue: Floats, saturation: Floats, value: Floats) -> str | None:
    """Name the colour of petals; the dark heart of a sunflower and green sepals do not count."""
    bright = value > 0.25
    hue, saturation, value = hue[bright], saturation[bright], value[bright]
    pale = saturation < 0.22
    rosy = (hue < 20) | (hue >= 315)
    coloured = ~pale
    return _majority(
        white=pale & (value > 0.5),
        red=coloured & ((hue < 14) | (hue >= 345)) & (saturation > 0.62),
        pink=coloured & (rosy & (saturation <= 0.62) | (hue >= 315) & (hue < 345)),
        orange=coloured & (hue >= 14) & (hue < 38) & ((saturation > 0.62) | (hue >= 20)),
        yellow=coloured & (hue >= 38) & (hue < 66),
        purple=coloured & (hue >= 255) & (hue < 315),
        blue=coloured & (hue >= 200) & (hue < 255),
    )


def _background_word(hue: Floats, saturation: Floats, value: Floats) -> str | None:
    dark = value < 0.25
    pale = ~dark & (saturation < 0.18)
    coloured = ~dark & ~pale
    return _majority(
        dark=dark,
        white=pale & (value > 0.75),
        grey=pale & (value <= 0.75),
        green=coloured & (hue >= 58) & (hue < 170),
        blue=coloured & (hue >= 170) & (hue < 260),
        brown=coloured & (hue < 58) & (value < 0.7),
    )


def _majority(**pixels: Mask) -> str | None:
    word = max(pixels, key=lambda name: int(pixels[name].sum()))
    chosen = pixels[word]
    return word if chosen.size and chosen.mean() >= CLEAR_MAJORITY else None


def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)  # the same outline on every machine
    return cv2


class View(NamedTuple):
    """A photo as it is shown to the model."""

    pixels: Pixels
    """[3, s, s]."""
    mask: Mask | None
    """[s, s], true at the flower; None where unknown."""
    example: Example
    """What it shows, with the colours that are seen."""


def views_of(
    photo: Pixels, example: Example, settings: ViewSettings, rng: torch.Generator
) -> Iterator[View]:
    """Yield the views of a photo [3, S, S].

    Labels read off the middle of a photo mistake the heart of a daisy for its petals: inside a
    plausible outline, the colours of the pixels replace them.
    """
    image, mask = np.ascontiguousarray(photo.transpose(1, 2, 0)), None
    if not example.captions:
        mask, colour, background = segment(image)
        if mask is not None:
            background = background or example.background
            example = replace(example, colour=colour, background=background)
    for number in range(settings.views):
        picture, shape, shown = image, mask, example
        if number >= 2:
            if chance(settings.recolour, rng):
                picture, shown = recolour(picture, shape, shown, rng)
            size = len(image)
            share = settings.smallest_crop
            share += (1.0 - share) * float(torch.rand((), generator=rng))
            side = round(size * share)
            top, left = (below(size - side + 1, rng) for _ in range(2))
            window = slice(top, top + side), slice(left, left + side)
            picture, shape = picture[window], None if shape is None else shape[window]
        if number == 1 or (number >= 2 and chance(0.5, rng)):
            picture, shape = picture[:, ::-1], None if shape is None else shape[:, ::-1]
        yield View(np.ascontiguousarray(picture.transpose(2, 0, 1)), shape, shown)


def recolour(
    image: Pixels, mask: Mask | None, example: Example, rng: torch.Generator
) -> tuple[Pixels, Example]:
    """Turn the flower's hue to another colour's, if it has one clear and vivid hue."""
    if mask is None or example.colour not in HUES:
        return image, example
    hue, saturation, value = hsv(image)
    own = np.abs((hue - HUES[example.colour] + 180.0) % 360.0 - 180.0) < HUE_SPREAD
    petals = mask & own & (saturation > VIVID)
    if petals.sum() < VIVID_SHARE * mask.sum():
        return image, example
    others = [name for name in HUES if name != example.colour]
    chosen = others[below(len(others), rng)]
    turned = hue + (HUES[chosen] - HUES[example.colour])
    if chosen == "pink":
        saturation = saturation * 0.62
    elif chosen == "red":
        saturation = np.minimum(saturation * 1.1, 1.0)
    result = image.copy()
    result[petals] = rgb(turned, saturation, value)[petals]
    return result, replace(example, colour=chosen)


@dataclass(frozen=True)
class EncodedViews:
    """The views of all photos, encoded."""

    latents: Tensor
    """[N, C, h, w], float16, unscaled."""
    masks: Tensor
    """[N, h, w], uint8: share of the flower in each latent pixel, in 255ths; 0 where unknown."""
    examples: tuple[Example, ...]

    @property
    def scale(self) -> float:
        """The scaling factor that gives latents unit variance (Rombach et al. 2022, app. G)."""
        return 1.0 / float(self.latents.float().std())

    def save(self, path: Path, identity: str) -> None:
        rows = [asdict(example) | {"path": str(example.path)} for example in self.examples]
        metadata = {"identity": identity, "examples": json.dumps(rows)}
        tensors = {"latents": self.latents, "masks": self.masks}
        replace_file(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, identity: str) -> EncodedViews | None:
        """Read saved views; None if there are none of this identity."""
        if not path.is_file():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != identity:
                return None
            latents, masks = (file.get_tensor(name) for name in ("latents", "masks"))
        rows = json.loads(metadata["examples"])
        examples = tuple(
            Example(**{**row, "path": Path(row["path"]), "captions": tuple(row["captions"])})
            for row in rows
        )
        return cls(latents, masks, examples)


@torch.no_grad()
def encode_views(
    vae: AutoencoderKL, pixels: Tensor, examples: Sequence[Example], recipe: Recipe
) -> Generator[TrainInfo, None, EncodedViews]:
    """Encode all views of photos [N, 3, S, S], uint8."""
    latents: list[Tensor] = []
    masks: list[Tensor] = []
    shown: list[Example] = []
    batch: list[Tensor] = []
    for index, (photo, example) in enumerate(zip(pixels, examples, strict=True)):
        rng = step_generator(recipe.seed, index)
        for view in views_of(photo.numpy(), example, recipe.views, rng):
            batch.append(shrink(torch.from_numpy(view.pixels)[None], recipe.resolution)[0])
            masks.append(_pooled(view.mask, recipe.resolution // recipe.autoencoder.stride))
            shown.append(view.example)
        if len(batch) >= ENCODED_TOGETHER or index + 1 == len(pixels):
            for part in torch.stack(batch).split(ENCODED_TOGETHER):
                encoded = vae.encode(as_floats(part).to(vae.device)).latent_dist.mode()
                latents.append(encoded.half().cpu())
            batch = []
        yield TrainInfo("latents", index + 1, len(pixels), recipe.views.views, {})
    return EncodedViews(torch.cat(latents).contiguous(), torch.stack(masks), tuple(shown))


def _pooled(mask: Mask | None, side: int) -> Tensor:
    if mask is None:
        return torch.zeros(side, side, dtype=torch.uint8)
    share = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    share = functional.interpolate(share, (side, side), mode="area")[0, 0]
    return (share * 255.0).round().to(torch.uint8)
