"""`nulltext convert-captioner`: published ClipCap weights to a captioner's folder, once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nulltext.cli.options import JsonOption, QuietOption
from nulltext.cli.report import Reporter


def convert_captioner(
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a captioner of published ClipCap weights: safetensors, in half precision.

    Example: [bold]nulltext convert-captioner coco_weights.pt --clip clip-vit-base-patch32
    --gpt2 gpt2 -o clipcap-coco[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
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
