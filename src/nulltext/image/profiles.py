"""Colours of a photo with an ICC profile, as the model sees them (sRGB), and back.

The model is shown sRGB. What it draws is brought into the photo's own space by f, so that pixels
which an edit leaves alone need no conversion, and colours outside sRGB remain in the detail p - U r
that the model does not draw (`compositing`). With J f's Jacobian, sRGB's share S of that detail
becomes to first order

    S' = J(e') S J(r)^-1

and stays 1 where nothing was edited. J is taken over `REACH` to both sides, as far as detail goes,
and `RIDGE` I is added to it: f may be flat where the photo's space ends.

Both ways are LittleCMS's, relative colorimetric with black point compensation. It takes 8 bits a
channel here; the way back is sampled on a grid of `NODES` values a channel and interpolated, so
that smooth pictures stay smooth. A profile that LittleCMS cannot follow in both directions, or
under which colours differ from sRGB's by at most `SAME` levels, is not followed: the numbers are
taken as they are.
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from torch import Tensor

NODES = 52
"""Nodes of the grid along a channel: 0, 5, 10, …, 255."""
SAME = 2
"""Levels of 255 by which a profile's colours differ from sRGB's where it is sRGB itself."""
REACH = 0.2
"""Of values that span 2: 26 levels of 255."""
RIDGE = 0.02
_TABLE, _ENTRY, _MOST_TAGS = 128, struct.Struct(">4sII"), 100
"""A profile's table of tags: where it begins, an entry (signature, offset, size), and the most that
are read (ICC.1:2022, 7.3)."""
CACHED = 8
"""Profiles whose transforms are kept."""


@dataclass(frozen=True)
class Conversion:
    """Both ways between a photo's RGB and sRGB."""

    to_srgb: ImageCms.ImageCmsTransform
    grid: Tensor
    """[1, 3, NODES, NODES, NODES] in [-1, 1]: the photo's RGB by sRGB's blue, green and red."""


def as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image from its profile's colours to sRGB; itself where they are.

    Args:
        image: mode RGB or RGBA.
    """
    conversion = _conversion(profile)
    if conversion is None:
        return image
    converted = ImageCms.applyTransform(image.convert("RGB"), conversion.to_srgb)
    assert converted is not None  # it is only where the image is converted in place
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def from_srgb(pixels: Tensor, profile: bytes | None) -> Tensor:
    """Convert [3, H, W] in [-1, 1] from sRGB to a profile's colours, in float.

    Returns: the same, or the tensor itself where the profile is that of sRGB.
    """
    conversion = _conversion(profile)
    if conversion is None:
        return pixels
    from torch.nn.functional import grid_sample

    places = pixels.float().clamp(-1, 1).permute(1, 2, 0)[None, None]  # x: red, y: green, z: blue
    sampled = grid_sample(conversion.grid, places, align_corners=True, padding_mode="border")
    return sampled[0, :, 0]


def shares_from_srgb(
    shares: Tensor, edit: Tensor, reconstruction: Tensor, profile: bytes | None
) -> Tensor:
    """Compute S' of the module's formula.

    Args:
        shares: [3, 3, H, W] or [3, 3, 1, 1], S. edit, reconstruction: [3, H, W] in [-1, 1], sRGB.

    Returns: [3, 3, H, W], or the shares themselves where the profile is that of sRGB.
    """
    if is_srgb(profile):
        return shares
    import torch

    after, before = (_jacobian(x.float().clamp(-1, 1), profile) for x in (edit, reconstruction))
    matrices = after @ shares.permute(2, 3, 0, 1)
    return torch.linalg.solve(before, matrices, left=False).permute(2, 3, 0, 1)


def _jacobian(pixels: Tensor, profile: bytes | None) -> Tensor:
    """Return [H, W, 3, 3]: what each of sRGB's channels (last) adds to each of the photo's."""
    import torch

    columns = []
    for channel in range(3):
        step = torch.zeros(3, 1, 1)
        step[channel] = REACH
        above, below = (pixels + step).clamp(-1, 1), (pixels - step).clamp(-1, 1)
        difference = from_srgb(above, profile) - from_srgb(below, profile)
        columns.append(difference / (above - below)[channel])
    return torch.stack(columns, dim=-1).permute(1, 2, 0, 3) + RIDGE * torch.eye(3)


def is_srgb(profile: bytes | None) -> bool:
    """Whether numbers under a profile are taken for sRGB's as they are."""
    return _conversion(profile) is None


@lru_cache(maxsize=CACHED)
def _conversion(profile: bytes | None) -> Conversion | None:
    if profile is None:
        return None
    import torch

    steps = np.linspace(0, 255, NODES).round().astype(np.uint8)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = Image.fromarray(np.stack([red, green, blue], axis=-1).reshape(NODES, -1, 3))
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        to_srgb, back = _transform(own, _srgb()), _transform(_srgb(), own)
        seen = ImageCms.applyTransform(colours, to_srgb)
        values = np.asarray(ImageCms.applyTransform(colours, back))
    except (ImageCms.PyCMSError, OSError):
        return None
    difference = np.abs(np.asarray(seen).astype(int) - np.asarray(colours))
    if difference.max() <= SAME:
        return None
    grid = torch.from_numpy(values.astype(np.float32)).div(127.5).sub(1)
    grid = grid.reshape(NODES, NODES, NODES, 3).permute(3, 0, 1, 2)[None]
    return Conversion(to_srgb, grid.contiguous())


def profile_of_grey(profile: bytes) -> bytes | None:
    """Build the profile of RGB whose equal channels look as a profile of grey says.

    It is sRGB's with the curve of the grey one (ICC.1:2022, 8.3.2 and 8.3.4), so that a grey photo
    keeps its numbers and its look when it is written as RGB.

    Returns: None where there is no such curve, as for grey that is tied to Lab.
    """
    curve = _tags(profile).get(b"kTRC")
    if curve is None or profile[16:24] != b"GRAYXYZ ":
        return None
    rgb = _srgb().tobytes()
    tags = _tags(rgb) | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    name = "Grey as RGB".encode("utf-16-be")
    tags[b"desc"] = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(name), 28) + name
    at = _TABLE + 4 + _ENTRY.size * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += _ENTRY.pack(tag, at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    return struct.pack(">I", at + len(body)) + rgb[4:_TABLE] + table + body


def _tags(profile: bytes) -> dict[bytes, bytes]:
    """Return the data of a profile's tags by their signatures; without those that are cut off."""
    with contextlib.suppress(struct.error):
        (count,) = struct.unpack_from(">I", profile, _TABLE)
        entries = [
            _ENTRY.unpack_from(profile, _TABLE + 4 + _ENTRY.size * index)
            for index in range(min(count, _MOST_TAGS))
        ]
        return {tag: profile[at : at + size] for tag, at, size in entries if size}
    return {}


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile
) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        target,
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
