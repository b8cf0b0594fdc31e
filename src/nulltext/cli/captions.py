"""`auto`: the source prompt that a captioner writes, shown so that a person can correct it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nulltext import defaults
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError, PromptError

if TYPE_CHECKING:
    from nulltext.images import CropBox
    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.photos import Photo

AUTO = "auto"
"""In place of a prompt: let the captioner find the words."""


def check_captioner_use(option: str, prompt: str | None, captioner: str | None) -> None:
    """Refuse a captioner that nobody would ask.

    Args:
        option: the option that may say auto.
    """
    if captioner is not None and prompt != AUTO:
        raise OptionError(f"--captioner is for {option} {AUTO}; write that, or leave it out.")


def written_prompt(
    reporter: Reporter,
    option: str,
    photo: Photo,
    box: CropBox,
    captioner: str | None,
    device: str | None,
) -> str:
    """The captioner's words for a crop of the photo, after showing them.

    Raises:
        ModelError: there is no such captioner. PromptError: it finds no words.
    """
    from nulltext.captioning.folder import load_captioner

    with reporter.busy("Looking at the photo …"):
        loaded = load_captioner(captioner or defaults.CAPTIONER, device=device)
        caption = loaded.caption(photo, crop=box)
    if not caption:
        raise PromptError(
            f"The captioner '{loaded.name}' finds no words for this photo; say what it shows: "
            f'{option} "…".'
        )
    reporter.note(f'Caption: "{caption}" (if that is wrong, write {option} "…" yourself)')
    return caption


def check_readable(model: LatentDiffusion, option: str, caption: str) -> None:
    """Refuse a caption that the model cannot read, saying that it was the captioner's.

    Raises:
        PromptError: it is too long, or has characters without a token.
    """
    try:
        model.tokenize(caption)
    except PromptError as error:
        raise PromptError(
            f'The model cannot read the caption "{caption}", which the captioner wrote; write your '
            f'own with {option} "…". {error}'
        ) from error
