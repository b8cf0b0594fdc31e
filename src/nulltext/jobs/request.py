"""What is to be edited, and how it is inverted: checked before anything is opened, then opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nulltext import constants
from nulltext.constants import AUTO, Budget, Detail, Method, NullStart
from nulltext.errors import OptionError
from nulltext.jobs.captions import check_captioner_use

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.image.images import CropBox, SizeChoice
    from nulltext.image.photos import Photo
    from nulltext.inversion.budgets import Budget as Plan
    from nulltext.inversion.record import Inversion

SMALLEST_CROP = 256
"""Side in pixels below which no crop is put around a mask: less would only be enlarged."""


@dataclass(frozen=True)
class Request:
    """All that was asked for besides the edits themselves, by the names of the options."""

    image: Path | None = None
    source: str | None = None
    inversion: Path | None = None
    save_inversion: Path | None = None
    method: Method | None = None
    steps: int | None = None
    budget: Budget | None = None
    inner_steps: int | None = None
    null_start: NullStart | None = None
    guidance: float | None = None
    crop: str | None = None
    size: str | None = None
    seed: int | None = None
    mask: Path | None = None
    full: bool = False
    keep_gps: bool = False
    """Whether results say where the photo was taken."""
    captioner: str | None = None
    """Who writes the source prompt where it is `auto`."""
    detail: Detail | None = None
    """What of the photo's own detail is put back."""
    fresh: bool = False
    """Whether not to go on from an inversion that was broken off."""

    def check(self, targets: Sequence[str], *, blends: bool) -> None:
        """Refuse what cannot be meant, before anything is opened.

        Args:
            blends: whether there is a local blend.
        """
        if not targets:
            raise OptionError('There is no --target; say what the photo shall show: --target "…".')
        check_captioner_use("--source", self.source, self.captioner)
        if self.detail is not None and not (self.full or self.mask or blends):
            raise OptionError(
                "--detail says what is put back of the photo with --full, --mask or --blend; add "
                "one of these, or leave it out."
            )
        if self.inversion is None:
            if self.image is None:
                raise OptionError("There is no IMAGE; pass a photo, or --inversion FILE.")
            if self.source is None:
                raise OptionError('There is no --source; say what the photo shows: --source "…".')
            return
        effort = ("method", "steps", "budget", "inner_steps", "null_start")
        settled = (*effort, "guidance", "crop", "size", "seed", "save_inversion")
        given = [name for name in settled if getattr(self, name) is not None]
        if given:
            raise OptionError(
                f"--{given[0].replace('_', '-')} is settled by the saved inversion; leave it out, "
                "or leave out --inversion to invert again."
            )
        if self.full and self.image is None:
            raise OptionError("--full pastes into the photo; pass IMAGE beside --inversion.")

    @property
    def size_choice(self) -> SizeChoice:
        """What --size says.

        Raises:
            OptionError: it cannot be read.
        """
        from nulltext.image.images import parse_size

        return None if self.size is None else parse_size(self.size)

    @property
    def noise_seed(self) -> int:
        """Of the methods that draw noise, or its default."""
        return constants.SEED if self.seed is None else self.seed

    def plan(self) -> Plan:
        """How to invert."""
        from nulltext.inversion.budgets import planned

        return planned(
            self.method,
            budget=self.budget,
            num_steps=self.steps,
            inner_steps=self.inner_steps,
            null_start=self.null_start,
        )


@dataclass(frozen=True)
class Opened:
    """The request with its files open."""

    request: Request
    photo: Photo | None
    box: CropBox
    saved: Inversion | None
    mask: Tensor | None
    """[box.height, box.width] in [0, 1]."""
    mask_note: str | None
    """What is to be said of how the mask was read."""
    captioned: bool = False
    """Whether a captioner wrote the source prompt."""

    @classmethod
    def of(cls, request: Request) -> Opened:
        """Read photo, mask and inversion.

        Raises:
            UserError: one of them cannot be read, or they do not belong together.
        """
        from nulltext.editing.placing import check_same_photo
        from nulltext.image.images import CropBox
        from nulltext.image.masks import mask_on_crop, read_mask
        from nulltext.image.photos import load_photo
        from nulltext.inversion.record import Inversion

        photo: Photo | None
        drawn, note = (None, None) if request.mask is None else read_mask(request.mask)
        if request.inversion is None:
            photo, box, size, saved = *_cropped(request, drawn), None
        else:
            saved = Inversion.load(request.inversion)
            said, own = request.source, saved.header.prompt
            if said is not None and said.split() != own.split():
                raise OptionError(
                    f'The inversion was made for "{own}"; leave --source out, '
                    "or leave out --inversion to invert again."
                )
            photo = None if request.image is None else load_photo(request.image)
            if photo is not None:
                check_same_photo(saved, photo)
            box = CropBox.from_list(saved.header.crop)
            size = (saved.header.image_size[0], saved.header.image_size[1])
        mask = None if drawn is None else mask_on_crop(drawn, size, box)
        return cls(request, photo, box, saved, mask, note)

    @property
    def prompt(self) -> str:
        """The source prompt."""
        return self.saved.header.prompt if self.saved else str(self.request.source)

    def with_words(self, caption: Callable[[Photo, CropBox], str]) -> Opened:
        """With somebody's words for the source prompt, where it was `auto`."""
        if self.request.source != AUTO or self.photo is None or self.saved is not None:
            return self
        words = caption(self.photo, self.box)
        return replace(self, request=replace(self.request, source=words), captioned=True)


def _cropped(request: Request, drawn: object | None) -> tuple[Photo, CropBox, tuple[int, int]]:
    """Photo, crop and the photo's size; with --full, the crop goes around the mask."""
    from PIL import Image

    from nulltext.image.masks import crop_around
    from nulltext.jobs.opening import open_photo

    assert request.image is not None
    size = request.size_choice
    photo, box = open_photo(request.image, request.crop, size)
    free = request.crop is None and size != "photo"
    if request.full and free and isinstance(drawn, Image.Image):
        proportions = (box.width, box.height)
        box = crop_around(drawn, photo.size, SMALLEST_CROP, proportions)
    return photo, box, photo.size
