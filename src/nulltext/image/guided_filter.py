"""The guided filter: fit a picture as a local linear function of another, the guide.

In square windows around every pixel, with mean M, covariance C and a ridge lambda, a picture x is
fitted by

    x ~ A g + b        A = C(x, g) (C(g, g) + lambda)^-1        b = M x - A M g

and A and b are averaged over the windows that hold a pixel. Where x follows the guide, so does the
fit, edges included; where the guide is flat beside lambda, A is near 0 and the fit is a mean of x.
Source: He et al. 2013 (guided image filtering), sec. 3.6 (guides of colour).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """A and b of one picture and guide."""

    slope: Tensor
    """A, [K, C, H, W]: how much of the guide's channel c is in the picture's channel k."""
    offset: Tensor
    """b, [K, H, W]."""

    def of(self, guide: Tensor) -> Tensor:
        """A g + b: [K, H, W]."""
        return (self.slope * guide).sum(dim=1) + self.offset


def fit(x: Tensor, guide: Tensor, radius: int, ridge: float) -> Fit:
    """Fit a picture [K, H, W] by a guide [C, H, W], float32.

    Args:
        radius: of the windows, which are squares of 2 radius + 1 pixels.
        ridge: lambda, a variance in the guide's units.
    """
    mean_x, mean_g = means(x, radius), means(guide, radius)

    def covariance(y: Tensor, mean_y: Tensor) -> Tensor:
        products = means(y[:, None] * guide, radius)
        return (products - mean_y[:, None] * mean_g).permute(2, 3, 0, 1)

    of_g = covariance(guide, mean_g) + ridge * torch.eye(len(guide))
    slope = torch.linalg.solve(of_g, covariance(x, mean_x), left=False).permute(2, 3, 0, 1)
    offset = mean_x - (slope * mean_g).sum(dim=1)
    return Fit(means(slope, radius), means(offset, radius))


def means(x: Tensor, radius: int) -> Tensor:
    """Average pictures [..., H, W] over squares of 2 radius + 1 pixels; the border is repeated."""
    import cv2

    sides = (2 * radius + 1, 2 * radius + 1)
    channels = np.ascontiguousarray(x.flatten(0, -3).numpy())
    averaged = [cv2.blur(one, sides, borderType=cv2.BORDER_REPLICATE) for one in channels]
    return torch.from_numpy(np.stack(averaged)).view(x.shape)
