"""`nulltext invert`: from photos and their descriptions to saved inversions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nulltext.cli.options import takes_options
from nulltext.cli.report import Reporter
from nulltext.constants import AUTO
from nulltext.errors import OptionError
from nulltext.jobs.figures import decibels
from nulltext.jobs.options import InversionOptions, check_ranges
from nulltext.jobs.request import (
    check_captioner_use,
    check_inversion_target,
    check_readable,
    open_photos,
    plan_of,
    size_of,
)
from nulltext.models.choice import ModelChoice
from nulltext.storage.inversion_file import SUFFIX

if TYPE_CHECKING:
    from nulltext.inversion.record import Inversion


@takes_options
def invert(
    *,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="The photo, or several.")
    ],
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            metavar="P",
            help="What the photo shows, in words, or auto to ask a captioner; for several photos "
            "one for all, or one each.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            help="Default: IMAGE's name.safetensors; several go into a folder.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="B",
            min=1,
            help="Photos worked on side by side; default 8, 1 with --low-memory.",
        ),
    ] = None,
    options: InversionOptions,
    chosen: ModelChoice,
    reporter: Reporter,
) -> None:
    """Invert a photo once, so that it can be edited many times.

    Example: [bold]nulltext invert dahlia.jpg --prompt "a photo of an orange flower"
    -o dahlia.safetensors[/bold]

    A run that was broken off, however it ended, goes on at the timestep where it was.

    Many photos: [bold]nulltext invert *.jpg --prompt "a photo of a flower" -o inversions[/bold]
    """
    check_ranges(options)
    check_captioner_use("--prompt", AUTO if AUTO in prompt else None, options.captioner)
    prompts = _one_each(prompt, len(images))
    targets = [check_inversion_target(path) for path in _targets(images, output)]
    photos = open_photos(images, options.crop, size_of(options))
    plan = plan_of(options)
    from nulltext.cli import work

    captioned = [index for index, text in enumerate(prompts) if text == AUTO]
    for index in captioned:
        photo, box = photos[index]
        prompts[index] = work.show_caption(
            reporter, "--prompt", photo, box, options.captioner, chosen.device
        )
    model = work.open_model(reporter, chosen)
    for index in captioned:
        check_readable(model, "--prompt", prompts[index])
    work.look_at_prompts(reporter, model, prompts)
    made: list[Inversion] = []
    if len(photos) == 1:
        photo, box = photos[0]
        partial = work.partial_beside(targets[0], fresh=options.fresh)
        made.append(
            work.invert_with_bars(reporter, model, photo, prompts[0], box, options, plan, partial)
        )
        work.save_whole(made[0], targets[0])
    else:
        for batch in work.batches_of(model, plan, len(photos), batch_size):
            names = [str(image) for image in images[batch]]
            reporter.note(f"{_counted(batch, len(images))}: {', '.join(names)}")
            made += work.invert_batch_with_bars(
                reporter, model, photos[batch], prompts[batch], options, plan
            )
            for inversion, target in zip(made[batch], targets[batch], strict=True):
                inversion.save(target)
    work.note_what_is_odd(reporter, model, plan, options.seed, made)
    _report(reporter, targets, made, chosen)


def _one_each(prompts: Sequence[str], count: int) -> list[str]:
    """A prompt for each photo.

    Raises:
        OptionError: there are neither one nor as many.
    """
    if len(prompts) not in (1, count):
        raise OptionError(
            f"There are {count} photos and {len(prompts)} --prompt; give one for all, or one each."
        )
    return [*prompts] * (count if len(prompts) == 1 else 1)


def _targets(images: Sequence[Path], output: Path | None) -> list[Path]:
    """Where each inversion is saved.

    Raises:
        OptionError: several would go into one file.
    """
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


def _counted(batch: slice, total: int) -> str:
    first, last = batch.start + 1, min(batch.stop, total)
    return f"Photo {first} of {total}" if first == last else f"Photos {first} to {last} of {total}"


def _report(
    reporter: Reporter, targets: Sequence[Path], made: Sequence[Inversion], chosen: ModelChoice
) -> None:
    """Say what came of it: one object for one photo, a list for several."""
    rows: list[dict[str, Any]] = [
        {
            "file": str(target),
            "prompt": inversion.header.prompt,
            "method": inversion.header.method,
            "psnr_bound": inversion.header.psnr_bound,
            "psnr_reconstruction": inversion.header.psnr_reconstruction,
            "seconds": inversion.header.seconds,
            "unet_evaluations": inversion.header.unet_evaluations,
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
    lines.append(
        f'Next: nulltext edit --inversion {shlex.quote(str(targets[0]))} --target "…" '
        f"{shlex.join(['-o', 'edited.png', *chosen.as_arguments()])}"
    )
    reporter.result(rows[0] if len(rows) == 1 else rows, lines)
