"""`auto`: the source prompt that a captioner writes, shown so that a person can correct it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nulltext.cli.report import Reporter
from nulltext.jobs.captions import caption_of

if TYPE_CHECKING:
    from nulltext.image.images import CropBox
    from nulltext.image.photos import Photo


def written_prompt(
    reporter: Reporter,
    option: str,
    photo: Photo,
    box: CropBox,
    captioner: str | None,
    device: str | None,
) -> str:
    """The captioner's words for a crop of the photo, after showing them; see `caption_of`."""
    with reporter.busy("Looking at the photo …"):
        caption = caption_of(option, photo, box, captioner, device)
    reporter.note(f'Caption: "{caption}" (if that is wrong, write {option} "…" yourself)')
    return caption
