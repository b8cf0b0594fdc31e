"""From the pictures of an edit to files: remarked on, captioned, laid out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nulltext.editing.loop import Edit
from nulltext.editing.placing import Canvas, Placed, keeps_pixels, settings_of
from nulltext.image.compositing import Difference, compare_pictures, original_picture
from nulltext.image.images import to_pil
from nulltext.image.photos import exif_of_result, has_position
from nulltext.image.saving import Picture, encode, read_back, save_image
from nulltext.image.strip import Block, Tile, comparison_strip, labelled_grid
from nulltext.inversion.record import Inversion
from nulltext.jobs.figures import decibels
from nulltext.jobs.sweep import Sweep
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.storage.files import replace_file


def remark(placed: Placed) -> str | None:
    """What is odd about an edit or its local blend, for a person."""
    if placed.nothing:
        return f'Note: "{placed.spec.target}" {placed.nothing}'
    if placed.spec.blend is None:
        return None
    words = ", ".join(placed.spec.blend.words)
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
    *,
    gps: bool,
) -> list[Placed]:
    """Write edits, with their settings as PNG text and what the photo's EXIF says.

    Args:
        gps: whether EXIF says where, too.

    Returns: the edits, measured in their files.
    """
    return [
        _saved(path, one, inversion, canvas, gps=gps)
        for path, one in zip(paths, placed, strict=True)
    ]


def _saved(path: Path, one: Placed, inversion: Inversion, canvas: Canvas, *, gps: bool) -> Placed:
    photo, picture = canvas.photo, one.picture
    data = encode(
        picture,
        path,
        icc_profile=photo.icc_profile,
        text={"nulltext": json.dumps(settings_of(inversion, one.spec))},
        exif=exif_of_result(photo.exif, picture.image.size, gps=gps),
        coding=photo.coding,
    )
    replace_file(path, data)
    there = read_back(picture, path, data)
    found = None
    if there is not picture:
        before = original_picture(photo)
        if there.bands < before.bands:
            before = Picture(photo.image)  # over white, as the file is
        found = compare_pictures(before, there, one.kept, canvas.box)
        one = replace(one, changed_fraction=found.changed_fraction, psnr_outside=found.psnr_outside)
    lost = [*_lost(path, one, canvas, there, found)]
    if gps and not has_position(photo.exif):
        why = "the photo's file has none"
        if not canvas.full and canvas.shown is None:
            why = "it is in the photo's file, so pass that beside --inversion"
        lost.append(f"Note: --keep-gps wrote no position: {why}.")
    return replace(one, lost=tuple(lost))


def _lost(
    path: Path, one: Placed, canvas: Canvas, there: Picture, found: Difference | None
) -> Iterator[str]:
    """What a file does not hold of the photo, and what would."""
    photo, kind = canvas.shown or canvas.photo, path.suffix.removeprefix(".").upper()
    if photo.alpha is not None and not canvas.full:
        yield "Note: the model sees the photo over white; add --full to keep its transparency."
    if there.bands < one.picture.bands:
        yield (
            f"Note: {kind} holds no transparency, so it was put over white: name the file .png, "
            ".tif or .webp to keep it."
        )
    if photo.bits > 8 and there.deep is None:
        means = f"{kind} holds 8: name the file .png or .tif to keep them"
        if photo.deep is None:
            means = "could be read at 8 alone"
        elif not canvas.full:
            means = "the model sees 8: add --full to keep them"
        yield f"Note: the photo has {photo.bits} bits a channel, and {means}."
    if found is not None and keeps_pixels(canvas, one.spec) and there.image is not one.image:
        yield (
            f"Note: {kind} compresses every pixel anew: those that the edit left alone differ by "
            f"up to {found.largest_outside:.0f} of 255 levels ({decibels(found.psnr_outside)}); "
            "name the file .png, .tif or .webp to keep them exact."
        )


def save_strip(
    path: Path,
    model: LatentDiffusion,
    inversion: Inversion,
    edit: Edit,
    placed: Sequence[Placed],
    canvas: Canvas,
    reconstructed_by: str,
) -> None:
    """Write photo, autoencoder's bound, reconstruction and edits side by side.

    Args:
        reconstructed_by: what the reconstruction beside the edits follows, for its caption.
    """
    header = inversion.header
    bound = model.decode(inversion.trajectory[:1]).cpu()
    tiles = [
        Tile(canvas.photo.image, f"photo\n{header.prompt}"),
        Tile(to_pil(bound), f"autoencoder's bound, {decibels(header.psnr_bound)}"),
        Tile(
            to_pil(edit.reconstruction),
            f"reconstruction ({reconstructed_by}), {decibels(edit.psnr_reconstruction)}",
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
