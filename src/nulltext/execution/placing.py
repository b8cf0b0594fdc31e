"""From the pictures of an edit to files: put into the photo, measured, captioned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from nulltext.compositing import (
    Detail,
    changed_fraction,
    composite,
    faded_inside,
    fitted,
    grown,
    psnr_outside,
    region_of_change,
)
from nulltext.editing import Edit, EditSpec
from nulltext.editors import name_of
from nulltext.execution.figures import decibels
from nulltext.execution.sweep import Sweep
from nulltext.images import CropBox, from_uint8, save_image, to_pil
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.photos import Photo
from nulltext.record import Inversion
from nulltext.strip import Block, Tile, comparison_strip, labelled_grid


@dataclass(frozen=True)
class Canvas:
    """What edits are put into: the photo, or its crop at the model's resolution."""

    photo: Photo
    box: CropBox
    full: bool
    """Whether it is the photo at its own size."""

    @classmethod
    def of(cls, inversion: Inversion, photo: Photo | None, *, full: bool) -> Canvas:
        """The photo at its own size, or the crop that the inversion holds (in its colours)."""
        if full:
            assert photo is not None
            return cls(photo, CropBox.from_list(inversion.header.crop), full=True)
        crop = to_pil(from_uint8(inversion.photo))
        profile = photo.icc_profile if photo is not None else None
        return cls(Photo(crop, icc_profile=profile), CropBox(0, 0, *crop.size), full=False)


@dataclass(frozen=True)
class Placed:
    """One edit, ready to be written."""

    image: Image.Image
    spec: EditSpec
    changed_fraction: float
    """Share of the pixels that differ from the original."""
    psnr_outside: float
    """Decibels against the original where nothing was to change; infinite if nothing did."""
    mask_fraction: float
    """Share of the latents that were free to change."""


def place(canvas: Canvas, edit: Edit, row: int, spec: EditSpec, detail: Detail) -> Placed:
    """Put one edit into its canvas, and measure what else moved.

    Without --full, --mask and --blend the model's own picture is the result.
    """
    picture, reconstruction = edit.images[row], edit.reconstruction[0]
    weight = _weight(canvas, edit, row, spec)
    if canvas.full or spec.mask is not None or spec.blend is not None:
        image = composite(canvas.photo, canvas.box, picture, reconstruction, weight, detail)
    else:
        image = to_pil(picture)
    original = canvas.photo.straight or canvas.photo.image
    return Placed(
        image,
        spec,
        changed_fraction(original, image),
        psnr_outside(original, image, weight, canvas.box),
        float(edit.masks[row].mean()),
    )


def _weight(canvas: Canvas, edit: Edit, row: int, spec: EditSpec) -> Tensor:
    """Where an edit shows, [box.height, box.width] in [0, 1]: by mask and words, else by itself."""
    size = (canvas.box.height, canvas.box.width)
    picture = edit.images[row]
    if spec.mask is None and spec.blend is None:
        region = region_of_change(picture, edit.reconstruction[0])
        return fitted(region, canvas.box, canvas.photo.size)
    weight = torch.ones(size)
    if spec.blend is not None:
        cells = (edit.masks[row] > 0).float()[None, None]
        words = grown(interpolate(cells, size=picture.shape[-2:], mode="nearest")[0, 0])
        weight = torch.minimum(weight, fitted(words, canvas.box, canvas.photo.size))
    if spec.mask is not None:
        mask = spec.mask
        if tuple(mask.shape) != size:
            mask = adaptive_avg_pool2d(mask[None], size)[0]
        inside = faded_inside(mask)
        weight = torch.minimum(weight, fitted(inside, canvas.box, canvas.photo.size))
    return weight


def remark(placed: Placed) -> str | None:
    """What is odd about a local blend's mask, for a person."""
    if placed.spec.blend is None:
        return None
    words = ", ".join(placed.spec.blend.words)
    if placed.mask_fraction == 0:
        return f"Note: the blend of {words} is empty (0 % of the picture): lower --blend-threshold."
    if placed.mask_fraction == 1:
        return (
            f"Note: the blend of {words} covers all of the picture (100 %) and holds nothing back: "
            "raise --blend-threshold, or pass --mask."
        )
    return f"The blend of {words} covers {100 * placed.mask_fraction:.0f} % of the picture."


def save_placed(
    paths: Sequence[Path],
    placed: Sequence[Placed],
    inversion: Inversion,
    canvas: Canvas,
) -> None:
    """Write edits, with their settings as PNG text."""
    profile = canvas.photo.icc_profile
    for path, one in zip(paths, placed, strict=True):
        text = {"nulltext": json.dumps(_settings(inversion, one.spec))}
        save_image(one.image, path, icc_profile=profile, text=text)


def _settings(inversion: Inversion, spec: EditSpec) -> dict[str, Any]:
    header = inversion.header
    return {
        "source": header.prompt,
        "target": spec.target,
        "model": header.model,
        "method": header.method,
        "steps": inversion.num_steps,
        "guidance": header.guidance_scale,
        "target_guidance": spec.guidance_scale,
        "after": [earlier.target for earlier in spec.line[:-1]],
        "editor": name_of(spec.editor),
        **asdict(spec.editor),
        "pull": str(spec.pull),
        "blend": list(spec.blend.words) if spec.blend else [],
        "mask": spec.mask is not None,
    }


def save_strip(
    path: Path,
    model: LatentDiffusion,
    inversion: Inversion,
    edit: Edit,
    placed: Sequence[Placed],
    canvas: Canvas,
) -> None:
    """Write photo, autoencoder's bound, reconstruction and edits side by side."""
    header = inversion.header
    bound = model.decode(inversion.trajectory[:1]).cpu()
    tiles = [
        Tile(canvas.photo.image, f"photo\n{header.prompt}"),
        Tile(to_pil(bound), f"autoencoder's bound, {decibels(header.psnr_bound)}"),
        Tile(
            to_pil(edit.reconstruction),
            f"reconstruction ({header.method}), {decibels(edit.psnr_reconstruction)}",
        ),
    ]
    for one in placed:
        factors = asdict(one.spec.editor).get("weights", {})
        weights = "".join(f"\n{word} × {factor:g}" for word, factor in factors.items())
        then = "then " if one.spec.parent else ""
        tiles.append(Tile(one.image, then + one.spec.target + weights))
    save_image(comparison_strip(tiles), path, icc_profile=canvas.photo.icc_profile)


def save_sweep(path: Path, sweep: Sweep, placed: Sequence[Placed], canvas: Canvas) -> None:
    """Write the grid: per target a row, or where a second knob goes down, a block of rows.

    Args:
        placed: `sweep.specs`, in their order.
    """
    pictures = {id(one.spec): one.image for one in placed}
    across, *down = sweep.axes
    prompts = [spec.target for spec in sweep.cells[0][0]]
    rows = [
        [[pictures[id(cell[prompt])] for cell in row] for row in sweep.cells]
        for prompt in range(len(prompts))
    ]  # [prompt][down][across]
    if down:
        blocks = [
            Block(prompt, across.labels, down[0].labels, block)
            for prompt, block in zip(prompts, rows, strict=True)
        ]
    else:
        blocks = [Block("", across.labels, prompts, [row for block in rows for row in block])]
    save_image(labelled_grid(blocks), path, icc_profile=canvas.photo.icc_profile)
