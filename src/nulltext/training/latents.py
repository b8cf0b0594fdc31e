"""Photos as the UNet will see them: encoded once, in several crops, flips and colours.

For each photo the first two views are the whole square and its mirror image; the others are random
crops, mirrored at random, and some of them recoloured: the hue of the flower's pixels is turned, so
that the caption's colour word and the picture change together and nothing else does. That is how
kinds are seen in colours that they rarely have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nulltext.storage.files import replace_file
from nulltext.training.autoencoder import shrink
from nulltext.training.collection import Example, as_floats
from nulltext.training.loop import TrainInfo, step_generator
from nulltext.training.petals import Grounding, ground, hsv

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STAGE = "latents"
ENCODED_TOGETHER = 32
SURE_SHARE = 0.6
"""Share of the flower's pixels that must be of one vivid hue for it to be recoloured."""
VIVID = 0.35
"""Least saturation of such pixels."""
HUES = {"red": 358.0, "orange": 26.0, "yellow": 52.0, "pink": 335.0, "purple": 285.0, "blue": 228.0}
"""Where flowers of a colour have their hue, in degrees."""
SPREAD = 24.0
"""Degrees from the middle within which a hue belongs to the flower's own colour."""


@dataclass(frozen=True)
class ViewSettings:
    """How a photo is seen."""

    views: int = 4
    """Encoded versions of each photo."""
    smallest_crop: float = 0.78
    """Side of the smallest random crop, as a share of the photo's."""
    recolour: float = 0.35
    """Probability that a cropped view of a vividly coloured flower gets another colour."""


@dataclass(frozen=True)
class Views:
    """All photos, encoded."""

    latents: Tensor
    """[N, C, h, w], float16, unscaled."""
    masks: Tensor
    """[N, h, w], uint8: share of the flower in each latent pixel, in 255ths; 0 where unknown."""
    examples: tuple[Example, ...]
    """What each view shows."""

    @property
    def scale(self) -> float:
        """The scaling factor that gives latents unit variance (Rombach et al. 2022, app. G)."""
        return 1.0 / float(self.latents.float().std())


def regrounded(example: Example, seen: Grounding) -> Example:
    """An example with the colours that can be seen, where its outline is believed.

    Labels read off the middle of a photo mistake the heart of a daisy for its petals.
    """
    if seen.mask is None or example.captions:
        return example
    return replace(
        example,
        colour=seen.colour,
        background=seen.background or example.background,
    )


def encode_views(
    vae: AutoencoderKL,
    pixels: Tensor,
    examples: Sequence[Example],
    settings: ViewSettings,
    *,
    resolution: int,
    seed: int,
) -> Iterator[TrainInfo | Views]:
    """Encode all views of photos [N, 3, S, S], uint8: steps, then the `Views`."""
    latents, masks, shown = [], [], []
    batch: list[Tensor] = []
    for index, (photo, example) in enumerate(zip(pixels, examples, strict=True)):
        rng = step_generator(seed, index)
        for image, mask, what in views_of(photo.numpy(), example, settings, rng):
            batch.append(_squared(image, resolution))
            masks.append(_pooled(mask, resolution // _stride(vae)))
            shown.append(what)
        if len(batch) >= ENCODED_TOGETHER or index + 1 == len(pixels):
            latents.append(_encoded(vae, torch.stack(batch)))
            batch = []
        yield TrainInfo(STAGE, index + 1, len(pixels), settings.views, {})
    yield Views(torch.cat(latents), torch.stack(masks), tuple(shown))


def views_of(
    photo: NDArray[np.uint8], example: Example, settings: ViewSettings, rng: torch.Generator
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_] | None, Example]]:
    """Views of a photo [3, S, S]: pictures [3, s, s], masks [s, s] and what they show."""
    image = np.ascontiguousarray(photo.transpose(1, 2, 0))
    grounded = not example.captions
    seen = ground(image) if grounded else Grounding(None, None, None)
    known, mask = regrounded(example, seen), seen.mask
    for number in range(settings.views):
        picture, where, what = image, mask, known
        if number >= 2:
            if _chance(rng, settings.recolour):
                picture, what = recoloured(picture, where, what, rng)
            picture, where = _cropped(picture, where, settings.smallest_crop, rng)
        mirrored = number == 1 or (number >= 2 and _chance(rng, 0.5))
        if mirrored:
            picture, where = picture[:, ::-1], None if where is None else where[:, ::-1]
        yield np.ascontiguousarray(picture.transpose(2, 0, 1)), where, what


