"""Pictures of numbers for the verbs: heat maps over the photo."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nulltext.editing.heatmaps import PromptMaps, heat_over
from nulltext.image.images import from_uint8, to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.inversion.record import Inversion
from nulltext.storage.files import replace_file


def heat_grid(
    inversion: Inversion, prompts: Sequence[PromptMaps], every: int | None
) -> Image.Image:
    """One row per prompt, one tile per word; with `every`, also a row per every-th step.

    A map is drawn between its own minimum and maximum, which the caption gives in per cent.
    """
    photo = to_pil(from_uint8(inversion.photo))
    levels = inversion.header.levels
    rows = []
    for maps in prompts:
        whole = Tile(photo, maps.prompt)
        rows.append(
            [whole, *(Tile(heat_over(photo, w.heat), _label(w.word, w.heat)) for w in maps.words)]
        )
        for index in range(0, len(levels), every) if every else ():
            rows.append(
                [
                    Tile(photo, f"step {index + 1}, t = {levels[index].fed:g}"),
                    *(Tile(heat_over(photo, w.steps[index]), w.word) for w in maps.words),
                ]
            )
    return tile_grid(rows)


def _label(word: str, heat: Tensor) -> str:
    return f"{word}\n{100 * float(heat.min()):.1f} to {100 * float(heat.max()):.1f} %"


def word_rows(prompts: Sequence[PromptMaps]) -> list[dict[str, Any]]:
    """What JSON says of each word: prompt, word, mean share, and the peak in parts of the crop."""
    rows = []
    for maps in prompts:
        for word in maps.words:
            height, width = word.heat.shape
            y, x = divmod(int(word.heat.argmax()), width)
            peak = [(x + 0.5) / width, (y + 0.5) / height]
            rows.append(
                {
                    "prompt": maps.prompt,
                    "word": word.word,
                    "mean": float(word.heat.mean()),
                    "max": float(word.heat.max()),
                    "peak": peak,
                }
            )
    return rows


def save_arrays(path: Path, prompts: Sequence[PromptMaps]) -> None:
    """Write an .npz: per prompt p, `words_p` [n], `heat_p` [n, h, w], `steps_p` [n, T, h, w]."""
    arrays: dict[str, Any] = {}
    for index, maps in enumerate(prompts):
        arrays[f"words_{index}"] = np.array([word.word for word in maps.words])
        arrays[f"heat_{index}"] = np.stack([word.heat.numpy() for word in maps.words])
        arrays[f"steps_{index}"] = np.stack([word.steps.numpy() for word in maps.words])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    replace_file(path, file.getvalue())
