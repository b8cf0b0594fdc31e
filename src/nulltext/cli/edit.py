"""`nulltext edit`: a photo and two sentences in, an edited photo out."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from nulltext.cli import edit_options as only
from nulltext.cli.model_options import CHOICE, takes_model
from nulltext.cli.options import (
    BudgetOption,
    CaptionerOption,
    CropOption,
    FreshOption,
    GuidanceOption,
    InnerStepsOption,
    JsonOption,
    NullStartOption,
    QuietOption,
    SeedOption,
    SizeOption,
)
from nulltext.cli.report import Reporter, decibels
from nulltext.cli.request import obtain_inversion, output_paths, with_words
from nulltext.constants import Alignment, Detail, EditorName, Method, SourceBranch
from nulltext.jobs.figures import percent
from nulltext.jobs.order import Order, Pictures, notes_of, pictures_of
from nulltext.jobs.request import Opened
from nulltext.models.choice import ModelChoice


@takes_model
def edit(
    image: only.ImageArgument = None,
    source: only.SourceOption = None,
    target: only.TargetOption = None,
    then: only.ThenOption = None,
    then_strength: only.ThenStrengthOption = None,
    output: only.OutputOption = None,
    strip: only.StripOption = None,
    full: only.FullOption = False,
    keep_gps: only.KeepGpsOption = False,
    editor: only.EditorOption = EditorName.PROMPT_TO_PROMPT,
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
    blend_threshold: only.BlendThresholdOption = None,
    detail: Annotated[
        Detail | None,
        typer.Option(
            "--detail",
            help="Fine detail of the photo, put back over the edit with --full, --mask or --blend: "
            "everywhere (photo), its light and shade alone (luminance), nowhere (model), or where "
            "the shapes stayed (auto, the default).",
        ),
    ] = None,
    source_branch: Annotated[
        SourceBranch,
        typer.Option(
            "--source-branch",
            help="What targets follow: the replay, or the photo's exact trajectory.",
        ),
    ] = "replay",
    align: Annotated[
        Alignment | None,
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
        int | None,
        typer.Option(
            "--steps",
            metavar="T",
            help="DDIM steps, 1 to 1000; default 30 (20 by --budget fast, 50 by paper and other "
            "methods).",
        ),
    ] = None,
    budget: BudgetOption = None,
    inner_steps: InnerStepsOption = None,
    null_start: NullStartOption = None,
    guidance: GuidanceOption = None,
    captioner: CaptionerOption = None,
    crop: CropOption = None,
    size: SizeOption = None,
    chosen: ModelChoice = CHOICE,
    seed: SeedOption = None,
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
    order = Order.of(locals())  # the parameters, by their names
    reporter = Reporter(as_json=as_json, quiet=quiet)
    order.check()
    outputs = output_paths(order.request, output, [strip, sweep], len(order.asked.prompts))
    files = {"outputs": outputs, "strip": strip, "sweep": sweep}
    _edit(reporter, order, files, chosen)


def _edit(
    reporter: Reporter,
    order: Order,
    files: dict[str, Any],
    chosen: ModelChoice,
) -> None:
    """Do it; everything was checked that can be without opening a file."""
    from nulltext.cli.work import open_model
    from nulltext.inversion.replay import check_model
    from nulltext.jobs.captions import check_readable

    request, asked = order.request, order.asked
    axes = asked.axes()
    opened = with_words(reporter, Opened.of(request), chosen.device)
    loaded = open_model(reporter, chosen)
    if opened.saved is not None:
        check_model(loaded, opened.saved)
    elif opened.captioned:
        check_readable(loaded, "--source", opened.prompt)
    else:
        loaded.tokenize(opened.prompt)  # it may be empty, which only a saved one's may
    notes = [*filter(None, [opened.mask_note]), *notes_of(loaded, order, opened)]
    for said in notes:
        reporter.note(said)
    specs, sweep = asked.specs(loaded, opened.mask, axes)
    everything = [*specs, *(sweep.specs if sweep else [])]
    made, seconds_invert, evaluations = obtain_inversion(reporter, loaded, opened, everything)
    started = time.perf_counter()
    with reporter.progress(loaded) as on_step:
        pictures = pictures_of(loaded, order, opened, made, specs, sweep, on_step)
    seconds = (seconds_invert, time.perf_counter() - started)
    pictures = pictures.save(loaded, **files, gps=request.keep_gps)
    for remark in pictures.remarks:
        reporter.note(remark)
    _report(reporter, files, pictures, [*notes, *pictures.remarks], seconds, evaluations)


def _report(
    reporter: Reporter,
    files: dict[str, Any],
    pictures: Pictures,
    remarks: list[str],
    seconds: tuple[float, float],
    evaluations: int,
) -> None:
    """Say what came of it."""
    figures, outputs = pictures.figures, [str(path) for path in files["outputs"]]
    further = [files["strip"], files["sweep"]]
    reporter.result(
        {
            "outputs": outputs,
            "source": pictures.inversion.header.prompt,
            "strip": str(files["strip"]) if files["strip"] else None,
            "sweep": str(files["sweep"]) if files["sweep"] else None,
            **figures,
            "remarks": remarks,
            "seconds_invert": seconds[0],
            "seconds_edit": seconds[1],
            "unet_evaluations": evaluations + pictures.edit.unet_evaluations,
        },
        [
            (f"Inverted in {seconds[0]:.1f} s. " if seconds[0] else "")
            + f"Edited in {seconds[1]:.1f} s.",
            f"Reconstruction {decibels(figures['psnr_reconstruction'])}; "
            f"the autoencoder alone reaches {decibels(figures['psnr_bound'])}.",
            _changed(figures),
            *[f"Saved {path}" for path in [*outputs, *filter(None, further)]],
        ],
    )


def _changed(figures: dict[str, Any]) -> str:
    """How much of the photo the edits changed, for a person."""
    if not figures["changed_fraction"]:
        return "Changed nothing."
    share, outside = percent(figures["changed_fraction"]), decibels(figures["psnr_outside"])
    return f"Changed {share} of the pixels; elsewhere {outside}."
