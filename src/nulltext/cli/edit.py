"""`nulltext edit`: a photo and two sentences in, an edited photo out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nulltext import defaults
from nulltext.cli import edit_options as only
from nulltext.cli.asked import Asked
from nulltext.cli.options import (
    Align,
    BudgetOption,
    CaptionerOption,
    CropOption,
    Detail,
    DeviceOption,
    DTypeOption,
    FreshOption,
    InnerStepsOption,
    JsonOption,
    LowMemoryOption,
    Method,
    ModelOption,
    QuietOption,
    SeedOption,
    SizeOption,
    SolverOption,
    SourceBranch,
)
from nulltext.cli.report import Reporter, decibels
from nulltext.cli.request import Opened, Request, obtain_inversion, with_words

if TYPE_CHECKING:
    from nulltext.cli.results import Placed
    from nulltext.editing import Edit
    from nulltext.record import Inversion


def edit(
    image: only.ImageArgument = None,
    source: only.SourceOption = None,
    target: only.TargetOption = None,
    then: only.ThenOption = None,
    then_strength: only.ThenStrengthOption = None,
    output: only.OutputOption = None,
    strip: only.StripOption = None,
    full: only.FullOption = False,
    editor: only.EditorOption = only.EditorName.PROMPT_TO_PROMPT,
    weight: only.WeightOption = None,
    strength: only.StrengthOption = None,
    target_guidance: only.TargetGuidanceOption = None,
    sweep: only.SweepOption = None,
    over: only.OverOption = None,
    cross_steps: only.CrossStepsOption = None,
    self_steps: only.SelfStepsOption = None,
    masa_start: only.MasaStartOption = None,
    masa_layer: only.MasaLayerOption = None,
    masa_word: only.MasaWordOption = None,
    mask: only.MaskOption = None,
    blend: only.BlendOption = None,
    blend_except: only.BlendExceptOption = None,
    blend_threshold: only.BlendThresholdOption = defaults.BLEND_THRESHOLD,
    detail: Annotated[
        Detail,
        typer.Option(
            "--detail",
            help="Fine detail of the photo, put back over the edit: everywhere (photo), its light "
            "and shade alone (luminance), nowhere (model), or where the shapes stayed (auto).",
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
        Align | None,
        typer.Option(
            "--align",
            help="Which source word a target word takes its place from: auto (default) swaps "
            "changed words and adds new ones, refine leaves changed words free, replace pairs by "
            "position.",
        ),
    ] = None,
    inversion: only.InversionOption = None,
    save_inversion: only.SaveInversionOption = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="How to invert; default null-text.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="T", help="DDIM steps, 1 to 1000.")
    ] = None,
    budget: BudgetOption = None,
    solver: SolverOption = None,
    inner_steps: InnerStepsOption = None,
    guidance: only.GuidanceOption = None,
    captioner: CaptionerOption = None,
    crop: CropOption = None,
    size: SizeOption = None,
    model: ModelOption = defaults.MODEL,
    device: DeviceOption = None,
    dtype: DTypeOption = "float32",
    low_memory: LowMemoryOption = False,
    seed: SeedOption = 0,
    fresh: FreshOption = False,
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

    And then: [bold]nulltext edit --inversion dahlia.safetensors --target "a photo of a red flower"
    --then "a photo of a red flower with a dark background"[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    own = {
        "cross_steps": cross_steps,
        "self_steps": self_steps,
        "align": align,
        "weight": weight,
        "masa_start": masa_start,
        "masa_layer": masa_layer,
        "masa_word": masa_word,
    }
    asked = Asked.given(
        own,
        targets=target or [],
        then=then or [],
        then_strength=then_strength,
        editor=editor,
        strength=strength,
        target_guidance=target_guidance,
        blend=blend or [],
        blend_except=blend_except or [],
        blend_threshold=blend_threshold,
        sweep=sweep,
        over=over or [],
    )
    effort = (method, steps, budget, solver, inner_steps)
    request = Request(
        *(image, source, inversion, save_inversion, *effort, guidance, crop, size, seed),
        mask=mask,
        full=full,
        low_memory=low_memory,
        captioner=captioner,
        fresh=fresh,
    )
    request.check(asked.targets)
    asked.check()
    outputs = request.output_paths(output, [strip, sweep], len(asked.prompts))
    files = {"outputs": outputs, "strip": strip, "sweep": sweep}
    _edit(reporter, request, asked, files, (model, device, dtype), detail, source_branch)


def _edit(
    reporter: Reporter,
    request: Request,
    asked: Asked,
    files: dict[str, Any],
    checkpoint: tuple[str, str | None, Any],
    detail: Detail,
    source_branch: SourceBranch,
) -> None:
    """Do it; everything was checked that can be without opening a file."""
    from nulltext.cli.captions import check_readable
    from nulltext.cli.results import Canvas, place, save_placed, save_strip, save_sweep
    from nulltext.cli.work import open_model
    from nulltext.editing import edit_steps
    from nulltext.record import run
    from nulltext.sampling import exact_source_step, source_step

    axes = asked.axes()
    opened = with_words(reporter, Opened.of(request), checkpoint[1])
    own = opened.request is request and bool(opened.prompt or request.inversion is None)
    prompts = [*([opened.prompt] if own else []), *asked.prompts]
    loaded = open_model(reporter, *checkpoint, prompts, low_memory=request.low_memory)
    if opened.prompt:  # a saved inversion may have none
        check_readable(loaded, "--source", opened.prompt)
    specs, sweep = asked.specs(loaded, opened.mask, axes)
    specs = [*specs, *(sweep.specs if sweep else [])]
    made, seconds_invert, evaluations = obtain_inversion(reporter, loaded, opened, specs)
    branches = {"exact": exact_source_step, "replay": source_step}
    started = time.perf_counter()
    with reporter.progress(loaded) as on_step:
        loop = edit_steps(loaded, made, specs, source_branch=branches[source_branch])
        result = run(loop, on_step)
    seconds = (seconds_invert, time.perf_counter() - started)
    canvas = Canvas.of(made, opened.photo, full=request.full)
    placed = [place(canvas, result, row, spec, detail) for row, spec in enumerate(specs)]
    wanted = placed[: len(asked.prompts)]
    save_placed(reporter, files["outputs"], wanted, made, canvas)
    if files["strip"]:
        save_strip(files["strip"], loaded, made, result, wanted, canvas)
    if sweep:
        save_sweep(files["sweep"], sweep, placed[len(wanted) :], canvas)
    _report(reporter, files, made, result, wanted, seconds, evaluations)


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
            "source": header.prompt,
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
