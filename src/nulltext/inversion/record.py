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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.errors import InversionFileError, reason_of
from nulltext.inversion.header import InversionHeader
from nulltext.storage.inversion_file import read_inversion, read_outline, write_inversion

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
    header: InversionHeader = field(repr=False)
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
