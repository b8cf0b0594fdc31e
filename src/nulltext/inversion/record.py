"""What inverting a photo produces.

An `Inversion` holds everything that replaying and editing consume. Every method fills the same
fields, so nothing downstream asks which method it was:

    trajectory      z*_0 … z*_T                          all methods
    null_embeds     per-step (or one) unconditional      null-text
    prompt_embeds   per-step (or one) conditional        when the prompt's embedding was moved
    corrections     d_t, added after each source step    when replay is steered onto the pivot
    weight_delta     a low-rank difference of weights     when the UNet was tuned to the photo
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nulltext.errors import InversionFileError, reason_of
from nulltext.image.notebook import figures_html, png_bytes
from nulltext.image.opening import MAX_PIXELS
from nulltext.image.strip import Tile
from nulltext.storage.inversion_file import read_inversion, read_outline, write_inversion

CROP_NUMBERS = 4
SIZE_NUMBERS = 2


@dataclass(frozen=True)
class SavedLevel:
    """A noise level of a run."""

    fed: float
    """The number that the network was given."""
    alpha: float | None = None
    """Share of the clean latents; None in files of formats 1 and 2."""
    sigma: float | None = None
    """Share of the noise; None in files of formats 1 and 2."""


@dataclass(frozen=True)
class InversionHeader:
    """Everything about an inversion that is not a tensor."""

    prompt: str
    """The source prompt."""
    model: str
    """Name of the model that made it."""
    fingerprint: str
    """Fingerprint of that model's weights."""
    levels: list[SavedLevel]
    """The noise levels that were visited, noisiest first."""
    guidance_scale: float
    """w of the replay."""
    method: str
    """Name of the inversion method."""
    method_config: dict[str, Any]
    """Its options."""
    seed: int
    """Seed of the methods that draw noise."""
    image_sha256: str
    """Hash of the upright photo's pixels."""
    image_size: list[int]
    """[width, height] of the upright photo."""
    crop: list[int]
    """[x, y, width, height] of the region that was inverted, in its pixels."""
    psnr_bound: float
    """Decibels of the autoencoder's own round trip."""
    psnr_reconstruction: float
    """Decibels of the replay."""
    unet_evaluations: int
    """That the inversion took, the replay behind `psnr_reconstruction` included; see
    `models.passes`. Older files have 2 for a backward pass, and most lack that replay."""
    seconds: float
    """Wall time of the inversion."""
    iterations: int = 0
    """Gradients of a loss that the inversion took; files of format 1 do not say."""
    adapters: list[dict[str, Any]] = field(default_factory=list)
    """LoRAs, learnt tokens and autoencoder that the model had beside its own weights: kind, name,
    sha256, and weight or token; older files do not say."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InversionHeader:
        """Read a header that may have been damaged or forged.

        Unknown keys are ignored, so that a newer nulltext may add some. Formats 1 and 2 have the
        timesteps in place of the noise levels.

        Raises:
            ValueError: a field is missing or of the wrong type; names it.
        """
        known: dict[str, Any] = {}
        if "levels" not in values and _is_integers(values.get("timesteps")):
            values = {**values, "levels": [{"fed": timestep} for timestep in values["timesteps"]]}
        for entry in fields(cls):
            absent = None if entry.default is MISSING else entry.default
            if entry.default_factory is not MISSING:
                absent = entry.default_factory()
            value = values.get(entry.name, absent)
            if not _CHECKS[str(entry.type)](value):
                raise ValueError(f"{entry.name} is {'missing' if value is None else 'malformed'}")
            known[entry.name] = float(str(value)) if entry.type == "float" else value
        known["levels"] = [SavedLevel(**level) for level in known["levels"]]
        header = cls(**known)
        header._check_ranges()
        return header

    def _check_ranges(self) -> None:
        fed = [level.fed for level in self.levels]
        bad = {
            "levels": not fed or min(fed) < 0 or fed != sorted(set(fed), reverse=True),
            "guidance_scale": not math.isfinite(self.guidance_scale) or self.guidance_scale < 0,
            "image_size": len(self.image_size) != SIZE_NUMBERS or min(self.image_size) < 1,
            "crop": len(self.crop) != CROP_NUMBERS or min(self.crop[2:]) < 1 or min(self.crop) < 0,
        }
        if not any(bad.values()):
            (width, height), (x, y, across, down) = self.image_size, self.crop
            bad["image_size"] = width * height > MAX_PIXELS
            bad["crop"] = x + across > width or y + down > height
        for name, is_bad in bad.items():
            if is_bad:
                raise ValueError(f"{name} is out of range")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_entry(value: object) -> bool:
    """Whether this is an object of texts and finite numbers."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(each, str) or _is_finite(each) for each in value.values())


def _is_integers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_int, value))


def _is_level(value: object) -> bool:
    """Whether this is what `SavedLevel` becomes in JSON."""
    return (
        isinstance(value, dict)
        and "fed" in value
        and value.keys() <= {"fed", "alpha", "sigma"}
        and all(number is None or _is_finite(number) for number in value.values())
        and value["fed"] is not None
    )


def _is_finite(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": _is_int,
    "float": lambda value: _is_int(value) or isinstance(value, float),
    "list[int]": _is_integers,
    "list[SavedLevel]": lambda value: isinstance(value, list) and all(map(_is_level, value)),
    "dict[str, Any]": lambda value: isinstance(value, dict),
    "list[dict[str, Any]]": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
}


