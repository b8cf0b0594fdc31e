"""`auto`: the source prompt that a captioner writes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from nulltext import constants
from nulltext.constants import AUTO
from nulltext.errors import OptionError, PromptError

if TYPE_CHECKING:
    from nulltext.captioning.captioner import Captioner
    from nulltext.image.images import CropBox
    from nulltext.image.photos import Photo
    from nulltext.models.latent_diffusion import LatentDiffusion


def check_captioner_use(option: str, prompt: str | None, captioner: str | None) -> None:
    """Refuse a captioner that nobody would ask.

    Args:
        option: the option that may say auto.
    """
    if captioner is not None and prompt != AUTO:
        raise OptionError(f"--captioner is for {option} {AUTO}; write that, or leave it out.")


def caption_of(
    option: str, photo: Photo, box: CropBox, captioner: str | None, device: str | None
) -> str:
    """The captioner's words for a crop of the photo.

    Raises:
        ModelError: there is no such captioner. PromptError: it finds no words.
    """
    loaded = _captioner(captioner or constants.CAPTIONER, device)
    caption = loaded.caption(photo, crop=box)
    if not caption:
        raise PromptError(
            f"The captioner '{loaded.name}' finds no words for this photo; say what it shows: "
            f'{option} "…".'
        )
    return caption


@lru_cache(maxsize=1)
def _captioner(name: str, device: str | None) -> Captioner:
    """Loaded once for many photos."""
    from nulltext.captioning.folder import load_captioner

    return load_captioner(name, device=device)


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
