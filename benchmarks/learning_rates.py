"""Learning rates that the paper leaves open: a sweep on training photos.

    python benchmarks/learning_rates.py --data DIR --limit 3

For each variant and rate, the mean PSNR of the replay at the model's own w. The defaults of the
methods are the best rates of this table (docs/study.md). Training photos, so that the study's own
photos have no say. Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import nulltext
from captions import CaptionedPhoto, captioned_photos
from kept_rows import KeptRows
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.registry import method_named, with_options

RATES = {
    "global-null": (1e-3, 3e-3, 1e-2, 3e-2),
    "null-text-no-pivot": (1e-3, 1e-2, 3e-2),
    "textual": (1e-4, 1e-3, 1e-2),
    "textual-pivot": (3e-3, 1e-2, 3e-2),
    "textual-pivot-shared": (1e-3, 3e-3, 1e-2, 3e-2),
    "model-tuning": (3e-5, 1e-4, 3e-4, 1e-3),
}


def measure(
    model: nulltext.LatentDiffusion, photo: CaptionedPhoto, method: InversionMethod, steps: int
) -> dict[str, float]:
    """Measure the PSNR of a method's replay."""
    made = nulltext.invert(model, photo.path, photo.caption, method=method, num_steps=steps)
    return {"psnr": made.header.psnr_reconstruction}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=3, help="number of training photos")
    parser.add_argument("--steps", type=int, default=20, help="T")
    parser.add_argument("--inner-steps", type=int, default=5, help="N")
    parser.add_argument("--rows", type=Path, default=Path("build/learning_rates.jsonl"))
    options = parser.parse_args()
    model = nulltext.load()
    kept = KeptRows(options.rows)
    table: dict[str, dict[float, list[float]]] = {n: {r: [] for r in RATES[n]} for n in RATES}
    for photo in captioned_photos(options.data, "train", options.limit):
        for name, rates in RATES.items():
            for rate in rates:
                effort = (options.steps, options.inner_steps)
                key = f"{model.fingerprint} {photo.path.name} {effort} {name} {rate}"
                method = with_options(
                    method_named(name), learning_rate=rate, inner_steps=options.inner_steps
                )
                row = kept.get(key, partial(measure, model, photo, method, options.steps))
                table[name][rate].append(row["psnr"])
    print(f"T = {options.steps}, N = {options.inner_steps}, {options.limit} photos\n")
    print("| variant | learning rate | PSNR dB |\n|---|--:|--:|")
    for name, by_rate in table.items():
        for rate, values in by_rate.items():
            print(f"| {name} | {rate:g} | {statistics.mean(values):.2f} |")


if __name__ == "__main__":
    main()
