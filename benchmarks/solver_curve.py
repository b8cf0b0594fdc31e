"""PSNR against UNet evaluations, for null-text and its accelerated form, over starts, T and N.

    python benchmarks/solver_curve.py --data DIR --limit 8 --guidance 12

Rows are appended to --rows as they are made, and a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import TypeAlias

import nulltext
from captions import CaptionedPhoto, captioned_photos
from kept_rows import KeptRows
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.null_text import NullText
from nulltext.inversion.registry import method_named, with_options

Point: TypeAlias = tuple[str, str, int, int]
"""(start, method, T, N)."""

POINTS: list[Point] = [
    *[("empty", "null-text", 50, inner) for inner in (1, 3, 10)],
    *[("empty", "null-text", 20, inner) for inner in (3, 10)],
    *[("empty", "null-text-secant", 20, inner) for inner in (1, 2, 4)],
    *[("prompt", "null-text-secant", 50, inner) for inner in (0, 1)],
    *[("prompt", "null-text-secant", 30, inner) for inner in (0, 1, 2)],
    *[("prompt", "null-text-secant", 20, inner) for inner in (0, 1, 2)],
]


def method_of(start: str, name: str, inner_steps: int) -> InversionMethod:
    """The method of a point."""
    options = {} if name == NullText.name else {"start": start}
    return with_options(method_named(name), inner_steps=inner_steps, **options)


def measure(
    model: nulltext.LatentDiffusion, photo: CaptionedPhoto, point: Point, guidance: float
) -> dict[str, float]:
    """Invert a photo at a point of the curve."""
    start, name, steps, inner = point
    header = nulltext.invert(
        model,
        photo.path,
        photo.caption,
        method=method_of(start, name, inner),
        num_steps=steps,
        guidance_scale=guidance,
    ).header
    gap = header.psnr_reconstruction - header.psnr_bound
    return {"gap": gap, "evaluations": header.unet_evaluations}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=8, help="number of photos")
    parser.add_argument("--guidance", type=float, default=12.0)
    parser.add_argument("--rows", type=Path, default=Path("build/solver_curve.jsonl"))
    options = parser.parse_args()
    model = nulltext.load()
    kept = KeptRows(options.rows)
    table: dict[Point, list[dict[str, float]]] = {point: [] for point in POINTS}
    for photo in captioned_photos(options.data, options.split, options.limit):
        for point in POINTS:
            key = f"{model.fingerprint} {photo.path.name} {options.guidance} {point}"
            row = kept.get(key, partial(measure, model, photo, point, options.guidance))
            print(row, flush=True)
            table[point].append(row)
    print(f"\nw = {options.guidance:g}, {options.limit} photos\n")
    print("| start | method | T | N | evaluations | PSNR to the bound |")
    print("|---|---|--:|--:|--:|--:|")
    for (start, name, steps, inner), rows in table.items():
        evaluations, gap = (statistics.mean(r[k] for r in rows) for k in ("evaluations", "gap"))
        print(f"| {start} | {name} | {steps} | {inner} | {evaluations:.0f} | {gap:+.2f} dB |")


if __name__ == "__main__":
    main()
