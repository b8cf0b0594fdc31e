"""What only the command line does about a request: names of outputs, bars, notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nulltext.cli.arguments import numbered
from nulltext.cli.captions import written_prompt
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.jobs.request import Opened, Request

if TYPE_CHECKING:
    from nulltext.editing.loop import EditSpec
    from nulltext.inversion.record import Inversion
    from nulltext.models.latent_diffusion import LatentDiffusion


def output_paths(
    request: Request, output: Path | None, further: Sequence[Path | None], count: int
) -> list[Path]:
    """Where the edits go; refuses early what cannot be written or would be overwritten.

    Args:
        further: other pictures that will be written.
    """
    from nulltext.cli.work import check_inversion_target
    from nulltext.image.saving import check_writable

    origin = request.image or request.inversion
    assert origin is not None
    paths = numbered(output or Path(f"{origin.stem}-edited.png"), count)
    written = [*paths, *(path for path in further if path is not None)]
    for path in written:
        check_writable(path)
    if request.save_inversion:
        written.append(check_inversion_target(request.save_inversion))
    read = (request.image, request.inversion, request.mask)
    taken = {path.resolve(): "is read" for path in read if path is not None}
    for path in written:
        if path.resolve() in taken:
            raise OptionError(
                f"'{path}' {taken[path.resolve()]} by this very command; choose another name."
            )
        taken[path.resolve()] = "is also written"
    return paths


def with_words(reporter: Reporter, opened: Opened, device: str | None) -> Opened:
    """With a captioner's words for the source prompt, where it was `auto`."""
    captioner = opened.request.captioner
    return opened.with_words(
        lambda photo, box: written_prompt(reporter, "--source", photo, box, captioner, device)
    )


def obtain_inversion(
    reporter: Reporter, model: LatentDiffusion, opened: Opened, specs: Sequence[EditSpec]
) -> tuple[Inversion, float, int]:
    """(inversion, seconds, UNet evaluations): the saved one, or a new one."""
    from nulltext.cli.work import invert_with_bars, note_unused_seed, partial_beside, save_whole
    from nulltext.editing.loop import check_specs
    from nulltext.inversion.replay import check_model

    if opened.saved is not None:
        check_model(model, opened.saved)
    check_specs(model, opened.prompt, specs)
    if opened.saved is not None:
        return opened.saved, 0.0, 0
    request = opened.request
    assert opened.photo is not None
    plan, kept = request.plan(), request.save_inversion
    made = invert_with_bars(
        reporter,
        model,
        opened.photo,
        opened.prompt,
        opened.box,
        request.size_choice,
        plan=plan,
        guidance=request.guidance,
        seed=request.noise_seed,
        partial=None if kept is None else partial_beside(kept, fresh=request.fresh),
    )
    note_unused_seed(reporter, plan, request.seed)
    if kept is not None:
        save_whole(made, kept)
        reporter.note(f"Saved {kept}")
    return made, made.header.seconds, made.header.unet_evaluations
