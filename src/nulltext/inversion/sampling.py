"""The two loops over the DDIM grid: towards noise (the pivot) and back (the replay).

    pivot    z*_0 = z_0,  z*_{t} = invert_step(z*_{t-1}, eps(z*_{t-1}, t, C))         w = 1
    replay   z_T = z*_T,  z_{t-1} = step(z_t, guided eps(z_t, t, ∅_t, C_t)) + d_t

Both are generators: they yield a `StepInfo` per step and return their tensors.
Source: Mokady et al. 2023, sec. 3.2 (pivot), 3.3 (replay).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import CONDITIONAL_ONLY, guided_noise
from nulltext.errors import InversionFileError
from nulltext.image.images import from_uint8, psnr
from nulltext.inversion.record import Inversion, StepInfo, run
from nulltext.logs import timed
from nulltext.models.adapters import said_of
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.network_calls import fits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """The embeddings that each step of a replay runs under."""

    null_embeds: Tensor
    """[1 or T, R, D]."""
    prompt_embeds: Tensor
    """[1 or T, R, D]."""

    @classmethod
    def of(cls, model: LatentDiffusion, inversion: Inversion) -> Conditions:
        """An inversion's own embeddings, the model's for those that it leaves open."""
        empty, prompt = model.embed(["", inversion.header.prompt]).chunk(2)
        null_embeds, prompt_embeds = inversion.null_embeds, inversion.prompt_embeds
        return cls(
            null_embeds=empty if null_embeds is None else null_embeds.to(model.device),
            prompt_embeds=prompt if prompt_embeds is None else prompt_embeds.to(model.device),
        )

    def null(self, index: int) -> Tensor:
        """[1, R, D] of the step with this index (0 is the noisiest)."""
        return _row(self.null_embeds, index)

    def prompt(self, index: int) -> Tensor:
        """[1, R, D] of the step with this index (0 is the noisiest)."""
        return _row(self.prompt_embeds, index)


def check_model(model: LatentDiffusion, inversion: Inversion) -> None:
    """Refuse to use an inversion with another model than the one that made it.

    Raises:
        InversionFileError: the weights, the shapes or the schedule differ.
    """
    if inversion.header.fingerprint not in model.fingerprints:
        raise InversionFileError(
            f"The inversion was made with the model '{inversion.header.model}' "
            f"({inversion.header.fingerprint[:8]}), and '{model.name}' "
            f"({model.fingerprint[:8]}) has other weights or settings; {_how(model, inversion)}, "
            "or invert the photo again."
        )
    channels, _, _ = model.latents_shape
    embeds = [e for e in (inversion.null_embeds, inversion.prompt_embeds) if e is not None]
    _, latent_channels, height, width = inversion.trajectory.shape
    pixels = (height * model.vae_stride, width * model.vae_stride)
    fitting = latent_channels == channels and tuple(inversion.photo.shape[1:]) == pixels
    if not fitting or any(tuple(e.shape[1:]) != model.embeds_shape for e in embeds):
        raise InversionFileError(
            f"The inversion's tensors have a shape that does not fit the model '{model.name}'; "
            "invert the photo again."
        )
    if inversion.weight_delta and not fits(model.unet, inversion.weight_delta):
        raise InversionFileError(
            f"The inversion's difference of weights does not fit the UNet of the model "
            f"'{model.name}'; invert the photo again."
        )
    if inversion.header.timesteps != list(model.schedule.timesteps(inversion.num_steps)):
        raise InversionFileError(
            f"The inversion's timesteps are not on the schedule of the model '{model.name}'; "
            "invert the photo again."
        )


def _how(model: LatentDiffusion, inversion: Inversion) -> str:
    """What to pass so that an inversion fits."""
    then, now = said_of(inversion.header.adapters), said_of(model.adapters)
    if then == now:
        if inversion.header.adapters != list(model.adapters):
            return f"of {now} a file has changed since: pass the one that it was made with"
        return "pass that model with --model"
    was = then or "no adapters"
    return f"it was made with {was} (now: {now or 'none'}), so pass the same"


def model_of(model: LatentDiffusion, inversion: Inversion) -> LatentDiffusion:
    """The model that samples an inversion: checked, and with the inversion's weights if it has any.

    Raises:
        InversionFileError: as in `check_model`.
    """
    check_model(model, inversion)
    if inversion.weight_delta is None:
        return model
    delta = {name: factor.to(model.device) for name, factor in inversion.weight_delta.items()}
    return replace(model, weight_delta=delta)


def pivot_steps(
    model: LatentDiffusion, latents: Tensor, prompt_embeds: Tensor, num_steps: int
) -> Generator[StepInfo, None, Tensor]:
    """DDIM inversion by the conditional branch alone (w = 1).

    Args:
        latents: z_0, [1, C, h, w]. prompt_embeds: [1, R, D].

    Returns:
        the trajectory z*_0 … z*_T, [T + 1, C, h, w]. Costs T UNet evaluations.

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    trajectories = yield from pivots_steps(model, latents, prompt_embeds, num_steps)
    return trajectories[:, 0]


