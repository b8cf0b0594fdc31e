"""From a photo and its description to a saved-able `Inversion`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nulltext.defaults import GUIDANCE_SCALE, METHOD, NUM_STEPS
from nulltext.errors import OptionError
from nulltext.header import InversionHeader
from nulltext.images import (
    CropBox,
    from_uint8,
    largest_centred_square,
    psnr,
    to_tensor,
    to_uint8,
)
from nulltext.inversion.base import InversionMethod, Problem, Solution
from nulltext.inversion.registry import method_named
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.photos import Photo, load_photo
from nulltext.record import Inversion, StepInfo, run
from nulltext.sampling import replay_steps

if TYPE_CHECKING:
    from PIL import Image


def invert(
    model: LatentDiffusion,
    photo: Photo | str | Path | Image.Image,
    prompt: str,
    *,
    method: str | InversionMethod = METHOD,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    crop: CropBox | None = None,
    seed: int = 0,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Inversion:
    """Invert a photo.

    Args:
        photo: a file, a PIL image, or a loaded photo of any size.
        prompt: what the photo shows, in the words that will be edited.
        method: a name ("null-text", "ddim") or a method with options: `NullText(inner_steps=5)`.
        num_steps: T, 1 to the model's training steps.
        guidance_scale: w of the replay; null-text needs more than 1.
        crop: the region to invert; the largest centred square by default.
        seed: for the methods that draw noise.
        on_step: called with each step's `StepInfo`.

    Raises:
        UserError: one of `ImageError`, `PromptError`, `OptionError`.
        NumericalError: the numbers stopped being finite.
    """
    steps = invert_steps(
        model,
        photo,
        prompt,
        method=method,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        crop=crop,
        seed=seed,
    )
    return run(steps, on_step)


def invert_steps(
    model: LatentDiffusion,
    photo: Photo | str | Path | Image.Image,
    prompt: str,
    *,
    method: str | InversionMethod = METHOD,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    crop: CropBox | None = None,
    seed: int = 0,
) -> Generator[StepInfo, None, Inversion]:
    """`invert` as a generator of steps that returns the `Inversion`; mistakes show at the call."""
    chosen = method_named(method) if isinstance(method, str) else method
    _check_guidance(guidance_scale)
    chosen.check(guidance_scale)
    _check_seed(seed)
    model.schedule.timesteps(num_steps)
    model.tokenize(prompt)
    loaded = photo if isinstance(photo, Photo) else load_photo(photo)
    box = crop or largest_centred_square(*loaded.size)
    box.check_inside(loaded.size)
    request = _Request(loaded, box, prompt, chosen, num_steps, guidance_scale, seed)
    return _steps(model, request)


@dataclass(frozen=True)
class _Request:
    """A checked call of `invert`."""

    photo: Photo
    box: CropBox
    prompt: str
    method: InversionMethod
    num_steps: int
    guidance_scale: float
    seed: int


def _steps(model: LatentDiffusion, request: _Request) -> Generator[StepInfo, None, Inversion]:
    started = time.perf_counter()
    pixels = to_uint8(to_tensor(request.photo, request.box, model.resolution))
    image = from_uint8(pixels)
    problem = Problem(
        latents=model.encode(image),
        prompt_embeds=model.embed([request.prompt]),
        num_steps=request.num_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
    )
    bound = psnr(model.decode(problem.latents).cpu(), image)
    solution = yield from request.method.steps(model, problem)
    inversion = _inversion(model, request, solution, pixels, bound)
    replayed = solution.replayed
    if replayed is None:
        replayed = yield from replay_steps(model, inversion)
    header = replace(
        inversion.header,
        psnr_reconstruction=psnr(model.decode(replayed).cpu(), image),
        seconds=time.perf_counter() - started,
    )
    return replace(inversion, header=header)


def _inversion(
    model: LatentDiffusion, request: _Request, solution: Solution, pixels: Tensor, bound: float
) -> Inversion:
    """The record of a solved problem; its last two figures are still open."""
    tensors: dict[str, Any] = {
        name: None if tensor is None else tensor.detach().float().cpu()
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
        timesteps=list(model.schedule.timesteps(request.num_steps)),
        guidance_scale=float(request.guidance_scale),
        method=request.method.name,
        method_config=asdict(request.method),  # type: ignore[call-overload]
        seed=request.seed,
        image_sha256=request.photo.sha256,
        image_size=list(request.photo.size),
        crop=request.box.as_list(),
        psnr_bound=bound,
        psnr_reconstruction=math.nan,
        unet_evaluations=solution.unet_evaluations,
        seconds=0.0,
    )
    return Inversion(photo=pixels, header=header, **tensors)


def _check_guidance(guidance_scale: float) -> None:
    if not math.isfinite(guidance_scale) or guidance_scale < 0:
        raise OptionError(
            f"The guidance scale is {guidance_scale:g}; choose a number from 0 up (7.5 is usual)."
        )


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise OptionError(
            f"The seed is {seed}; choose a whole number of at most 63 bits, such as 0."
        )
