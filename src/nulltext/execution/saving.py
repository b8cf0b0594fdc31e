"""From the pictures of an edit to files: remarked on, captioned, laid out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nulltext.editing import Edit
from nulltext.execution.figures import decibels
from nulltext.execution.sweep import Sweep
from nulltext.images import save_image, to_pil
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.placing import Canvas, Placed, settings_of
from nulltext.record import Inversion
from nulltext.strip import Block, Tile, comparison_strip, labelled_grid


def remark(placed: Placed) -> str | None:
    """What is odd about an edit or its local blend, for a person."""
    if placed.unchanged:
        return f'Note: "{placed.spec.target}" changed nothing: {placed.unchanged}.'
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
) -> None:
    """Write edits, with their settings as PNG text."""
    profile = canvas.photo.icc_profile
    for path, one in zip(paths, placed, strict=True):
        text = {"nulltext": json.dumps(settings_of(inversion, one.spec))}
        save_image(one.image, path, icc_profile=profile, text=text)


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
