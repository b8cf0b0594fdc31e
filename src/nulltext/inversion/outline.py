"""What a saved inversion holds, by its header and the shapes of its tensors; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nulltext.errors import InversionFileError, reason_of
from nulltext.inversion.header import InversionHeader
from nulltext.storage.inversion_file import TensorOutline, not_finite, read_header, read_outline

REQUIRED_TENSORS = ("trajectory", "photo")
OPTIONAL_TENSORS = ("null_embeds", "prompt_embeds", "corrections")
DELTA_PREFIX = "weight_delta."
"""Begins the names under which a file keeps the factors of a difference of weights."""

RGB = 3
FLOATS = ("float32", "float64")
FACTOR_DIMENSIONS = 2


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
        "trajectory": (4, (steps + 1,), FLOATS),
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
        if not fits or tensor.dtype not in dtypes or prod(tensor.shape) == 0:
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
