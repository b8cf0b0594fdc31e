"""`nulltext replay`: the reconstruction that a saved inversion stands for."""

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
from nulltext.cli.report import Reporter, decibels
from nulltext.models.choice import ModelChoice


@takes_model
def replay(
    file: FileArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.png", help="Default: FILE's name-replay.png."),
    ] = None,
    chosen: ModelChoice = CHOICE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reconstruct the photo from a saved inversion.

    Example: [bold]nulltext replay dahlia.safetensors -o dahlia-replay.png[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.cli.work import open_model
    from nulltext.image.images import from_uint8, to_pil
    from nulltext.image.saving import check_writable, save_image
    from nulltext.inversion.record import Inversion
    from nulltext.inversion.replay import check_model
    from nulltext.inversion.replay import replay as replay_inversion

    target = output or Path(f"{file.stem}-replay.png")
    check_writable(target)
    inversion = Inversion.load(file)
    loaded = open_model(reporter, chosen)
    check_model(loaded, inversion)
    with reporter.progress(loaded, from_uint8(inversion.photo)) as on_step:
        result = replay_inversion(loaded, inversion, on_step=on_step)
    save_image(to_pil(result.image), target)
    bound = inversion.header.psnr_bound
    reporter.result(
        {"output": str(target), "psnr_reconstruction": result.psnr, "psnr_bound": bound},
        [
            f"Reconstruction {decibels(result.psnr)}; "
            f"the autoencoder alone reaches {decibels(bound)}.",
            f"Saved {target}",
        ],
    )
