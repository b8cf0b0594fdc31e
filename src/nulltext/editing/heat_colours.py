"""A heat map in colours over a photo.

    c = (1 - o) grey + o (cold + l (hot - cold)),   l = (a - min a) / (max a - min a)

with a the map, enlarged bicubically: only where a word looks more and less can be seen, not how
much.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

COLD, HOT = (32, 32, 160), (255, 64, 0)
"""Ends of the colour scale, RGB."""

OPACITY = 0.65
"""o: how much the heat covers of the photo, whose grey levels stay visible."""


def heat_over(photo: Image.Image, heat: Tensor) -> Image.Image:
    """A heat map [h, w] in colours over the grey photo: RGB, of the photo's size."""
    size = (photo.height, photo.width)
    smooth = interpolate(heat[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    spread = (smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-12)
    level = spread.numpy()[..., None]
    colours = (1 - level) * np.array(COLD) + level * np.array(HOT)
    grey = np.asarray(photo.convert("L"), dtype=float)[..., None]
    return Image.fromarray(np.rint((1 - OPACITY) * grey + OPACITY * colours).astype(np.uint8))
