"""From edits to pictures, and from pictures to files: sampled, put into the photo, written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from nulltext import constants
from nulltext.diffusion.loops import StepInfo, run, stage_steps
from nulltext.editing.loop import Edit
from nulltext.editing.placing import Canvas, Placed, placed_steps
from nulltext.health.noise import note_on_configuration
from nulltext.image.bands import Bands
from nulltext.image.compositing import Difference, compare_bands, original_picture
from nulltext.image.images import to_pil
from nulltext.image.metadata import has_places, iptc_of_result, xmp_of_result
from nulltext.image.photos import Photo, exif_of_result, has_position
from nulltext.image.profiles import as_srgb, is_srgb
from nulltext.image.saving import Picture, coding_of, encode_bands, read_back, save_image
from nulltext.image.strip import Block, Tile, comparison_strip, labelled_grid
from nulltext.inversion.fixed_point import note_on_convergence
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import exact_source_step, source_step
from nulltext.jobs.edits import Edits, Sweep
from nulltext.jobs.options import EditOptions
from nulltext.jobs.request import Inputs, changes_of
from nulltext.jobs.settings import settings_text
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.prompt_notes import notes_on_prompts
from nulltext.reprs import decibels
from nulltext.storage.files import replace_file

BRANCHES = {"exact": exact_source_step, "replay": source_step}
"""What targets follow, by the names of --source-branch."""


@dataclass(frozen=True)
class PictureFiles:
    """Names of the files that pictures are written to."""

    outputs: Sequence[Path]
    strip: Path | None = None
    sweep: Path | None = None
    regions: Sequence[Path] = ()
    """One for each output, or none."""


@dataclass(frozen=True)
class Pictures:
    """All pictures of a request, in memory."""

    inversion: Inversion
    edit: Edit
    canvas: Canvas
    wanted: Sequence[Placed]
    """The edits that were asked for, in their order."""
    reconstructed_by: str
    """What the reconstruction beside the edits follows, in words."""
    sweep: Sweep | None
    swept: Sequence[Placed]
    note: str | None
    """What is odd about the model."""
    options: EditOptions
    """What was asked for."""

    @property
    def figures(self) -> dict[str, Any]:
        header = self.inversion.header
        return {
            "psnr_bound": header.psnr_bound,
            "psnr_replay": header.psnr_reconstruction,
            "psnr_reconstruction": self.edit.psnr_reconstruction,
            "changed_fraction": max(one.changed_fraction for one in self.wanted),
            "psnr_outside": min(one.psnr_outside for one in self.wanted),
            "mask_fraction": [one.mask_fraction for one in self.wanted],
            "shows_at": [one.found for one in self.wanted],
            "region_fraction": [one.region_fraction for one in self.wanted],
            "unchanged": [one.unchanged for one in self.wanted],
        }

    @property
    def remarks(self) -> list[str]:
        said = [self.note, note_on_convergence(self.inversion)]
        said += [text for one in self.wanted for text in (*remarks_on(one), *one.lost)]
        return list(dict.fromkeys(text for text in said if text))

    def save(
        self,
        model: LatentDiffusion,
        files: PictureFiles,
        *,
        gps: bool,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> Pictures:
        """Write them, each file whole or not at all.

        Args:
            gps: whether the photo's position is written, too.
            on_step: called with each step's `StepInfo`.

        Returns: the same, measured in their files.

        Raises:
            OutputError: one cannot be written.
        """
        pairs = zip(files.outputs, self.wanted, strict=True)
        wanted = [
            run(
                save_steps(path, one, self.inversion, self.canvas, gps=gps, options=self.options),
                on_step,
            )
            for path, one in pairs
        ]
        written = replace(self, wanted=wanted)
        if files.strip:
            save_strip(files.strip, model, written)
        for path, one in zip(files.regions, self.wanted, strict=bool(files.regions)):
            run(region_steps(path, one, self.canvas), on_step)
        if files.sweep and self.sweep:
            save_sweep(files.sweep, self.sweep, self.swept, self.canvas)
        return written


def pictures_of(
    model: LatentDiffusion,
    inputs: Inputs,
    inversion: Inversion,
    edits: Edits,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Pictures:
    """Sample all edits, the sweep's among them, and put them into the photo.

    Raises:
        NulltextError: see `editing.edit`.
    """
    options = inputs.options
    branch = BRANCHES[options.source_branch]
    everything = edits.everything
    canvas = Canvas.of(inversion, inputs.photo, full=options.full)
    steps = placed_steps(
        model,
        inversion,
        everything,
        canvas,
        region=options.region,
        detail=options.detail or constants.DETAIL,
        hue=options.hue,
        source_branch=branch,
    )
    result, made = run(steps, on_step)
    opacity = 1.0 if options.opacity is None else options.opacity
    placed = [run(one.faded_steps(opacity, canvas), on_step) for one in made]
    return Pictures(
        inversion=inversion,
        edit=result,
        canvas=canvas,
        wanted=placed[: len(edits.specs)],
        reconstructed_by="exact trajectory"
        if branch is exact_source_step
        else inversion.header.method,
        sweep=edits.sweep,
        swept=placed[len(edits.specs) :],
        note=note_on_configuration(model, inversion),
        options=options,
    )


def prompt_notes(model: LatentDiffusion, inputs: Inputs) -> list[str]:
    """Remarks on the source prompt and all that it is edited to; see `notes_on_prompts`.

    Raises:
        PromptError: the model cannot read one of them.
    """
    source, options = inputs.prompt, inputs.options
    own = [source] if source else []  # a saved inversion may have none
    negative = [options.negative] if options.negative else []
    prompts = [*own, *options.prompts, *negative]
    return notes_on_prompts(model, prompts, changes_of(options, source))


def remarks_on(placed: Placed) -> Iterator[str]:
    """What is odd about where an edit shows, and what its blend covers, in sentences."""
    if placed.nothing:
        yield f'Note: "{placed.spec.target}" {placed.nothing}'
        return
    if placed.seam:
        yield (
            f'Note: "{placed.spec.target}" {placed.seam}: invert with --size photo, or with a '
            "--crop around all that changes."
        )
    if placed.oddity:
        yield (
            f'Note: the region found for "{placed.spec.target}" {placed.oddity}: pass --mask, or '
            "choose another --region."
        )
    if placed.spec.blend is None:
        return
    words = ", ".join(placed.spec.blend.words)
    if placed.mask_fraction == 1:
        yield (
            f"Note: the blend of {words} covers all of the picture (100 %) and holds nothing back: "
            "raise --blend-threshold, or pass --mask."
        )
    else:
        yield f"The blend of {words} covers {100 * placed.mask_fraction:.0f} % of the picture."


def save_steps(
    path: Path,
    one: Placed,
    inversion: Inversion,
    canvas: Canvas,
    *,
    gps: bool,
    options: EditOptions | None = None,
) -> Generator[StepInfo, None, Placed]:
    """Write an edit, with its settings, and what the photo's EXIF, XMP and IPTC say, as steps.

    Until the last step nothing is on disk under the file's name.

    Args:
        gps: whether they say where, too.
        options: what was asked for, which the settings repeat.

    Returns: the edit, measured in its file.
    """
    photo, picture = canvas.photo, one.picture
    settings = settings_text(inversion, one, options)
    quality = None if options is None else options.quality
    bands = file_bands(picture, path, photo, settings, gps=gps, quality=quality)
    data = yield from stage_steps("encode", bands)
    replace_file(path, data)
    yield StepInfo("write", 1, 1)
    there = read_back(picture, path, data)
    found = None
    if there is not picture:
        before = original_picture(photo)
        if there.bands < before.bands:
            before = Picture(photo.image)  # over white, as the file is
        compared = compare_bands(before, there, one.kept, canvas.box)
        found = yield from stage_steps("compare", compared)
        one = replace(one, changed_fraction=found.changed_fraction, psnr_outside=found.psnr_outside)
    lost = [*_lost(path, one, canvas, there, found)]
    if gps and not has_position(photo.exif) and not has_places(photo.metadata):
        why = "the photo's file has none"
        if not canvas.full and canvas.shown is None:
            why = "it is in the photo's file, so pass that beside --inversion"
        lost.append(f"Note: --keep-gps wrote no position: {why}.")
    return replace(one, lost=tuple(lost))


def file_bands(
    picture: Picture,
    path: str | Path,
    photo: Photo,
    settings: str | None,
    *,
    gps: bool,
    quality: int | None = None,
) -> Bands[bytes | bytearray]:
    """Build the file of an edit, with what its photo's file says, in bands.

    Args:
        path: says the format. settings: JSON; as text in a PNG, in XMP elsewhere.
        gps: whether the photo's position is written.
        quality: of a JPEG, 1 to 100; None: compressed as the photo is, if it is a JPEG.
    """
    in_text = Path(path).suffix.lower() == ".png"
    return encode_bands(
        picture,
        path,
        icc_profile=photo.icc_profile,
        text={"nulltext": settings} if settings is not None and in_text else None,
        exif=exif_of_result(photo.exif, picture.image.size, gps=gps),
        xmp=xmp_of_result(photo.metadata, gps=gps, settings=None if in_text else settings),
        iptc=iptc_of_result(photo.metadata, gps=gps),
        coding=photo.coding if quality is None else coding_of(quality),
    )


def _lost(
    path: Path, one: Placed, canvas: Canvas, there: Picture, found: Difference | None
) -> Iterator[str]:
    """What a file does not hold of the photo, and what would."""
    photo, kind = canvas.shown or canvas.photo, path.suffix.removeprefix(".").upper()
    if photo.alpha is not None and not canvas.full:
        yield "Note: the model sees the photo over white; add --full to keep its transparency."
    if there.bands < one.picture.bands:
        yield (
            f"Note: {kind} holds no transparency, so it was put over white: name the file .png, "
            ".tif or .webp to keep it."
        )
    if photo.bits > 8 and there.deep is None:
        means = f"{kind} holds 8: name the file .png or .tif to keep them"
        if photo.deep is None:
            means = "could be read at 8 alone"
        elif not canvas.full:
            means = "the model sees 8: add --full to keep them"
        yield f"Note: the photo has {photo.bits} bits a channel, and {means}."
    if found is not None and there.image is not one.image:
        yield (
            f"Note: {kind} compresses every pixel anew: those that the edit left alone differ by "
            f"up to {found.largest_outside:.0f} of 255 levels ({decibels(found.psnr_outside)}); "
            "name the file .png, .tif or .webp to keep them exact."
        )


def save_strip(path: Path, model: LatentDiffusion, pictures: Pictures) -> None:
    """Write photo, autoencoder's bound, reconstruction and edits side by side."""
    header, edit = pictures.inversion.header, pictures.edit
    bound = model.decode(pictures.inversion.trajectory[:1]).cpu()
    profile = pictures.canvas.photo.icc_profile
    tiles = [
        Tile(as_srgb(pictures.canvas.photo.image, profile), f"photo\n{header.prompt}"),
        Tile(to_pil(bound), f"autoencoder's bound, {decibels(header.psnr_bound)}"),
        Tile(
            to_pil(edit.reconstruction),
            f"reconstruction ({pictures.reconstructed_by}), {decibels(edit.psnr_reconstruction)}",
        ),
    ]
    for one in pictures.wanted:
        factors = asdict(one.spec.editor).get("weights", {})
        weights = "".join(f"\n{word} × {factor:g}" for word, factor in factors.items())
        then = "then " if one.spec.parent else ""
        image = as_srgb(one.image, profile)
        tiles.append(Tile(image, then + one.spec.target + weights))
    tag = profile if is_srgb(profile) else None
    save_image(comparison_strip(tiles), path, icc_profile=tag)


