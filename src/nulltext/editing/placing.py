"""The pictures of an edit, put where they belong: into the photo, and measured there.

Which pixels an edit may show at comes from its mask and its blend, else from where it was found to
belong (`finding`), else it is all of the crop; the formula is that of `compositing`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from nulltext.constants import DETAIL, HUE, REGION, Detail, Hue, Region
from nulltext.diffusion.loops import StepInfo, run, stage_steps
from nulltext.editing.finding import Finding, find_steps, weights_of
from nulltext.editing.loop import Edit, check_specs, edit_steps
from nulltext.editing.spec import EditSpec, specs_of
from nulltext.errors import ImageError, OptionError
from nulltext.image.colours import HUES, to_named_hue
from nulltext.image.compositing import (
    Weight,
    blend_bands,
    compare_bands,
    composite_bands,
    cut_sides,
    dilate,
    fade_bands,
    original_picture,
    reduced_bands,
    shown_bands,
)
from nulltext.image.images import CropBox, from_uint8, to_pil, to_tensor, to_uint8
from nulltext.image.outlines import CUT_SIDE
from nulltext.image.photos import Photo, PhotoLike, exif_of_srgb, load_photo
from nulltext.image.profiles import is_srgb
from nulltext.image.saving import Picture
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import SourceBranch, source_step
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.changes import read_change

SAME_PHOTO = 2.0
"""Mean absolute difference, in 8-bit levels, up to which two crops are of the same photo: decoders
and resizers differ by less, other photos by far more."""
NEARLY_NOTHING, NEARLY_ALL = 0.005, 0.95
"""Shares of the crop below and above which a region that was found is worth a word."""
HARDLY = 0.1
"""Weight, in parts of the mask's own, below which an edit hardly shows."""


@dataclass(frozen=True)
class Canvas:
    """What edits are put into: the photo, or its crop at the model's resolution."""

    photo: Photo
    box: CropBox
    full: bool
    """Whether it is the photo at its own size."""
    shown: Photo | None = None
    """The photo itself, where only its crop is the canvas; None if it was not given."""

    @classmethod
    def of(cls, inversion: Inversion, photo: Photo | None, *, full: bool) -> Canvas:
        """The photo at its own size, or the crop that the inversion holds, in sRGB."""
        if full:
            assert photo is not None
            return cls(photo, CropBox.from_list(inversion.header.crop), full=True)
        crop = to_pil(from_uint8(inversion.photo))
        told = Photo(crop) if photo is None else photo
        tag, exif = told.icc_profile, told.exif
        if not is_srgb(tag):
            tag, exif = None, exif_of_srgb(exif)
        own = Photo(crop, icc_profile=tag, exif=exif, metadata=told.metadata)
        return cls(own, CropBox(0, 0, *crop.size), full=False, shown=photo)

    def seen(self) -> Tensor:
        """The crop's pixels as outlines are looked for in: [3, h, w], at most `CUT_SIDE` wide."""
        scale = min(1.0, CUT_SIDE / max(self.box.width, self.box.height))
        size = (max(1, round(scale * self.box.height)), max(1, round(scale * self.box.width)))
        return to_tensor(self.photo, self.box, size)[0]


