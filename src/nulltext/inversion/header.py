"""The header of a saved inversion, and the types and shapes of its tensors; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from nulltext.errors import InversionFileError, reason_of
from nulltext.image.opening import MAX_PIXELS
from nulltext.storage.inversion_file import TensorOutline, not_finite, read_header, read_outline

CROP_NUMBERS = 4
SIZE_NUMBERS = 2

REQUIRED_TENSORS = ("trajectory", "photo")
OPTIONAL_TENSORS = ("null_embeds", "prompt_embeds", "corrections")
DELTA_PREFIX = "weight_delta."
"""Begins the names under which a file keeps the factors of a difference of weights."""

RGB = 3
FLOATS = ("float32", "float64")
FACTOR_DIMENSIONS = 2


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
    """Decibels of the replay; with corrections the bound, as they lead to z_0."""
    unet_evaluations: int
    """UNet evaluations of the inversion, the replay behind `psnr_reconstruction` included; see
    `models.network_calls`. Older files have 2 for a backward pass, and most lack that replay."""
    seconds: float
    """Wall time of the inversion."""
    iterations: int = 0
    """Gradients of a loss that the inversion took; files of format 1 do not say."""
    unconverged: int | None = None
    """Timesteps at which fixed-point inversion ended above its tolerance; None of other methods."""
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
    "int | None": lambda value: value is None or _is_int(value),
    "float": lambda value: _is_int(value) or isinstance(value, float),
    "list[int]": _is_integers,
    "list[SavedLevel]": lambda value: isinstance(value, list) and all(map(_is_level, value)),
    "dict[str, Any]": lambda value: isinstance(value, dict),
    "list[dict[str, Any]]": lambda value: isinstance(value, list) and all(map(_is_entry, value)),
}


@dataclass(frozen=True)
class InversionOutline:
    """A saved inversion without the numbers of its tensors."""

    header: InversionHeader
    tensors: Mapping[str, TensorOutline]
    """Those with a field of `Inversion` in its order, then the factors by `DELTA_PREFIX`."""

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.header.levels)

    @classmethod
    def load(cls, path: Path) -> InversionOutline:
        """Check a file as `Inversion.load` does, but keep no tensor.

        Raises:
            InversionFileError: it is missing, damaged, foreign, or newer than this nulltext.
        """
        values, tensors = read_header(path), read_outline(path)
        try:
            check_names(tensors)
            header = InversionHeader.from_json(values)
            check_tensors(tensors, len(header.levels))
            if endless := not_finite(path):
                raise ValueError(f"{', '.join(endless)} holds values that are not finite")
        except (ValueError, InversionFileError) as error:
            raise damaged(path, error) from error
        own = [name for name in (*REQUIRED_TENSORS, *OPTIONAL_TENSORS) if name in tensors]
        factors = [name for name in tensors if name.startswith(DELTA_PREFIX)]
        return cls(header, {name: tensors[name] for name in [*own, *factors]})


def check_names(tensors: Mapping[str, object]) -> None:
    """Refuse a file that lacks a tensor or has one too many.

    Raises:
        ValueError: so it is.
    """
    own = {name for name in tensors if not name.startswith(DELTA_PREFIX)}
    missing = set(REQUIRED_TENSORS) - own
    unknown = own - {*REQUIRED_TENSORS, *OPTIONAL_TENSORS}
    if missing or unknown:
        raise ValueError(f"{', '.join(sorted(missing | unknown))} is missing or unexpected")


def check_tensors(tensors: Mapping[str, TensorOutline], steps: int) -> None:
    """Refuse tensors whose shapes or types do not fit an inversion of so many steps.

    Raises:
        InversionFileError: one does not.
    """
    expected = {
        "trajectory": (4, (1, steps + 1), FLOATS),
        "photo": (3, (RGB,), ("uint8",)),
        "null_embeds": (3, (1, steps), FLOATS),
        "prompt_embeds": (3, (1, steps), FLOATS),
        "corrections": (4, (steps,), FLOATS),
    }
    for name, tensor in tensors.items():
        if name.startswith(DELTA_PREFIX):
            if len(tensor.shape) != FACTOR_DIMENSIONS or tensor.dtype not in FLOATS:
                raise InversionFileError(
                    f"The factor {name.removeprefix(DELTA_PREFIX)} is {list(tensor.shape)} of "
                    f"{tensor.dtype}, expected a matrix of float32 or float64; invert the photo "
                    "again."
                )
            continue
        dimensions, lengths, dtypes = expected[name]
        fits = len(tensor.shape) == dimensions and tensor.shape[0] in lengths
        if not fits or tensor.dtype not in dtypes or math.prod(tensor.shape) == 0:
            raise InversionFileError(
                f"{name} is {list(tensor.shape)} of {tensor.dtype}, which does not fit an "
                f"inversion of {steps} steps; invert the photo again."
            )
    corrections = tensors.get("corrections")
    if corrections is not None and corrections.shape[1:] != tensors["trajectory"].shape[1:]:
        raise InversionFileError(
            "corrections and trajectory differ in shape; invert the photo again."
        )


def damaged(path: Path, error: Exception) -> InversionFileError:
    """Say that a file is damaged, and why."""
    return InversionFileError(f"'{path}' is damaged ({reason_of(error)}); invert the photo again.")
