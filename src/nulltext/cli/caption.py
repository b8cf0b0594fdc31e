"""`nulltext caption`: what a photo shows, in words; and `nulltext convert-captioner`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nulltext import constants
from nulltext.cli.options import CaptionerOption, CropOption, DeviceOption, takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError


@takes_options
def caption(
    *,
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
    reporter: Reporter,
) -> None:
    """Say what a photo shows: a source prompt, to correct and to edit from.

    Example: [bold]nulltext caption dahlia.jpg[/bold]

    The bundled captioner knows flowers only, and is wrong one time in five or six
    (docs/captioning.md): read it.
    """
    from nulltext.captioning.folder import load_captioner
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


@takes_options
def convert_captioner(
    *,
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS.pt", help="The published file of ClipCap.")
    ],
    clip: Annotated[
        Path,
        typer.Option(
            "--clip",
            metavar="FOLDER",
            help="transformers folder of its CLIP (openai/clip-vit-base-patch32).",
        ),
    ],
    gpt2: Annotated[
        Path,
        typer.Option(
            "--gpt2", metavar="FOLDER", help="transformers folder of GPT-2: settings, tokenizer."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the captioner.")
    ],
    reporter: Reporter,
) -> None:
    """Make a captioner of published ClipCap weights: safetensors, in half precision.

    Example: [bold]nulltext convert-captioner coco_weights.pt --clip clip-vit-base-patch32
    --gpt2 gpt2 -o clipcap-coco[/bold]
    """
    import torch

    from nulltext.captioning.convert import convert
    from nulltext.captioning.folder import check_captioner_target, save_captioner

    check_captioner_target(output)
    with reporter.busy(f"Reading {weights} …"):
        captioner = convert(weights, clip=clip, gpt2=gpt2, name=output.name)
    with reporter.busy(f"Writing {output} …"):
        save_captioner(captioner, output, dtype=torch.float16)
    reporter.result(
        {"captioner": str(output)},
        [
            f"Saved the captioner {output}",
            f"Next: nulltext caption PHOTO --captioner {shlex.quote(str(output))}",
        ],
    )
