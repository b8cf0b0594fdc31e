"""How much faster than the published loop, at which fidelity? Side by side, photo by photo.

    python benchmarks/speed.py --data DIR --limit 32 --hard 16

For each photo and each case (w = 7.5, w = 12, a wrong caption) the published loop and the budgets
run one after the other; then each inversion is edited to another colour. Rows are appended to
--rows as they are made, and a rerun continues there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import nulltext
from captions import CaptionedPhoto, captioned_photos
from colour_swap import HUES, is_swapped, swap_distance, swapped_colour
from kept_rows import KeptRows
from nulltext.constants import NUM_STEPS
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.budgets import BUDGETS
from reference_loop import ReferenceLoop, with_naive_attention

Contender: TypeAlias = tuple[nulltext.LatentDiffusion, InversionMethod, int]
"""Model, method, T."""

REFERENCE = "reference"
CASES = {"w = 7.5": 7.5, "w = 12": 12.0, "wrong caption": 7.5}
"""Guidance by case."""
EASY = next(iter(CASES.items()))
WRONG = {"daisy": "rose", "rose": "sunflower", "sunflower": "tulip", "tulip": "daisy"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=32, help="number of photos")
    parser.add_argument("--hard", type=int, help="of these, how many in the other two cases")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--budgets", nargs="*", choices=BUDGETS, default=["fast", "balanced"])
    parser.add_argument("--rows", type=Path, default=Path("build/speed.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the rows, measure nothing")
    options = parser.parse_args()
    if options.report:
        report_all(list(KeptRows(options.rows).by_key.values()))
        return
    if options.data is None:
        raise SystemExit("Pass --data a folder of photos with labels.jsonl.")
    photos = captioned_photos(options.data, options.split, options.limit)
    model = nulltext.load(options.model, device=options.device)
    hard = photos[: options.hard]
    rows = measured(model, photos, hard, contenders(model, options.budgets), options.rows)
    report_all(rows)


def report_all(rows: list[dict[str, Any]]) -> None:
    """One table per case, over the photos that have all its rows."""
    for case in CASES:
        own = [row for row in rows if row["case"] == case]
        names = {row["name"] for row in own}
        done = {(row["photo"], row["name"]) for row in own}
        whole = [row for row in own if all((row["photo"], name) in done for name in names)]
        if whole:
            report(case, whole)


def contenders(model: nulltext.LatentDiffusion, budgets: list[str]) -> dict[str, Contender]:
    """The published loop, and ours within some budgets."""
    found: dict[str, Contender] = {
        REFERENCE: (with_naive_attention(model), ReferenceLoop(), NUM_STEPS)
    }
    for name in budgets:
        found[name] = (model, BUDGETS[name].method, BUDGETS[name].num_steps)
    return found


def measured(
    model: nulltext.LatentDiffusion,
    photos: list[CaptionedPhoto],
    hard: list[CaptionedPhoto],
    rivals: dict[str, Contender],
    path: Path,
) -> list[dict[str, Any]]:
    """Every photo's row of every case and contender, from the file or made now."""
    kept, rows = KeptRows(path), []
    for photo in photos:
        for case, guidance in CASES.items() if photo in hard else [EASY]:
            for name, rival in rivals.items():
                _, method, steps = rival
                key = f"{model.fingerprint} {photo.path.name} {case} {name} {method} {steps}"
                make = partial(inverted, model, name, rival, photo, case, guidance)
                row = kept.get(key, make)
                print(json.dumps(row | {"key": ""}), flush=True)
                rows.append(row)
    return rows


def inverted(
    model: nulltext.LatentDiffusion,
    name: str,
    rival: Contender,
    photo: CaptionedPhoto,
    case: str,
    guidance: float,
) -> dict[str, Any]:
    """Invert a photo by a contender, and measure what came of it."""
    own_model, method, steps = rival
    caption = wrong(photo.caption) if case == "wrong caption" else photo.caption
    started = time.process_time()
    inversion = nulltext.invert(
        own_model,
        photo.path,
        caption,
        method=method,
        num_steps=steps,
        guidance_scale=guidance,
    )
    seconds = time.process_time() - started
    row = {"photo": photo.path.name, "case": case, "name": name, "seconds": seconds}
    return row | figures(model, inversion)


def figures(model: nulltext.LatentDiffusion, inversion: nulltext.Inversion) -> dict[str, Any]:
    """What one inversion cost and is worth, its colour swap included."""
    header = inversion.header
    words = header.prompt.split()
    colour = next((word for word in words if word in [*HUES, "white"]), None)
    assert colour is not None, header.prompt
    target = swapped_colour(colour)
    edit = nulltext.edit(model, inversion, header.prompt.replace(f"{colour} ", f"{target} ", 1))
    return {
        "psnr": header.psnr_reconstruction,
        "bound": header.psnr_bound,
        "evaluations": header.unet_evaluations,
        "hue_before": swap_distance(inversion.photo / 255, target),
        "hue_distance": swap_distance(edit.images[0], target),
    }


def wrong(caption: str) -> str:
    """The caption with another kind and another colour."""
    words = caption.split()
    for i, word in enumerate(words[:6]):
        if word in HUES or word == "white":
            words[i] = swapped_colour(word)
        words[i] = WRONG.get(words[i], words[i])
    return " ".join(words)


def report(case: str, rows: list[dict[str, Any]]) -> None:
    """Print one case's table in Markdown; ratios are reference over ours, of means."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    photos = len({row["photo"] for row in rows})
    print(f"\n{case}, {photos} photos\n")
    print("| loop | PSNR dB | to bound | evals | ratio | seconds | ratio | swaps | hue left |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    base = {key: mean(rows, REFERENCE, key) for key in ("evaluations", "seconds")}
    for name in names:
        own = [row for row in rows if row["name"] == name]
        swaps = sum(is_swapped(row["hue_before"], row["hue_distance"]) for row in own)
        psnr, bound, evaluations, seconds = (
            mean(rows, name, key) for key in ("psnr", "bound", "evaluations", "seconds")
        )
        print(
            f"| {name} | {psnr:.2f} | {psnr - bound:+.2f} | {evaluations:.0f} "
            f"| {base['evaluations'] / evaluations:.1f} | {seconds:.1f} "
            f"| {base['seconds'] / seconds:.1f} | {swaps}/{len(own)} "
            f"| {mean(rows, name, 'hue_distance'):.0f}° |"
        )


def mean(rows: list[dict[str, Any]], name: str, key: str) -> float:
    """Mean of one figure over one contender's rows."""
    return statistics.mean(row[key] for row in rows if row["name"] == name)


if __name__ == "__main__":
    main()