def region_steps(path: Path, one: Placed, canvas: Canvas) -> Generator[StepInfo, None, None]:
    """Write where an edit may show, as steps: grey, as large as the canvas, white where free."""
    box, size = canvas.box, canvas.photo.size
    whole = Image.new("L", size)
    whole.paste(Image.fromarray(one.region.numpy()), (box.x, box.y))
    data = yield from stage_steps("encode", encode_bands(Picture(whole), path))
    replace_file(path, data)


def save_sweep(path: Path, sweep: Sweep, placed: Sequence[Placed], canvas: Canvas) -> None:
    """Write the grid: per target a row, or where a second knob goes down, a block of rows.

    Args:
        placed: `sweep.specs`, in their order.
    """
    pictures = {id(one.spec): one.image for one in placed}
    across, *down = sweep.axes
    prompts = [spec.target for spec in sweep.cells[0][0]]
    rows = [
        [[pictures[id(cell[prompt])] for cell in row] for row in sweep.cells]
        for prompt in range(len(prompts))
    ]  # [prompt][down][across]
    if down:
        blocks = [
            Block(prompt, across.labels, down[0].labels, block)
            for prompt, block in zip(prompts, rows, strict=True)
        ]
    else:
        blocks = [Block("", across.labels, prompts, [row for block in rows for row in block])]
    save_image(labelled_grid(blocks), path, icc_profile=canvas.photo.icc_profile)
