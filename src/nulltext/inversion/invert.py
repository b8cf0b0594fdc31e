"""From photos and their descriptions to saved-able `Inversion`s."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from nulltext.diffusion.loops import StepInfo, run
from nulltext.errors import OptionError
from nulltext.image.framing import SizeChoice
from nulltext.image.images import CropBox, from_uint8, psnr, to_tensor, to_uint8
from nulltext.image.photos import PhotoLike
from nulltext.inversion.base import BatchInversionMethod, InversionMethod, Problem, Solution
from nulltext.inversion.header import InversionHeader, SavedLevel
from nulltext.inversion.partial import Partial, digests_of, keeping
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import replay_steps
from nulltext.inversion.request import InversionRequest
from nulltext.logs import timed
from nulltext.models.latent_diffusion import LatentDiffusion

logger = logging.getLogger(__name__)


@overload
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
) -> Inversion: ...


@overload
def invert(
    model: LatentDiffusion,
    photo: Sequence[PhotoLike],
    prompt: list[str] | tuple[str, ...],
    *,
    method: str | InversionMethod | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    crop: CropBox | None = None,
    size: SizeChoice = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> list[Inversion]: ...


def invert(
    model: LatentDiffusion,
    photo: PhotoLike | Sequence[PhotoLike],
    prompt: str | list[str] | tuple[str, ...],
    *,
    method: str | InversionMethod | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    crop: CropBox | None = None,
    size: SizeChoice = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Inversion | list[Inversion]:
    """Invert a photo, or several at once.

    Args:
        photo: a file, a PIL image, an array or tensor (see `load_photo`), or a loaded photo of any
            size; or a list of these, which are worked on side by side, to rounding as if one by
            one.
        prompt: what the photo shows, in the words that will be edited; a list for a list. It may
            be empty, for comparison: then there are no words to change, only some to add.
        method: a name ("null-text", "null-text-secant", "ddim", … see `inversion.registry`) or a
            method with options; by default that of the default budget (see `inversion.budgets`).
        num_steps: T, 1 to the model's training steps; by default the budget's, else 50.
        guidance_scale: w of the replay, by default what the model suggests; null-text needs more
            than 1.
        crop: the region to invert; by default the largest centred one of the size's proportions.
        size: (width, height) that the model works at, or "photo" for the whole photo (or crop) at
            about the model's number of pixels; by default the model's own.
        seed: for the methods that draw noise; each photo starts from it.
        batch_size: of a list, how many photos go through the UNet together; by default 8, or 1
            where the model was loaded for low memory.
        on_step: called with each step's `StepInfo`.

    Raises:
        UserError: one of `ImageError`, `PromptError`, `OptionError`.
        NumericalError: the numbers stopped being finite.
    """
    options = (method, num_steps, guidance_scale, crop, size, seed)
    if isinstance(photo, Sequence) and not isinstance(photo, str):
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; choose 1 or more (8 is usual).")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if len(photo) != len(prompts):
            raise OptionError(
                f"There are {len(photo)} photos and {len(prompts)} prompts; give each its own."
            )
        requests = [
            InversionRequest.checked(model, one, words, *options)
            for one, words in zip(photo, prompts, strict=True)
        ]
        return run(_many_steps(model, requests, batch_size or model.memory.photos), on_step)
    if not isinstance(prompt, str):
        raise OptionError(f"There is one photo and a list of {len(prompt)} prompts; give one.")
    request = InversionRequest.checked(model, photo, prompt, *options)
    return run(request_steps(model, request), on_step)


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
    options = (method, num_steps, guidance_scale, crop, size, seed)
    request = InversionRequest.checked(model, photo, prompt, *options)
    return request_steps(model, request, partial)


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
            grid=model.schedule.grid(request.num_steps),
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
    solution = yield from keeping(request.method.steps(model, start.problem), clock)
    inversion = yield from _finish_steps(model, start, solution, model.passes.total)
    return _timed(inversion, clock.seconds)


def _many_steps(
    model: LatentDiffusion, requests: Sequence[InversionRequest], batch_size: int
) -> Generator[StepInfo, None, list[Inversion]]:
    """Batches where the method can, else one by one; `seconds` are each photo's share."""
    made: dict[int, Inversion] = {}
    for indices in _batches(requests, batch_size):
        rows = [requests[index] for index in indices]
        method = rows[0].method
        if not isinstance(method, BatchInversionMethod):
            for index, request in zip(indices, rows, strict=True):
                made[index] = yield from request_steps(model, request)
            continue
        started = time.perf_counter()
        starts = [_Start.of(model, request) for request in rows]
        counted, finished = model.counted(len(rows)), []
        solutions = yield from method.batch_steps(counted, [start.problem for start in starts])
        for solved in zip(starts, solutions, counted.passes.each, strict=True):
            finished.append((yield from _finish_steps(model, *solved)))
        share = (time.perf_counter() - started) / len(rows)
        timed = [_timed(inversion, share) for inversion in finished]
        made.update(zip(indices, timed, strict=True))
    return [made[index] for index in range(len(requests))]


def _batches(requests: Sequence[InversionRequest], batch_size: int) -> list[list[int]]:
    """Indices of photos that the model sees at one size, at most `batch_size` at a time."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, request in enumerate(requests):
        by_size.setdefault(request.size, []).append(index)
    return [
        indices[first : first + batch_size]
        for indices in by_size.values()
        for first in range(0, len(indices), batch_size)
    ]


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
        *(header.method, inversion.num_steps, header.unet_evaluations),
        *(header.psnr_reconstruction, header.psnr_bound, seconds),
    )
    return replace(inversion, header=header)


def _inversion(
    model: LatentDiffusion,
    request: InversionRequest,
    solution: Solution,
    pixels: Tensor,
    bound: float,
) -> Inversion:
    """The record of a solved problem; the figures of its replay, and its cost, are still open."""
    tensors: dict[str, Any] = {
        name: None if tensor is None else tensor.detach().to("cpu", model.precision)
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
            for step in model.schedule.grid(request.num_steps)
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
        adapters=[dict(one) for one in model.adapters],
    )
    delta = solution.weight_delta
    kept = None if delta is None else {name: delta[name].detach().cpu() for name in delta}
    return Inversion(photo=pixels, header=header, weight_delta=kept, **tensors)
