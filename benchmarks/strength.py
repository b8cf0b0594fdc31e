"""How evenly does an edit grow with its strength? Edits of validation photos.

    python benchmarks/strength.py --data DIR

Sixteen edits (another colour, kind or background in turn: the first of `editing.py` that change a
word) at the strengths 0, 0.1, … 1, all in one batch beside the source. Between two pictures

    d(x, y)^2 = sum over layers l of mean over places of || u_l(x) - u_l(y) ||^2

with u_l the bundled captioner's EfficientNet features of layer l, of unit length at each place (the
form of LPIPS: Zhang et al. 2018, eq. 1, without learnt weights). With x_s the edit at strength s:

path        the sum of d between neighbouring strengths up to s, over that up to 1: equal steps
            look equal where it is s
far         d(x_s, x_0) / d(x_1, x_0): how far the picture is from the photo's replay
uneven      the largest |path - s|
back        of the steps between neighbouring strengths, the share in which `far` falls

Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import nulltext
from editing import Task, as_unit, fixed_tasks, foreground, kept, succeeded
from judge import Judge, load_judge
from kept_rows import KeptRows, Row
from nulltext.image.images import from_uint8
from nulltext.words.captions import caption

STRENGTHS = tuple(i / 10 for i in range(11))


@torch.no_grad()
def distances(captioner: nulltext.captioning.Captioner, pictures: Tensor) -> Tensor:
    """d of all pairs of pictures [B, 3, H, W] in [0, 1]: [B, B]."""
    side = captioner.preprocessing.side
    resized = functional.interpolate(pictures, size=(side, side), mode="bicubic").clamp(0, 1)
    pixels = captioner.preprocessing.standardise(resized)
    found = captioner.model.vision(pixel_values=pixels, output_hidden_states=True)
    total = torch.zeros(len(pictures), len(pictures))
    for layer in found.hidden_states:
        units = functional.normalize(layer, dim=1).flatten(1)
        places = layer.shape[-2] * layer.shape[-1]
        total += (
            torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / places
        )
    return total.sqrt()


def chosen(folder: Path, count: int) -> list[Task]:
    """The first edits of `editing.py` that change a word."""
    return [task for task in fixed_tasks(folder, 2 * count) if task.kind != "reweight"][:count]


def measure(
    model: nulltext.LatentDiffusion,
    judge: Judge,
    captioner: nulltext.captioning.Captioner,
    task: Task,
) -> Row:
    """Distances and figures of one edit at all strengths."""
    inversion = nulltext.invert(model, task.path, caption(task.label))
    photo = as_unit(from_uint8(inversion.photo))
    reference = as_unit(model.decode(inversion.trajectory[:1].to(model.device)).cpu())
    spec = nulltext.EditSpec(caption({**task.label, task.attribute: task.new}))
    edit = nulltext.edit(model, inversion, [spec.at_strength(s) for s in STRENGTHS])
    pictures, flower = as_unit(edit.images), foreground(photo)
    region = flower if task.kind == "background" else ~flower
    between = distances(captioner, pictures)
    return {
        "steps": [float(between[i, i + 1]) for i in range(len(STRENGTHS) - 1)],
        "far": between[0].tolist(),
        "success": [float(succeeded(judge, task, x[None], photo)) for x in pictures],
        "kept": [kept(x[None], reference, region)["psnr_outside"] for x in pictures],
    }


def path_of(row: Row) -> list[float]:
    """`path` of the module's text, at all strengths."""
    return [sum(row["steps"][:i]) / sum(row["steps"]) for i in range(len(STRENGTHS))]


def far_of(row: Row) -> list[float]:
    """`far` of the module's text, at all strengths."""
    return [value / row["far"][-1] for value in row["far"]]


def backward_share(rows: Sequence[Row]) -> float:
    """`back` of the module's text."""
    return statistics.mean(b < a for row in rows for a, b in pairwise(row["far"]))


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """One line per strength."""
    table = Table(title=f"{len(rows)} edits")
    for name in ("strength", "path", "far", "succeed", "kept dB"):
        table.add_column(name, justify="right")
    paths, fars = [path_of(row) for row in rows], [far_of(row) for row in rows]
    path = [statistics.mean(values) for values in zip(*paths, strict=True)]
    for i, strength in enumerate(STRENGTHS):
        table.add_row(
            f"{strength:g}",
            f"{path[i]:.3f}",
            f"{statistics.mean(values[i] for values in fars):.3f}",
            f"{sum(row['success'][i] for row in rows):.0f}",
            f"{statistics.mean(row['kept'][i] for row in rows):.1f}",
        )
    console.print(table)
    uneven = max(abs(p - s) for p, s in zip(path, STRENGTHS, strict=True))
    console.print(f"uneven: {uneven:.3f}; back: {100 * backward_share(rows):.0f} % of the steps")


def main() -> None:
    """Measure, print the table and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=16, help="number of edits")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--rows", type=Path, default=Path("build/strength.jsonl"))
    options = parser.parse_args()
    stored = KeptRows(options.rows)
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    model = nulltext.load(options.model)
    captioner = nulltext.captioning.load_captioner("flowers")
    knob = [nulltext.EditSpec("x").at_strength(s) for s in STRENGTHS]
    prefix = f"{model.fingerprint} {zlib.crc32(repr(knob).encode())}"
    rows = [
        stored.get(f"{prefix} {t.path.name}", partial(measure, model, judge, captioner, t))
        for t in track(chosen(options.data, options.limit), console=Console(stderr=True))
    ]
    print_table(Console(width=120), rows)


if __name__ == "__main__":
    main()
