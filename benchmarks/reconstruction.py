"""How faithfully can a photo be sampled again? Mean PSNR over validation photos.

    python benchmarks/reconstruction.py --data DIR --limit 32

The autoencoder alone (the bound), plain DDIM inversion replayed at w = 1 and at w = 7.5, null-text
inversion as published, and fixed-point inversion within its default budget, replayed with its
stored corrections, by which it is exact, and without them; each with the UNet evaluations that the
inversion took. Every photo's figures are appended to --rows as they are made; a rerun continues
there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import nulltext
from captions import CaptionedPhoto, captioned_photos
from kept_rows import KeptRows, Row, signed
from nulltext.constants import BUDGET, NUM_STEPS
from nulltext.inversion.budgets import BUDGETS, Budget, planned

BOUND = "autoencoder (bound)"
UNCORRECTED = "fixed-point, without corrections"


def variants(steps: int) -> dict[str, tuple[Budget, float]]:
    """How to invert, and guidance; fixed-point has the timesteps of its budget."""
    ddim, null_text = planned("ddim", num_steps=steps), planned("null-text", num_steps=steps)
    return {
        "DDIM, w = 1": (ddim, 1.0),
        "DDIM, w = 7.5": (ddim, 7.5),
        "null-text, w = 7.5": (null_text, 7.5),
        "fixed-point, w = 7.5": (BUDGETS[BUDGET], 7.5),
    }


def measure(model: nulltext.LatentDiffusion, item: CaptionedPhoto, steps: int) -> Row:
    """PSNR, evaluations and seconds of every variant on one photo."""
    row: dict[str, dict[str, float]] = {}
    for name, (plan, guidance) in variants(steps).items():
        started = time.perf_counter()
        inversion = nulltext.invert(
            model,
            item.path,
            item.caption,
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=guidance,
        )
        spent = {
            "evaluations": inversion.header.unet_evaluations,
            "seconds": time.perf_counter() - started,
        }
        row[name] = spent | {"psnr": nulltext.replay(model, inversion).psnr}
        if inversion.corrections is not None:
            plain = nulltext.replay(model, replace(inversion, corrections=None))
            row[UNCORRECTED] = spent | {"psnr": plain.psnr}
        row[BOUND] = {"psnr": inversion.header.psnr_bound, "evaluations": 0, "seconds": 0.0}
    return {"row": row}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=32, help="number of photos")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of all but fixed-point")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument(
        "--rows", type=Path, default=Path("build/reconstruction.jsonl"), help="kept between runs"
    )
    options = parser.parse_args()
    photos = captioned_photos(options.data, options.split, options.limit)
    model = nulltext.load(options.model, device=options.device)
    kept, rows = KeptRows(options.rows), []
    console = Console()
    for item in track(photos, "Photos", console=Console(stderr=True)):
        key = f"{model.fingerprint} {variants(options.steps)} {item.path.name} {item.caption}"
        rows.append(kept.get(key, partial(measure, model, item, options.steps))["row"])
    fewer = BUDGETS[BUDGET].num_steps
    said = f"{len(rows)} photos, T = {options.steps} (fixed-point: {fewer}), model {model.name}"
    table = Table(title=said)
    columns = ("variant", "PSNR dB", "to the bound dB", "UNet evaluations", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name in (BOUND, *variants(options.steps), UNCORRECTED):
        figures = [row[name] for row in rows]
        gap = statistics.mean(r[name]["psnr"] - r[BOUND]["psnr"] for r in rows)
        table.add_row(
            name,
            f"{statistics.mean(f['psnr'] for f in figures):.2f}",
            signed(gap),
            f"{statistics.mean(f['evaluations'] for f in figures):.0f}",
            f"{statistics.mean(f['seconds'] for f in figures):.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
