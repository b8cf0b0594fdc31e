"""`nulltext inspect`: what a saved inversion holds."""

from __future__ import annotations

from nulltext.cli.options import FileArgument, JsonOption, QuietOption
from nulltext.cli.report import Reporter

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
    "seconds": "Seconds",
    "tensors": "Tensors",
}


def inspect(file: FileArgument, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what a saved inversion holds; opens no model.

    Example: [bold]nulltext inspect dahlia.safetensors[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from dataclasses import asdict

    from nulltext.record import Inversion

    inversion = Inversion.load(file)
    values = asdict(inversion.header)
    values["steps"] = inversion.num_steps
    values["size"] = [inversion.photo.shape[2], inversion.photo.shape[1]]
    values["tensors"] = {name: list(t.shape) for name, t in inversion.tensors().items()}
    shown = [f"{label:<28}{_readable(values[key])}" for key, label in LABELS.items()]
    reporter.result({"file": str(file), **values}, [f"{'File':<28}{file}", *shown])


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(entry)}" for key, entry in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
