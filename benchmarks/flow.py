"""What inversions and edits are worth on a rectified-flow model: validation photos.

    python benchmarks/flow.py --data DIR --photos 32 --edits 60 --page build/flow

Inversions: PSNR against the photo, the gap to the autoencoder's round trip (the bound), and the
evaluations of the network that inverting took; at the model's own guidance unless said otherwise.
Inversions that store what their replay misses (corrections) reach the bound by construction, so
that they stand here as they are without: fixed-point's replay, and the solvers' own way back.

Edits: those of `editing.py`, which also has the judge and the rules of success, shown as the model
drew them (`everywhere`), and put into the photo where they were found to belong (`auto`). FlowEdit,
RF-Inversion and UniEdit have their published guidance and steps, Prompt-to-Prompt the model's own.

Rows are appended to --rows as they are made, and pictures kept beside; a rerun continues there.
--page FOLDER writes a sheet of all pictures for each kind of edit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import nulltext
from captions import CaptionedPhoto, captioned_photos
from editing import Case, Task, draw_sheets, fixed_tasks, picture_name
from judge import Judge, load_judge
from kept_rows import KeptRows, Row, signed
from nulltext.constants import DETAIL, Region
from nulltext.diffusion.loops import run
from nulltext.editing import FlowEdit, MasaCtrl, RFInversionEdit, UniEdit
from nulltext.editing.finding import find_steps
from nulltext.editing.placing import Canvas, colour_of, place_steps
from nulltext.inversion import FixedPoint, NullText, round_trip
from nulltext.inversion.budgets import BUDGETS, Budget, planned
from nulltext.inversion.solving import SolverMethod

STEPS = 28
"""Of the inversions that have none of their own: as the stock pipelines."""
REGIONS: tuple[Region, ...] = ("everywhere", "auto")


@dataclass(frozen=True)
class Inverting:
    """One way to invert."""

    plan: Budget
    guidance_scale: float | None = None


def inversions() -> dict[str, Inverting]:
    """What is compared, by name; T is that of the budget for all that are iterated per step."""
    few = BUDGETS["balanced"].num_steps
    ways = {"Euler backwards, w = 1": Inverting(planned("ddim", num_steps=STEPS), 1.0)}
    ways["Euler backwards"] = Inverting(planned("ddim", num_steps=STEPS))
    ways["prompt as null"] = Inverting(planned("negative-prompt", num_steps=STEPS))
    ways["prompt as null, midpoint"] = Inverting(
        planned("negative-prompt", num_steps=STEPS, pivot="midpoint")
    )
    for pivot in ("ddim", "midpoint", "fixed-point"):
        said = "" if pivot == "ddim" else f", {pivot} pivot"
        ways[f"null-text{said}"] = Inverting(Budget(NullText(pivot=pivot), few))
    ways["fixed-point"] = Inverting(Budget(FixedPoint(), few))
    for name in ("rf-solver", "fireflow"):
        ways[name] = Inverting(planned(name))
    ways["uni-inv, w = 1"] = Inverting(planned("uni-inv"), 1.0)  # its way back is Euler's
    return ways


@dataclass(frozen=True)
class Editing:
    """One way to edit."""

    plan: Budget
    editor: nulltext.editing.Editor


def edits() -> dict[str, Editing]:
    """What is compared, by name."""
    words, few = nulltext.PromptToPrompt(), BUDGETS["balanced"]
    return {
        "fixed-point": Editing(few, words),
        "null-text": Editing(Budget(NullText(), few.num_steps), words),
        "prompt as null": Editing(planned("negative-prompt", num_steps=STEPS), words),
        "rf-solver": Editing(planned("rf-solver"), words),
        "fireflow": Editing(planned("fireflow"), words),
        "fixed-point, masactrl": Editing(few, MasaCtrl()),
        "flowedit": Editing(planned("encode", num_steps=50), FlowEdit()),
        "rf-inversion": Editing(planned("rf-inversion"), RFInversionEdit()),
        "uniedit": Editing(planned("uni-inv"), UniEdit()),
    }


def invert_by(model: nulltext.LatentDiffusion, item: CaptionedPhoto, way: Inverting) -> Row:
    """PSNR, bound and evaluations of one inversion, without corrections."""
    started = time.perf_counter()
    inversion = nulltext.invert(
        model,
        item.path,
        item.caption,
        method=way.plan.method,
        num_steps=way.plan.num_steps,
        guidance_scale=way.guidance_scale,
    )
    seconds = time.perf_counter() - started
    if isinstance(way.plan.method, SolverMethod):
        reached = round_trip(model, inversion).psnr
    else:
        reached = nulltext.replay(model, replace(inversion, corrections=None)).psnr
    header = inversion.header
    figures = {"psnr": reached, "bound": header.psnr_bound, "seconds": seconds}
    return {"figures": figures | {"evaluations": header.unet_evaluations}}


def edit_by(
    model: nulltext.LatentDiffusion,
    judge: Judge,
    task: Task,
    name: str,
    way: Editing,
    pictures: Path,
) -> Row:
    """Figures of one edit, by region; none where the editor cannot make it."""
    spec = task.spec(way.editor)
    if spec is None:
        return {"regions": {}}
    case = Case.of(model, task, way.plan)
    canvas = Canvas.of(case.inversion, None, full=False)
    colour = colour_of(model, case.inversion, spec)
    started = time.perf_counter()
    made = nulltext.edit(model, case.inversion, spec)
    seconds = case.inversion.header.seconds + time.perf_counter() - started
    regions = {}
    for region in REGIONS:
        plain = region == "everywhere"
        [finding] = run(find_steps(model, case.inversion, [spec], region))
        detail = "model" if plain else DETAIL  # as the model drew it
        placed = run(place_steps(canvas, made, 0, spec, detail, finding, colour))
        placed.image.save(pictures / picture_name(f"{name}, {region}", task))
        regions[region] = case.figures(judge, placed, case.reference if plain else case.photo)
        regions[region] |= {
            "evaluations": case.inversion.header.unet_evaluations + made.unet_evaluations,
            "seconds": seconds,
        }
    return {"regions": regions}


def print_inversions(console: Console, rows: dict[str, list[dict[str, float]]]) -> None:
    """One line per way to invert."""
    count = min(map(len, rows.values()))
    table = Table(title=f"Inversions of {count} photos")
    for column in ("inversion", "T", "PSNR dB", "to the bound dB", "evaluations", "seconds"):
        table.add_column(column, justify="left" if column == "inversion" else "right")
    for name, figures in rows.items():
        gap = statistics.mean(f["psnr"] - f["bound"] for f in figures)
        table.add_row(
            name,
            str(inversions()[name].plan.num_steps),
            f"{statistics.mean(f['psnr'] for f in figures):.2f}",
            signed(gap),
            f"{statistics.mean(f['evaluations'] for f in figures):.0f}",
            f"{statistics.mean(f['seconds'] for f in figures):.1f}",
        )
    console.print(table)


def print_edits(
    console: Console, rows: dict[str, dict[str, list[dict[str, float]]]], count: int
) -> None:
    """One line per way to edit and region."""
    table = Table(title=f"{count} edits")
    columns = ("edit", "region", "edits", "success %", "PSNR outside dB", "SSIM outside")
    for column in (*columns, "evaluations", "seconds"):
        table.add_column(column, justify="left" if column in ("edit", "region") else "right")
    for name, by_region in rows.items():
        for region, figures in by_region.items():
            means = {key: statistics.mean(f[key] for f in figures) for key in figures[0]}
            table.add_row(
                name,
                region,
                str(len(figures)),
                f"{100 * means['success']:.0f}",
                f"{means['psnr_outside']:.2f}",
                f"{means['ssim_outside']:.3f}",
                f"{means['evaluations']:.0f}",
                f"{means['seconds']:.1f}",
            )
    console.print(table)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--model", default="flowers-flow")
    parser.add_argument("--photos", type=int, default=32, help="number of inverted photos")
    parser.add_argument("--edits", type=int, default=60, help="number of edits")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=Path, default=Path("build/flow.jsonl"))
    parser.add_argument("--page", type=Path, help="folder for sheets of all pictures")
    options = parser.parse_args()
    pictures = options.rows.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    kept, console = KeptRows(options.rows), Console(width=140)
    model = nulltext.load(options.model, device=options.device)
    prefix = f"{model.fingerprint} w {model.guidance_scale:g}"

    inverted: dict[str, list[dict[str, float]]] = {name: [] for name in inversions()}
    photos = captioned_photos(options.data, "validation", options.photos) if options.photos else []
    for item in track(photos, "Inversions", console=Console(stderr=True)):
        for name, way in inversions().items():
            key = f"{prefix} {way} {item.path.name}"
            inverted[name].append(kept.get(key, partial(invert_by, model, item, way))["figures"])
    if photos:
        print_inversions(console, inverted)

    tasks = fixed_tasks(options.data, options.edits) if options.edits else []
    if not tasks:
        return
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    edited: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in edits()}
    for task in track(tasks, "Edits", console=Console(stderr=True)):
        for name, how in edits().items():
            key = f"{prefix} {how} {task.kind} {task.path.name}"
            row = kept.get(key, partial(edit_by, model, judge, task, name, how, pictures))
            for region, figures in row["regions"].items():
                edited[name].setdefault(region, []).append(figures)
    print_edits(console, edited, len(tasks))
    if options.page:
        options.page.mkdir(parents=True, exist_ok=True)
        shown = {f"{name}, {REGIONS[0]}": by.get(REGIONS[0], []) for name, by in edited.items()}
        draw_sheets(tasks, shown, pictures, options.page)


if __name__ == "__main__":
    main()
