"""`nulltext caption`: what a photo shows, in words to begin an edit from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nulltext import constants
from nulltext.cli.options import CaptionerOption, CropOption, DeviceOption, JsonOption, QuietOption
from nulltext.cli.report import Reporter


def caption(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photo.")],
    captioner: CaptionerOption = None,
    beams: Annotated[
        int,
        typer.Option(
            "--beams", metavar="N", help="Sentences weighed side by side; 1: word by word."
        ),
    ] = 5,
    crop: CropOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a photo shows: a source prompt, to correct and to edit from.

    Example: [bold]nulltext caption dahlia.jpg[/bold]

    The bundled captioner knows flowers only, and is wrong one time in five or six
    (docs/captioning.md): read it.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.captioning.folder import load_captioner
    from nulltext.errors import OptionError
    from nulltext.image.images import CropBox
    from nulltext.image.photos import load_photo

    if beams < 1:
        raise OptionError(f"--beams is {beams}; expected 1 or more.")
    box = None if crop is None else CropBox.parse(crop)
    photo = load_photo(image)
    with reporter.busy("Looking at the photo …"):
        loaded = load_captioner(captioner or constants.CAPTIONER, device=device)
        said = loaded.caption(photo, crop=box, beams=beams)
    if not said:
        reporter.note(f"Note: the captioner '{loaded.name}' finds no words for this photo.")
    reporter.answer({"caption": said, "captioner": loaded.name}, [said])
    if said:
        source = shlex.quote(said)
        reporter.note(
            f'Next: nulltext edit {shlex.quote(str(image))} --source {source} --target "…"'
        )