def recoloured(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    example: Example,
    rng: torch.Generator,
) -> tuple[NDArray[np.uint8], Example]:
    """Turn the flower's hue to another colour's, if it has one clear and vivid hue."""
    if mask is None or example.colour not in HUES:
        return image, example
    hue, saturation, value = hsv(image)
    own = np.abs((hue - HUES[example.colour] + 180.0) % 360.0 - 180.0) < SPREAD
    petals = mask & own & (saturation > VIVID)
    if petals.sum() < SURE_SHARE * mask.sum():
        return image, example
    others = [name for name in HUES if name != example.colour]
    chosen = others[int(torch.randint(len(others), (), generator=rng))]
    turned = hue + (HUES[chosen] - HUES[example.colour])
    if chosen == "pink":
        saturation = saturation * 0.62
    elif chosen == "red":
        saturation = np.minimum(saturation * 1.1, 1.0)
    result = image.copy()
    result[petals] = rgb(turned, saturation, value)[petals]
    return result, replace(example, colour=chosen)


def rgb(
    hue: NDArray[np.float32], saturation: NDArray[np.float32], value: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of hue in degrees (any turn), saturation and value in [0, 1]."""
    channels = []
    for offset in (5.0, 3.0, 1.0):  # red, green, blue: the usual closed form
        k = (offset + hue / 60.0) % 6.0
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    pixels: NDArray[np.uint8] = np.round(np.stack(channels, -1) * 255.0).astype(np.uint8)
    return pixels


def _cropped(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    smallest: float,
    rng: torch.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    size = image.shape[0]
    side = round(size * (smallest + (1.0 - smallest) * float(torch.rand((), generator=rng))))
    top, left = (int(torch.randint(size - side + 1, (), generator=rng)) for _ in range(2))
    window = slice(top, top + side), slice(left, left + side)
    return image[window], None if mask is None else mask[window]


def _squared(image: NDArray[np.uint8], resolution: int) -> Tensor:
    return shrink(torch.from_numpy(image)[None], resolution)[0]


def _pooled(mask: NDArray[np.bool_] | None, side: int) -> Tensor:
    if mask is None:
        return torch.zeros(side, side, dtype=torch.uint8)
    share = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    share = functional.interpolate(share, (side, side), mode="area")[0, 0]
    return (share * 255.0).round().to(torch.uint8)


@torch.no_grad()
def _encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    device = vae.device
    parts = [
        vae.encode(as_floats(part).to(device)).latent_dist.mode().half().cpu()
        for part in images.split(ENCODED_TOGETHER)
    ]
    return torch.cat(parts)


def _stride(vae: AutoencoderKL) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _chance(rng: torch.Generator, probability: float) -> bool:
    return float(torch.rand((), generator=rng)) < probability


def save_views(views: Views, path: Path, identity: str) -> None:
    """Keep encoded views beside the checkpoints."""
    words = [asdict(example) | {"path": str(example.path)} for example in views.examples]
    metadata = {"identity": identity, "examples": json.dumps(words)}
    tensors = {"latents": views.latents, "masks": views.masks}
    replace_file(path, safetensors.torch.save(tensors, metadata))


def load_views(path: Path, identity: str) -> Views | None:
    """Views that `save_views` kept, or None if there are none for this `identity`."""
    if not path.is_file():
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("identity") != identity:
            return None
        tensors = {name: file.get_tensor(name) for name in ("latents", "masks")}
    rows = json.loads(metadata["examples"])
    examples = tuple(
        Example(**{**row, "path": Path(row["path"]), "captions": tuple(row["captions"])})
        for row in rows
    )
    return Views(tensors["latents"], tensors["masks"], examples)
