"""COCO captions as published: `captions_val2017.json` beside (or above) a folder of pictures.

The file has "images" {"id", "file_name"} and "annotations" {"image_id", "caption"}, about five
captions per image. The pictures lie in a folder named like the split (val2017), in images/, or
beside the file; with COCO's own layout, annotations/ is a sister of val2017/.
Source: Chen et al. 2015 (Microsoft COCO Captions); cocodataset.org, "data format".
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nulltext.errors import DataError, reason_of, shorten
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.extras import require
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text, resolve_inside
from nulltext.words.prompts import clean

LARGEST = 512 * MEGABYTE
"""Bytes of an annotation file; COCO's own have up to 92 MB."""


def annotation_file(folder: Path) -> Path | None:
    """COCO's captions in a folder or in its annotations/, validation first."""
    found = [*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")]
    return max(found, key=lambda path: "val" in path.name) if found else None


def read_coco(annotations: Path) -> list[Item]:
    """All captioned images, by image id.

    Raises:
        ExtraError: pycocotools is not installed.
        DataError: the file is malformed, or no folder of pictures is found.
    """
    coco_class = require("pycocotools.coco", "coco", "Reading COCO").COCO
    try:
        coco = coco_class()
        coco.dataset = parse_json(read_text(annotations, LARGEST))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco.createIndex()
        if not coco.imgs:
            raise ValueError("it names no images")
        pictures = _pictures(annotations, [_text(i, "file_name") for i in coco.imgs.values()])
        items = []
        for image_id in sorted(coco.imgs):
            captions = [
                clean(_text(entry, "caption")).strip() for entry in coco.imgToAnns[image_id]
            ]
            name = coco.imgs[image_id]["file_name"]
            if captions:
                items.append(Item(name, resolve_inside(pictures, name), tuple(captions)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{annotations}' is no COCO caption file ({reason_of(error)}); "
            "fetch annotations_trainval2017.zip from cocodataset.org again."
        ) from error
    return items


def _text(entry: Mapping[str, Any], key: str) -> str:
    """A field that must be text."""
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"a {key} is {shorten(repr(value))}")
    return value


def _pictures(annotations: Path, names: list[str]) -> Path:
    """The folder that the pictures lie in: the first that has one of them."""
    split = annotations.stem.removeprefix("captions_")
    roots = (annotations.parent, annotations.parent.parent)
    places = [root / folder for folder in (split, "images", ".") for root in roots]
    for place in places:
        if any(resolve_inside(place, name).is_file() for name in names):
            return place
    raise DataError(
        f"None of the pictures of '{annotations}' is there; unpack {split}.zip into "
        f"'{annotations.parent / split}'."
    )
