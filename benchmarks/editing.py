"""Do edits succeed, and what do they leave alone? Edits of validation photos.

    python benchmarks/editing.py --data DIR --limit 60

Four kinds of edit in turn (another colour, another kind, another background, a stressed colour) on
photos spread over the validation split: fixed-point inversion within its budgets (`balanced`, the
default, and `fast`) at their own number of steps, and the published methods at T = 50, null-text
as in the paper, all with Prompt-to-Prompt; `balanced` also with MasaCtrl, which cannot stress a
word and sits these out, and with Prompt-to-Prompt beside the exact source branch.

success     the judge (see `judge.py`), trained on real training photos, calls the edited picture by
            the new word; for a stressed colour, still by that colour, and the foreground's mean has
            come closer to it
PSNR, SSIM  of the edited picture against the photo's own autoencoder round trip, outside the
            foreground (for a background edit: inside it); the foreground is the flower's outline
            as `nulltext.training.views` finds it, or a centred disc of half the area where none
            is believed. SSIM is scikit-image's, in Gaussian windows as published, averaged over
            that region
replay      PSNR of the method's own reconstruction against the photo, which for fixed-point is the
            bound by construction; beside: of the one sampled beside the edit; bound: the
            autoencoder's

Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nulltext
from captions import caption
from judge import Judge, Label, load_judge, read_labels
from kept_rows import KeptRows, Row
from nulltext.evaluation.metrics import Undefined, outside_disc, region_psnr, region_ssim
from nulltext.image.images import from_uint8
from nulltext.inversion.budgets import BUDGETS, Budget, planned
from nulltext.training.views import outline

METHODS = ("ddim", "null-text", "balanced", "fast", "negative-prompt", "direct")
"""Methods and, between them, budgets of fixed-point; "null-text" is as in the paper."""
EDITORS: dict[str, nulltext.editing.Editor] = {
    "prompt-to-prompt": nulltext.PromptToPrompt(),
    "masactrl": nulltext.MasaCtrl(),
}
FAVOURITE = "balanced"
"""The method whose inversions are also edited by the other editor, and beside the exact branch
(`ddim` beside that is `direct`, whose replay it is anyway)."""
BRANCHES = {"replay": nulltext.inversion.source_step, "exact": nulltext.inversion.exact_source_step}
SWAPS = {
    "colour": {
        "yellow": "red",
        "white": "pink",
        "orange": "white",
        "red": "yellow",
        "pink": "yellow",
        "purple": "white",
    },
    "kind": {
        "dandelion": "daisy",
        "tulip": "rose",
        "rose": "tulip",
        "daisy": "sunflower",
        "sunflower": "daisy",
    },
    "background": {
        "dark": "green",
        "green": "dark",
        "grey": "dark",
        "white": "dark",
        "blue": "green",
    },
}
PAINT = {
    "yellow": (1.0, 0.85, 0.0),
    "white": (1.0, 1.0, 1.0),
    "orange": (1.0, 0.5, 0.0),
    "red": (0.85, 0.0, 0.0),
    "pink": (1.0, 0.5, 0.7),
    "purple": (0.5, 0.1, 0.6),
}
"""What a stressed colour should come closer to, RGB in [0, 1]."""
STRESS = 2.0
TASKS = ("colour", "kind", "background", "reweight")
MOST_PSNR = 100.0
"""Of pictures that are equal, in decibels."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Task:
    """One edit of one photo."""

    kind: str
    path: Path
    label: Label

    @property
    def attribute(self) -> str:
        """What the edit is about."""
        return "colour" if self.kind == "reweight" else self.kind

    @property
    def old(self) -> str:
        """Its value in the photo."""
        return str(self.label[self.attribute])

    @property
    def new(self) -> str:
        """Its value in the edit."""
        return self.old if self.kind == "reweight" else SWAPS[self.attribute][self.old]

    def spec(self, editor: nulltext.editing.Editor) -> nulltext.EditSpec | None:
        """The edit, in words; None if the editor cannot make it."""
        target = caption({**self.label, self.attribute: self.new})
        if self.kind != "reweight":
            return nulltext.EditSpec(target, editor=editor)
        if not isinstance(editor, nulltext.PromptToPrompt):
            return None
        return nulltext.EditSpec(target, weights={self.old: STRESS})


