"""How alike two pictures are, inside a region or everywhere.

    PSNR = 10 log10(1 / mean (a - b)^2)           over [0, 1] RGB
    SSIM = mean of ((2 ma mb + c1) (2 sab + c2)) / ((ma^2 + mb^2 + c1) (sa + sb + c2))

SSIM with the Gaussian window (sigma 1.5, 11 px) and constants of its paper, per channel, by
scikit-image; in a region, the mean of its map there. A measure that is undefined for a pair of
pictures is a `Undefined` with the reason, never a NaN, an infinity or a zero.
Source: Wang et al. 2004 (SSIM), sec. III; Zhang et al. 2018 (LPIPS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from nulltext.errors import ExtraError, reason_of
from nulltext.evaluation.extras import require


@dataclass(frozen=True)
class Undefined:
    """Why there is no figure."""

    reason: str


Figure: TypeAlias = float | Undefined

GAUSSIAN_SIGMA = 1.5
WINDOW = 11
"""Side in pixels of SSIM's window at that sigma."""

DISC = math.sqrt(0.5 / math.pi)
"""Radius, in sides, of a disc that covers half of a square."""


def psnr_in(a: Tensor, b: Tensor, region: Tensor | None = None) -> Figure:
    """Decibels over the pixels of a region.

    Args: a, b: [3, H, W] in [-1, 1]. region: [H, W], bool; None is everywhere.
    """
    square = ((_unit(a) - _unit(b)) ** 2).mean(dim=0)
    mse = float((square if region is None else square[region]).mean())
    if math.isnan(mse):
        return Undefined("the region has no pixel")
    return Undefined("the pictures are equal") if mse == 0 else -10 * math.log10(mse)


def ssim_in(a: Tensor, b: Tensor, region: Tensor | None = None) -> Figure:
    """Mean SSIM over a region, -1 to 1; arguments as in `psnr_in`.

    Raises:
        ExtraError: scikit-image is not installed.
    """
    metrics = require("skimage.metrics", "study", "SSIM")
    if min(a.shape[1:]) < WINDOW:
        return Undefined(f"the pictures are smaller than {WINDOW} px")
    _, full = metrics.structural_similarity(
        *(_unit(x).permute(1, 2, 0).cpu().numpy() for x in (a, b)),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=GAUSSIAN_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    values = torch.from_numpy(full).mean(dim=2)
    chosen = values if region is None else values[region.cpu()]
    return float(chosen.mean()) if chosen.numel() else Undefined("the region has no pixel")


def outside_disc(height: int, width: int) -> Tensor:
    """[H, W], bool: outside a centred disc of half the area, where a subject usually is."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height - 0.5,
        (torch.arange(width) + 0.5) / width - 0.5,
        indexing="ij",
    )
    return x**2 + y**2 > DISC**2


def noise_figures(noise: Tensor) -> dict[str, Figure]:
    """How Gaussian the end of an inversion is: z_T [C, h, w] against N(0, I).

    Mean and variance over all values; autocorrelation of neighbours (right and below, within a
    channel); log-likelihood in nats per value, log N(z; 0, 1) = -(z^2 + log 2 pi) / 2, which is
    -1.419 for noise.
    """
    z = noise.double()
    mean, variance = float(z.mean()), float(z.var(unbiased=False))
    centred = z - mean
    pairs = [centred[:, :, 1:] * centred[:, :, :-1], centred[:, 1:] * centred[:, :-1]]
    neighbours = float(torch.cat([pair.flatten() for pair in pairs]).mean())
    autocorrelation: Figure = Undefined("the noise is constant")
    if variance > 0:
        autocorrelation = neighbours / variance
    return {
        "noise_mean": mean,
        "noise_variance": variance,
        "noise_autocorrelation": autocorrelation,
        "noise_log_likelihood": -0.5 * (float(z.square().mean()) + math.log(2 * math.pi)),
    }


def open_lpips() -> Callable[[Tensor, Tensor], Figure]:
    """LPIPS (AlexNet) of two pictures [3, H, W] in [-1, 1], or why it cannot be had."""
    try:
        network = require("lpips", "study", "LPIPS").LPIPS(net="alex", verbose=False)
    except ExtraError:
        missing = Undefined("the package lpips is not installed")
        return lambda a, b: missing  # noqa: ARG005
    except (OSError, RuntimeError) as error:
        missing = Undefined(f"LPIPS's weights cannot be had ({reason_of(error)})")
        return lambda a, b: missing  # noqa: ARG005

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Figure:
        return float(network(a.cpu()[None].clamp(-1, 1), b.cpu()[None].clamp(-1, 1)))

    return distance


def _unit(image: Tensor) -> Tensor:
    """[3, H, W] in [-1, 1] to [0, 1], float64."""
    return (image.detach().double().cpu().clamp(-1, 1) + 1) / 2
