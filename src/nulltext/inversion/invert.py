"""Invert photos: from a photo and its description to an `Inversion`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.constants import __version__
from nulltext.diffusion.loops import StepInfo, run
from nulltext.errors import OptionError
from nulltext.image.images import (
    CropBox,
    SizeChoice,
    default_crop,
    from_uint8,
    parse_size,
    psnr,
    to_tensor,
    to_uint8,
)
from nulltext.image.photos import Photo, PhotoLike, load_photo
from nulltext.inversion.base import BatchInversionMethod, InversionMethod, Problem, Solution
from nulltext.inversion.budgets import Budget, planned, usual_steps
from nulltext.inversion.partial import Partial, digests_of, keeping
from nulltext.inversion.record import Inversion, InversionHeader, SavedLevel
from nulltext.inversion.replay import replay_steps
from nulltext.logs import timed
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import clean

logger = logging.getLogger(__name__)


def invert(
    model: LatentDiffusion,
    photo: PhotoLike,
    prompt: str,
    *,
    method: str | InversionMethod | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    crop: CropBox | None = None,
    size: SizeChoice = None,
    seed: int = 0,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Inversion:
    """Invert a photo.

    Args:
        photo: a file, a PIL image, an array or tensor (see `load_photo`), or a loaded photo, of any
            size.
        prompt: what the photo shows, in the words that will be edited. It may be empty, for
            comparison: then there are no words to change, only some to add.
        method: a name ("fixed-point", "null-text", "ddim", … see `inversion.registry`) or a
            method with options; by default that of the default budget (see `inversion.budgets`).
        num_steps: T, 1 to the model's training steps; by default that of the budget with this
            method (20 for fixed-point), else what it was published with, else 50.
        guidance_scale: w of the replay, by default what the model suggests; null-text needs more
            than 1.
        crop: the region to invert; by default the largest centred one of the size's proportions.
        size: (width, height) that the model works at, or "photo" for the whole photo (or crop) at
            about the model's number of pixels; by default the model's own.
        seed: for the methods that draw noise.
        on_step: called with each step's `StepInfo`.

    Raises:
        UserError: one of `ImageError`, `PromptError`, `OptionError`.
        NumericalError: the numbers stopped being finite.
    """
    if isinstance(photo, list | tuple) or not isinstance(prompt, str):
        raise OptionError(
            "invert takes one photo and one prompt; pass several to nulltext.invert_many(model, "
            "photos, prompts)."
        )
    request = InversionRequest.checked(
        model,
        photo,
        prompt,
        method=method,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        crop=crop,
        size=size,
        seed=seed,
    )
    return run(request_steps(model, request), on_step)


def invert_many(
    model: LatentDiffusion,
    photos: Sequence[PhotoLike],
    prompts: Sequence[str],
    *,
    method: str | InversionMethod | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    crop: CropBox | None = None,
    size: SizeChoice = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> list[Inversion]:
    """Invert several photos side by side; the results equal `invert` of each, to rounding.

    Args:
        photos, prompts: a photo and its prompt at each place; of any sizes. The other options are
            those of `invert` and hold for all.
        seed: each photo starts from it.
        batch_size: how many photos go through the UNet together; by default 8, or 1 where the model
            was loaded for low memory.

    Raises:
        UserError: one of `ImageError`, `PromptError`, `OptionError`.
        NumericalError: the numbers stopped being finite.
    """
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; choose 1 or more (8 is usual).")
    if isinstance(prompts, str) or isinstance(photos, str) or len(photos) != len(prompts):
        raise OptionError(
            f"There are {_count(photos)} photos and {_count(prompts)} prompts; give each its own, "
            "in lists."
        )
    requests = [
        InversionRequest.checked(
            model,
            photo,
            prompt,
            method=method,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            crop=crop,
            size=size,
            seed=seed,
        )
        for photo, prompt in zip(photos, prompts, strict=True)
    ]
    return run(many_steps(model, requests, batch_size or model.memory.photos), on_step)


def _count(given: str | Sequence[object]) -> int:
    return 1 if isinstance(given, str) else len(given)


def invert_steps(
    model: LatentDiffusion,
    photo: PhotoLike,
    prompt: str,
    *,
    method: str | InversionMethod | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    crop: CropBox | None = None,
    size: SizeChoice = None,
    seed: int = 0,
    partial: Path | None = None,
) -> Generator[StepInfo, None, Inversion]:
    """`invert` of one photo as a generator that returns the `Inversion`.

    Mistakes show at the call, before any work.

    Args:
        partial: file to go on from if it holds a part of this very inversion, and to keep every
            timestep in; remove it when the inversion is saved. See `inversion.partial`.

    Raises:
        OutputError: the partial file cannot be written.
    """
    request = InversionRequest.checked(
        model,
        photo,
        prompt,
        method=method,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        crop=crop,
        size=size,
        seed=seed,
    )
    return request_steps(model, request, partial)


@dataclass(frozen=True)
class InversionRequest:
    """A checked call of `invert`, for one photo."""

    photo: Photo
    box: CropBox
    size: tuple[int, int]
    """(height, width) that the model works at."""
    prompt: str
    method: InversionMethod
    num_steps: int
    guidance_scale: float
    seed: int

    @classmethod
    def checked(
        cls,
        model: LatentDiffusion,
        photo: PhotoLike,
        prompt: str,
        *,
        method: str | InversionMethod | None,
        num_steps: int | None,
        guidance_scale: float | None,
        crop: CropBox | None,
        size: SizeChoice,
        seed: int,
    ) -> InversionRequest:
        """Check what can be checked before any work.

        Args: as in `invert.invert`.

        Raises:
            UserError: one of `ImageError`, `PromptError`, `OptionError`.
        """
        if isinstance(method, type):
            raise OptionError(
                f"The method is the class {method.__name__}; pass an instance, "
                f"{method.__name__}(), or its name."
            )
        if crop is not None and not isinstance(crop, CropBox):
            raise OptionError(
                f"The crop {crop!r:.80} is no nulltext.CropBox; pass CropBox(x, y, width, height)."
            )
        if isinstance(size, str):
            size = parse_size(size)
        plan = (
            planned(method, num_steps=num_steps)
            if method is None or isinstance(method, str)
            else Budget(method, usual_steps(method.name) if num_steps is None else num_steps)
        )
        usual = getattr(plan.method, "published_guidance", model.guidance_scale)
        scale = usual if guidance_scale is None else guidance_scale
        _check_guidance(scale)
        _check_seed(seed)
        _check_branches(model, plan.method)
        _check_flow(model, plan.method)
        plan.method.check(scale)
        model.check_guidance(scale)
        model.grid(plan.num_steps)
        model.tokenize(prompt, allow_empty=True)
        loaded = load_photo(photo)
        box = crop or default_crop(loaded.size, size)
        box.check_inside(loaded.size)
        seen_at = model.sizes.of(box, size)
        return cls(
            photo=loaded,
            box=box,
            size=seen_at,
            prompt=clean(prompt),
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=scale,
            seed=seed,
        )

    @property
    def together(self) -> Hashable:
        """What photos that are inverted side by side have in common."""
        method = (self.method.name, repr(self.method))
        return method, self.num_steps, float(self.guidance_scale), self.size

    def identity(self, model: LatentDiffusion) -> dict[str, Any]:
        """All that the result depends on, as JSON: equal identities, equal inversions.

        (To rounding, where devices or numbers of threads differ.)
        """
        return {
            "nulltext": __version__,
            "fingerprint": model.fingerprint,
            "precision": str(model.network.dtype),
            "image_sha256": self.photo.sha256,
            **({} if self.photo.colours is None else {"colours": self.photo.colours}),
            "crop": self.box.as_list(),
            "size": list(self.size),
            "prompt": self.prompt,
            "method": self.method.name,
            "options": repr(self.method),
            "levels": [step.noisier.fed for step in model.grid(self.num_steps, self.size)],
            "guidance_scale": float(self.guidance_scale),
            "seed": self.seed,
        }


def _check_guidance(guidance_scale: float) -> None:
    if not math.isfinite(guidance_scale) or guidance_scale < 0:
        raise OptionError(f"The guidance scale is {guidance_scale:g}; choose a number from 0 up.")


def _check_branches(model: LatentDiffusion, method: InversionMethod) -> None:
    if model.guidance != "branches" and getattr(method, "mixes", False):
        raise OptionError(
            f"{method.name} optimises a branch of guidance, and the model '{model.name}' has no "
            "null branch; pass --true-cfg, or another --method such as fixed-point."
        )


def _check_flow(model: LatentDiffusion, method: InversionMethod) -> None:
    """Refuse, on other models, what is made for rectified flow."""
    if model.schedule.prediction == "flow":
        return
    what, instead = f"The method {method.name}", "--method such as fixed-point"
    if getattr(method, "pivot", None) == "midpoint":
        what, instead = "The pivot midpoint", "--pivot"
    elif not getattr(method, "flow_only", False):
        return
    raise OptionError(
        f"{what} follows the ODE of a rectified-flow model (Stable Diffusion 3, FLUX), and "
        f"'{model.name}' is none; choose another {instead}."
    )


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise OptionError(
            f"The seed is {seed}; choose a whole number of at most 63 bits, such as 0."
        )


@dataclass(frozen=True)
class _Start:
    """A request as the model sees it."""

    request: InversionRequest
    pixels: Tensor
    """[3, H, W], uint8."""
    problem: Problem
    psnr_bound: float

    @classmethod
    def of(
        cls,
        model: LatentDiffusion,
        request: InversionRequest,
        kept: Mapping[str, Tensor] | None = None,
    ) -> _Start:
        pixels = to_uint8(to_tensor(request.photo, request.box, request.size))
        image = from_uint8(pixels)
        with timed(logger, "encode: %d x %d px", *request.size[::-1]):
            latents = model.encode(image)
        problem = Problem(
            latents=latents,
            prompt_embeds=model.embed([request.prompt]),
            grid=model.grid(request.num_steps, request.size),
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            kept=kept,
        )
        bound = psnr(model.decode(problem.latents).cpu(), image)
        return cls(request, pixels, problem, bound)


def request_steps(
    model: LatentDiffusion, request: InversionRequest, partial: Path | None = None
) -> Generator[StepInfo, None, Inversion]:
    """`invert_steps` of a request that was checked."""
    model = model.counted()
    clock = Partial(partial, digests_of([request.identity(model)], model.fingerprints))
    start = _Start.of(model, request, clock.read(model.device))
    solution = yield from keeping(request.method.steps(model, start.problem), clock, model.passes)
    spent = clock.evaluations_before + model.passes.total
    inversion = yield from _finish_steps(model, start, solution, spent)
    return _timed(inversion, clock.seconds)


def many_steps(
    model: LatentDiffusion, requests: Sequence[InversionRequest], batch_size: int
) -> Generator[StepInfo, None, list[Inversion]]:
    """Invert photos as `side_by_side` puts them; `seconds` are each photo's share."""
    made: dict[int, Inversion] = {}
    for indices in side_by_side(requests, batch_size):
        rows = [requests[index] for index in indices]
        method = rows[0].method
        if not isinstance(method, BatchInversionMethod):
            made[indices[0]] = yield from request_steps(model, rows[0])
            continue
        started = time.perf_counter()
        starts = [_Start.of(model, request) for request in rows]
        counted, finished = model.counted(len(rows)), []
        solutions = yield from method.batch_steps(counted, [start.problem for start in starts])
        for start, solution, spent in zip(starts, solutions, counted.passes.each, strict=True):
            finished.append((yield from _finish_steps(model, start, solution, spent)))
        share = (time.perf_counter() - started) / len(rows)
        timed = [_timed(inversion, share) for inversion in finished]
        made.update(zip(indices, timed, strict=True))
    return [made[index] for index in range(len(requests))]