@dataclass(frozen=True)
class Placed:
    """One edit, ready to be written."""

    picture: Picture
    spec: EditSpec
    changed_fraction: float
    """Share of the pixels that differ from the original."""
    psnr_outside: float
    """Decibels against the original where nothing was to change; infinite if nothing did."""
    mask_fraction: float
    """Share of the latents that were free to change."""
    unchanged: str | None
    """Why nothing was edited, in one sentence; None where something was."""
    region: Tensor
    """[box.height, box.width], uint8: where it may show, from 0 (nothing was to change) to 255."""
    found: str | None
    """What was found there, in words; None where the region was not found but given."""
    colour: str | None
    """The colour to whose hue it was turned where it missed it; None of any other."""
    is_reconstruction: bool
    """Whether, unedited, it differs from the photo all the same, as the reconstruction does."""
    cut: tuple[str, ...] = ()
    """The sides of the crop that cut off where it shows: left, right, top, bottom."""
    opacity: float = 1.0
    """How much of the edit lies over the photo: 1 all of it."""
    lost: tuple[str, ...] = ()
    """What the file does not hold of the picture, in sentences."""

    def faded_steps(self, opacity: float, canvas: Canvas) -> Generator[StepInfo, None, Placed]:
        """Return the same edit, blended over its canvas; see `compositing.blend_bands`."""
        if opacity == 1:
            return self
        before = original_picture(canvas.photo)
        bands = blend_bands(before, self.picture, opacity)
        picture = yield from stage_steps("composite", bands)
        compared = compare_bands(before, picture, self.kept, canvas.box)
        found = yield from stage_steps("compare", compared)
        return replace(
            self,
            picture=picture,
            changed_fraction=found.changed_fraction,
            psnr_outside=found.psnr_outside,
            opacity=opacity,
        )

    @property
    def image(self) -> Image.Image:
        """At 8 bits."""
        return self.picture.image

    @property
    def kept(self) -> Tensor:
        """[box.height, box.width], bool: where nothing was to change."""
        return self.region == 0

    @property
    def region_fraction(self) -> float:
        """Share of the crop's pixels where it may show."""
        return float((self.region > 0).float().mean())

    @property
    def oddity(self) -> str | None:
        """What is odd about a region that was found, in one sentence; None of any other."""
        if self.found is None:
            return None
        share = self.region_fraction
        if share > NEARLY_ALL:
            return f"covers nearly all of the crop ({100 * share:.0f} %)"
        if share < NEARLY_NOTHING:
            return f"covers nearly nothing of the crop ({100 * share:.1f} %)"
        return None

    @property
    def seam(self) -> str | None:
        """Where the edit stops short inside the photo, in words; None if nowhere."""
        if not self.cut or self.unchanged:
            return None
        return f"stops inside the photo, at the crop's {' and '.join(self.cut)}"

    @property
    def nothing(self) -> str | None:
        """What an edit that edited nothing did instead, and why; None of any other."""
        if not self.unchanged:
            return None
        what = "is the reconstruction of the photo" if self.is_reconstruction else "changed nothing"
        return f"{what}: {self.unchanged}."


def placed_steps(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: Sequence[EditSpec],
    canvas: Canvas,
    *,
    region: Region,
    detail: Detail,
    hue: Hue = HUE,
    source_branch: SourceBranch = source_step,
) -> Generator[StepInfo, None, tuple[Edit, list[Placed]]]:
    """Find where edits belong, make them, and put them there, as a generator of steps.

    Args: as `edit_photo`.

    Raises: as `editing.edit`; OptionError: there is no such region, detail or hue.
    """
    _check_name("detail", detail, Detail)
    ready = yield from ready_steps(
        model, inversion, specs, region=region, hue=hue, source_branch=source_branch
    )
    placed = []
    for row in range(len(specs)):
        placed.append((yield from ready.place_steps(canvas, row, detail)))
    return ready.edit, placed


@dataclass(frozen=True)
class ReadyEdits:
    """Edits that were made, and what is known of where they belong."""

    specs: Sequence[EditSpec]
    edit: Edit
    findings: Sequence[Finding | None]
    colours: Sequence[str | None]

    def place_steps(
        self, canvas: Canvas, row: int, detail: Detail
    ) -> Generator[StepInfo, None, Placed]:
        """Put one of them into a canvas; see `place_steps`."""
        spec, finding, colour = self.specs[row], self.findings[row], self.colours[row]
        return place_steps(canvas, self.edit, row, spec, detail, finding, colour)


def ready_steps(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: Sequence[EditSpec],
    *,
    region: Region,
    hue: Hue = HUE,
    source_branch: SourceBranch = source_step,
) -> Generator[StepInfo, None, ReadyEdits]:
    """Find where edits belong, and make them, as `placed_steps` does before it places them."""
    _check_name("region", region, Region)
    _check_name("hue", hue, Hue)
    check_specs(model, inversion.header.prompt, specs)
    counted = model.counted()
    findings = yield from find_steps(counted, inversion, specs, region)
    edit = yield from edit_steps(model, inversion, specs, source_branch=source_branch)
    edit = replace(edit, unet_evaluations=edit.unet_evaluations + counted.passes.total)
    named = hue == "named"
    colours = [colour_of(model, inversion, spec) if named else None for spec in specs]
    return ReadyEdits(specs, edit, findings, colours)


