"""Work of the verbs that needs torch; imported only when a verb runs.

Each function does one thing of the library, and shows its progress.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from nulltext.captioning.captioner import Caption
from nulltext.cli.report import Reporter
from nulltext.diffusion.loops import StepInfo, run
from nulltext.health.noise import note_on_configuration
from nulltext.image.images import (
    CropBox,
    from_uint8,
    to_tensor,
    to_uint8,
)
from nulltext.image.photos import Photo
from nulltext.inversion.base import BatchInversionMethod
from nulltext.inversion.budgets import Budget
from nulltext.inversion.fixed_point import note_on_convergence
from nulltext.inversion.invert import invert_many, invert_steps
from nulltext.inversion.partial import partial_of, remove_partial
from nulltext.inversion.record import Inversion
from nulltext.jobs.options import InversionOptions
from nulltext.jobs.request import Inputs, caption_of, seed_of, size_of
from nulltext.models.choice import ModelChoice
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.memory import free_memory, memory_need
from nulltext.models.placement import PLANS
from nulltext.models.prompt_notes import notes_on_prompts
from nulltext.storage.files import check_target, clear_temporaries

GIGABYTE = 1e9


def open_model(reporter: Reporter, chosen: ModelChoice) -> LatentDiffusion:
    with reporter.loading(chosen.model) as on_bytes:
        loaded = chosen.load(on_bytes)
    for note in loaded.notes:
        reporter.note(note)
    gc.freeze()  # what has been imported and loaded until here stays; see `cli.main`
    gc.enable()
    return loaded


def look_at_prompts(
    reporter: Reporter,
    model: LatentDiffusion,
    prompts: Sequence[str],
    changes: Sequence[tuple[str, str]] = (),
) -> None:
    """Read prompts as the model does, before any long work, and note what is odd about them.

    Args:
        changes: see `note_on_words`.

    Raises:
        PromptError: it cannot read a prompt.
    """
    for said in notes_on_prompts(model, prompts, changes):
        reporter.note(said)


def with_caption(reporter: Reporter, inputs: Inputs, device: str | None) -> Inputs:
    """Fill in the source prompt where it is `auto`, and show it."""
    captioner = inputs.options.captioner
    return inputs.with_caption(
        lambda photo, box: show_caption(reporter, "--source", photo, box, captioner, device)
    )


def show_caption(
    reporter: Reporter,
    option: str,
    photo: Photo,
    box: CropBox,
    captioner: str | None,
    device: str | None,
) -> Caption:
    with reporter.busy("Looking at the photo …"):
        caption = caption_of(option, photo, box, captioner, device)
    reporter.note(f'Caption: "{caption}" (if that is wrong, write {option} "…" yourself)')
    return caption


def invert_with_bars(
    reporter: Reporter,
    model: LatentDiffusion,
    photo: Photo,
    prompt: str,
    box: CropBox,
    options: InversionOptions,
    plan: Budget,
    partial: Path | None = None,
) -> Inversion:
    """Invert one photo, with progress bars and the PSNR so far.

    Args:
        plan: of the options. partial: see `invert_steps`.
    """
    size = size_of(options)
    seen = model.sizes.of(box, size)
    warn_of_memory(reporter, model, plan, [seen])
    preview = from_uint8(to_uint8(to_tensor(photo, box, seen)))
    loop = invert_steps(
        model,
        photo,
        prompt,
        method=plan.method,
        num_steps=plan.num_steps,
        guidance_scale=options.guidance,
        crop=box,
        size=size,
        seed=seed_of(options),
        partial=partial,
    )
    with reporter.progress(model, preview) as on_step:
        return run(loop, _noting_where(reporter, on_step))


def _noting_where(
    reporter: Reporter, on_step: Callable[[StepInfo], None]
) -> Callable[[StepInfo], None]:
    steps = itertools.count()

    def show(info: StepInfo) -> None:
        if next(steps) == 0 and info.kept is not None and info.index > 1:
            reporter.note(f"Going on at timestep {info.index} of {info.total}.")
        on_step(info)

    return show


def partial_beside(target: Path, *, fresh: bool) -> Path:
    """The partial file of an inversion that will be saved at `target`.

    Args:
        fresh: throw away what is there.

    Raises:
        OutputError: it cannot be written.
    """
    partial = partial_of(target)
    clear_temporaries(target.parent)
    if fresh:
        remove_partial(target)
    check_target(partial)
    return partial


def save_whole(inversion: Inversion, target: Path) -> None:
    """Save an inversion, and only then forget its partial file.

    Raises:
        OutputError: it cannot be written.
    """
    inversion.save(target)
    remove_partial(target)


def batches_of(
    model: LatentDiffusion, plan: Budget, count: int, batch_size: int | None
) -> list[slice]:
    together = isinstance(plan.method, BatchInversionMethod)
    step = (batch_size or model.memory.photos) if together else 1
    return [slice(first, first + step) for first in range(0, count, step)]


def invert_batch_with_bars(
    reporter: Reporter,
    model: LatentDiffusion,
    photos: Sequence[tuple[Photo, CropBox]],
    prompts: Sequence[str],
    options: InversionOptions,
    plan: Budget,
) -> list[Inversion]:
    size = size_of(options)
    warn_of_memory(reporter, model, plan, [model.sizes.of(box, size) for _, box in photos])
    with reporter.progress(model) as on_step:
        return invert_many(
            model,
            [photo for photo, _ in photos],
            list(prompts),
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=options.guidance,
            crop=None if options.crop is None else CropBox.parse(options.crop),
            size=size,
            seed=seed_of(options),
            batch_size=len(photos),
            on_step=on_step,
        )


def warn_of_memory(
    reporter: Reporter, model: LatentDiffusion, plan: Budget, sizes: Sequence[tuple[int, int]]
) -> None:
    need = memory_need(
        model,
        photos=len(sizes),
        size=max(sizes, key=lambda size: size[0] * size[1]),
        num_steps=plan.num_steps,
        differentiates=plan.method.differentiates,
    ).beside_weights
    free = free_memory(model.device)
    if free is None or need <= free:
        return
    ways = [] if model.memory == PLANS["low"] else ["--low-memory"]
    ways += ["--offload"] if model.device.type != "cpu" and not model.offload else []
    ways += [] if len(sizes) == 1 else ["a smaller --batch-size"]
    ways += ["a smaller --size", "--dtype float16 on a GPU"]
    reporter.note(
        f"Note: inverting needs about {need / GIGABYTE:.1f} GB beside the model's weights, and "
        f"{model.device} has {free / GIGABYTE:.1f} GB free; pass {', '.join(ways[:-1])} or "
        f"{ways[-1]}."
    )


def note_what_is_odd(
    reporter: Reporter,
    model: LatentDiffusion,
    plan: Budget,
    seed: int | None,
    made: Sequence[Inversion],
) -> None:
    note_unused_seed(reporter, plan, seed)
    if getattr(plan.method, "steered", False):
        reporter.note(
            "Note: the reconstruction is steered onto the photo at every step, so it does not say "
            f"how well the method {plan.method.name} inverts."
        )
    notes = [note_on_configuration(model, inversion) for inversion in made]
    notes += map(note_on_convergence, made)
    for note in dict.fromkeys(notes):
        if note is not None:
            reporter.note(note)


def note_unused_seed(reporter: Reporter, plan: Budget, seed: int | None) -> None:
    if seed is not None and not plan.method.draws:
        reporter.note(
            f"Note: --seed changed nothing: the method {plan.method.name} draws no noise."
        )
