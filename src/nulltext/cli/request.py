"""What `nulltext edit` was asked for: checked before anything is opened, then opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nulltext import defaults
from nulltext.cli.arguments import numbered
from nulltext.cli.captions import AUTO, check_captioner_use, written_prompt
from nulltext.cli.options import Budget, Method, Solver
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.editing import EditSpec
    from nulltext.framing import SizeChoice
    from nulltext.images import CropBox
    from nulltext.inversion.budgets import Plan
    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.photos import Photo
    from nulltext.record import Inversion

SMALLEST_CROP = 256
"""Side in pixels below which no crop is put around a mask: less would only be enlarged."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for, besides the edits themselves."""

    image: Path | None
    source: str | None
    inversion: Path | None
    save_inversion: Path | None
    method: Method | None
    steps: int | None
    budget: Budget | None
    solver: Solver | None
    inner_steps: int | None
    guidance: float | None
    crop: str | None
    size: str | None
    seed: int
    mask: Path | None
    full: bool
    low_memory: bool
    captioner: str | None = None
    """Who writes the source prompt where it is `auto`."""
    fresh: bool = False
    """Whether not to go on from an inversion that was broken off."""

    def check(self, targets: Sequence[str]) -> None:
        """Refuse what cannot be meant, before anything is opened."""
        if not targets:
            raise OptionError('There is no --target; say what the photo shall show: --target "…".')
        check_captioner_use("--source", self.source, self.captioner)
        if self.inversion is None:
            if self.image is None:
                raise OptionError("There is no IMAGE; pass a photo, or --inversion FILE.")
            if self.source is None:
                raise OptionError('There is no --source; say what the photo shows: --source "…".')
            return
        effort = ("method", "steps", "budget", "solver", "inner_steps")
        settled = (*effort, "guidance", "crop", "size", "save_inversion")
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
        from nulltext.framing import parse_size

        return None if self.size is None else parse_size(self.size)

    def plan(self) -> Plan:
        """How to invert."""
        from nulltext.inversion.budgets import planned

        return planned(
            self.method or Method.NULL_TEXT,
            budget=self.budget,
            solver=self.solver,
            num_steps=self.steps,
            inner_steps=self.inner_steps,
        )

    def output_paths(
        self, output: Path | None, further: Sequence[Path | None], count: int
    ) -> list[Path]:
        """Where the edits go; refuses early what cannot be written or would be overwritten.

        Args:
            further: other pictures that will be written.
        """
        from nulltext.cli.work import check_inversion_target
        from nulltext.images import check_writable

        origin = self.image or self.inversion
        assert origin is not None
        paths = numbered(output or Path(f"{origin.stem}-edited.png"), count)
        written = [*paths, *(path for path in further if path is not None)]
        for path in written:
            check_writable(path)
        if self.save_inversion:
            written.append(check_inversion_target(self.save_inversion))
        read = (self.image, self.inversion, self.mask)
        taken = {path.resolve(): "is read" for path in read if path is not None}
        for path in written:
            if path.resolve() in taken:
                raise OptionError(
                    f"'{path}' {taken[path.resolve()]} by this very command; choose another name."
                )
            taken[path.resolve()] = "is also written"
        return paths


@dataclass(frozen=True)
class Opened:
    """The request with its files open."""

    request: Request
    photo: Photo | None
    box: CropBox
    saved: Inversion | None
    mask: Tensor | None
    """[box.height, box.width] in [0, 1]."""

    @classmethod
    def of(cls, request: Request) -> Opened:
        """Read photo, mask and inversion.

        Raises:
            UserError: one of them cannot be read, or they do not belong together.
        """
        from nulltext.cli.work import check_same_photo
        from nulltext.images import CropBox
        from nulltext.masks import load_mask, mask_on_crop
        from nulltext.photos import load_photo
        from nulltext.record import Inversion

        photo: Photo | None
        drawn = None if request.mask is None else load_mask(request.mask)
        if request.inversion is None:
            photo, box, size, saved = *_cropped(request, drawn), None
        else:
            saved = Inversion.load(request.inversion)
            if request.source is not None and request.source != saved.header.prompt:
                raise OptionError(
                    f'The inversion was made for "{saved.header.prompt}"; leave --source out, '
                    "or leave out --inversion to invert again."
                )
            photo = None if request.image is None else load_photo(request.image)
            if photo is not None:
                check_same_photo(saved, photo)
            box = CropBox.from_list(saved.header.crop)
            size = (saved.header.image_size[0], saved.header.image_size[1])
        mask = None if drawn is None else mask_on_crop(drawn, size, box)
        return cls(request, photo, box, saved, mask)

    @property
    def prompt(self) -> str:
        """The source prompt."""
        return self.saved.header.prompt if self.saved else str(self.request.source)


def with_words(reporter: Reporter, opened: Opened, device: str | None) -> Opened:
    """With a captioner's words for the source prompt, where it was `auto`."""
    request = opened.request
    if request.source != AUTO or opened.photo is None:
        return opened
    caption = written_prompt(
        reporter, "--source", opened.photo, opened.box, request.captioner, device
    )
    return replace(opened, request=replace(request, source=caption))


def _cropped(request: Request, drawn: object | None) -> tuple[Photo, CropBox, tuple[int, int]]:
    """Photo, crop and the photo's size; with --full, the crop goes around the mask."""
    from PIL import Image

    from nulltext.cli.work import open_photo
    from nulltext.masks import crop_around

    assert request.image is not None
    size = request.size_choice
    photo, box = open_photo(request.image, request.crop, size)
    free = request.crop is None and size != "photo"
    if request.full and free and isinstance(drawn, Image.Image):
        proportions = (box.width, box.height)
        box = crop_around(drawn, photo.size, SMALLEST_CROP, proportions)
    return photo, box, photo.size


def obtain_inversion(
    reporter: Reporter, model: LatentDiffusion, opened: Opened, specs: Sequence[EditSpec]
) -> tuple[Inversion, float, int]:
    """(inversion, seconds, UNet evaluations): the saved one, or a new one."""
    from nulltext.cli.work import invert_with_bars, partial_beside, save_whole
    from nulltext.editing import check_specs
    from nulltext.sampling import check_model

    if opened.saved is not None:
        check_model(model, opened.saved)
    check_specs(model, opened.prompt, specs)
    if opened.saved is not None:
        return opened.saved, 0.0, 0
    request = opened.request
    assert opened.photo is not None
    kept = request.save_inversion
    made = invert_with_bars(
        reporter,
        model,
        opened.photo,
        opened.prompt,
        opened.box,
        request.size_choice,
        plan=request.plan(),
        guidance=(defaults.GUIDANCE_SCALE if request.guidance is None else request.guidance),
        seed=request.seed,
        partial=None if kept is None else partial_beside(kept, fresh=request.fresh),
    )
    if kept is not None:
        save_whole(made, kept)
        reporter.note(f"Saved {kept}")
    return made, made.header.seconds, made.header.unet_evaluations
