"""`nulltext inspect`: what a saved inversion holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nulltext.cli.options import FileArgument, JsonOption, QuietOption
from nulltext.cli.report import Reporter

if TYPE_CHECKING:
    from nulltext.inversion.record import Inversion

LABELS = {
    "prompt": "Prompt",
    "model": "Model",
    "fingerprint": "Fingerprint",
    "method": "Method",
    "method_config": "Options",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "image_size": "Photo (width, height)",
    "crop": "Crop (x, y, width, height)",
    "size": "Seen at (width, height)",
    "image_sha256": "Photo's SHA-256",
    "psnr_bound": "PSNR bound",
    "psnr_reconstruction": "PSNR reconstruction",
    "unet_evaluations": "UNet evaluations",
    "iterations": "Gradients",
    "seconds": "Seconds",
    "adapters": "Adapters",
    "tensors": "Tensors",
}
"""Fields of the report, and what a person reads in their place."""

SUMMED = "weight_delta"
"""Named in the report; its factors, hundreds of them, are only counted there."""


def inspect(file: FileArgument, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what a saved inversion holds; opens no model.

    Example: [bold]nulltext inspect dahlia.safetensors[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.inversion.record import Inversion

    values, lines = described(Inversion.load(file))
    reporter.answer({"file": str(file), **values}, [f"{'File':<28}{file}", *lines])


def described(inversion: Inversion) -> tuple[dict[str, Any], list[str]]:
    """All fields for a program, and lines of text for a person."""
    from nulltext.models.adapters import said_of

    values = asdict(inversion.header)
    values["steps"] = inversion.num_steps
    values["size"] = [inversion.photo.shape[2], inversion.photo.shape[1]]
    values["tensors"] = {name: list(t.shape) for name, t in inversion.tensors().items()}
    adapters = said_of(inversion.header.adapters) or "none"
    shown = values | {"tensors": _counted(inversion), "adapters": adapters}
    return values, [f"{label:<28}{_readable(shown[key])}" for key, label in LABELS.items()]


def _counted(inversion: Inversion) -> dict[str, Any]:
    """Shapes by name, those of a difference of weights as their number."""
    own = replace(inversion, weight_delta=None).tensors()
    shapes: dict[str, Any] = {name: list(tensor.shape) for name, tensor in own.items()}
    delta = inversion.weight_delta
    if delta:
        numbers = sum(factor.numel() for factor in delta.values())
        shapes[SUMMED] = f"{len(delta)} factors with {numbers:,} numbers"
    return shapes


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(entry)}" for key, entry in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
