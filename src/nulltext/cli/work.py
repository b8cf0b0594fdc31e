"""The verbs' work with the library: what needs torch, imported only when a verb runs."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

from nulltext.cli.report import Reporter
from nulltext.errors import ImageError, OptionError
from nulltext.files import check_target
from nulltext.framing import SizeChoice, box_for
from nulltext.images import (
    CropBox,
    from_uint8,
    to_tensor,
    to_uint8,
)
from nulltext.inversion.base import BatchInversionMethod
from nulltext.inversion.budgets import Plan
from nulltext.inversion.invert import invert, invert_steps
from nulltext.inversion_file import SUFFIX
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import DType, load
from nulltext.models.memory import PLANS, free_memory, memory_need
from nulltext.photos import Photo, load_photo
from nulltext.prompts import find_words, has_word, spelled_out
from nulltext.record import Inversion, run

GIGABYTE = 1e9


def check_inversion_target(path: Path) -> Path:
    """Refuse early a name that an inversion cannot be saved under."""
    if path.suffix != SUFFIX:
        raise OptionError(f"'{path}' does not end in {SUFFIX}, as saved inversions do; rename it.")
    check_target(path)
    return path


def open_photo(image: Path, crop: str | None, size: SizeChoice) -> tuple[Photo, CropBox]:
    """Load a photo, and find the region that is asked for in it."""
    box = None if crop is None else CropBox.parse(crop)
    photo = load_photo(image)
    if box is None:
        box = box_for(photo.size, size)
    box.check_inside(photo.size)
    return photo, box


def open_photos(
    images: Sequence[Path], crop: str | None, size: SizeChoice
) -> list[tuple[Photo, CropBox]]:
    """`open_photo` of each; what is wrong with one of several names it.

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


def open_model(
    reporter: Reporter,
    model: str,
    device: str | None,
    dtype: DType,
    prompts: Sequence[str],
    *,
    low_memory: bool = False,
) -> LatentDiffusion:
    """Load a model, and look at the prompts through its eyes before any long work."""
    with reporter.busy(f"Loading the model '{model}' …"):
        loaded = load(model, device=device, dtype=dtype, memory="low" if low_memory else "plenty")
    gc.freeze()  # what has been imported and loaded until here stays; see `cli.main`
    gc.enable()
    unknown: dict[str, None] = {}
    for prompt in prompts:
        unknown |= dict.fromkeys(spelled_out(loaded.tokenize(prompt)))
    if unknown:
        reporter.note(
            f"Note: the model '{loaded.name}' has no word for {', '.join(unknown)} and reads "
            "letter by letter there; it has hardly learnt what that means."
        )
    return loaded


def weights_of_targets(
    model: LatentDiffusion, targets: Sequence[str], factors: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """For each target, the weights whose words it has.

    Raises:
        PromptError: no target has the word.
    """
    prompts = {target: model.tokenize(target) for target in targets}
    owned: dict[str, dict[str, float]] = {target: {} for target in targets}
    for word, factor in factors.items():
        homes = [target for target, prompt in prompts.items() if has_word(prompt, word)]
        if not homes:
            find_words(prompts[targets[0]], word)  # says which words there are
        for target in homes:
            owned[target][word] = factor
    return owned


def invert_with_bars(
    reporter: Reporter,
    model: LatentDiffusion,
    photo: Photo,
    prompt: str,
    box: CropBox,
    size: SizeChoice,
    *,
    plan: Plan,
    guidance: float,
    seed: int,
) -> Inversion:
    """`invert`, with progress bars and the PSNR so far."""
    warn_of_memory(reporter, model, plan, [model.sizes.of(box, size)])
    preview = from_uint8(to_uint8(to_tensor(photo, box, model.sizes.of(box, size))))
    loop = invert_steps(
        model,
        photo,
        prompt,
        method=plan.method,
        num_steps=plan.num_steps,
        guidance_scale=guidance,
        crop=box,
        size=size,
        seed=seed,
    )
    with reporter.progress(model, preview) as on_step:
        return run(loop, on_step)


def batches_of(
    model: LatentDiffusion, plan: Plan, count: int, batch_size: int | None
) -> list[slice]:
    """Which of `count` photos are worked on side by side, batch by batch."""
    together = isinstance(plan.method, BatchInversionMethod)
    step = (batch_size or model.memory.photos) if together else 1
    return [slice(first, first + step) for first in range(0, count, step)]


def invert_batch_with_bars(
    reporter: Reporter,
    model: LatentDiffusion,
    photos: Sequence[tuple[Photo, CropBox]],
    prompts: Sequence[str],
    crop: str | None,
    size: SizeChoice,
    *,
    plan: Plan,
    guidance: float,
    seed: int,
) -> list[Inversion]:
    """`invert` of one batch of several photos, with progress bars."""
    warn_of_memory(reporter, model, plan, [model.sizes.of(box, size) for _, box in photos])
    with reporter.progress(model) as on_step:
        return invert(
            model,
            [photo for photo, _ in photos],
            list(prompts),
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=guidance,
            crop=None if crop is None else CropBox.parse(crop),
            size=size,
            seed=seed,
            batch_size=len(photos),
            on_step=on_step,
        )


def warn_of_memory(
    reporter: Reporter, model: LatentDiffusion, plan: Plan, sizes: Sequence[tuple[int, int]]
) -> None:
    """Say, before an inversion of photos at these sizes, that it will hardly fit."""
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
    ways += [] if len(sizes) == 1 else ["a smaller --batch-size"]
    ways += ["a smaller --size", "--dtype float16 on a GPU"]
    reporter.note(
        f"Note: inverting needs about {need / GIGABYTE:.1f} GB beside the model's weights, and "
        f"{model.device} has {free / GIGABYTE:.1f} GB free; pass {', '.join(ways[:-1])} or "
        f"{ways[-1]}."
    )


def note_unused_seed(reporter: Reporter, plan: Plan, seed: int | None) -> None:
    """Say that a seed which was given changes nothing, where the method draws no noise."""
    if seed is not None and not plan.method.draws:
        reporter.note(
            f"Note: --seed changed nothing: the method {plan.method.name} draws no noise."
        )
