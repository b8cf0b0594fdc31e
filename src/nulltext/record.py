"""What inverting a photo produces, and what long loops report while they run.

An `Inversion` holds everything that replaying and editing consume. Every method fills the same
fields, so nothing downstream asks which method it was:

    trajectory      z*_0 … z*_T                          all methods
    null_embeds     per-step (or one) unconditional      null-text
    prompt_embeds   per-step (or one) conditional        when the prompt's embedding was moved
    corrections     d_t, added after each source step    when replay is steered onto the pivot
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nulltext.errors import InversionFileError, OutOfMemoryError
from nulltext.inversion_file import read_inversion, write_inversion

REQUIRED_TENSORS = ("trajectory", "photo")
OPTIONAL_TENSORS = ("null_embeds", "prompt_embeds", "corrections")

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepInfo:
    """One step of a long loop, for progress bars."""

    stage: str
    """"pivot", "optimise", "replay" or "edit"."""
    index: int
    """Steps of this stage that are done."""
    total: int
    """Steps that this stage has."""
    timestep: int
    """The training timestep that was worked on."""
    clean_estimate: Tensor | None = None
    """x0 as seen from here, [B, C, h, w]; decoded, it is a preview."""
    loss: float | None = None
    """What is left of the step's objective, mean square over latents."""
    inner_steps: int | None = None
    """Optimiser steps that this timestep took."""


@dataclass(frozen=True)
class InversionHeader:
    """Where an inversion comes from, and what it is worth. All of it is JSON."""

    prompt: str
    """The source prompt."""
    model: str
    """Name of the model that made it."""
    fingerprint: str
    """Fingerprint of that model's weights."""
    timesteps: list[int]
    """The DDIM grid, noisiest first."""
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
    """Single-image UNet passes that the inversion took; a backward pass counts 2."""
    seconds: float
    """Wall time of the inversion."""


@dataclass(frozen=True)
class Inversion:
    """A photo as a point from which a diffusion model can sample it again."""

    trajectory: Tensor
    """[T + 1, C, h, w], float32: z*_0 (the encoded photo) … z*_T (the noise)."""
    photo: Tensor
    """[3, H, W], uint8: the crop at the model's resolution."""
    header: InversionHeader = field(repr=False)
    null_embeds: Tensor | None = None
    """None (the model's own empty prompt), [1, L, D], or [T, L, D], first for the noisiest."""
    prompt_embeds: Tensor | None = None
    """None (the prompt's own embedding), [1, L, D] or [T, L, D]."""
    corrections: Tensor | None = None
    """None or [T, C, h, w]."""

    def __post_init__(self) -> None:
        steps = self.num_steps
        shapes = {
            "trajectory": (self.trajectory, 4, (steps + 1,)),
            "photo": (self.photo, 3, (3,)),
            "null_embeds": (self.null_embeds, 3, (1, steps)),
            "prompt_embeds": (self.prompt_embeds, 3, (1, steps)),
            "corrections": (self.corrections, 4, (steps,)),
        }
        for name, (tensor, dimensions, lengths) in shapes.items():
            if tensor is None:
                continue
            if tensor.ndim != dimensions or tensor.shape[0] not in lengths:
                raise InversionFileError(
                    f"{name} has shape {list(tensor.shape)}, which does not fit {steps} steps; "
                    "invert the photo again."
                )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.header.timesteps)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Raises:
            OutputError: it cannot be written there.
        """
        write_inversion(Path(path), self.tensors(), asdict(self.header))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by field name."""
        found = {name: getattr(self, name) for name in (*REQUIRED_TENSORS, *OPTIONAL_TENSORS)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> Inversion:
        """Read a file that `save` wrote; tensors are on the CPU.

        Raises:
            InversionFileError: it is missing, damaged, foreign, or newer than this nulltext.
        """
        path = Path(path)
        tensors, raw = read_inversion(path)
        missing = set(REQUIRED_TENSORS) - tensors.keys()
        unknown = tensors.keys() - {*REQUIRED_TENSORS, *OPTIONAL_TENSORS}
        absent = [f.name for f in fields(InversionHeader) if f.name not in raw]
        if missing or unknown or absent:
            what = ", ".join(sorted(missing | unknown) + absent)
            raise InversionFileError(
                f"'{path}' is damaged: {what} is missing or unexpected; invert the photo again."
            )
        header = InversionHeader(**{f.name: raw[f.name] for f in fields(InversionHeader)})
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InversionFileError(
                    f"'{path}' is damaged: {name} holds values that are not finite; "
                    "invert the photo again."
                )
        return cls(header=header, **tensors)


def run(
    steps: Generator[StepInfo, None, Result], on_step: Callable[[StepInfo], None] | None = None
) -> Result:
    """Drive a generator of steps to its end and return its result.

    Args:
        on_step: called with each `StepInfo`; what a progress bar hangs on.

    Raises:
        OutOfMemoryError: the device's memory did not suffice.
    """
    while True:
        try:
            info = next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                "The device ran out of memory; pass fewer targets at once, --dtype float16 on a "
                "GPU, or --device cpu."
            ) from error
        if on_step is not None:
            on_step(info)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator failed; torch's CPU allocator says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )
