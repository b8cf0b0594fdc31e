"""Verbs on inversions: `invert` photos; `replay`, `inspect` and show `attention` of a saved one."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.constants import AUTO
from nulltext.errors import ImageError, OptionError
from nulltext.jobs.options import InversionOptions, check_ranges, option_field
from nulltext.jobs.request import (
    check_captioner_use,
    check_inversion_target,
    check_readable,
    open_inversion,
    open_photos,
    size_of,
)
from nulltext.models.choice import ModelChoice
from nulltext.reprs import decibels
from nulltext.storage.inversion_file import SUFFIX

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from nulltext.editing.heatmaps import PromptMaps
    from nulltext.inversion.header import InversionOutline
    from nulltext.inversion.record import Inversion


@dataclass(frozen=True)
class InvertOptions(InversionOptions):
    """The options of `invert`."""

    images: tuple[Path, ...] = option_field(
        MISSING, "The photo, or several.", "IMAGE...", positional=True, kw_only=True
    )
    prompt: tuple[str, ...] = option_field(
        MISSING,
        "What the photo shows, in words, or auto to ask a captioner; for several photos one for "
        "all, or one each.",
        "P",
        kw_only=True,
    )
    output: Path | None = option_field(
        None,
        "Default: IMAGE's name.safetensors; several go into a folder.",
        "FILE|DIR",
        short="-o",
    )
    batch_size: int | None = option_field(
        None, "Photos worked on side by side; default 8, 1 with --low-memory.", "B", least=1
    )


@takes_options
def invert(options: InvertOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Invert a photo once, so that it can be edited many times.

    Example: [bold]nulltext invert dahlia.jpg --prompt "a photo of an orange flower"
    -o dahlia.safetensors[/bold]

    A run with one photo that was broken off, however it ended, goes on at the timestep where it
    was.

    Many photos: [bold]nulltext invert *.jpg --prompt "a photo of a flower" -o inversions[/bold]
    """
    images = options.images
    check_ranges(options)
    asks = AUTO if AUTO in options.prompt else None
    check_captioner_use("--prompt", asks, options.captioner)
    prompts = _one_each(options.prompt, len(images))
    targets = [check_inversion_target(path) for path in _targets(images, options.output)]
    photos = open_photos(images, options.crop, size_of(options))
    from nulltext.cli import work
    from nulltext.inversion.budgets import budget_of

    plan = budget_of(options)

    captioned = [index for index, text in enumerate(prompts) if text == AUTO]
    for index in captioned:
        photo, box = photos[index]
        caption = work.show_caption(
            reporter, "--prompt", photo, box, options.captioner, chosen.device
        )
        if caption.note:
            reporter.note(caption.note)
        prompts[index] = caption.text
    model = work.open_model(reporter, chosen)
    for index in captioned:
        check_readable(model, "--prompt", prompts[index])
    work.look_at_prompts(reporter, model, prompts)
    made: list[Inversion] = []
    for batch in work.batches_of(model, plan, len(photos), options.batch_size):
        names = [str(image) for image in images[batch]]
        if len(photos) > 1:
            reporter.note(f"{_said_batch(batch, len(images))}: {', '.join(names)}")
        if len(names) == 1:
            ((photo, box),), (prompt,), (target,) = photos[batch], prompts[batch], targets[batch]
            partial = work.partial_beside(target, fresh=options.fresh)
            one = work.invert_with_bars(reporter, model, photo, prompt, box, options, plan, partial)
            work.save_whole(one, target)
            made.append(one)
            continue
        made += work.invert_batch_with_bars(
            reporter, model, photos[batch], prompts[batch], options, plan
        )
        for inversion, target in zip(made[batch], targets[batch], strict=True):
            inversion.save(target)
    work.note_what_is_odd(reporter, model, plan, options.seed, made)
    _report(reporter, targets, made, chosen)


def _one_each(prompts: Sequence[str], count: int) -> list[str]:
    """A prompt for each photo."""
    if len(prompts) not in (1, count):
        raise OptionError(
            f"There are {count} photos and {len(prompts)} --prompt; give one for all, or one each."
        )
    return [*prompts] * (count if len(prompts) == 1 else 1)


def _targets(images: Sequence[Path], output: Path | None) -> list[Path]:
    """Where each inversion is saved."""
    if output is not None and not output.is_dir():
        if len(images) > 1:
            raise OptionError(
                f"'{output}' is no folder, and {len(images)} inversions go into one; "
                "make it first, or leave -o out."
            )
        return [output]
    folder, owners = output or Path(), dict[Path, Path]()
    for image in images:
        target = folder / f"{image.stem}{SUFFIX}"
        if target in owners:
            raise OptionError(
                f"'{owners[target]}' and '{image}' would both be saved as '{target}'; "
                "rename one, or invert it on its own."
            )
        owners[target] = image
    return [*owners]


def _said_batch(batch: slice, total: int) -> str:
    first, last = batch.start + 1, min(batch.stop, total)
    return f"Photo {first} of {total}" if first == last else f"Photos {first} to {last} of {total}"


def _report(
    reporter: Reporter, targets: Sequence[Path], made: Sequence[Inversion], chosen: ModelChoice
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "file": str(target),
            "prompt": inversion.header.prompt,
            "method": inversion.header.method,
            "psnr_bound": inversion.header.psnr_bound,
            "psnr_reconstruction": inversion.header.psnr_reconstruction,
            "seconds": inversion.header.seconds,
            "unet_evaluations": inversion.header.unet_evaluations,
            "unconverged": inversion.header.unconverged,
        }
        for target, inversion in zip(targets, made, strict=True)
    ]
    headers = [inversion.header for inversion in made]
    seconds = sum(header.seconds for header in headers)
    evaluations = sum(header.unet_evaluations for header in headers)
    lines = [f"Inverted in {seconds:.1f} s with {evaluations} UNet evaluations."]
    for target, header in zip(targets, headers, strict=True):
        lines += [
            f"Reconstruction {decibels(header.psnr_reconstruction)}; "
            f"the autoencoder alone reaches {decibels(header.psnr_bound)}.",
            f"Saved {target}",
        ]
    from nulltext.editing.editors import EDITORS

    own = [n for n in EDITORS if getattr(EDITORS[n], "inversion", None) == headers[0].method]
    edits = ["-o", "edited.png", *(["--editor", own[0]] if own else []), *chosen.as_arguments()]
    lines.append(
        f'Next: nulltext edit --inversion {shlex.quote(str(targets[0]))} --target "…" '
        f"{shlex.join(edits)}"
    )
    reporter.result(rows[0] if len(rows) == 1 else rows, lines)


@dataclass(frozen=True)
class SavedOptions:
    """What the verbs on a saved inversion read."""

    file: Path = option_field(
        MISSING, "An inversion that `nulltext invert` saved.", "FILE", positional=True
    )


@dataclass(frozen=True)
class ReplayOptions(SavedOptions):
    """The options of `replay`."""

    output: Path | None = option_field(
        None, "Default: FILE's name-replay.png.", "OUT.png", short="-o"
    )


