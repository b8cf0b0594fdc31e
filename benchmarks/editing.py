"""Do edits succeed, and what do they leave alone? Edits of validation photos.

    python benchmarks/editing.py --data DIR --limit 60 --page build/editing

Four kinds of edit in turn (another colour, another kind, another background, a stressed colour) on
photos spread over the validation split: fixed-point inversion within its budgets (`balanced`, the
default, and `fast`) at their own number of steps, and the published methods at T = 50, null-text
as in the paper, all with Prompt-to-Prompt; `balanced` also with MasaCtrl, which cannot stress a
word and sits these out, with Prompt-to-Prompt beside the exact source branch, and within a local
blend of the flower's word. Each edit is shown as the model drew it (`everywhere`) and put into the
photo where it was found to belong (`--region auto` and `words`).

success     the judge (see `judge.py`), trained on real training photos, calls the edited picture by
            the new word; for a stressed colour, still by that colour, and the foreground's mean has
            come closer to it
PSNR, SSIM  of the edited picture against the photo, or for `everywhere` against the photo's own
            autoencoder round trip, which is what it starts from, outside the foreground (for a
            background edit: inside it); the foreground is the flower's outline
            as `nulltext.training.views` finds it, or a centred disc of half the area where none
            is believed. SSIM is scikit-image's, in Gaussian windows as published, averaged over
            that region
replay      PSNR of the method's own reconstruction against the photo, which for fixed-point is the
            bound by construction; beside: of the one sampled beside the edit; bound: the
            autoencoder's

Rows are appended to --rows as they are made, and pictures kept beside; a rerun continues there.
--page FOLDER writes all pictures, a sheet for each kind of edit, and `pareto.png`: what is kept
against how many edits succeed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nulltext
from captions import caption
from judge import Judge, Label, load_judge, read_labels
from kept_rows import KeptRows, Row
from nulltext.constants import DETAIL, Region
from nulltext.diffusion.loops import run
from nulltext.editing.finding import find_steps
from nulltext.editing.placing import Canvas, Placed, colour_of, place_steps
from nulltext.evaluation.metrics import Undefined, outside_disc, region_psnr, region_ssim
from nulltext.image.images import from_uint8
from nulltext.image.saving import save_image
from nulltext.image.strip import Block, labelled_grid
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
REGIONS: tuple[Region, ...] = ("everywhere", "auto", "words")
BLEND: Final = "blend"
"""Stands beside `REGIONS`: held in the latents where the flower's word looks."""
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


@dataclass(frozen=True)
class Case:
    """An inverted photo, and what its edits are measured against."""

    task: Task
    inversion: nulltext.Inversion
    photo: Tensor
    """[1, 3, H, W] in [0, 1]."""
    reference: Tensor
    """Its autoencoder round trip."""

    @classmethod
    def of(cls, model: nulltext.LatentDiffusion, task: Task, plan: Budget) -> Case:
        how: dict[str, Any] = {"method": plan.method, "num_steps": plan.num_steps}
        inversion = nulltext.invert(model, task.path, caption(task.label), **how)
        reference = model.decode(inversion.trajectory[:1].to(model.device)).cpu()
        return cls(task, inversion, as_unit(from_uint8(inversion.photo)), as_unit(reference))

    def figures(self, judge: Judge, placed: Placed, before: Tensor) -> Figures:
        """Success and what was kept, of one edit in its crop."""
        shown = torch.from_numpy(np.array(placed.image)).permute(2, 0, 1)[None] / 255
        flower = foreground(self.photo)
        region = flower if self.task.kind == "background" else ~flower
        return {
            "success": float(succeeded(judge, self.task, shown, self.photo)),
            **kept(shown, before, region),
            "region": placed.region_fraction,
        }


def measure(
    model: nulltext.LatentDiffusion,
    judge: Judge,
    task: Task,
    method: str,
    steps: int,
    pictures: Path,
) -> Row:
    """Figures of one edit by one method, by "editor, branch, region"."""
    case = Case.of(model, task, plan_of(method, steps))
    header, canvas = case.inversion.header, Canvas.of(case.inversion, None, full=False)
    rows = {}
    for (editor_name, editor), (branch_name, branch) in product(EDITORS.items(), BRANCHES.items()):
        spec = task.spec(editor)
        regions = regions_of(method, editor_name, branch_name)
        if spec is None or not regions:
            continue
        colour = colour_of(model, case.inversion, spec)
        started = time.perf_counter()
        edit = nulltext.edit(model, case.inversion, spec, source_branch=branch)
        seconds = header.seconds + time.perf_counter() - started
        for region in regions:
            before, detail = case.photo, DETAIL
            if region == "everywhere":
                before, detail = case.reference, "model"  # as the model drew it
            if region == BLEND:
                words = nulltext.LocalBlend((str(task.label["kind"]),))
                spec = replace(spec, blend=words)
                edit = nulltext.edit(model, case.inversion, spec, source_branch=branch)
                placed = run(place_steps(canvas, edit, 0, spec, "auto", colour=colour))
            else:
                [finding] = run(find_steps(model, case.inversion, [spec], region))
                placed = run(place_steps(canvas, edit, 0, spec, detail, finding, colour))
            name = f"{method}, {editor_name}, {branch_name}, {region}"
            placed.image.save(pictures / picture_name(name, task))
            rows[name.partition(", ")[2]] = {
                **case.figures(judge, placed, before),
                "psnr_replay": header.psnr_reconstruction,
                "psnr_reconstruction": edit.psnr_reconstruction,
                "psnr_bound": header.psnr_bound,
                "unet_evaluations": header.unet_evaluations,
                "seconds": seconds,
            }
    return {"rows": rows}