REQUIRED_TENSORS = ("trajectory", "photo")
RGB = 3
FLOATS = (torch.float32, torch.float64)
FACTOR_DIMENSIONS = 2
OPTIONAL_TENSORS = ("null_embeds", "prompt_embeds", "corrections")
DELTA_PREFIX = "weight_delta."
"""Begins the names under which a file keeps the factors of a difference of weights."""


@dataclass(frozen=True)
class Inversion:
    """A photo as a point from which a diffusion model can sample it again."""

    trajectory: Tensor
    """[T + 1, C, h, w]: z*_0 (the encoded photo) … z*_T (the noise); float32, as all its tensors
    but the photo, or float64 from float64 weights."""
    photo: Tensor
    """[3, H, W], uint8: the crop at the size that the model saw."""
    header: InversionHeader
    null_embeds: Tensor | None = None
    """None (the model's own empty prompt), [1, R, D], or [T, R, D], first for the noisiest."""
    prompt_embeds: Tensor | None = None
    """None (the prompt's own embedding), [1, R, D] or [T, R, D]."""
    corrections: Tensor | None = None
    """None or [T, C, h, w]."""
    weight_delta: Mapping[str, Tensor] | None = None
    """None, or low-rank factors by layer of the UNet; see `models.weight_delta`."""

    def __post_init__(self) -> None:
        for name, factor in (self.weight_delta or {}).items():
            if factor.ndim != FACTOR_DIMENSIONS or factor.dtype not in FLOATS:
                raise InversionFileError(
                    f"The factor {name} is {list(factor.shape)} of {factor.dtype}, expected a "
                    "matrix of float32 or float64; invert the photo again."
                )
        steps, numbers = self.num_steps, FLOATS
        expected = {
            "trajectory": (4, (steps + 1,), numbers),
            "photo": (3, (RGB,), (torch.uint8,)),
            "null_embeds": (3, (1, steps), numbers),
            "prompt_embeds": (3, (1, steps), numbers),
            "corrections": (4, (steps,), numbers),
        }
        for name, tensor in self._own_tensors().items():
            dimensions, lengths, dtypes = expected[name]
            fits = tensor.ndim == dimensions and tensor.shape[0] in lengths
            if not fits or tensor.dtype not in dtypes or tensor.numel() == 0:
                raise InversionFileError(
                    f"{name} is {list(tensor.shape)} of {tensor.dtype}, which does not fit an "
                    f"inversion of {steps} steps; invert the photo again."
                )
        same = self.corrections is None or self.corrections.shape[1:] == self.trajectory.shape[1:]
        if not same:
            raise InversionFileError(
                "corrections and trajectory differ in shape; invert the photo again."
            )

    def __repr__(self) -> str:
        header, (height, width) = self.header, self.photo.shape[-2:]
        return (
            f"Inversion({header.prompt!r}, {width} x {height}, model={header.model!r}, "
            f"method={header.method!r}, num_steps={self.num_steps}, "
            f"guidance_scale={header.guidance_scale:g}, "
            f"psnr_reconstruction={header.psnr_reconstruction:.2f}, "
            f"psnr_bound={header.psnr_bound:.2f})"
        )

    def _repr_png_(self) -> bytes:
        return png_bytes(self._picture())

    def _repr_html_(self) -> str:
        header = self.header
        caption = (
            f"{header.prompt} ({header.method}, {self.num_steps} steps, guidance "
            f"{header.guidance_scale:g}; {header.psnr_reconstruction:.1f} of "
            f"{header.psnr_bound:.1f} dB)"
        )
        return figures_html([Tile(self._picture(), caption)])

    def _picture(self) -> Image.Image:
        return Image.fromarray(self.photo.permute(1, 2, 0).numpy())

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.header.levels)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Raises:
            OutputError: it cannot be written there.
        """
        write_inversion(Path(path), self.tensors(), asdict(self.header))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by field name; factors by `DELTA_PREFIX` and their name."""
        delta = self.weight_delta or {}
        return self._own_tensors() | {DELTA_PREFIX + name: delta[name] for name in delta}

    def _own_tensors(self) -> dict[str, Tensor]:
        """Those with a field of their own."""
        found = {name: getattr(self, name) for name in (*REQUIRED_TENSORS, *OPTIONAL_TENSORS)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> Inversion:
        """Read a file that `save` wrote; tensors are on the CPU.

        Raises:
            InversionFileError: it is missing, damaged, foreign, or newer than this nulltext.
        """
        path = Path(path)
        outline = read_outline(path)
        try:
            cls._of(*outline)
            tensors, values = read_inversion(path)
            endless = [name for name, tensor in tensors.items() if not _all_finite(tensor)]
            if endless:
                raise ValueError(f"{', '.join(endless)} holds values that are not finite")
            return cls._of(tensors, values)
        except (ValueError, InversionFileError) as error:
            raise InversionFileError(
                f"'{path}' is damaged ({reason_of(error)}); invert the photo again."
            ) from error

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Inversion:
        """Put together what a file holds.

        Raises:
            ValueError, InversionFileError: it does not fit together.
        """
        delta = {
            name.removeprefix(DELTA_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(DELTA_PREFIX)
        }
        own = {name: t for name, t in tensors.items() if not name.startswith(DELTA_PREFIX)}
        missing = set(REQUIRED_TENSORS) - own.keys()
        unknown = own.keys() - {*REQUIRED_TENSORS, *OPTIONAL_TENSORS}
        if missing or unknown:
            raise ValueError(f"{', '.join(sorted(missing | unknown))} is missing or unexpected")
        header = InversionHeader.from_json(values)
        return cls(header=header, weight_delta=delta or None, **own)


def _all_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
