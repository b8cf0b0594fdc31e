"""An autoencoder at work: in a precision that holds its numbers, in pieces that fit the memory.

The decoder's last stage is what a picture costs: three feature maps of its widest channels c at the
picture's own size, so with s bytes a number

    bytes = 3 c H W s          c = 256 in Stable Diffusion: 0.75 GiB at 512 px, 3 GiB at 1024 px

counted by `benchmarks/live_bytes.py` (3.00 decoding, 2.55 encoding). A batch that needs at
most `WHOLE_BYTES` is worked on whole, a larger one picture by picture. A single picture that needs
more by itself, and is larger than the model's own resolution, goes in overlapping tiles of that
resolution, blended over a quarter of their sides. Each tile is normalised by itself, so
tiles change a picture's colours a little: see docs/speed.md for how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PICTURE_MAPS = 3
"""Feature maps at the picture's size that the decoder holds at once: in, normalised, out."""

WHOLE_BYTES = 4 * 2**30
"""The most that a picture may cost to be worked on whole; 1182 x 1182 in Stable Diffusion."""


def picture_bytes(vae: Any, pixels: int, itemsize: int) -> int:
    """Bytes that pictures of so many pixels in all need beside the weights."""
    return int(PICTURE_MAPS * max(vae.config.block_out_channels[:2]) * pixels * itemsize)


def safe_dtype(vae: Any) -> torch.dtype:
    """The precision that an autoencoder works in: float32 where it would overflow in half.

    `force_upcast` says so in its config; one without it overflows, as `AutoencoderKL` presumes.
    """
    stored: torch.dtype = vae.dtype
    fragile = torch.finfo(stored).bits < torch.finfo(torch.float32).bits
    return torch.float32 if fragile and getattr(vae.config, "force_upcast", True) else stored


def is_tiled(vae: Any, size: tuple[int, int], own: tuple[int, int], itemsize: int) -> bool:
    """Whether a picture of `size` = (height, width) is worked on in tiles; `own`: the model's."""
    pixels = math.prod(size)
    return pixels > math.prod(own) and picture_bytes(vae, pixels, itemsize) > WHOLE_BYTES


@contextmanager
def in_pieces(vae: Any, batch: int, size: tuple[int, int], own: tuple[int, int]) -> Iterator[None]:
    """Let an autoencoder cut what is too large for it inside the block; see the module.

    What a pipeline's owner switched on stays on, with its own tiles.

    Args:
        size: (height, width) of a picture. own: of one at the model's own resolution.
    """
    itemsize = safe_dtype(vae).itemsize
    names = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    if batch > 1 and picture_bytes(vae, batch * math.prod(size), itemsize) > WHOLE_BYTES:
        vae.use_slicing = True
    if is_tiled(vae, size, own, itemsize) and not vae.use_tiling:
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.use_tiling = True
        vae.tile_sample_min_size, vae.tile_latent_min_size = max(own), max(own) // stride
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