@takes_options
def replay(options: ReplayOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Reconstruct the photo from a saved inversion.

    Example: [bold]nulltext replay dahlia.safetensors -o dahlia-replay.png[/bold]
    """
    inversion = open_inversion(options.file)
    from nulltext.cli.work import open_model
    from nulltext.image.images import from_uint8, to_pil
    from nulltext.image.saving import check_writable, save_image
    from nulltext.inversion.replay import check_model
    from nulltext.inversion.replay import replay as replay_inversion

    target = options.output or Path(f"{options.file.stem}-replay.png")
    check_writable(target)
    loaded = open_model(reporter, chosen)
    check_model(loaded, inversion)
    with reporter.progress(loaded, from_uint8(inversion.photo)) as on_step:
        result = replay_inversion(loaded, inversion, on_step=on_step)
    save_image(to_pil(result.image), target)
    bound = inversion.header.psnr_bound
    reporter.result(
        {"output": str(target), "psnr_reconstruction": result.psnr, "psnr_bound": bound},
        [
            f"Reconstruction {decibels(result.psnr)}; "
            f"the autoencoder alone reaches {decibels(bound)}.",
            f"Saved {target}",
        ],
    )


LABELS = {
    "prompt": "Prompt",
    "model": "Model",
    "fingerprint": "Fingerprint",
    "method": "Method",
    "method_config": "Options",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "image_size": "Photo (width, height)",
    "crop": "Crop (x, y, width, height)",
    "size": "Seen at (width, height)",
    "image_sha256": "Photo's SHA-256",
    "psnr_bound": "PSNR bound",
    "psnr_reconstruction": "PSNR reconstruction",
    "unet_evaluations": "UNet evaluations",
    "iterations": "Gradients",
    "unconverged": "Timesteps off tolerance",
    "seconds": "Seconds",
    "adapters": "Adapters",
    "tensors": "Tensors",
}
"""Fields of the report, and their names in its text."""

SUMMED = "weight_delta"
"""Named in the report; its factors, hundreds of them, are only counted there."""


@dataclass(frozen=True)
class InspectOptions:
    """The options of `inspect`."""

    file: Path = option_field(
        MISSING,
        "An inversion that `nulltext invert` saved, or a picture that `nulltext edit` wrote.",
        "FILE",
        positional=True,
    )


@takes_options
def inspect(options: InspectOptions, reporter: Reporter) -> None:
    """Show what a saved inversion holds, or the settings of an edit; opens no model.

    Example: [bold]nulltext inspect dahlia.safetensors[/bold]

    How a picture was made: [bold]nulltext inspect dahlia-edited.png[/bold]
    """
    from nulltext.image.saving import FORMATS
    from nulltext.inversion.header import InversionOutline

    file = options.file
    if file.suffix.lower() in FORMATS:
        settings, lines = _settings_of_picture(file)
        reporter.answer({"file": str(file), **settings}, [f"{'File':<28}{file}", *lines])
        return
    values, lines = described(InversionOutline.load(file))
    reporter.answer({"file": str(file), **values}, [f"{'File':<28}{file}", *lines])


def described(outline: InversionOutline) -> tuple[dict[str, Any], list[str]]:
    shapes = {name: list(tensor.shape) for name, tensor in outline.tensors.items()}
    values = asdict(outline.header)
    values["steps"] = outline.num_steps
    values["size"] = [shapes["photo"][2], shapes["photo"][1]]
    values["tensors"] = shapes
    shown = values | {"tensors": _counted(shapes), "adapters": "none"}
    if outline.header.adapters:
        from nulltext.models.adapters import said_of

        shown["adapters"] = said_of(outline.header.adapters)
    told = [key for key in LABELS if shown[key] is not None]
    return values, [f"{LABELS[key]:<28}{_readable(shown[key])}" for key in told]


def _settings_of_picture(file: Path) -> tuple[dict[str, Any], list[str]]:
    """(the settings that a picture holds, the same in lines)

    Raises:
        ImageError: it holds none, or cannot be read.
    """
    from nulltext.image.metadata import settings_in
    from nulltext.image.opening import decoder_errors
    from nulltext.jobs.settings import command_in

    with decoder_errors(str(file)):
        settings = settings_in(file)
    if settings is None:
        raise ImageError(
            f"{file} holds no settings of an edit: give a picture that nulltext wrote, which no "
            "other program has saved since, or a saved inversion."
        )
    told = {
        name: value
        for name, value in settings.items()
        if name != "job" and value not in (None, False, "", [], {})
    }
    lines = [f"{name.replace('_', ' ').capitalize():<28}{_readable(told[name])}" for name in told]
    command = command_in(settings, f"{file.stem}-again.png")
    return settings, [*lines, *([f"Again: {shlex.join(command)}"] if command else [])]


def _counted(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Shapes by name, those of a difference of weights as their number."""
    from nulltext.inversion.header import DELTA_PREFIX

    shown: dict[str, Any] = {
        name: shape for name, shape in shapes.items() if not name.startswith(DELTA_PREFIX)
    }
    factors = [shape for name, shape in shapes.items() if name.startswith(DELTA_PREFIX)]
    if factors:
        numbers = sum(map(prod, factors))
        shown[SUMMED] = f"{len(factors)} factors with {numbers:,} numbers"
    return shown


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(entry)}" for key, entry in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class AttentionOptions(SavedOptions):
    """The options of `attention`."""

    output: Path | None = option_field(None, "Default: FILE-attention.png.", "OUT.png", short="-o")
    target: tuple[str, ...] = option_field(
        (), "Also the words of an edit to this; may be repeated."
    )
    every: int | None = option_field(
        None, "Also a row for every N-th step, noisiest first.", "N", least=1
    )
    npy: Path | None = option_field(None, "Also the numbers, mean and per step.", "FILE.npz")