def edit_photo(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: str | EditSpec | Sequence[str | EditSpec],
    photo: PhotoLike | None = None,
    *,
    region: Region = REGION,
    detail: Detail = DETAIL,
    hue: Hue = HUE,
    source_branch: SourceBranch = source_step,
    on_step: Callable[[StepInfo], None] | None = None,
) -> list[Placed]:
    """Edit an inverted photo, and put each edit into it, where it belongs.

    Args:
        specs: target prompts, or `EditSpec`s where an option differs from its default.
        photo: the photo, which is edited at its own size; None for the crop that was inverted, at
            the model's resolution.
        region: how it is found where an edit shows, unless its mask or blend says so: "auto" (where
            the words look and the two prompts differ), "words", or "everywhere".
        detail: how much of the photo's fine detail is kept; see `image.compositing`.
        hue: whether an edit to another colour gets that colour's hue ("named", see
            `image.colours`) or keeps the model's ("model").
        source_branch: how the source is sampled beside the targets; see `edit_steps`.
        on_step: called with each step's `StepInfo`.

    Raises:
        as `edit`; ImageError: the photo cannot be read, or is another one than was inverted.
    """
    opened = None if photo is None else load_photo(photo)
    if opened is not None:
        check_same_photo(inversion, opened)
    canvas = Canvas.of(inversion, opened, full=opened is not None)
    steps = placed_steps(
        model,
        inversion,
        specs_of(specs),
        canvas,
        region=region,
        detail=detail,
        hue=hue,
        source_branch=source_branch,
    )
    return run(steps, on_step)[1]


def place_steps(
    canvas: Canvas,
    edit: Edit,
    row: int,
    spec: EditSpec,
    detail: Detail,
    finding: Finding | None = None,
    colour: str | None = None,
) -> Generator[StepInfo, None, Placed]:
    """Put one edit into its canvas, and measure what else moved: steps are bands of rows.

    Without mask, blend and finding it shows everywhere; then and without detail, a crop's is the
    model's own picture. Only where the edit shows is anything computed at the photo's own size.

    Args:
        row: of the edit's pictures.
        detail: how much of the photo's fine detail is kept; see `compositing`.
        finding: where it belongs; None where its mask or blend says so, or it shows everywhere.
        colour: a key of `HUES`, to which the hue is turned; not where the edit shows everywhere.
    """
    picture, reconstruction = edit.images[row], edit.reconstruction[0]
    weight = yield from _weight_steps(canvas, edit, row, spec, finding)
    shown = yield from stage_steps("outline", shown_bands(weight))
    bounded = finding is not None or spec.mask is not None or spec.blend is not None
    if colour is not None and bounded:
        size = (picture.shape[-2], picture.shape[-1])
        small = yield from stage_steps("outline", reduced_bands(weight, size))
        picture = to_named_hue(picture, reconstruction, small, colour)
    photo, box = canvas.photo, canvas.box
    bands = composite_bands(photo, box, picture, reconstruction, weight, shown, detail)
    result = yield from stage_steps("composite", bands)
    rows, kept = shown.bounds[0], shown.levels == 0
    within = slice(box.y + rows.start, box.y + rows.stop)
    compared = compare_bands(original_picture(photo), result, kept, box, within)
    difference = yield from stage_steps("compare", compared)
    unseen = None if difference.changed_fraction else _why_unseen(shown.largest, spec)
    return Placed(
        result,
        spec,
        difference.changed_fraction,
        difference.psnr_outside,
        mask_fraction=float(edit.masks[row].mean()),
        unchanged=edit.unchanged[row] or unseen,
        region=shown.levels,
        found=None if finding is None else finding.said,
        colour=colour if bounded else None,
        is_reconstruction=difference.changed_fraction > 0,
        cut=tuple(cut_sides(weight, box, photo.size)),
    )


def _check_name(what: str, name: str, names: Any) -> None:
    if name not in get_args(names):
        raise OptionError(f"There is no {what} '{name}'; choose {', '.join(get_args(names))}.")


def colour_of(model: LatentDiffusion, inversion: Inversion, spec: EditSpec) -> str | None:
    """Return the colour of `HUES` that an edit newly gives its one thing; None without one."""
    source = model.tokenize(inversion.header.prompt, allow_empty=True)
    change = read_change(source, model.tokenize(spec.target), weights_of(spec))
    named = [word for word in change.attributes if word in HUES]
    one = change.about == "things" and len(change.source) + len(change.added) == 1
    return named[0] if one and len(named) == 1 else None


