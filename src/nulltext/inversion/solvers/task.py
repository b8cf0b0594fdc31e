"""One timestep of null-text inversion as a nonlinear least-squares problem in the null embedding.

With (a, b) the DDIM step's coefficients, w the guidance scale, zbar_t and the pivot z*_{t-1} fixed:

    r(∅) = a zbar_t + b (eps_∅ + w (eps_C - eps_∅)) - z*_{t-1} = b (1 - w) (eps_∅ - u*)
    u*   = eps_C + (eps_C - eps*) / (w - 1),   eps* = (z*_{t-1} - a zbar_t) / b
    L(∅) = mean r^2

so the noise that the null branch ought to predict, u*, is known in closed form, and r is the
distance rho = eps_∅ - u* from it, scaled by the gain b (1 - w). A solver sees r and two products
with its Jacobian J: J^T u by a backward pass, J v by forward-mode differentiation (or nearly, by a
difference of two residuals). Every product is counted where it is made, photo by photo (a pass that
is repeated at a smaller scale, since it overflowed in float16, is not counted again).
Source: Mokady et al. 2023, eq. 3; u* follows from it and eq. 1 (guidance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from nulltext.errors import NumericalError
from nulltext.finite import ADVICE, check_finite
from nulltext.guidance import guide
from nulltext.models.half import through_half
from nulltext.models.latent_diffusion import LatentDiffusion

DERIVATIVE_COST = 2
"""UNet evaluations that a backward or a forward-mode pass counts for."""

PROMPT_SHARE = 0.5
"""A null embedding smaller than this part of its prompt's embedding, as SDXL's zeros are, is no
measure of how large embeddings are; the prompt's is."""


@dataclass(frozen=True)
class Landing:
    """Where one step arrives under some null embeddings."""

    noise_pred: Tensor
    """Guided eps, [b, C, h, w]."""
    cleaner: Tensor
    """Latents after the step, [b, C, h, w]."""
    residual: Tensor
    """r, [b, C, h, w]."""

    @property
    def losses(self) -> Tensor:
        """L = mean r^2 of each photo, [b]."""
        return self.residual.square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class StepTask:
    """The problem at one timestep, for B photos side by side; `rows` [b] names some of them."""

    model: LatentDiffusion
    latents: Tensor
    """zbar_t, [B, C, h, w]."""
    targets: Tensor
    """z*_{t-1}, [B, C, h, w]."""
    noise_prompt: Tensor
    """eps_C, [B, C, h, w]."""
    timestep: int
    cleaner_timestep: int
    guidance_scale: float
    natural_sizes: Tensor
    """[B], norm of an embedding of each photo's prompt, times `PROMPT_SHARE`."""
    free_rows: Tensor | None = None
    """[R], 1 for the rows of an embedding that may move, 0 for those that stay; None frees all."""
    unet_evaluations: list[int] = field(default_factory=list)
    """Evaluations so far, one count for each photo."""

    @classmethod
    def at(
        cls,
        model: LatentDiffusion,
        latents: Tensor,
        targets: Tensor,
        prompt_embeds: Tensor,
        *,
        timestep: int,
        num_steps: int,
        guidance_scale: float,
        free_rows: Tensor | None = None,
    ) -> StepTask:
        """Set a timestep's problem up; costs one evaluation per photo, for eps_C.

        Args: latents, targets: [B, C, h, w]. prompt_embeds: [B, R, D]. free_rows: see the field.
        """
        with torch.no_grad():
            noise_prompt = model.predict_noise(latents, timestep, prompt_embeds)
        return cls(
            model=model,
            latents=latents,
            targets=targets,
            noise_prompt=noise_prompt,
            timestep=timestep,
            cleaner_timestep=model.schedule.cleaner(timestep, num_steps),
            guidance_scale=guidance_scale,
            natural_sizes=PROMPT_SHARE * prompt_embeds.detach().flatten(1).norm(dim=1),
            free_rows=free_rows,
            unet_evaluations=[1] * len(latents),
        )

    @property
    def all_rows(self) -> Tensor:
        """[B], every photo."""
        return torch.arange(len(self.latents), device=self.latents.device)

    @property
    def noise_gain(self) -> float:
        """b (1 - w): what turns rho = eps_∅ - u* into r."""
        _, b = self.model.schedule.coefficients(start=self.timestep, end=self.cleaner_timestep)
        return b * (1.0 - self.guidance_scale)

    def evaluate(self, null_embeds: Tensor, rows: Tensor) -> Landing:
        """r under null embeddings [b, R, D], differentiable; one evaluation per row."""
        self._count(rows, 1)
        return self._land(null_embeds, rows)

    def pullback(
        self, outputs: Tensor, null_embeds: Tensor, cotangents: Tensor, rows: Tensor
    ) -> Tensor:
        """J^T u for outputs that `evaluate` led to from null_embeds; a backward pass per row.

        The graph stays, so that one evaluation serves several products. Rows that stay get 0.

        Raises:
            NumericalError: it is infinite or NaN; names the timestep.
        """
        self._count(rows, DERIVATIVE_COST)
        (product,) = torch.autograd.grad(outputs, null_embeds, cotangents, retain_graph=True)
        check_finite(product, "The gradient in the null embedding", self.timestep)
        return product if self.free_rows is None else product * self.free_rows[:, None]

    def pushforward(self, null_embeds: Tensor, tangents: Tensor, rows: Tensor) -> Tensor:
        """J v, exactly: [b, C, h, w] of tangents [b, R, D]; a forward-mode pass per row.

        Fused attention kernels have no forward-mode derivative, so plain attention takes over.

        Raises:
            NumericalError: it is infinite or NaN; names the timestep.
        """
        self._count(rows, DERIVATIVE_COST)

        def push(vectors: Tensor) -> Tensor:
            residual = self._land(forward_ad.make_dual(null_embeds, vectors), rows).residual
            return forward_ad.unpack_dual(residual).tangent

        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            product = through_half(push, tangents, self.model.unet.dtype)
        check_finite(product, "The derivative along the null embedding", self.timestep)
        return product

    def sizes(self, null_embeds: Tensor, rows: Tensor) -> Tensor:
        """How large embeddings are at null_embeds [b, R, D]: [b], what steps are measured by."""
        own = null_embeds.detach().flatten(1).norm(dim=1)
        return torch.maximum(own, self.natural_sizes[rows])

    def _land(self, null_embeds: Tensor, rows: Tensor) -> Landing:
        latents = self.latents[rows]
        noise_null = self.model.predict_noise(latents, self.timestep, null_embeds)
        noise_pred = guide(noise_null, self.noise_prompt[rows], self.guidance_scale)
        cleaner = self.model.schedule.step(
            latents, noise_pred, noisier=self.timestep, cleaner=self.cleaner_timestep
        )
        return Landing(noise_pred, cleaner, cleaner - self.targets[rows])

    def _count(self, rows: Tensor, cost: int) -> None:
        for row in rows.tolist():
            self.unet_evaluations[row] += cost


