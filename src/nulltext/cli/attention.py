"""`nulltext attention`: one heat map per word over the photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nulltext.cli.model_options import CHOICE, takes_model
from nulltext.cli.options import (
    FileArgument,
    JsonOption,
    QuietOption,
)
from nulltext.cli.report import Reporter
from nulltext.models.choice import ModelChoice


@takes_model
def attention(
    file: FileArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.png", help="Default: FILE-attention.png."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Also the words of an edit to this; may be repeated."),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every", metavar="N", min=1, help="Also a row for every N-th step, noisiest first."
        ),
    ] = None,
    npy: Annotated[
        Path | None,
        typer.Option("--npy", metavar="FILE.npz", help="Also the numbers, mean and per step."),
    ] = None,
    chosen: ModelChoice = CHOICE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw which part of the photo each word of its prompt is about.

    Example: [bold]nulltext attention dahlia.safetensors -o attention.png[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.cli.pictures import heat_grid, save_arrays, word_rows
    from nulltext.cli.work import look_at_prompts, open_model
    from nulltext.diffusion.loops import run
    from nulltext.editing.heatmaps import heat_map_steps
    from nulltext.editing.loop import EditSpec, check_specs
    from nulltext.image.saving import check_writable, save_image
    from nulltext.inversion.record import Inversion
    from nulltext.inversion.replay import check_model
    from nulltext.storage.files import check_target

    picture = output or Path(f"{file.stem}-attention.png")
    check_writable(picture)
    if npy:
        check_target(npy)
    inversion = Inversion.load(file)
    specs = [EditSpec(words) for words in target or []]
    loaded = open_model(reporter, chosen)
    check_model(loaded, inversion)
    source, targets = inversion.header.prompt, target or []
    changes = [(source, words) for words in targets]
    look_at_prompts(reporter, loaded, [source, *targets], changes)
    check_specs(loaded, source, specs)
    with reporter.progress(loaded) as on_step:
        prompts = run(heat_map_steps(loaded, inversion, specs), on_step)
    save_image(heat_grid(inversion, prompts, every), picture)
    if npy:
        save_arrays(npy, prompts)
    words = word_rows(prompts)
    reporter.result(
        {"output": str(picture), "npy": str(npy) if npy else None, "words": words},
        [f"{row['word']:<20}{100 * row['mean']:6.2f} % of the attention" for row in words]
        + [f"Saved {path}" for path in (picture, npy) if path],
    )
