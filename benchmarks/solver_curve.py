"""PSNR against UNet evaluations, for each solver and start over budgets: null-text alone.

    python benchmarks/solver_curve.py --data DIR --limit 8 --guidance 12

Rows are appended to --rows as they are made, and a rerun continues there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TypeAlias

import nulltext
from captions import captioned_photos
from nulltext.constants import NullStart
from nulltext.inversion.null_text import NullText

Point: TypeAlias = tuple[NullStart, str, int, int]
"""(start, solver, T, N)."""

POINTS: list[Point] = [
    *[("empty", "adam", 50, inner) for inner in (1, 3, 10)],
    *[("empty", "adam", 20, inner) for inner in (3, 10)],
    *[("empty", "gauss-newton", 20, inner) for inner in (1, 2)],
    *[("empty", "secant", 20, inner) for inner in (1, 2, 4)],
    *[("prompt", "adam", 50, inner) for inner in (1, 10)],
    *[("prompt", "secant", 50, inner) for inner in (0, 1)],
    *[("prompt", "secant", 30, inner) for inner in (0, 1, 2)],
    *[("prompt", "secant", 20, inner) for inner in (0, 1, 2)],
]


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
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    lines = options.rows.read_text().splitlines() if options.rows.is_file() else []
    known = {row["key"]: row for row in map(json.loads, lines)}
    table: dict[Point, list[dict[str, float]]] = {point: [] for point in POINTS}
    for photo in captioned_photos(options.data, options.split, options.limit):
        for point in POINTS:
            start, solver, steps, inner = point
            key = f"{model.fingerprint} {photo.path.name} {options.guidance} {point}"
            if key not in known:
                header = nulltext.invert(
                    model,
                    photo.path,
                    photo.caption,
                    method=NullText(start=start, solver=solver, inner_steps=inner),
                    num_steps=steps,
                    guidance_scale=options.guidance,
                ).header
                known[key] = {
                    "key": key,
                    "gap": header.psnr_reconstruction - header.psnr_bound,
                    "evaluations": header.unet_evaluations,
                }
                with options.rows.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(known[key]) + "\n")
                print(known[key], flush=True)
            table[point].append(known[key])
    print(f"\nw = {options.guidance:g}, {options.limit} photos\n")
    print("| start | solver | T | N | evaluations | PSNR to the bound |")
    print("|---|---|--:|--:|--:|--:|")
    for (start, solver, steps, inner), rows in table.items():
        evaluations, gap = (statistics.mean(r[k] for r in rows) for k in ("evaluations", "gap"))
        print(f"| {start} | {solver} | {steps} | {inner} | {evaluations:.0f} | {gap:+.2f} dB |")


if __name__ == "__main__":
    main()
