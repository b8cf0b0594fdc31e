"""`nulltext edit`: a photo and two sentences in, an edited photo out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.jobs.edits import axes_of, base_edit, edits_of, plan_of
from nulltext.jobs.options import EditOptions
from nulltext.jobs.request import (
    Inputs,
    check_inversion_target,
    check_options,
    check_readable,
    open_inputs,
)
from nulltext.models.choice import ModelChoice
from nulltext.reprs import decibels

if TYPE_CHECKING:
    from nulltext.editing.spec import EditSpec
    from nulltext.inversion.record import Inversion, InversionHeader
    from nulltext.jobs.pictures import PictureFiles, Pictures
    from nulltext.models.latent_diffusion import LatentDiffusion


@takes_options
def edit(options: EditOptions, chosen: ModelChoice, reporter: Reporter) -> None:
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
    check_options(options)
    outputs = _output_paths(options)
    axes = axes_of(options)
    inputs = open_inputs(options)
    base_edit(options)  # refuses values that the library does not take
    if inputs.saved is None:
        plan_of(options)  # refuses what does not go together
    from nulltext.cli.work import open_model, with_caption
    from nulltext.inversion.replay import check_model
    from nulltext.jobs.pictures import PictureFiles, pictures_of, prompt_notes

    inputs = with_caption(reporter, inputs, chosen.device)
    model = open_model(reporter, chosen)
    if inputs.saved is not None:
        check_model(model, inputs.saved)
    elif inputs.caption is not None:
        check_readable(model, "--source", inputs.prompt)
    else:
        model.tokenize(inputs.prompt)  # refuses an empty one, which only a saved inversion may have
    notes = [*inputs.notes, *prompt_notes(model, inputs)]
    for said in notes:
        reporter.note(said)
    edits = edits_of(options, model, inputs.mask, axes)
    inversion = _obtain_inversion(reporter, model, inputs, edits.everything)
    files = PictureFiles(
        outputs,
        _path_or_none(options.strip),
        _path_or_none(options.sweep),
        _region_paths(options, len(outputs)),
    )
    started = time.perf_counter()
    with reporter.progress(model) as on_step:
        pictures = pictures_of(model, inputs, inversion, edits, on_step)
        seconds = time.perf_counter() - started
        pictures = pictures.save(model, files, gps=options.keep_gps, on_step=on_step)
    for remark in pictures.remarks:
        reporter.note(remark)
    spent = None if inputs.saved else inversion.header
    _report(reporter, inputs, files, pictures, spent, seconds, [*notes, *pictures.remarks])


def _path_or_none(file: Path | bool) -> Path | None:
    return file if isinstance(file, Path) else None


def _output_paths(options: EditOptions) -> list[Path]:
    """Name the files of the edits."""
    from nulltext.image.saving import check_writable, is_jpeg

    origin = options.image or options.inversion
    assert origin is not None
    count = len(options.prompts)
    paths = _numbered(options.output or Path(f"{origin.stem}-edited.png"), count)
    written = [*paths, *filter(None, map(_path_or_none, (options.strip, options.sweep)))]
    written += _region_paths(options, count)
    for path in written:
        check_writable(path)
    if options.quality is not None and not is_jpeg(paths[0]):
        raise OptionError(
            f"--quality is for JPEG, and '{paths[0]}' is none; name the output .jpg, or leave the "
            "quality out."
        )
    if options.save_inversion:
        written.append(check_inversion_target(options.save_inversion))
    read = (options.image, options.inversion, options.mask)
    taken = {path.resolve(): "is read" for path in read if path is not None}
    for path in written:
        if path.resolve() in taken:
            raise OptionError(
                f"'{path}' {taken[path.resolve()]} by this very command; choose another name."
            )
        taken[path.resolve()] = "is also written"
    return paths


def _region_paths(options: EditOptions, count: int) -> list[Path]:
    path = _path_or_none(options.region_out)
    return [] if path is None else _numbered(path, count)


def _numbered(path: Path, count: int) -> list[Path]:
    """A file's name for one picture, or for each of several."""
    names = [f"{path.stem}-{i + 1}{path.suffix}" for i in range(count)]
    return [path] if count == 1 else [path.with_name(name) for name in names]


def _obtain_inversion(
    reporter: Reporter, model: LatentDiffusion, inputs: Inputs, specs: Sequence[EditSpec]
) -> Inversion:
    from nulltext.cli.work import invert_with_bars, note_unused_seed, partial_beside, save_whole
    from nulltext.editing.loop import check_specs

    check_specs(model, inputs.prompt, specs)
    if inputs.saved is not None:
        return inputs.saved
    options, photo = inputs.options, inputs.photo
    assert photo is not None
    plan, kept = plan_of(options), options.save_inversion
    partial = None if kept is None else partial_beside(kept, fresh=options.fresh)
    made = invert_with_bars(
        reporter, model, photo, inputs.prompt, inputs.box, options, plan, partial
    )
    note_unused_seed(reporter, plan, options.seed)
    if kept is not None:
        save_whole(made, kept)
        reporter.note(f"Saved {kept}")
    return made


def _report(
    reporter: Reporter,
    inputs: Inputs,
    files: PictureFiles,
    pictures: Pictures,
    spent: InversionHeader | None,
    seconds: float,
    remarks: Sequence[str],
) -> None:
    """Say what was made; `spent` on the inversion: None where it was saved."""
    figures = pictures.figures
    inverting = spent.unet_evaluations if spent else 0
    values = {
        "outputs": [str(path) for path in files.outputs],
        "source": pictures.inversion.header.prompt,
        **inputs.doubts,
        "strip": None if files.strip is None else str(files.strip),
        "sweep": None if files.sweep is None else str(files.sweep),
        "regions": [str(path) for path in files.regions],
        **figures,
        "remarks": remarks,
        "seconds_invert": spent.seconds if spent else 0.0,
        "seconds_edit": seconds,
        "unet_evaluations": inverting + pictures.edit.unet_evaluations,
    }
    inverted = f"Inverted in {spent.seconds:.1f} s. " if spent else ""
    lines = [
        f"{inverted}Edited in {seconds:.1f} s.",
        f"Reconstruction {decibels(figures['psnr_reconstruction'])}; "
        f"the autoencoder alone reaches {decibels(figures['psnr_bound'])}.",
        _changed(figures),
    ]
    written = [*files.outputs, *filter(None, [files.strip, files.sweep]), *files.regions]
    reporter.result(values, [*lines, *[f"Saved {path}" for path in written]])


def _changed(figures: dict[str, Any]) -> str:
    if not figures["changed_fraction"]:
        return "Changed nothing."
    share, outside = figures["changed_fraction"], decibels(figures["psnr_outside"])
    said = "less than 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"
    found = [at for at in figures["shows_at"] if at is not None]
    where = f", at {'; '.join(dict.fromkeys(found))}" if found else ""
    return f"Changed {said} of the pixels{where}; elsewhere {outside}."
