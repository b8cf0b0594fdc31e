"""`nulltext caption`: what a photo shows, in words; and `nulltext convert-captioner`."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass
from pathlib import Path

from nulltext import constants
from nulltext.cli.options import device_field, shared_field, takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.jobs.options import option_field


@dataclass(frozen=True)
class CaptionOptions:
    """The options of `caption`."""

    image: Path = option_field(MISSING, "The photo.", "IMAGE", positional=True)
    captioner: str | None = shared_field("captioner")
    beams: int = option_field(5, "Sentences weighed side by side; 1: word by word.", "N")
    crop: str | None = shared_field("crop")
    device: str | None = device_field()


@takes_options
def caption(options: CaptionOptions, reporter: Reporter) -> None:
    """Say what a photo shows: a source prompt, to correct and to edit from.

    Example: [bold]nulltext caption dahlia.jpg[/bold]

    The bundled captioner knows flowers only, and is wrong one time in five or six
    (docs/captioning.md): read it.
    """
    from nulltext.captioning.folder import load_captioner
    from nulltext.image.images import CropBox
    from nulltext.image.photos import load_photo

    if options.beams < 1:
        raise OptionError(f"--beams is {options.beams}; expected 1 or more.")
    box = None if options.crop is None else CropBox.parse(options.crop)
    photo = load_photo(options.image)
    with reporter.busy("Looking at the photo …"):
        loaded = load_captioner(options.captioner or constants.CAPTIONER, device=options.device)
        found = loaded.describe(photo, crop=box, beams=options.beams)
    said = found.text
    if not said:
        reporter.note(f"Note: the captioner '{loaded.name}' finds no words for this photo.")
    reporter.answer({"caption": said, "captioner": loaded.name, **found.doubts}, [said])
    if said and found.note:
        reporter.note(found.note)
    if said:
        image, source = shlex.quote(str(options.image)), shlex.quote(said)
        reporter.note(f'Next: nulltext edit {image} --source {source} --target "…"')


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `convert-captioner`."""

    weights: Path = option_field(
        MISSING, "The published file of ClipCap.", "WEIGHTS.pt", positional=True
    )
    clip: Path = option_field(
        MISSING, "transformers folder of its CLIP (openai/clip-vit-base-patch32).", "FOLDER"
    )
    gpt2: Path = option_field(
        MISSING, "transformers folder of GPT-2: settings, tokenizer.", "FOLDER"
    )
    output: Path = option_field(MISSING, "Folder of the captioner.", "FOLDER", short="-o")


@takes_options
def convert_captioner(options: ConvertOptions, reporter: Reporter) -> None:
    """Make a captioner of published ClipCap weights: safetensors, in half precision.

    Example: [bold]nulltext convert-captioner coco_weights.pt --clip clip-vit-base-patch32
    --gpt2 gpt2 -o clipcap-coco[/bold]
    """
    import torch

    from nulltext.captioning.convert import convert
    from nulltext.captioning.folder import check_captioner_target, save_captioner

    output = options.output
    check_captioner_target(output)
    with reporter.busy(f"Reading {options.weights} …"):
        captioner = convert(options.weights, clip=options.clip, gpt2=options.gpt2, name=output.name)
    with reporter.busy(f"Writing {output} …"):
        save_captioner(captioner, output, dtype=torch.float16)
    reporter.result(
        {"captioner": str(output)},
        [
            f"Saved the captioner {output}",
            f"Next: nulltext caption PHOTO --captioner {shlex.quote(str(output))}",
        ],
    )