def _why_unseen(largest: float, spec: EditSpec) -> str:
    """Why an edit that differs from the reconstruction does not show in its canvas."""
    most = 1.0 if spec.mask is None else float(spec.mask.max())
    if largest < HARDLY * most:
        return (
            "what may change lies where an edit fades out towards the crop's border: move the crop"
        )
    return (
        "the model draws the same pixels where they may change: choose other words or a higher "
        "strength, or let more of the photo change"
    )


def _weight_steps(
    canvas: Canvas, edit: Edit, row: int, spec: EditSpec, finding: Finding | None
) -> Generator[StepInfo, None, Weight]:
    """Where an edit shows: by mask and blend, else as it was found, else everywhere."""
    size = (canvas.box.height, canvas.box.width)
    picture = edit.images[row]
    parts: list[Tensor] = []
    if finding is not None:
        parts.append(finding.region(canvas.seen(), picture))
        yield StepInfo("outline", 1, 1)
    elif spec.mask is None and spec.blend is None:
        parts.append(torch.ones(1, 1).expand(size))
    if finding is None and spec.blend is not None:
        cells = (edit.masks[row] > 0).float()[None, None]
        parts.append(dilate(interpolate(cells, size=picture.shape[-2:], mode="nearest")[0, 0]))
    if finding is None and spec.mask is not None:
        mask = spec.mask
        if tuple(mask.shape) != size:
            mask = adaptive_avg_pool2d(mask[None], size)[0]
        parts.append((yield from stage_steps("outline", fade_bands(mask))))
    return Weight(parts, canvas.box, canvas.photo.size)


def settings_of(inversion: Inversion, placed: Placed) -> dict[str, Any]:
    """What made an edit, for JSON."""
    header, spec = inversion.header, placed.spec
    return {
        "source": header.prompt,
        "target": spec.target,
        "model": header.model,
        "fingerprint": header.fingerprint,
        "adapters": header.adapters,
        "photo_sha256": header.image_sha256,
        "photo_size": header.image_size,
        "crop": header.crop,
        "size": [*inversion.photo.shape[:0:-1]],
        "method": header.method,
        "method_config": header.method_config,
        "steps": inversion.num_steps,
        "guidance": header.guidance_scale,
        "seed": header.seed,
        "target_guidance": spec.guidance_scale,
        "guidance_start": spec.guidance_start,
        "negative": spec.negative,
        "after": [earlier.target for earlier in spec.line[:-1]],
        "editor": spec.editor.name,
        **asdict(spec.editor),
        "pull": str(spec.pull),
        "blend": list(spec.blend.words) if spec.blend else [],
        "blend_except": list(spec.blend.except_words) if spec.blend else [],
        "blend_threshold": spec.blend.threshold if spec.blend else None,
        "mask": spec.mask is not None,
        "mask_fraction": None if spec.mask is None else float(spec.mask.mean()),
        "region": placed.found,
        "region_fraction": placed.region_fraction,
        "hue": placed.colour,
        "opacity": placed.opacity,
    }


def check_same_photo(inversion: Inversion, photo: Photo) -> None:
    """Refuse to use an inversion beside another photo than its own.

    Raises:
        ImageError: the photo's pixels in the inversion's crop are not those that were inverted, or
            were inverted as if they were sRGB, as earlier versions did.
    """
    header = inversion.header
    same = photo.sha256 == header.image_sha256
    if same and is_srgb(photo.icc_profile):
        return
    if list(photo.size) == header.image_size:
        height, width = inversion.photo.shape[-2:]
        pixels = to_uint8(to_tensor(photo, CropBox.from_list(header.crop), (height, width)))
        difference = (pixels.float() - inversion.photo.float()).abs().mean().item()
        if difference <= SAME_PHOTO:
            return
    if same:
        raise ImageError(
            "The inversion was made by an earlier nulltext, which took the photo's colours for "
            "sRGB, or from a copy of the photo without its colour profile; invert the photo again."
        )
    raise ImageError(
        "The inversion was made from another photo "
        f'({header.image_size[0]} x {header.image_size[1]}, "{header.prompt}"); '
        "pass that photo, or invert this one."
    )
