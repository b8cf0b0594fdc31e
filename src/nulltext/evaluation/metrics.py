"""How alike two pictures are, in a region or everywhere, and how Gaussian latents are.

    PSNR = 10 log10(1 / mean (a - b)^2)           over [0, 1] RGB
    SSIM = mean of ((2 ma mb + c1) (2 sab + c2)) / ((ma^2 + mb^2 + c1) (sa + sb + c2))

SSIM by scikit-image, per channel, with the Gaussian window (sigma 1.5, 11 px) and constants of its
paper; in a region, the mean of its map there. A metric that is undefined for a pair of pictures is
`Undefined` with the reason, never a NaN, an infinity or a zero.
Source: Wang et al. 2004 (SSIM), sec. III; Zhang et al. 2018 (LPIPS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from nulltext.errors import ExtraError, reason_of, require


@dataclass(frozen=True)
class Undefined:
    """A metric without a value."""

    reason: str


MetricValue: TypeAlias = float | Undefined

PairMetric: TypeAlias = Callable[[Tensor, Tensor], MetricValue]
"""A metric of two pictures [3, H, W] in [-1, 1]."""

GAUSSIAN_SIGMA = 1.5
WINDOW = 11
"""Side in pixels of SSIM's window at that sigma."""

DISC_RADIUS = math.sqrt(0.5 / math.pi)
"""Radius, in sides, of a disc that covers half of a square."""

EMPTY_REGION = Undefined("the region has no pixel")


def region_psnr(a: Tensor, b: Tensor, region: Tensor | None = None) -> MetricValue:
    """Compute the PSNR of two pictures over the pixels of a region, in decibels.

    Args: a, b: [3, H, W] in [-1, 1]. region: [H, W], bool; None is everywhere.
    """
    square = ((_unit(a) - _unit(b)) ** 2).mean(dim=0)
    mse = float((square if region is None else square[region]).mean())
    if math.isnan(mse):
        return EMPTY_REGION
    return Undefined("the pictures are equal") if mse == 0 else -10 * math.log10(mse)


def region_ssim(a: Tensor, b: Tensor, region: Tensor | None = None) -> MetricValue:
    """Compute the mean SSIM over a region, -1 to 1; arguments as in `region_psnr`.

    Raises:
        ExtraError: scikit-image is not installed.
    """
    values = ssim_map(a, b)
    if isinstance(values, Undefined):
        return values
    chosen = values if region is None else values[region.cpu()]
    return float(chosen.mean()) if chosen.numel() else EMPTY_REGION


def inner_ssim(a: Tensor, b: Tensor) -> MetricValue:
    """Compute the mean SSIM where the whole window lies in the picture, as published.

    Args: a, b: [3, H, W] in [-1, 1].

    Raises:
        ExtraError: scikit-image is not installed.
    """
    values, border = ssim_map(a, b), WINDOW // 2
    if isinstance(values, Undefined):
        return values
    return float(values[border:-border, border:-border].mean())


def ssim_map(a: Tensor, b: Tensor) -> Tensor | Undefined:
    """Compute the SSIM around each pixel, mean over channels: [H, W], float64, on the CPU.

    Args: a, b: [3, H, W] in [-1, 1].

    Raises:
        ExtraError: scikit-image is not installed.
    """
    skimage = require("skimage.metrics", "study", "SSIM")
    if min(a.shape[1:]) < WINDOW:
        return Undefined(f"the pictures are smaller than {WINDOW} px")
    _, values = skimage.structural_similarity(
        _unit(a).permute(1, 2, 0).numpy(),
        _unit(b).permute(1, 2, 0).numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=GAUSSIAN_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return torch.from_numpy(values).mean(dim=2)


def load_lpips() -> PairMetric:
    """Load LPIPS (AlexNet, of the package lpips), or a metric that says why it is unavailable."""
    try:
        network = require("lpips", "study", "LPIPS").LPIPS(net="alex", verbose=False)
    except ExtraError:
        missing = Undefined("the package lpips is not installed")
        return lambda a, b: missing  # noqa: ARG005
    except (OSError, RuntimeError) as error:
        missing = Undefined(f"LPIPS's weights cannot be had ({reason_of(error)})")
        return lambda a, b: missing  # noqa: ARG005

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> MetricValue:
        return float(network(a.cpu()[None].clamp(-1, 1), b.cpu()[None].clamp(-1, 1)))

    return distance


def outside_disc(height: int, width: int) -> Tensor:
    """Mask what is outside a centred disc of half the area, where a subject usually is.

    Returns: [H, W], bool.
    """
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height - 0.5,
        (torch.arange(width) + 0.5) / width - 0.5,
        indexing="ij",
    )
    return x**2 + y**2 > DISC_RADIUS**2


def noise_statistics(noise: Tensor) -> dict[str, MetricValue]:
    """Measure how Gaussian the end of an inversion is: z_T [C, h, w] against N(0, I).

    Mean and variance over all values; autocorrelation of neighbours (right and below, within a
    channel); log-likelihood in nats per value, log N(z; 0, 1) = -(z^2 + log 2 pi) / 2, which is
    -1.419 for noise.
    """
    z = noise.double()
    mean, variance = float(z.mean()), float(z.var(unbiased=False))
    centred = z - mean
    right, below = centred[:, :, 1:] * centred[:, :, :-1], centred[:, 1:] * centred[:, :-1]
    covariance = float(torch.cat([right.flatten(), below.flatten()]).mean())
    return {
        "noise_mean": mean,
        "noise_variance": variance,
        "noise_autocorrelation": (
            covariance / variance if variance > 0 else Undefined("the noise is constant")
        ),
        "noise_log_likelihood": -0.5 * (float(z.square().mean()) + math.log(2 * math.pi)),
    }


def _unit(image: Tensor) -> Tensor:
    """Scale [3, H, W] in [-1, 1] to [0, 1], float64 on the CPU."""
    return (image.detach().double().cpu().clamp(-1, 1) + 1) / 2
