"""What do photos gain side by side? Batches of one size after the other, and the UNet by itself.

    python benchmarks/batch_size.py --sizes 1 8 --photos 8

Prints a line of JSON for each size: what a batch of one edit per photo took, and how far its
inversions and pictures are from those of the first size. Photos are crops, mirror images and darker
copies of the example photo. One thread; memory is that of the process, so each size has its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import nulltext
from nulltext.jobs.batch import LocalExecutor, batch_steps, open_batch, read_batch
from nulltext.jobs.worker import Setup
from nulltext.models.choice import ModelChoice

PHOTO = Path(__file__).parents[1] / "examples" / "dahlia.jpg"
JOB = {"source": "a photo of an orange flower", "target": "a photo of a white flower"}
DARKER, SMALLER = 0.8, 0.8
PASSES = 20
"""UNet calls of each size, of which the median is taken."""
ROWS = (1, 2, 4, 8, 16)
"""Rows of these calls."""
KILOBYTES = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--photos", type=int, default=8, help="at most 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--folder", type=Path, default=Path("build/batch-size"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = write_jobs(folder, options.photos, options.steps)
    fresh = multiprocessing.get_context("spawn")
    for size in options.sizes:
        with fresh.Pool(1) as pool:
            told = pool.apply(batch, (jobs, folder / str(size), options.model, size))
        differs = difference(folder / str(options.sizes[0]), folder / str(size))
        print(json.dumps(told | differs), flush=True)
    print(json.dumps({"milliseconds per row of a UNet call": passes(options.model)}))


def write_jobs(folder: Path, count: int, steps: int) -> Path:
    """Write up to eight photos, and an edit of each."""
    with Image.open(PHOTO) as opened:
        whole = opened.convert("RGB")
    corner = round(SMALLER**2 * min(whole.size))
    photos = [whole, whole.crop((0, 0, corner, corner))]
    photos += [photo.point(lambda value: DARKER * value) for photo in photos]
    photos += [ImageOps.mirror(photo) for photo in photos]
    lines = []
    for index, photo in enumerate(photos[:count]):
        photo.save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "steps": steps, **JOB}))
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(lines))
    return path


def batch(jobs: Path, folder: Path, model: str, size: int) -> dict[str, Any]:
    """Do all jobs with so many photos side by side."""
    torch.set_num_threads(1)
    executor = LocalExecutor(setup := Setup(ModelChoice(model), folder, size))
    loaded, begun = peak_megabytes(), time.process_time()
    with open_batch(setup, executor.identity, fresh=True) as book:
        *_, last = batch_steps(executor, read_batch(jobs), book)
        assert last.failed == 0, book.rows
    return {
        "batch size": size,
        "CPU seconds": round(time.process_time() - begun, 1),
        "seconds per photo": {
            what: round(statistics.mean(row[f"seconds_{what}"] for row in book.rows), 2)
            for what in ("invert", "edit")
        },
        "UNet evaluations": [row["unet_evaluations_invert"] for row in book.rows],
        "megabytes loaded, at most": [loaded, peak_megabytes()],
    }


def peak_megabytes() -> int:
    """What the process has held for itself at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KILOBYTES


def difference(first: Path, other: Path) -> dict[str, Any]:
    """How far the results of one batch are from those of another, at most."""
    levels, pixels, latents, decibels = [0], [0.0], [0.0], [0.0]
    rows = {row["job"]: row for row in rows_of(other)}
    for row in rows_of(first):
        same = rows[row["job"]]
        shown = [np.asarray(Image.open(d / row["outputs"][0]), np.int16) for d in (first, other)]
        between = np.abs(shown[0] - shown[1])
        ours, theirs = (nulltext.Inversion.load(d / row["inversion"]) for d in (first, other))
        levels.append(int(between.max()))
        pixels.append(float(between.any(axis=-1).mean()))
        latents.append(float((ours.trajectory - theirs.trajectory).abs().max()))
        decibels.append(abs(row["psnr_reconstruction"] - same["psnr_reconstruction"]))
    return {
        "levels of 255": max(levels),
        "share of pixels": round(max(pixels), 6),
        "trajectory": max(latents),
        "decibels of the reconstruction": max(decibels),
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a batch."""
    return [*map(json.loads, (folder / "results.jsonl").read_text().splitlines())]


@torch.no_grad()
def passes(name: str) -> dict[int, float]:
    """CPU milliseconds per row of UNet calls with 1, 2, … rows; medians, taken in turn."""
    torch.set_num_threads(1)
    model = nulltext.load(name)
    level = model.schedule.grid(20)[10].noisier
    embeds = model.embed([JOB["source"]])
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(max(ROWS), *model.latents_shape, generator=draw)
    taken: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(PASSES + 1):
        for rows, times in taken.items():
            begun = time.process_time()
            model.predict(latents[:rows], level, embeds.expand(rows, -1, -1))
            times.append(1000 * (time.process_time() - begun) / rows)
    return {rows: round(statistics.median(times[1:]), 1) for rows, times in taken.items()}


if __name__ == "__main__":
    main()