def fixed_tasks(folder: Path, limit: int) -> list[Task]:
    """The first `limit` edits of a fixed list: kinds of edit in turn, photos evenly spread."""
    whole = [r for r in read_labels(folder, "validation") if all(r[a] for a in SWAPS)]
    count = len(whole)
    stride = next(s for s in range(37, 37 + count) if math.gcd(s, count) == 1)
    photos = [whole[i * stride % count] for i in range(min(limit, count))]
    return [
        Task(TASKS[i % len(TASKS)], folder / str(row["file"]), row) for i, row in enumerate(photos)
    ]


def foreground(picture: Tensor) -> Tensor:
    """The flower's outline in a photo [1, 3, H, W] in [0, 1], else a centred disc: [H, W] bool."""
    pixels = (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    found = outline(pixels.numpy())
    if found is not None:
        return torch.from_numpy(found)
    return ~outside_disc(*picture.shape[-2:])


def succeeded(judge: Judge, task: Task, edited: Tensor, photo: Tensor) -> bool:
    """Whether an edit is one, by the module's rule; pictures [1, 3, H, W] in [0, 1]."""
    named = {"colour": judge.colour, "kind": judge.kind, "background": judge.background}
    [called] = named[task.attribute](edited)
    if called != task.new or task.kind != "reweight":
        return called == task.new
    paint, flower = torch.tensor(PAINT[task.new]), foreground(photo)

    def distance(picture: Tensor) -> float:
        return float((picture[0, :, flower].mean(dim=1) - paint).norm())

    return distance(edited) < distance(photo)


def kept(edited: Tensor, reference: Tensor, region: Tensor) -> Figures:
    """PSNR and SSIM over a region [H, W]; pictures [1, 3, H, W] in [0, 1]."""
    a, b = 2 * edited[0] - 1, 2 * reference[0] - 1
    psnr, ssim = region_psnr(a, b, region), region_ssim(a, b, region)
    assert not isinstance(ssim, Undefined)
    return {
        "psnr_outside": MOST_PSNR if isinstance(psnr, Undefined) else min(psnr, MOST_PSNR),
        "ssim_outside": ssim,
    }


def measure(
    model: nulltext.LatentDiffusion, judge: Judge, task: Task, method: str, steps: int
) -> Row:
    """Figures of one edit by one method, by "editor, branch"."""
    words, plan = caption(task.label), plan_of(method, steps)
    how: dict[str, Any] = {"method": plan.method, "num_steps": plan.num_steps}
    inversion = nulltext.invert(model, task.path, words, **how)
    reference = model.decode(inversion.trajectory[:1].to(model.device)).cpu()
    photo, reference = (as_unit(x) for x in (from_uint8(inversion.photo), reference))
    flower = foreground(photo)
    region = flower if task.kind == "background" else ~flower
    rows = {}
    for editor_name, editor in EDITORS.items():
        spec = task.spec(editor)
        for branch_name, branch in BRANCHES.items():
            if spec is None or not measured(method, editor_name, branch_name):
                continue
            started = time.perf_counter()
            edit = nulltext.edit(model, inversion, spec, source_branch=branch)
            seconds = time.perf_counter() - started
            edited = as_unit(edit.images)
            rows[f"{editor_name}, {branch_name}"] = {
                "success": float(succeeded(judge, task, edited, photo)),
                **kept(edited, reference, region),
                "psnr_replay": inversion.header.psnr_reconstruction,
                "psnr_reconstruction": edit.psnr_reconstruction,
                "psnr_bound": inversion.header.psnr_bound,
                "unet_evaluations": inversion.header.unet_evaluations,
                "seconds": inversion.header.seconds + seconds,
            }
    return {"rows": rows}


def plan_of(method: str, steps: int) -> Budget:
    """How one of `METHODS` inverts; `steps`: of all but the two budgets."""
    if method in BUDGETS:
        return planned(budget=method)
    return planned(method, num_steps=steps)


def measured(method: str, editor: str, branch: str) -> bool:
    """Whether a combination is in the tables: see the module's text."""
    plain = editor == "prompt-to-prompt" and branch == "replay"
    return plain or (method == FAVOURITE and f"{editor}, {branch}" != "masactrl, exact")


def as_unit(images: Tensor) -> Tensor:
    """From about [-1, 1] to [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


COLUMNS = {
    "success": ("success %", 100.0, 0),
    "psnr_outside": ("PSNR outside dB", 1.0, 2),
    "ssim_outside": ("SSIM outside", 1.0, 3),
    "psnr_replay": ("PSNR replay dB", 1.0, 2),
    "psnr_reconstruction": ("PSNR beside dB", 1.0, 2),
    "psnr_bound": ("bound dB", 1.0, 2),
    "unet_evaluations": ("UNet to invert", 1.0, 0),
    "seconds": ("seconds", 1.0, 1),
}


def print_table(console: Console, title: str, rows: dict[str, list[Figures]]) -> None:
    """One line per method, editor and source branch."""
    table, headings = Table(title=title), [heading for heading, _, _ in COLUMNS.values()]
    for name in ("method, editor, source", "edits", *headings):
        table.add_column(name, justify="left" if name.startswith("method") else "right")
    for name, figures in rows.items():
        values = (
            f"{scale * statistics.mean(f[key] for f in figures):.{digits}f}"
            for key, (_, scale, digits) in COLUMNS.items()
        )
        table.add_row(name, str(len(figures)), *values)
    console.print(table)


def grouped(
    tasks: Sequence[Task], methods: Sequence[str], known: dict[str, dict[str, Figures]], prefix: str
) -> dict[str, list[Figures]]:
    """Figures by "method, editor, branch", over the tasks that all methods have done."""
    result: dict[str, list[Figures]] = {}
    for task in tasks:
        rows = {method: known.get(key_of(prefix, method, task)) for method in methods}
        if None in rows.values():
            continue
        for method, by_name in rows.items():
            for name, figures in (by_name or {}).items():
                if not measured(method, *name.split(", ")):
                    continue  # of an earlier version of this script
                result.setdefault(f"{method}, {name}", []).append(figures)
    return dict(sorted(result.items(), key=lambda item: item[0].split(", ")[1], reverse=True))


def key_of(prefix: str, method: str, task: Task) -> str:
    """The name of a row in the file of rows; a budget may change from one version to the next."""
    if method in BUDGETS:
        method = f"{method} {BUDGETS[method]}"
    return f"{prefix} {method} {task.kind} {task.path.name}"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=60, help="number of edits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=Path, default=Path("build/editing.jsonl"))
    options = parser.parse_args()
    stored = KeptRows(options.rows)
    tasks = fixed_tasks(options.data, options.limit)
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    console = Console(width=150)
    console.print("Judge, validation:", {k: round(v, 3) for k, v in judge.accuracy.items()})
    model = nulltext.load(options.model, device=options.device)
    prefix = f"{model.fingerprint} w {model.guidance_scale:g} {options.steps} outlines, evaluations"
    for task in track(tasks, "Edits", console=Console(stderr=True)):
        for method in options.methods:
            key = key_of(prefix, method, task)
            stored.get(key, partial(measure, model, judge, task, method, options.steps))
    known = {key: row["rows"] for key, row in stored.by_key.items()}
    for kind in (None, *TASKS):
        some = [task for task in tasks if kind in (None, task.kind)]
        rows = grouped(some, options.methods, known, prefix)
        if rows:
            print_table(console, f"{kind or 'all'}: {len(some)} edits", rows)


if __name__ == "__main__":
    main()
