"""Making one row of results: measured, or failed with a reason, its pictures on disk before it.

A row that fails (a photo that cannot be read, numbers that stop being finite) says why and stops
nothing else; what ends the work is only a folder that cannot be written, or memory that ran out.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nulltext.errors import OutOfMemoryError, OutputError
from nulltext.evaluation.measures import Undefined
from nulltext.evaluation.results import PICTURES, Row, finite
from nulltext.evaluation.tasks import Key, Measurement
from nulltext.image.images import to_pil
from nulltext.image.saving import save_image
from nulltext.jobs.ledger import failure


def made_row(key: Key, measure: Callable[[], Measurement], folder: Path) -> Row:
    """The row of this key, its pictures saved into the book's folder.

    Raises:
        OutputError: the folder cannot be written any more.
        OutOfMemoryError: the device's memory does not suffice.
    """
    experiment, image, variant, setting = key
    row: Row = {
        "experiment": experiment,
        "image": image,
        "variant": variant,
        "setting": json.loads(setting),
    }
    started = time.perf_counter()
    try:
        measured = measure()
    except (OutOfMemoryError, OutputError):
        raise
    except Exception as error:  # one bad row is no reason to lose the others
        return row | failure(error)
    row |= {"status": "ok", "seconds_row": round(time.perf_counter() - started, 3)}
    return row | _content(measured) | {"pictures": _saved(measured.pictures, key, folder)}


def _content(measured: Measurement) -> dict[str, Any]:
    figures = measured.figures
    content: dict[str, Any] = {
        "figures": {
            name: None if isinstance(figure, Undefined) else finite(figure)
            for name, figure in figures.items()
        },
        "undefined": {
            name: figure.reason for name, figure in figures.items() if isinstance(figure, Undefined)
        },
        "notes": dict(measured.notes),
    }
    if measured.inversion is not None:
        header = measured.inversion.header
        content["cost"] = {
            "iterations": header.iterations,
            "unet_evaluations": header.unet_evaluations,
            "seconds": round(header.seconds, 3),
        }
    return content


def _saved(pictures: Mapping[str, Tensor], key: Key, folder: Path) -> dict[str, str]:
    """Write the pictures; returns their names relative to the folder."""
    return {what: _save(picture, key, what, folder) for what, picture in pictures.items()}


def _save(picture: Tensor, key: Key, what: str, folder: Path) -> str:
    experiment, image, variant, setting = key
    parts = [image, experiment, variant]
    parts += [f"{name} {value}" for name, value in json.loads(setting).items()]
    parts += [] if what == "picture" else [what]
    digest = hashlib.sha256(repr((key, what)).encode()).hexdigest()[:8]
    name = "--".join(re.sub(r"[^\w.]+", "-", part) for part in (*parts, digest))
    relative = f"{PICTURES}/{name}.png"
    save_image(to_pil(picture), folder / relative)
    return relative
