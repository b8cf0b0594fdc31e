"""Replaying an inversion: the model that it belongs to, one step of it, and the reconstruction.

    z_T = z*_T,   z_{t-1} = denoise(z_t, guided o(z_t, t, ∅_t, C_t)) + d_t

Source: Mokady et al. 2023, sec. 3.3; Ju et al. 2024 (Direct Inversion), alg. 1 (d_t).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.diffusion.levels import Grid, Step
from nulltext.diffusion.loops import Conditions, Sampled, StepInfo, run, sample_step
from nulltext.errors import InversionFileError, OptionError
from nulltext.image.images import from_uint8, psnr, to_pil
from nulltext.image.saving import encoded
from nulltext.image.strip import Tile, figures_html
from nulltext.inversion.record import Inversion, SavedLevel
from nulltext.logs import timed
from nulltext.models.adapters import said_of
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.network_calls import fits
from nulltext.reprs import short_repr

logger = logging.getLogger(__name__)

LEVEL_TOLERANCE = 1e-6
"""Between a noise level in a file and the model's: both are float64, of the same formula."""


def check_model(model: LatentDiffusion, inversion: Inversion) -> None:
    """Refuse to use an inversion with another model than the one that made it.

    Raises:
        InversionFileError: the weights, the shapes or the schedule differ.
    """
    if not isinstance(inversion, Inversion):
        raise InversionFileError(
            f"A {type(inversion).__name__} is no inversion; pass what invert returned, or "
            "nulltext.Inversion.load(FILE)."
        )
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
    if inversion.weight_delta and not fits(model.network, inversion.weight_delta):
        raise InversionFileError(
            f"The inversion's difference of weights does not fit the UNet of the model "
            f"'{model.name}'; invert the photo again."
        )
    grid = model.grid(inversion.num_steps, pixels)
    if not all(map(_is_level_of, inversion.header.levels, grid)):
        raise InversionFileError(
            f"The inversion's noise levels are not on the schedule of the model '{model.name}'; "
            "invert the photo again."
        )


