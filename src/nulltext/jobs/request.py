"""What an edit is asked for: options checked, before anything is opened, and then files opened.

EditOptions -> check_options -> open_inputs -> Inputs -> edits.edits_of -> pictures.Pictures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext import constants
from nulltext.constants import AUTO
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.errors import ImageError, OptionError, PromptError
from nulltext.jobs.edits import parse_weights, set_by_strength
from nulltext.jobs.options import (
    OPTIONS,
    EditOptions,
    InversionOptions,
    check_ranges,
    flag_of,
)
from nulltext.storage.inversion_file import read_header

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.captioning.captioner import Caption, Captioner
    from nulltext.image.images import CropBox, SizeChoice
    from nulltext.image.photos import Photo
    from nulltext.inversion.record import Inversion
    from nulltext.models.latent_diffusion import LatentDiffusion

SMALLEST_CROP = 256
"""Side in pixels below which no crop is put around a mask: less would only be enlarged."""


def check_options(options: EditOptions) -> None:
    """Refuse options that are missing, out of range, or contradict each other; opens nothing.

    Raises:
        OptionError: an option has to be changed.
    """
    _check_inputs(options)
    _check_edits(options)
    check_ranges(options)
    own = [str(options.source)] if options.inversion is None else []
    if not all(prompt.strip() for prompt in [*own, *options.prompts]):
        raise OptionError("A prompt is empty; say in a few words what the photo shall show.")
    if options.negative is not None and not options.negative.strip():
        raise OptionError(
            "--negative is empty; say in a few words what the picture shall not show, or leave it "
            "out."
        )
    check_targets(options, *own)


def _check_inputs(options: EditOptions) -> None:
    if not options.target:
        raise OptionError('There is no --target; say what the photo shall show: --target "…".')
    check_captioner_use("--source", options.source, options.captioner)
    if options.region != constants.REGION and (options.mask or options.blend):
        given = "--mask" if options.mask else "--blend"
        raise OptionError(
            f"--region {options.region} and {given} both say where the edit shows; leave one out."
        )
    if options.inversion is None:
        if options.image is None:
            raise OptionError("There is no IMAGE; pass a photo, or --inversion FILE.")
        if options.source is None:
            raise OptionError('There is no --source; say what the photo shows: --source "…".')
        return
    settled = [one.name for one in fields(InversionOptions)] + ["save_inversion"]
    for name in settled:
        if name not in ("captioner", "fresh") and getattr(options, name) is not None:
            raise OptionError(
                f"{flag_of(name)} is settled by the saved inversion; leave it out, "
                "or leave out --inversion to invert again."
            )
    if options.full and options.image is None:
        raise OptionError("--full pastes into the photo; pass IMAGE beside --inversion.")


def _check_edits(options: EditOptions) -> None:
    if options.then and len(options.target) != 1:
        raise OptionError(
            f"--then goes on from one --target, and there are {len(options.target)}; "
            "pass one, or one command per chain."
        )
    if options.then_strength is not None and not options.then:
        raise OptionError("--then-strength is for the edits that --then adds; add one.")
    for name in options.editor_settings:
        editor = OPTIONS[name].about.editor
        if editor is not options.editor:
            raise OptionError(
                f"{flag_of(name)} belongs to --editor {editor}; leave it out, or pass that one "
                f"instead of {options.editor}."
            )
    doubled = set_by_strength(options)
    if options.strength is not None and doubled:
        raise OptionError(f"--strength sets {flag_of(doubled[0])}, too; leave one of them out.")
    if options.over and not options.sweep:
        raise OptionError("--over says what --sweep varies; add --sweep GRID.png.")
    parse_weights(options.weight)
    scale = options.guidance if options.target_guidance is None else options.target_guidance
    if options.negative is not None and scale is not None and scale <= CONDITIONAL_ONLY:
        raise OptionError(
            "--negative steers nothing at guidance 1, and towards it below; leave it out, or "
            "choose a --target-guidance above 1."
        )
    if options.blend_except and not options.blend:
        raise OptionError("--blend-except takes away from a --blend; name a word to blend.")
    if options.blend_threshold is not None and not options.blend:
        raise OptionError("--blend-threshold is for a --blend; name a word to blend.")


def check_targets(options: EditOptions, source: str = AUTO) -> None:
    """Refuse targets that say what they start from.

    Raises:
        OptionError: a target says the same as the prompt before it.
    """
    from nulltext.words.prompts import quoted

    weights = parse_weights(options.weight).values()
    for before, after in changes_of(options, "" if source == AUTO else source):
        if before.split() == after.split() and all(factor == 1 for factor in weights):
            raise OptionError(
                f"The target {quoted(after)} says the same as the source {quoted(before)}; "
                "change a word, or pass --weight WORD=FACTOR with another factor than 1."
            )


def changes_of(options: EditOptions, source: str) -> list[tuple[str, str]]:
    """(prompt before, prompt after) of each edit: from the source, or along a chain."""
    count = len(options.target)
    before = [source] * count + list(options.prompts[count - 1 : -1])
    return list(zip(before, options.prompts, strict=True))


def check_inversion_target(path: Path) -> Path:
    from nulltext.storage.files import check_target
    from nulltext.storage.inversion_file import SUFFIX

    if path.suffix != SUFFIX:
        raise OptionError(f"'{path}' does not end in {SUFFIX}, as saved inversions do; rename it.")
    check_target(path)
    return path


def size_of(options: InversionOptions) -> SizeChoice:
    """What --size says.

    Raises:
        OptionError: it cannot be read.
    """
    from nulltext.image.images import parse_size

    return None if options.size is None else parse_size(options.size)


def seed_of(options: InversionOptions) -> int:
    return constants.SEED if options.seed is None else options.seed


@dataclass(frozen=True)
class Inputs:
    """The files that an edit reads, open."""

    options: EditOptions
    photo: Photo | None
    box: CropBox
    saved: Inversion | None
    mask: Tensor | None
    """[box.height, box.width] in [0, 1]."""
    mask_note: str | None
    """A remark on how the mask was read."""
    caption: Caption | None = None
    """What a captioner wrote as the source prompt; None where none did."""

    @property
    def prompt(self) -> str:
        return self.saved.header.prompt if self.saved else str(self.options.source)

    @property
    def notes(self) -> list[str]:
        """Remarks on the mask and on the caption."""
        on_caption = None if self.caption is None else self.caption.note
        return list(filter(None, [self.mask_note, on_caption]))

    @property
    def doubts(self) -> dict[str, Any]:
        """The caption's doubts, for a report: {"caption": {"known": …, "unsure": […]}} or {}."""
        doubts = {} if self.caption is None else self.caption.doubts
        return {"caption": doubts} if doubts else {}

    def with_caption(self, describe: Callable[[Photo, CropBox], Caption]) -> Inputs:
        """Fill in the source prompt where it is `auto`."""
        if self.options.source != AUTO or self.photo is None or self.saved is not None:
            return self
        caption = describe(self.photo, self.box)
        return replace(self, options=replace(self.options, source=caption.text), caption=caption)


