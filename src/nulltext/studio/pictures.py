"""Pictures on their way to a page, and back from its brush."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image

from nulltext.errors import ImageError
from nulltext.image.saving import save_image
from nulltext.studio.limits import Limits

SHOWN = 1800
"""Longest side of a picture on the page; downloads have the photo's own size."""
PNG_URL = "data:image/png;base64,"


def shown(image: Image.Image, profile: bytes | None, path: Path) -> None:
    """Write the JPEG that stands for a picture on the page."""
    small = image.copy()
    small.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    save_image(small, path, icc_profile=profile)


def painted(value: object, limits: Limits) -> Image.Image | None:
    """What a brush painted, as mode L, from the data URL of a PNG; None for nothing.

    Raises:
        ImageError: it is no such picture, or a larger one than a page paints.
    """
    if not value:
        return None
    mistake = ImageError("The painted mask cannot be read; clear it and paint again.")
    if not isinstance(value, str) or not value.startswith(PNG_URL):
        raise mistake
    if len(value) > 2 * limits.mask_pixels:
        raise mistake
    try:
        data = base64.b64decode(value.removeprefix(PNG_URL), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > limits.mask_pixels:
                raise mistake
            return image.convert("L")
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise mistake from error