def _is_level_of(saved: SavedLevel, step: Step) -> bool:
    """Whether a step begins at a saved level."""
    level = step.noisier
    return saved.fed == level.fed and all(
        known is None or math.isclose(known, own, abs_tol=LEVEL_TOLERANCE)
        for known, own in ((saved.alpha, level.alpha), (saved.sigma, level.sigma))
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
    """Check that a model belongs to an inversion, and give it the inversion's weights if any.

    Raises:
        InversionFileError: as in `check_model`.
    """
    check_model(model, inversion)
    if inversion.weight_delta is None:
        return model
    delta = {name: factor.to(model.device) for name, factor in inversion.weight_delta.items()}
    return replace(model, weight_delta=delta)


@dataclass(frozen=True)
class Replaying:
    """An inversion with the model that samples it: all that a step of its replay needs."""

    model: LatentDiffusion
    """Checked, with the inversion's weights."""
    inversion: Inversion
    grid: Grid
    conditions: Conditions

    @classmethod
    def of(cls, model: LatentDiffusion, inversion: Inversion) -> Replaying:
        """Check the model, and take the inversion's own embeddings, else the model's.

        Raises:
            InversionFileError: as in `check_model`.
        """
        model = model_of(model, inversion)
        empty, prompt = model.embed(["", inversion.header.prompt]).chunk(2)
        null_embeds, prompt_embeds = inversion.null_embeds, inversion.prompt_embeds
        height, width = inversion.photo.shape[1:]
        conditions = Conditions(
            null_embeds=empty if null_embeds is None else null_embeds.to(model.device),
            prompt_embeds=prompt if prompt_embeds is None else prompt_embeds.to(model.device),
        )
        return cls(model, inversion, model.grid(inversion.num_steps, (height, width)), conditions)

    @cached_property
    def source_guidance(self) -> float:
        """w of the source's own steps: 1 where null and prompt embeddings are the same.

        There o_∅ + w (o_C - o_∅) = o_C at any w, at half the evaluations.
        """
        null_embeds, prompt_embeds = self.conditions.null_embeds, self.conditions.prompt_embeds
        if torch.equal(null_embeds, prompt_embeds):
            return CONDITIONAL_ONLY
        return self.inversion.header.guidance_scale

    @property
    def encoded(self) -> Tensor:
        """z*_0 on the model's device: [1, C, h, w]."""
        return self.inversion.trajectory[:1].to(self.model.device)

    @property
    def start(self) -> Tensor:
        """z*_T on the model's device: [1, C, h, w].

        Raises:
            OptionError: the inversion holds z*_0 alone.
        """
        if self.inversion.is_encoded_only:
            raise OptionError(
                f"The inversion was made by --method {self.inversion.header.method}, so it holds "
                "the encoded photo and no noise to start from; edit with --editor flowedit, or "
                "invert with another --method."
            )
        return self.inversion.trajectory[-1:].to(self.model.device)

    def cleaner(self, index: int) -> Tensor:
        """z*_{t-1} of the step with this index (0 is the noisiest): [1, C, h, w]."""
        row = self.inversion.num_steps - index - 1
        return self.inversion.trajectory[row][None].to(self.model.device)


def source_step(replaying: Replaying, latents: Tensor, index: int) -> Sampled:
    """Take the step with this index of a replay; latents are [1, C, h, w].

    The one place where an inversion is sampled, so that what is computed beside the source
    (targets, attention maps) sees the very numbers of a replay. An inversion with corrections
    lands on its trajectory: d_t is what the step misses it by here and now, which is the stored one
    but for rounding, and no rounding adds up over the steps.
    """
    sampled = sample_step(
        replaying.model,
        replaying.grid[index],
        latents,
        replaying.conditions.at(index),
        replaying.source_guidance,
    )
    if replaying.inversion.corrections is None:
        return sampled
    return replace(sampled, latents=replaying.cleaner(index))


SourceBranch = Callable[[Replaying, Tensor, int], Sampled]
"""How the source takes a step beside its targets: `source_step` or `exact_source_step`."""


def exact_source_step(replaying: Replaying, latents: Tensor, index: int) -> Sampled:
    """Take `source_step`, corrected to land on the stored trajectory: z_{t-1} = z*_{t-1}.

    That is d_t = z*_{t-1} - step(z*_t, ...) computed on the fly, so the reconstruction beside an
    edit is the autoencoder's own round trip, whatever the method of the inversion. The UNet runs
    all the same: targets need its attention maps.
    Source: Ju et al. 2024 (Direct Inversion), alg. 1.
    """
    return replace(source_step(replaying, latents, index), latents=replaying.cleaner(index))


def replay_steps(model: LatentDiffusion, inversion: Inversion) -> Generator[StepInfo, None, Tensor]:
    """Sample a photo again from its inversion.

    Returns:
        latents of the reconstruction, [1, C, h, w].

    Raises:
        InversionFileError: the inversion belongs to another model.
        OptionError: it holds the encoded photo alone.
        NumericalError: the latents became infinite or NaN.
    """
    replaying = Replaying.of(model, inversion)
    latents = replaying.start
    for index, step in enumerate(replaying.grid):
        sampled = source_step(replaying, latents, index)
        latents = sampled.latents
        yield StepInfo(
            "replay",
            index + 1,
            inversion.num_steps,
            step.noisier,
            clean_estimate=sampled.clean_estimate,
        )
    return latents


@dataclass(frozen=True)
class Replay:
    """A reconstruction."""

    image: Tensor
    """[1, 3, H, W], float32, about [-1, 1]."""
    psnr: float
    """Decibels against the photo's crop."""

    __repr__ = short_repr

    def _repr_png_(self) -> bytes:
        return encoded(to_pil(self.image), "PNG")

    def _repr_html_(self) -> str:
        return figures_html([Tile(to_pil(self.image), f"reconstruction ({self.psnr:.1f} dB)")])


def replay(
    model: LatentDiffusion,
    inversion: Inversion,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Replay:
    """Reconstruct the photo from its inversion; see `replay_steps` for the errors."""
    check_model(model, inversion)
    with timed(logger, "replay: %d steps", inversion.num_steps):
        latents = run(replay_steps(model, inversion), on_step)
    with timed(logger, "decode: 1 picture"):
        image = model.decode(latents).cpu()
    return Replay(image=image, psnr=psnr(image, from_uint8(inversion.photo)))