def open_inputs(options: EditOptions) -> Inputs:
    """Read photo, mask and inversion.

    Raises:
        UserError: one of them cannot be read, or they do not belong together.
    """
    photo: Photo | None = None
    saved: Inversion | None = None
    if options.inversion is None:
        assert options.image is not None
        photo, box = open_photo(options.image, options.crop, size_of(options))
        width, height = photo.size
    else:
        saved = _open_saved(options.inversion, options.source)
        from nulltext.image.images import CropBox

        width, height = saved.header.image_size
        box = CropBox.from_list(saved.header.crop)
        if options.image is not None:
            from nulltext.editing.placing import check_same_photo
            from nulltext.image.photos import load_photo

            photo = load_photo(options.image)
            check_same_photo(saved, photo)
    if options.mask is None:
        return Inputs(options, photo, box, saved, mask=None, mask_note=None)
    from nulltext.image.masks import crop_around, mask_on_crop, read_mask

    drawn, note = read_mask(options.mask)
    free = saved is None and options.crop is None and size_of(options) != "photo"
    if free and options.full:
        box = crop_around(drawn, (width, height), SMALLEST_CROP, (box.width, box.height))
    mask = mask_on_crop(drawn, (width, height), box)
    return Inputs(options, photo, box, saved, mask, note)


def open_inversion(path: Path) -> Inversion:
    """Load a saved inversion; a file that is none is refused before torch is imported.

    Raises:
        InversionFileError: see `Inversion.load`.
    """
    read_header(path)
    from nulltext.inversion.record import Inversion

    return Inversion.load(path)


def _open_saved(path: Path, source: str | None) -> Inversion:
    saved = open_inversion(path)
    own = saved.header.prompt
    if source is not None and source.split() != own.split():
        raise OptionError(
            f'The inversion was made for "{own}"; leave --source out, '
            "or leave out --inversion to invert again."
        )
    return saved


def open_photo(image: Path, crop: str | None, size: SizeChoice) -> tuple[Photo, CropBox]:
    from nulltext.image.images import CropBox, default_crop
    from nulltext.image.photos import load_photo

    box = None if crop is None else CropBox.parse(crop)
    photo = load_photo(image)
    if box is None:
        box = default_crop(photo.size, size)
    box.check_inside(photo.size)
    return photo, box


def open_photos(
    images: Sequence[Path], crop: str | None, size: SizeChoice
) -> list[tuple[Photo, CropBox]]:
    """Load photos as `open_photo` does; what is wrong with one of several names it.

    Raises:
        ImageError: a photo cannot be read, or the crop does not fit it.
    """
    opened = []
    for image in images:
        try:
            opened.append(open_photo(image, crop, size))
        except ImageError as error:
            if len(images) == 1 or str(image) in str(error):
                raise
            raise ImageError(f"'{image}': {error}") from error
    return opened


def check_captioner_use(option: str, prompt: str | None, captioner: str | None) -> None:
    """Refuse a captioner where no prompt asks for one.

    Args:
        option: the option that may say auto.
    """
    if captioner is not None and prompt != AUTO:
        raise OptionError(f"--captioner is for {option} {AUTO}; write that, or leave it out.")


def caption_of(
    option: str, photo: Photo, box: CropBox, captioner: str | None, device: str | None
) -> Caption:
    """Ask a captioner for the words of a photo's crop.

    Raises:
        ModelError: there is no such captioner. PromptError: it finds no words.
    """
    loaded = _captioner(captioner or constants.CAPTIONER, device)
    caption = loaded.describe(photo, crop=box)
    if not caption.text:
        raise PromptError(
            f"The captioner '{loaded.name}' finds no words for this photo; say what it shows: "
            f'{option} "…".'
        )
    return caption


@lru_cache(maxsize=1)
def _captioner(name: str, device: str | None) -> Captioner:
    from nulltext.captioning.folder import load_captioner

    return load_captioner(name, device=device)


def check_readable(model: LatentDiffusion, option: str, caption: str) -> None:
    """Refuse a caption that the model cannot read, saying that a captioner wrote it.

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
