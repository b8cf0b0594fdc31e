"""Check that a model still computes what it computed when it was made.

Each component is given a fixed input made of sines, no random numbers, and some of its output is
kept beside the weights, in `check.json`, under their fingerprint:

    image   x[c, i, j] = 0.8 sin(0.11 (c + 1) i + 0.07 j + c)
    latents z[n]       = sqrt(2) sin(0.9 n + 0.3 sin(0.37 n))          variance about 1
    text    C(PROMPT)      encode E(x)      unet eps(z, T/2, C(PROMPT))      decode D(z)

`deviations` computes all of it again: the largest difference of a component's values, in units of
their root mean square. Other processors and thread counts differ by rounding, far below
`TOLERANCE`; other weights, a broken kernel or a damaged file by far more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.side_files import read_side_file, write_side_file

FILE = "check.json"

PROMPT = "a photo of a flower"
"""Read letter by letter by a model that has no word for it."""

VALUES = 24
"""Kept of each component's output, evenly spaced."""
DIGITS = 7
"""Significant, of each value."""

TOLERANCE = 5e-3
"""In root mean squares: above what TF32 and other summation orders do, below what shows."""


@torch.no_grad()
def figures(model: LatentDiffusion) -> dict[str, list[float]]:
    """Compute `VALUES` numbers of each component's output; costs one UNet evaluation."""
    channels, height, width = model.latents_shape
    rows, columns = model.resolution
    c, i, j = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (3, rows, columns)), indexing="ij"
    )
    image = 0.8 * torch.sin(0.11 * (c + 1) * i + 0.07 * j + c)
    n = torch.arange(channels * height * width, dtype=torch.float64)
    latents = 2**0.5 * torch.sin(0.9 * n + 0.3 * torch.sin(0.37 * n))
    latents = latents.view(1, channels, height, width).to(model.device, model.precision)
    prompt = model.embed([PROMPT])
    outputs = {
        "text": prompt,
        "encode": model.encode(image[None].float()),
        model.text.network: model.predict_noise(latents, model.schedule.level_at(0.5), prompt),
        "decode": model.decode(latents),
    }
    return {name: _sampled(output) for name, output in outputs.items()}


def _sampled(output: Tensor) -> list[float]:
    flat = output.double().cpu().flatten()
    index = torch.linspace(0, len(flat) - 1, VALUES, dtype=torch.float64).long()
    return [float(f"{value:.{DIGITS}g}") for value in flat[index].tolist()]


def write_known(model: LatentDiffusion, folder: Path) -> Path:
    return write_side_file(folder / FILE, model.fingerprint, {"figures": figures(model)})


def read_known(folder: Path) -> dict[str, Any] | None:
    return read_side_file(folder / FILE, _checked)


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    for values in content["figures"].values():
        if len(values) != VALUES or not all(isinstance(v, float | int) for v in values):
            raise ValueError(f"a component has no {VALUES} numbers")
    return dict(content)


def deviations(
    model: LatentDiffusion, known: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, float]:
    """Measure each component's deviation from the known figures; infinite where one is missing."""
    now, then = figures(model), known["figures"]
    return {name: _distance(now.get(name), then.get(name)) for name in now | dict(then)}


def _distance(now: list[float] | None, then: list[float] | None) -> float:
    if now is None or then is None:
        return float("inf")
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (now, then))
    scale = b.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return float((a - b).abs().max() / scale)