def picture_name(name: str, task: Task) -> str:
    """The file of an edit's picture; `name`: as in the tables."""
    return f"{name}, {task.kind}, {task.path.stem}.png"


def plan_of(method: str, steps: int) -> Budget:
    """How one of `METHODS` inverts; `steps`: of all but the two budgets."""
    if method in BUDGETS:
        return planned(budget=method)
    return planned(method, num_steps=steps)


def regions_of(method: str, editor: str, branch: str) -> tuple[Region | Literal["blend"], ...]:
    """In which regions a combination is shown, the local blend last: see the module's text."""
    plain = editor == "prompt-to-prompt" and branch == "replay"
    if method == FAVOURITE:
        if plain:
            return (*REGIONS, BLEND)
        return () if f"{editor}, {branch}" == "masactrl, exact" else REGIONS
    return REGIONS if plain else ()


def as_unit(images: Tensor) -> Tensor:
    """From about [-1, 1] to [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


COLUMNS = {
    "success": ("success %", 100.0, 0),
    "psnr_outside": ("PSNR outside dB", 1.0, 2),
    "ssim_outside": ("SSIM outside", 1.0, 3),
    "region": ("region %", 100.0, 0),
    "psnr_replay": ("PSNR replay dB", 1.0, 2),
    "psnr_reconstruction": ("PSNR beside dB", 1.0, 2),
    "psnr_bound": ("bound dB", 1.0, 2),
    "unet_evaluations": ("UNet to invert", 1.0, 0),
    "seconds": ("seconds", 1.0, 1),
}


def print_table(console: Console, title: str, rows: dict[str, list[Figures]]) -> None:
    """One line per method, editor and source branch."""
    table, headings = Table(title=title), [heading for heading, _, _ in COLUMNS.values()]
    for name in ("method, editor, source, region", "edits", *headings):
        first = name.startswith("method")
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
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
    """Figures by "method, editor, branch, region", over the tasks that all methods have done."""
    result: dict[str, list[Figures]] = {}
    for task in tasks:
        rows = {method: known.get(key_of(prefix, method, task)) for method in methods}
        if None in rows.values():
            continue
        for method, by_name in rows.items():
            for name, figures in (by_name or {}).items():
                result.setdefault(f"{method}, {name}", []).append(figures)
    return dict(sorted(result.items(), key=lambda item: item[0].split(", ")[1], reverse=True))


def draw_pareto(rows: dict[str, list[Figures]], path: Path) -> None:
    """Plot what edits keep against how many of them succeed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for region, mark in zip((*REGIONS, BLEND), "os^x", strict=True):
        shown = {name: figures for name, figures in rows.items() if name.endswith(f", {region}")}
        kept_there = [statistics.mean(f["psnr_outside"] for f in some) for some in shown.values()]
        succeed = [100 * statistics.mean(f["success"] for f in some) for some in shown.values()]
        axes.scatter(kept_there, succeed, marker=mark, s=60, label=region)
        for name, point in zip(shown, zip(kept_there, succeed, strict=True), strict=True):
            parts = name.removesuffix(f", {region}").split(", ")
            said = ", ".join(part for part in parts if part not in ("prompt-to-prompt", "replay"))
            below = -12 if "exact" in parts else 4  # where it lies on the replay's point
            axes.annotate(said, point, xytext=(6, below), textcoords="offset points", fontsize=8)
    axes.margins(x=0.18, y=0.12)
    axes.legend(title="region")
    axes.set_xlabel("kept outside the foreground, mean dB")
    axes.set_ylabel("edits that succeed, %")
    figure.savefig(path, dpi=100, bbox_inches="tight")


def draw_sheets(
    tasks: Sequence[Task], rows: dict[str, list[Figures]], pictures: Path, page: Path
) -> None:
    """Write all pictures, a sheet for each kind of edit."""
    for kind in TASKS:
        labels, images = [], []
        for task in tasks:
            files = [pictures / picture_name(name, task) for name in rows]
            if task.kind == kind and any(file.is_file() for file in files):
                blank = Image.new("RGB", (1, 1))
                edits = [Image.open(file) if file.is_file() else blank for file in files]
                labels.append(f"{task.old} -> {task.new}")
                images.append([Image.open(task.path).convert("RGB"), *edits])
        if images:
            sheet = labelled_grid([Block(kind, ["photo", *rows], labels, images)])
            save_image(sheet, page / f"{kind}.jpg")


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
    parser.add_argument("--page", type=Path, help="folder for a plot and all pictures")
    options = parser.parse_args()
    pictures = options.rows.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    stored = KeptRows(options.rows)
    tasks = fixed_tasks(options.data, options.limit)
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    console = Console(width=190)
    console.print("Judge, validation:", {k: round(v, 3) for k, v in judge.accuracy.items()})
    model = nulltext.load(options.model, device=options.device)
    prefix = f"{model.fingerprint} w {model.guidance_scale:g} {options.steps} regions"
    for task in track(tasks, "Edits", console=Console(stderr=True)):
        for method in options.methods:
            key = key_of(prefix, method, task)
            stored.get(key, partial(measure, model, judge, task, method, options.steps, pictures))
    known = {key: row["rows"] for key, row in stored.by_key.items()}
    for kind in (None, *TASKS):
        some = [task for task in tasks if kind in (None, task.kind)]
        rows = grouped(some, options.methods, known, prefix)
        if rows:
            print_table(console, f"{kind or 'all'}: {len(some)} edits", rows)
        if rows and kind is None and options.page:
            options.page.mkdir(parents=True, exist_ok=True)
            draw_pareto(rows, options.page / "pareto.png")
            draw_sheets(tasks, rows, pictures, options.page)


if __name__ == "__main__":
    main()