class Best:
    """The best null embedding that was tested, photo by photo."""

    def __init__(self, task: StepTask, start: Tensor) -> None:
        self.task = task
        self.null_embeds = start.detach().clone()
        self.noise_pred = torch.empty_like(task.latents)
        self.cleaner = torch.empty_like(task.latents)
        self.losses = task.latents.new_full((len(start),), math.inf)

    def offer(self, null_embeds: Tensor, landing: Landing, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what is better than before; returns (losses [b], whether each was better [b]).

        Raises:
            NumericalError: a loss is infinite or NaN; names the timestep.
        """
        losses = landing.losses.detach()
        if not bool(torch.isfinite(losses).all()):
            worst = losses[~torch.isfinite(losses)][0].item()
            raise NumericalError(
                f"The null-text loss is {worst} at timestep {self.task.timestep}; {ADVICE}."
            )
        better = losses < self.losses[rows]
        kept = rows[better]
        self.losses[kept] = losses[better]
        self.null_embeds[kept] = null_embeds.detach()[better]
        self.noise_pred[kept] = landing.noise_pred.detach()[better]
        self.cleaner[kept] = landing.cleaner.detach()[better]
        return losses, better


def within_trust(steps: Tensor, sizes: Tensor, fraction: float) -> Tensor:
    """Shorten steps [b, R, D] that are longer than a fraction of the embeddings' sizes [b].

    A linear model of the residual is worth nothing far away, and an embedding of another size than
    the text encoder's is none that the UNet knows.
    """
    lengths = steps.flatten(1).norm(dim=1).clamp_min(torch.finfo(steps.dtype).tiny)
    return (fraction * sizes / lengths).clamp_max(1.0)[:, None, None] * steps