def side_by_side(requests: Sequence[InversionRequest], batch_size: int) -> list[list[int]]:
    """Find which photos can be inverted together.

    That is those with one method, grid, guidance and size. Where the method works on one photo at a
    time, each stands alone.

    Returns: indices of requests, at most `batch_size` together; each index once.
    """
    alike: dict[Hashable, list[int]] = {}
    for index, request in enumerate(requests):
        alike.setdefault(request.together, []).append(index)
    batches = []
    for indices in alike.values():
        able = isinstance(requests[indices[0]].method, BatchInversionMethod)
        most = batch_size if able else 1
        batches += [indices[first : first + most] for first in range(0, len(indices), most)]
    return batches


def _finish_steps(
    model: LatentDiffusion, start: _Start, solution: Solution, spent: int
) -> Generator[StepInfo, None, Inversion]:
    """The record of a solved problem; its seconds are still open.

    Args: spent: UNet evaluations that the solution took.
    """
    model = model.counted()
    inversion = _inversion(model, start.request, solution, start.pixels, start.psnr_bound)
    replayed = solution.replayed
    if replayed is None:
        replayed = yield from replay_steps(model, inversion)
    reached = psnr(model.decode(replayed).cpu(), from_uint8(start.pixels))
    spent += model.passes.total
    header = replace(inversion.header, psnr_reconstruction=reached, unet_evaluations=spent)
    return replace(inversion, header=header)


