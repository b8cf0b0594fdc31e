"""`nulltext edit`: a photo and two sentences in, an edited photo out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nulltext import defaults
from nulltext.cli.arguments import parse_weights
from nulltext.cli.options import (
    Align,
    BudgetOption,
    CropOption,
    Detail,
    DeviceOption,
    DTypeOption,
    InnerStepsOption,
    JsonOption,
    Method,
    ModelOption,
    QuietOption,
    SeedOption,
    SizeOption,
    SolverOption,
    SourceBranch,
)
from nulltext.cli.report import Reporter, decibels
from nulltext.cli.request import Opened, Request, obtain_inversion
from nulltext.errors import OptionError

if TYPE_CHECKING:
    from nulltext.attention.blend import LocalBlend
    from nulltext.cli.results import Placed
    from nulltext.editing import Edit
    from nulltext.record import Inversion
    from nulltext.strength import Steering

SWEPT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Strengths of a sweep."""


def edit(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGE]", help="The photo; may be left out with --inversion."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="What the photo shows, in words.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="What it shall show instead; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.png",
            help="Default: IMAGE's name-edited.png; several targets add -1, -2, …",
        ),
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            "--strip",
            metavar="STRIP.png",
            help="Also photo, bound, reconstruction, edits in a row.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Paste the edit back into the photo at its own size.")
    ] = False,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", metavar="WORD=FACTOR", help="Stress a word of the target: yellow=2, red=-1."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            metavar="S",
            help="How far the edit may go: 0 the photo, 0.5 the default, 1 the words alone.",
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            "--sweep", metavar="GRID.png", help="Also a grid of strengths 0, 0.25, … 1 per target."
        ),
    ] = None,
    cross_steps: Annotated[
        float | None,
        typer.Option(
            "--cross-steps",
            help="Fraction of steps in which words keep their places; default "
            f"{defaults.CROSS_STEPS}.",
        ),
    ] = None,
    self_steps: Annotated[
        float | None,
        typer.Option(
            "--self-steps",
            help=f"Fraction of steps in which shapes are kept; default {defaults.SELF_STEPS}.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask", metavar="FILE", help="White where the photo may change; of its size."
        ),
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(
            "--blend", metavar="WORD", help="Change only where this word looks; may be repeated."
        ),
    ] = None,
    blend_except: Annotated[
        list[str] | None,
        typer.Option("--blend-except", metavar="WORD", help="But not where this word looks."),
    ] = None,
    blend_threshold: Annotated[
        float,
        typer.Option("--blend-threshold", help="0 to 1; higher keeps the change smaller."),
    ] = defaults.BLEND_THRESHOLD,
    detail: Annotated[
        Detail,
        typer.Option(
            "--detail",
            help="Fine detail of the photo, put back over the edit: everywhere (photo), nowhere "
            "(model), or where the shapes stayed (auto).",
        ),
    ] = "auto",
    source_branch: Annotated[
        SourceBranch,
        typer.Option(
            "--source-branch",
            help="What targets follow: the replay, or the photo's exact trajectory.",
        ),
    ] = "replay",
    align: Annotated[
        Align,
        typer.Option(
            "--align",
            help="Which source word a target word takes its place from: auto swaps changed words "
            "and adds new ones, refine leaves changed words free, replace pairs by position.",
        ),
    ] = "auto",
    inversion: Annotated[
        Path | None,
        typer.Option("--inversion", metavar="FILE", help="A saved inversion: no need to invert."),
    ] = None,
    save_inversion: Annotated[
        Path | None,
        typer.Option("--save-inversion", metavar="FILE", help="Keep the inversion for later."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="How to invert; default null-text.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="T", help="DDIM steps, 1 to 1000.")
    ] = None,
    budget: BudgetOption = None,
    solver: SolverOption = None,
    inner_steps: InnerStepsOption = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", metavar="W", help="How strongly words steer; default 7.5."),
    ] = None,
    crop: CropOption = None,
    size: SizeOption = None,
    model: ModelOption = defaults.MODEL,
    device: DeviceOption = None,
    dtype: DTypeOption = "float32",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Edit a photo by changing the words that describe it.

    Example: [bold]nulltext edit dahlia.jpg --source "a photo of an orange flower"
    --target "a photo of a white daisy" -o daisy.png[/bold]

    Invert once, edit often: [bold]nulltext edit --inversion dahlia.safetensors
    --target "a photo of a red flower"[/bold]

    Touch nothing else: [bold]nulltext edit dahlia.jpg --source "a photo of an orange flower"
    --target "a photo of a red flower" --mask mask.png --full -o red.png[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    targets = target or []
    effort = (method, steps, budget, solver, inner_steps)
    request = Request(
        *(image, source, inversion, save_inversion, *effort, guidance, crop, size, seed),
        mask=mask,
        full=full,
    )
    request.check(targets)
    steering = _steering(strength, cross_steps, self_steps)
    factors = parse_weights(weight or [])
    outputs = request.output_paths(output, [strip, sweep], len(targets))
    from nulltext.cli.results import Canvas, place, save_placed, save_strip, save_sweep
    from nulltext.cli.work import open_model, weights_of_targets
    from nulltext.editing import EditSpec, edit_steps
    from nulltext.record import run
    from nulltext.sampling import exact_source_step, source_step

    blending = _local_blend(blend or [], blend_except or [], blend_threshold)
    opened = Opened.of(request)
    loaded = open_model(reporter, model, device, dtype, [opened.prompt, *targets])
    weights = weights_of_targets(loaded, targets, factors)
    shared = (align, blending, opened.mask)
    specs = [
        EditSpec(words, s.cross_steps, s.self_steps, weights[words], *shared, s.pull)
        for words, s in _knobs(targets, steering, swept=sweep is not None)
    ]
    made, seconds_invert, evaluations = obtain_inversion(reporter, loaded, opened, specs)
    branches = {"exact": exact_source_step, "replay": source_step}
    started = time.perf_counter()
    with reporter.progress(loaded) as on_step:
        loop = edit_steps(loaded, made, specs, source_branch=branches[source_branch])
        result = run(loop, on_step)
    seconds = (seconds_invert, time.perf_counter() - started)
    canvas = Canvas.of(made, opened.photo, full=full)
    placed = [place(canvas, result, row, spec, detail) for row, spec in enumerate(specs)]
    wanted, grid = placed[: len(targets)], placed[len(targets) :]
    save_placed(reporter, outputs, wanted, made, canvas)
    if strip:
        save_strip(strip, loaded, made, result, wanted, canvas)
    if sweep:
        save_sweep(sweep, grid, SWEPT, canvas)
    files = {"outputs": outputs, "strip": strip, "sweep": sweep}
    _report(reporter, files, made, result, wanted, seconds, evaluations)


def _knobs(
    targets: Sequence[str], steering: Steering, *, swept: bool
) -> list[tuple[str, Steering]]:
    """The edits that were asked for, then those of a sweep: each target at each strength."""
    from nulltext.strength import at_strength

    strengths = SWEPT if swept else ()
    grid = [(words, at_strength(s)) for words in targets for s in strengths]
    return [(words, steering) for words in targets] + grid


def _steering(strength: float | None, cross: float | None, self_: float | None) -> Steering:
    """The knobs, from one strength or one by one."""
    from nulltext.strength import Steering, at_strength

    if strength is None:
        return Steering(
            defaults.CROSS_STEPS if cross is None else cross,
            defaults.SELF_STEPS if self_ is None else self_,
            0.0,
        )
    if cross is not None or self_ is not None:
        name = "--self-steps" if cross is None else "--cross-steps"
        raise OptionError(f"--strength sets {name}, too; leave one of them out.")
    return at_strength(strength)


def _local_blend(
    words: Sequence[str], except_words: Sequence[str], threshold: float
) -> LocalBlend | None:
    from nulltext.attention.blend import LocalBlend

    if not words:
        if except_words:
            raise OptionError("--blend-except takes away from a --blend; name a word to blend.")
        return None
    return LocalBlend(tuple(words), tuple(except_words), threshold)


def _report(
    reporter: Reporter,
    files: dict[str, Any],
    made: Inversion,
    result: Edit,
    placed: Sequence[Placed],
    seconds: tuple[float, float],
    evaluations: int,
) -> None:
    """Say what came of it."""
    header, outputs = made.header, [str(path) for path in files["outputs"]]
    further = [files["strip"], files["sweep"]]
    outside = min(one.psnr_outside for one in placed)
    changed = max(one.changed_fraction for one in placed)
    reporter.result(
        {
            "outputs": outputs,
            "strip": str(files["strip"]) if files["strip"] else None,
            "sweep": str(files["sweep"]) if files["sweep"] else None,
            "psnr_bound": header.psnr_bound,
            "psnr_replay": header.psnr_reconstruction,
            "psnr_reconstruction": result.psnr_reconstruction,
            "changed_fraction": changed,
            "psnr_outside": outside,
            "mask_fraction": [one.mask_fraction for one in placed],
            "seconds_invert": seconds[0],
            "seconds_edit": seconds[1],
            "unet_evaluations": evaluations + result.unet_evaluations,
        },
        [
            (f"Inverted in {seconds[0]:.1f} s. " if seconds[0] else "")
            + f"Edited in {seconds[1]:.1f} s.",
            f"Reconstruction {decibels(result.psnr_reconstruction)}; "
            f"the autoencoder alone reaches {decibels(header.psnr_bound)}.",
            f"Changed {100 * changed:.1f} % of the pixels; elsewhere {decibels(outside)}.",
            *[f"Saved {path}" for path in [*outputs, *filter(None, further)]],
        ],
    )