def pivots_steps(
    model: LatentDiffusion,
    latents: Tensor,
    prompt_embeds: Tensor,
    num_steps: int,
    guidance_scale: float = CONDITIONAL_ONLY,
) -> Generator[StepInfo, None, Tensor]:
    """`pivot_steps` of B photos side by side.

    Args:
        latents: z_0, [B, C, h, w]. prompt_embeds: [B, L, D].
        guidance_scale: w of the inversion; a pivot has 1, others are for comparison.

    Returns:
        the trajectories, [T + 1, B, C, h, w]. Costs T UNet evaluations per photo, 2 T unless w = 1.

    Raises:
        NumericalError: the latents became infinite or NaN.
    """
    schedule, null_embeds = model.schedule, model.embed([""])
    trajectory = [latents]
    for index, timestep in enumerate(reversed(schedule.timesteps(num_steps))):
        with torch.no_grad():
            noise_pred = guided_noise(
                model,
                trajectory[-1],
                timestep,
                null_embeds=null_embeds,
                prompt_embeds=prompt_embeds,
                guidance_scale=guidance_scale,
            )
            noisier = schedule.invert_step(
                trajectory[-1],
                noise_pred,
                cleaner=schedule.cleaner(timestep, num_steps),
                noisier=timestep,
            )
        check_finite(noisier, "DDIM inversion", timestep)
        trajectory.append(noisier)
        yield StepInfo("pivot", index + 1, num_steps, timestep)
    return torch.stack(trajectory)


def source_step(
    model: LatentDiffusion,
    inversion: Inversion,
    conditions: Conditions,
    latents: Tensor,
    index: int,
) -> tuple[Tensor, Tensor]:
    """One step of a replay: (the cleaner latents, the estimate of x0), each [1, C, h, w].

    The one place where an inversion is sampled, so that whatever stands beside the source (targets,
    attention recorders) sees the very numbers of a replay.
    """
    header, schedule = inversion.header, model.schedule
    timestep = header.timesteps[index]
    noise_pred = guided_noise(
        model,
        latents,
        timestep,
        null_embeds=conditions.null(index),
        prompt_embeds=conditions.prompt(index),
        guidance_scale=header.guidance_scale,
    )
    cleaner = schedule.step(
        latents,
        noise_pred,
        noisier=timestep,
        cleaner=schedule.cleaner(timestep, inversion.num_steps),
    )
    if inversion.corrections is not None:
        cleaner = cleaner + inversion.corrections[index : index + 1].to(cleaner.device)
    check_finite(cleaner, "The replay", timestep)
    return cleaner, schedule.clean_estimate(latents, noise_pred, timestep)


SourceBranch = Callable[
    [LatentDiffusion, Inversion, Conditions, Tensor, int], tuple[Tensor, Tensor]
]
"""How the source takes a step beside its targets: `source_step` or `exact_source_step`."""


def exact_source_step(
    model: LatentDiffusion,
    inversion: Inversion,
    conditions: Conditions,
    latents: Tensor,
    index: int,
) -> tuple[Tensor, Tensor]:
    """`source_step`, corrected to land on the stored trajectory: z_{t-1} = z*_{t-1}.

    That is d_t = z*_{t-1} - step(z*_t, ...) computed on the fly, so the reconstruction beside an
    edit is the autoencoder's own round trip, whatever the method of the inversion. The UNet runs
    all the same: targets need its attention maps.
    Source: Ju et al. 2024 (Direct Inversion), alg. 1.
    """
    _, estimate = source_step(model, inversion, conditions, latents, index)
    row = inversion.num_steps - index - 1
    return inversion.trajectory[row : row + 1].to(latents.device), estimate


def start_latents(model: LatentDiffusion, inversion: Inversion) -> Tensor:
    """z*_T on the model's device: [1, C, h, w]."""
    return inversion.trajectory[-1:].to(model.device)


def replay_steps(model: LatentDiffusion, inversion: Inversion) -> Generator[StepInfo, None, Tensor]:
    """Sample a photo again from its inversion.

    Returns:
        latents of the reconstruction, [1, C, h, w].

    Raises:
        InversionFileError: the inversion belongs to another model.
        NumericalError: the latents became infinite or NaN.
    """
    model = model_of(model, inversion)
    conditions = Conditions.of(model, inversion)
    latents = start_latents(model, inversion)
    for index, timestep in enumerate(inversion.header.timesteps):
        with torch.no_grad():
            latents, estimate = source_step(model, inversion, conditions, latents, index)
        yield StepInfo("replay", index + 1, inversion.num_steps, timestep, clean_estimate=estimate)
    return latents


@dataclass(frozen=True)
class Replay:
    """A reconstruction."""

    image: Tensor
    """[1, 3, H, W], float32, about [-1, 1]."""
    psnr: float
    """Decibels against the photo's crop."""


def replay(
    model: LatentDiffusion,
    inversion: Inversion,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Replay:
    """Reconstruct the photo from its inversion; see `replay_steps` for the errors."""
    with timed(logger, "replay: %d steps", inversion.num_steps):
        latents = run(replay_steps(model, inversion), on_step)
    with timed(logger, "decode: 1 picture"):
        image = model.decode(latents).cpu()
    return Replay(image=image, psnr=psnr(image, from_uint8(inversion.photo)))


def _row(embeds: Tensor, index: int) -> Tensor:
    return embeds if embeds.shape[0] == 1 else embeds[index : index + 1]
