"""Where this library and the published code read or inject attention otherwise: edits of photos.

    python benchmarks/attention_choices.py --data DIR

The first edits of `editing.py` after the default inversion, by Prompt-to-Prompt as it is and with
one thing changed at a time; success and what is kept as there.

self 8 x 8, 4 x 4   self-attention injected up to a half or a quarter of the latents' side (the
                    published notebooks: up to 32 x 32 or 16 x 16 of 64), not at every layer
self - 1 step       injected for one step less of the 20, as rounding may make it
weights end         a stressed word is stressed for as long as attention is injected, as published
blend, masactrl     --blend on the kind (or "background"); MasaCtrl from layer 0 with the kind as
                    --masa-word; masks read in all layers of at most 16 x 16, or in those alone

Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nulltext
from editing import STRESS, Task, as_unit, fixed_tasks, foreground, kept, succeeded
from judge import Judge, load_judge
from kept_rows import KeptRows, Row
from nulltext.attention.blend import LocalBlend
from nulltext.attention.controller import Heads, Site
from nulltext.attention.maps import StepMaps
from nulltext.attention.prompt_to_prompt import Injection, MapInjector
from nulltext.attention.store import TargetControl
from nulltext.constants import SELF_STEPS
from nulltext.image.images import from_uint8
from nulltext.words.captions import caption
from nulltext.words.prompts import TokenizedPrompt

MAP_SIDE = 16
"""Side of the layers that the published masks are read in."""
ONE_STEP = 1 / 20
"""Of the default inversion."""


class EndingInjector(MapInjector):
    """Weighs words only where attention is injected."""

    def edit(self, own: Tensor, site: Site, heads: Heads) -> Tensor:
        """Return the injector's attention, without weights where a row injects nothing."""
        rows = zip(self.controls, super().edit(own, site, heads), strict=True)
        return torch.stack(
            [
                row if control.plan.takes_maps(self.step, site) else row / control.plan.weights
                for control, row in rows
            ]
        )


class EndingInjection(Injection):
    """An injection with that injector."""

    @classmethod
    def controller(
        cls, controls: Sequence[TargetControl[Injection]], step: int, *, guided: bool
    ) -> EndingInjector:
        """Return the controller of these rows."""
        return EndingInjector(controls, step, guided)


@dataclass(frozen=True)
class Changed(nulltext.PromptToPrompt):
    """Prompt-to-Prompt with another largest layer, or weights that end."""

    self_side: int = MAP_SIDE
    ends: bool = False

    def plan(
        self,
        model: nulltext.LatentDiffusion,
        line: Sequence[TokenizedPrompt],
        num_steps: int,
        size: tuple[int, int],
    ) -> Injection:
        """The editor's plan, changed."""
        plan = replace(super().plan(model, line, num_steps, size), self_pixels=self.self_side**2)
        if self.ends:
            return EndingInjection(**{f.name: getattr(plan, f.name) for f in fields(plan)})
        return plan


def maps_of_largest_layers() -> AbstractContextManager[object]:
    """Read token maps in the layers of 16 x 16 alone."""
    wants = StepMaps.wants

    def wants_largest(maps: StepMaps, site: Site) -> bool:
        return wants(maps, site) and site.pixels == MAP_SIDE**2

    return patch.object(StepMaps, "wants", wants_largest)


def measure(model: nulltext.LatentDiffusion, judge: Judge, task: Task) -> Row:
    """Figures of one edit, by choice."""
    inversion = nulltext.invert(model, task.path, caption(task.label))
    photo = as_unit(from_uint8(inversion.photo))
    reference = as_unit(model.decode(inversion.trajectory[:1].to(model.device)).cpu())
    region = foreground(photo) if task.kind == "background" else ~foreground(photo)
    target = caption({**task.label, task.attribute: task.new})
    weights = {task.old: STRESS} if task.kind == "reweight" else {}
    rows: dict[str, dict[str, float]] = {}

    def run(specs: Mapping[str, nulltext.EditSpec]) -> None:
        images = nulltext.edit(model, inversion, list(specs.values())).images
        for name, image in zip(specs, images, strict=True):
            edited = as_unit(image[None])
            success = float(succeeded(judge, task, edited, photo))
            rows[name] = {"success": success, **kept(edited, reference, region)}

    editors = {
        "as it is": Changed(weights=weights),
        "self 8 x 8": Changed(weights=weights, self_side=8),
        "self 4 x 4": Changed(weights=weights, self_side=4),
        "self - 1 step": Changed(weights=weights, self_steps=SELF_STEPS - ONE_STEP),
    }
    run({name: nulltext.EditSpec(target, editor=editor) for name, editor in editors.items()})
    if weights:
        run({"weights end": nulltext.EditSpec(target, editor=Changed(weights=weights, ends=True))})
    if task.kind in ("colour", "background"):
        kind = str(task.label["kind"])
        blend = LocalBlend(("background" if task.kind == "background" else kind,))
        masa = nulltext.MasaCtrl(foreground=(kind,), start_layer=0.0)

        def masked(layers: str) -> dict[str, nulltext.EditSpec]:
            return {
                f"blend, {layers}": nulltext.EditSpec(target, blend=blend),
                f"masactrl, {layers}": nulltext.EditSpec(target, editor=masa),
            }

        run(masked("all layers"))
        with maps_of_largest_layers():
            run(masked("16 x 16"))
    return {"rows": rows, "kind": task.kind}


def print_table(console: Console, measured: Sequence[Row]) -> None:
    """One line per choice, over the edits that it was measured on."""
    table = Table(title=f"{len(measured)} edits")
    for name in ("choice", "edits", "succeed", "PSNR dB: mean", "median", "SSIM"):
        table.add_column(name, justify="left" if name == "choice" else "right")
    stressed = [row for row in measured if row["kind"] == "reweight"]
    for title, rows in {"all": measured, "stressed": stressed}.items():
        for name in dict.fromkeys(name for row in rows for name in row["rows"]):
            found = [row["rows"][name] for row in rows if name in row["rows"]]
            psnr = [figures["psnr_outside"] for figures in found]
            table.add_row(
                f"{title}: {name}",
                str(len(found)),
                f"{sum(figures['success'] for figures in found):.0f}",
                f"{statistics.mean(psnr):.1f}",
                f"{statistics.median(psnr):.1f}",
                f"{statistics.mean(figures['ssim_outside'] for figures in found):.3f}",
            )
        table.add_section()
    console.print(table)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=24, help="number of edits")
    parser.add_argument("--rows", type=Path, default=Path("build/attention-choices.jsonl"))
    options = parser.parse_args()
    stored = KeptRows(options.rows)
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    model = nulltext.load("flowers")
    rows = [
        stored.get(
            f"{model.fingerprint} {task.kind} {task.path.name}",
            partial(measure, model, judge, task),
        )
        for task in track(fixed_tasks(options.data, options.limit), console=Console(stderr=True))
    ]
    print_table(Console(width=120), rows)


if __name__ == "__main__":
    main()