@takes_options
def attention(options: AttentionOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Draw which part of the photo each word of its prompt is about.

    Example: [bold]nulltext attention dahlia.safetensors -o attention.png[/bold]
    """
    inversion = open_inversion(options.file)
    from nulltext.cli.work import look_at_prompts, open_model
    from nulltext.diffusion.loops import run
    from nulltext.editing.heatmaps import heat_map_steps
    from nulltext.editing.loop import EditSpec, check_specs
    from nulltext.image.saving import check_writable, save_image
    from nulltext.inversion.replay import check_model
    from nulltext.storage.files import check_target

    picture, npy = options.output or Path(f"{options.file.stem}-attention.png"), options.npy
    check_writable(picture)
    if npy:
        check_target(npy)
    specs = [EditSpec(words) for words in options.target]
    loaded = open_model(reporter, chosen)
    check_model(loaded, inversion)
    source = inversion.header.prompt
    changes = [(source, words) for words in options.target]
    look_at_prompts(reporter, loaded, [source, *options.target], changes)
    check_specs(loaded, source, specs)
    with reporter.progress(loaded) as on_step:
        prompts = run(heat_map_steps(loaded, inversion, specs), on_step)
    save_image(heat_grid(inversion, prompts, options.every), picture)
    if npy:
        save_arrays(npy, prompts)
    words = word_rows(prompts)
    reporter.result(
        {"output": str(picture), "npy": str(npy) if npy else None, "words": words},
        [f"{row['word']:<20}{100 * row['mean']:6.2f} % of the attention" for row in words]
        + [f"Saved {path}" for path in (picture, npy) if path],
    )


def heat_grid(
    inversion: Inversion, prompts: Sequence[PromptMaps], every: int | None
) -> Image.Image:
    """One row per prompt, one tile per word; with `every`, also a row per every-th step.

    A map is drawn between its own minimum and maximum, which the caption gives in per cent.
    """
    from nulltext.editing.heatmaps import heat_over
    from nulltext.image.images import from_uint8, to_pil
    from nulltext.image.strip import Tile, tile_grid

    photo = to_pil(from_uint8(inversion.photo))
    levels = inversion.header.levels
    rows = []
    for maps in prompts:
        whole = Tile(photo, maps.prompt)
        rows.append(
            [whole, *(Tile(heat_over(photo, w.heat), _label(w.word, w.heat)) for w in maps.words)]
        )
        for index in range(0, len(levels), every) if every else ():
            rows.append(
                [
                    Tile(photo, f"step {index + 1}, t = {levels[index].fed:g}"),
                    *(Tile(heat_over(photo, w.steps[index]), w.word) for w in maps.words),
                ]
            )
    return tile_grid(rows)


def _label(word: str, heat: Tensor) -> str:
    return f"{word}\n{100 * float(heat.min()):.1f} to {100 * float(heat.max()):.1f} %"


def word_rows(prompts: Sequence[PromptMaps]) -> list[dict[str, Any]]:
    """What JSON says of each word: prompt, word, mean share, and the peak in parts of the crop."""
    rows = []
    for maps in prompts:
        for word in maps.words:
            height, width = word.heat.shape
            y, x = divmod(int(word.heat.argmax()), width)
            peak = [(x + 0.5) / width, (y + 0.5) / height]
            rows.append(
                {
                    "prompt": maps.prompt,
                    "word": word.word,
                    "mean": float(word.heat.mean()),
                    "max": float(word.heat.max()),
                    "peak": peak,
                }
            )
    return rows


def save_arrays(path: Path, prompts: Sequence[PromptMaps]) -> None:
    """Write an .npz: per prompt p, `words_p` [n], `heat_p` [n, h, w], `steps_p` [n, T, h, w]."""
    import numpy as np

    from nulltext.storage.files import replace_file

    arrays: dict[str, Any] = {}
    for index, maps in enumerate(prompts):
        arrays[f"words_{index}"] = np.array([word.word for word in maps.words])
        arrays[f"heat_{index}"] = np.stack([word.heat.numpy() for word in maps.words])
        arrays[f"steps_{index}"] = np.stack([word.steps.numpy() for word in maps.words])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    replace_file(path, file.getvalue())