def _timed(inversion: Inversion, seconds: float) -> Inversion:
    header = replace(inversion.header, seconds=seconds)
    logger.info(
        "invert: %s, %d steps, %d UNet evaluations, %.2f of %.2f dB, %.2f s",
        header.method,
        inversion.num_steps,
        header.unet_evaluations,
        header.psnr_reconstruction,
        header.psnr_bound,
        seconds,
    )
    return replace(inversion, header=header)


def _inversion(
    model: LatentDiffusion,
    request: InversionRequest,
    solution: Solution,
    pixels: Tensor,
    bound: float,
) -> Inversion:
    """The record of a solved problem; the figures of its replay, and its cost, are still open.

    Its tensors share no memory, with each other or with other photos' of a batch: a file refuses
    the one, and the other would keep the whole batch.
    """
    tensors: dict[str, Any] = {
        name: None if tensor is None else tensor.detach().to("cpu", model.precision, copy=True)
        for name, tensor in (
            ("trajectory", solution.trajectory),
            ("null_embeds", solution.null_embeds),
            ("prompt_embeds", solution.prompt_embeds),
            ("corrections", solution.corrections),
        )
    }
    header = InversionHeader(
        prompt=request.prompt,
        model=model.name,
        fingerprint=model.fingerprint,
        levels=[
            SavedLevel(step.noisier.fed, step.noisier.alpha, step.noisier.sigma)
            for step in model.grid(request.num_steps, request.size)
        ],
        guidance_scale=float(request.guidance_scale),
        method=request.method.name,
        method_config=asdict(request.method),  # type: ignore[call-overload]
        seed=request.seed,
        image_sha256=request.photo.sha256,
        image_size=list(request.photo.size),
        crop=request.box.as_list(),
        psnr_bound=bound,
        psnr_reconstruction=math.nan,
        unet_evaluations=0,
        seconds=0.0,
        iterations=solution.iterations,
        unconverged=solution.unconverged,
        adapters=[dict(one) for one in model.adapters],
    )
    delta = solution.weight_delta
    kept = None if delta is None else {name: delta[name].detach().cpu() for name in delta}
    return Inversion(photo=pixels, header=header, weight_delta=kept, **tensors)
