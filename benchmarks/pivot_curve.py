"""How exact is a pivot, and what does it cost? DDIM's and the fixed point, over T and evaluations.

    python benchmarks/pivot_curve.py --data DIR --limit 8

For each photo, pivot and T: the distance to the autoencoder's bound of a replay without the stored
corrections, which is what the pivot itself is worth (with them it is exact by construction; that
is measured beside it), and the UNet evaluations of the inversion, its replay left out. The
fixed-point rows have a number of evaluations per timestep (tolerance 0), or the default tolerance.
With --adam also null-text inversion around both pivots (T = 50, N = 10, as published otherwise),
which takes minutes per photo.

Rows are appended to --rows as they are made, and a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nulltext
from captions import CaptionedPhoto, captioned_photos
from kept_rows import KeptRows, signed
from nulltext.constants import NUM_STEPS
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.negative_prompt import NegativePrompt
from nulltext.inversion.null_text import NullText

STEPS = (8, 12, 16, 20, 30, NUM_STEPS)
"""T."""
MOST = (1, 2, 3, 4, 6)
"""Evaluations per timestep."""


@dataclass(frozen=True)
class Point:
    """A line of the table."""

    pivot: str
    evaluations: str
    """Per timestep, in words."""
    method: InversionMethod
    num_steps: int


def points(adam: bool) -> Iterator[Point]:
    """List the lines in order."""
    for steps in STEPS:
        yield Point("ddim", "1", NegativePrompt(pivot="ddim"), steps)
        for most in MOST:
            yield Point("fixed-point", str(most), FixedPoint(0.0, most), steps)
        default = FixedPoint()
        many = f"to {default.tolerance:g}, at most {default.most_evaluations}"
        yield Point("fixed-point", many, default, steps)
    if adam:
        yield Point("ddim, null-text", "N = 10", NullText(), NUM_STEPS)
        yield Point("fixed-point, null-text", "N = 10", NullText(pivot="fixed-point"), NUM_STEPS)


def measure(
    model: nulltext.LatentDiffusion, photo: CaptionedPhoto, point: Point, guidance: float
) -> dict[str, Any]:
    """Invert a photo, and replay it with and without corrections."""
    inversion = nulltext.invert(
        model,
        photo.path,
        photo.caption,
        method=point.method,
        num_steps=point.num_steps,
        guidance_scale=guidance,
    )
    header = inversion.header
    plain = nulltext.replay(model, replace(inversion, corrections=None)).psnr
    corrected = plain
    if inversion.corrections is not None:
        corrected = nulltext.replay(model, inversion).psnr
    replayed = point.num_steps if isinstance(point.method, NegativePrompt) else 0  # counted there
    return {
        "gap": plain - header.psnr_bound,
        "gap_corrected": corrected - header.psnr_bound,
        "evaluations": header.unet_evaluations - replayed,
        "unconverged": header.unconverged,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=8, help="number of photos")
    parser.add_argument("--steps", type=int, nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--guidance", type=float, help="matters to --adam; default: the model's")
    parser.add_argument("--adam", action="store_true", help="null-text around both pivots, too")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=Path, default=Path("build/pivot_curve.jsonl"))
    options = parser.parse_args()
    model = nulltext.load(options.model, device=options.device)
    guidance = model.guidance_scale if options.guidance is None else options.guidance
    kept = KeptRows(options.rows)
    chosen = [point for point in points(options.adam) if point.num_steps in options.steps]
    table: dict[Point, list[dict[str, Any]]] = {point: [] for point in chosen}
    for photo in captioned_photos(options.data, options.split, options.limit):
        for point in chosen:
            method, steps = point.method, point.num_steps
            key = f"{model.fingerprint} {photo.path.name} {guidance} {method} {steps}"
            row = kept.get(key, partial(measure, model, photo, point, guidance))
            print(row, flush=True)
            table[point].append(row)
    print_table(table, guidance)


def print_table(table: dict[Point, list[dict[str, Any]]], guidance: float) -> None:
    """Print the lines in Markdown; distances in decibels."""
    count = max(map(len, table.values()))
    print(
        f"\n{count} photos, w = {guidance:g}; dB to the bound without corrections, and with them\n"
    )
    print("| T | pivot | per timestep | evaluations | mean | worst | with, worst | unconverged |")
    print("|--:|---|---|--:|--:|--:|--:|--:|")
    for point, rows in table.items():
        evaluations, gap, unconverged = (
            statistics.mean(row[key] for row in rows)
            for key in ("evaluations", "gap", "unconverged")
        )
        aims = isinstance(point.method, FixedPoint) and point.method.tolerance > 0
        above = f"{unconverged:.1f}" if aims else ""
        worst, corrected = (min(row[key] for row in rows) for key in ("gap", "gap_corrected"))
        print(
            f"| {point.num_steps} | {point.pivot} | {point.evaluations} | {evaluations:.0f} "
            f"| {signed(gap)} | {signed(worst)} | {signed(corrected)} | {above} |"
        )


if __name__ == "__main__":
    main()
