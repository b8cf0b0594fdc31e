"""Give a finished edit another format or opacity, from its PNG and the photo it was made of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from nulltext.errors import OptionError
from nulltext.image.bands import finish
from nulltext.image.compositing import blend_bands, compare_bands, original_picture
from nulltext.image.images import CropBox
from nulltext.image.metadata import settings_in
from nulltext.image.photos import Photo, load_photo
from nulltext.image.saving import Picture
from nulltext.jobs.pictures import file_bands
from nulltext.jobs.settings import job_at
from nulltext.storage.files import LONGEST_NAME, safe_name

EXPORTS = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "webp": ".webp"}
"""The ends of files' names, by format."""
DEPTHS = {"png": (8, 16), "jpeg": (8,), "tiff": (8, 16), "webp": (8,)}
"""Bits a channel that a format holds."""
LONGEST_CHANGE = 80
"""Bytes of a name that say what changed."""


def export(
    result: Path,
    photo: Photo,
    kind: str,
    *,
    quality: int | None = None,
    bits: int | None = None,
    gps: bool = False,
) -> bytes:
    """Build the file of an edit in another format.

    Profile, EXIF, XMP and IPTC are the photo's, the settings those of the result.

    Args:
        result: a PNG of an edit at the photo's own size.
        kind: a key of `EXPORTS`.
        quality: of a JPEG, 1 to 100; None: compressed as the photo is, if it is a JPEG, else 95.
        bits: 8 or 16 a channel; None: as the result has, where the format holds them.
        gps: whether the photo's position is written.

    Raises:
        OptionError: the format is unknown, or has no such quality or depth.
        ImageError: the result cannot be read.
    """
    check_export(kind, quality, bits)
    made = load_photo(result)
    picture = original_picture(made)
    if made.alpha is not None:
        picture.image.putalpha(made.alpha)
    deep = picture.deep
    if bits == 16 and deep is None:
        deep = picture.rows(slice(0, made.size[1]), picture.bands, deep=True)
    picture = Picture(picture.image, None if bits == 8 else deep)
    settings = settings_in(result)
    text = None if settings is None else json.dumps(settings)
    name = f"result{EXPORTS[kind]}"
    bands = file_bands(picture, name, photo, text, gps=gps, quality=quality)
    return bytes(finish(bands))


@dataclass(frozen=True)
class Faded:
    """A finished edit at another opacity."""

    file: bytes | bytearray
    """PNG, with settings."""
    changed_fraction: float
    """Share of the pixels that differ from the photo."""


def fade(result: Path, photo: Photo, opacity: float) -> Faded:
    """Blend a finished edit over its photo, as `nulltext edit --opacity` does; nothing is sampled.

    Args:
        result: a PNG of an edit at the photo's own size, at opacity 1.
        opacity: 0 (the photo) to 1 (the edit).

    Raises:
        ImageError: the result cannot be read.
    """
    before, after = original_picture(photo), original_picture(load_photo(result))
    picture = finish(blend_bands(before, after, opacity))
    settings: dict[str, Any] = {**(settings_in(result) or {}), "opacity": opacity}
    if "job" in settings:
        settings["job"] = job_at(settings["job"], opacity)
    bands = file_bands(picture, "result.png", photo, json.dumps(settings), gps=False)
    data = finish(bands)
    width, height = photo.size
    kept = torch.zeros(height, width, dtype=torch.bool)
    difference = finish(compare_bands(before, picture, kept, CropBox(0, 0, width, height)))
    return Faded(data, difference.changed_fraction)


def check_export(kind: str, quality: int | None, bits: int | None) -> None:
    """Refuse a format that does not exist, or that has no such quality or depth.

    Raises:
        OptionError: it is so.
    """
    if kind not in EXPORTS:
        raise OptionError(f"There is no format '{kind:.20}'; choose {', '.join(EXPORTS)}.")
    if quality is not None and (kind != "jpeg" or not 1 <= quality <= 100):
        raise OptionError("A quality is a JPEG's, from 1 to 100; choose that, or leave it out.")
    if bits is not None and bits not in DEPTHS[kind]:
        held = " or ".join(map(str, DEPTHS[kind]))
        raise OptionError(f"{kind.upper()} holds {held} bits a channel, not {bits}; choose that.")


def result_name(photo: str, change: str, suffix: str, taken: Collection[str] = ()) -> str:
    """Name the file of an edit: "my cat – cat to dog.jpg".

    Args:
        photo: the name of the photo's file.
        change: what the edit changed, in words; "→" becomes "to".
        suffix: ".jpg" and the like.
        taken: names that are in use, of which it is none, whatever the case of letters.

    Returns: a name that every common file system takes; of a long one the photo's part is cut.
    """
    stem = safe_name(PurePath(photo).stem)
    words = _cut(" ".join(change.replace("→", "to").split()), LONGEST_CHANGE).rstrip(" ,")
    said = f" – {words}" if words else "-edited"
    used = {name.casefold() for name in taken}
    numbers = itertools.chain([""], (f" {number}" for number in itertools.count(2)))
    names = (_joined(stem, f"{said}{number}{suffix}") for number in numbers)
    return next(name for name in names if name.casefold() not in used)


def _joined(stem: str, end: str) -> str:
    """Return a file's name with all of its end, and as much of its stem as there is room for."""
    return safe_name(_cut(stem, LONGEST_NAME - len(end.encode())) + end)


def _cut(text: str, size: int) -> str:
    """Return the start of a text that has at most `size` bytes in UTF-8."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
