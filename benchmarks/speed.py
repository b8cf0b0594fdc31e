"""How much faster than the published loop, at which fidelity? Side by side, photo by photo.

    python benchmarks/speed.py --data DIR --limit 32 --reference 8

For each photo and each case (the model's own w, w = 7.5, w = 12, a wrong caption, an empty prompt)
the published loop and the budgets run one after the other; each inversion is replayed with and
without its stored corrections and, where the caption has a colour, edited to another one. The
published loop takes minutes per photo: --reference says for how many photos it runs, and ratios are
over these. Rows are appended to --rows as they are made, and a rerun continues there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import nulltext
from captions import CaptionedPhoto, captioned_photos
from colour_swap import HUES, is_swapped, swap_distance, swapped_colour
from kept_rows import KeptRows, signed
from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.budgets import BUDGETS
from reference_loop import ReferenceLoop, with_naive_attention

Contender: TypeAlias = tuple[nulltext.LatentDiffusion, InversionMethod, int]
"""Model, method, T."""

REFERENCE = "reference"
WRONG = {"daisy": "rose", "rose": "sunflower", "sunflower": "tulip", "tulip": "daisy"}


def wrong(caption: str) -> str:
    """The caption with another kind and another colour."""
    words = caption.split()
    for i, word in enumerate(words[:6]):
        if word in HUES or word == "white":
            words[i] = swapped_colour(word)
        words[i] = WRONG.get(words[i], words[i])
    return " ".join(words)


@dataclass(frozen=True)
class Case:
    """What all contenders are given."""

    title: str
    guidance: float | None
    """None: the model's own."""
    prompt: Callable[[str], str] = str
    """Of the photo's caption."""


CASES = {
    "own": Case("the model's own w", None),
    "7.5": Case("w = 7.5", GUIDANCE_SCALE),
    "12": Case("w = 12", 12.0),
    "wrong": Case("wrong caption", GUIDANCE_SCALE, wrong),
    "empty": Case("empty prompt", GUIDANCE_SCALE, lambda _: ""),
}
"""By their name on the command line."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with labels.jsonl")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=32, help="number of photos")
    parser.add_argument("--reference", type=int, help="of these, how many for the published loop")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--budgets", nargs="*", choices=BUDGETS, default=["fast", "balanced"])
    parser.add_argument("--rows", type=Path, default=Path("build/speed.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the rows, measure nothing")
    options = parser.parse_args()
    cases = [CASES[name] for name in options.cases]
    if options.report:
        report_all(list(KeptRows(options.rows).by_key.values()), cases)
        return
    if options.data is None:
        raise SystemExit("Pass --data a folder of photos with labels.jsonl.")
    photos = captioned_photos(options.data, options.split, options.limit)
    count = len(photos) if options.reference is None else min(options.reference, len(photos))
    slow = [photos[i * len(photos) // count] for i in range(count)]
    model = nulltext.load(options.model, device=options.device)
    rivals = contenders(model, options.budgets)
    report_all(measured(model, photos, slow, cases, rivals, options.rows), cases)


def report_all(rows: list[dict[str, Any]], cases: list[Case]) -> None:
    """Per case: a table over the photos that have all its rows, and one of the budgets over all."""
    for case in cases:
        own = [row for row in rows if row["case"] == case.title]
        names = {row["name"] for row in own}
        done = {(row["photo"], row["name"]) for row in own}
        shared = [row for row in own if all((row["photo"], name) in done for name in names)]
        if shared:
            report(case.title, shared)
        budgets = [row for row in own if row["name"] != REFERENCE]
        if len({row["photo"] for row in budgets}) > len({row["photo"] for row in shared}):
            report(case.title, budgets)


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
    slow: list[CaptionedPhoto],
    cases: list[Case],
    rivals: dict[str, Contender],
    path: Path,
) -> list[dict[str, Any]]:
    """Every photo's row of every case and contender, from the file or made now.

    Args: slow: the photos that the published loop runs on.
    """
    kept, rows = KeptRows(path), []
    for photo in photos:
        for case in cases:
            for name, rival in rivals.items():
                if name == REFERENCE and photo not in slow:
                    continue
                _, method, steps = rival
                key = f"{model.fingerprint} {photo.path.name} {case.title} {name} {method} {steps}"
                row = kept.get(key, partial(inverted, model, name, rival, photo, case))
                print(json.dumps(row | {"key": ""}), flush=True)
                rows.append(row)
    return rows


def inverted(
    model: nulltext.LatentDiffusion,
    name: str,
    rival: Contender,
    photo: CaptionedPhoto,
    case: Case,
) -> dict[str, Any]:
    """Invert a photo by a contender, and measure what came of it."""
    own_model, method, steps = rival
    started = time.process_time()
    inversion = nulltext.invert(
        own_model,
        photo.path,
        case.prompt(photo.caption),
        method=method,
        num_steps=steps,
        guidance_scale=case.guidance,
    )
    seconds = time.process_time() - started
    row = {"photo": photo.path.name, "case": case.title, "name": name, "seconds": seconds}
    return row | figures(model, inversion)


def figures(model: nulltext.LatentDiffusion, inversion: nulltext.Inversion) -> dict[str, Any]:
    """What one inversion cost and is worth, its colour swap included if its prompt has a colour."""
    header = inversion.header
    replayed = plain = nulltext.replay(model, inversion).psnr
    if inversion.corrections is not None:
        plain = nulltext.replay(model, replace(inversion, corrections=None)).psnr
    found = {
        "psnr": replayed,
        "psnr_plain": plain,
        "bound": header.psnr_bound,
        "evaluations": header.unet_evaluations,
        "unconverged": header.unconverged,
    }
    words = header.prompt.split()
    colour = next((word for word in words if word in [*HUES, "white"]), None)
    if colour is None:
        return found
    target = swapped_colour(colour)
    edit = nulltext.edit(model, inversion, header.prompt.replace(f"{colour} ", f"{target} ", 1))
    return found | {
        "hue_before": swap_distance(inversion.photo / 255, target),
        "hue_distance": swap_distance(edit.images[0], target),
    }


COLUMNS = (
    "loop",
    "PSNR dB",
    "to bound",
    "worst",
    "without corrections",
    "worst",
    "evals",
    "ratio",
    "seconds",
    "ratio",
    "swaps",
    "hue left",
)


def report(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one case's table in Markdown; ratios are reference over ours, of means."""
    by_name = {name: [row for row in rows if row["name"] == name] for name in names_of(rows)}
    print(f"\n{title}, {len({row['photo'] for row in rows})} photos\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'--:|' * (len(COLUMNS) - 1)}")
    for name, own in by_name.items():
        cells = [name, f"{mean(own, 'psnr'):.2f}"]
        for key in ("psnr", "psnr_plain"):
            gaps = [row.get(key, row["psnr"]) - row["bound"] for row in own]
            cells += [signed(statistics.mean(gaps)), signed(min(gaps))]
        for key, digits in (("evaluations", 0), ("seconds", 1)):
            spent = mean(own, key)
            base = mean(by_name[REFERENCE], key) if REFERENCE in by_name else None
            cells += [f"{spent:.{digits}f}", "" if base is None else f"{base / spent:.1f}"]
        swapped = [row for row in own if "hue_distance" in row]
        if swapped:
            count = sum(is_swapped(row["hue_before"], row["hue_distance"]) for row in swapped)
            cells += [f"{count}/{len(swapped)}", f"{mean(swapped, 'hue_distance'):.0f}°"]
        else:
            cells += ["", ""]
        print(f"| {' | '.join(cells)} |")


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    """Contenders in their order."""
    return list(dict.fromkeys(row["name"] for row in rows))


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Mean of one figure."""
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    main()
