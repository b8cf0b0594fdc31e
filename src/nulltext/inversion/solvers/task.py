"""One timestep around the pivot as a nonlinear least-squares problem in one branch's embedding.

Guidance mixes a branch that stays with one that moves: eps = eps_fix + v (eps_E - eps_fix), where

    null-text      E = ∅ moves, C stays:   v = 1 - w
    textual        E = C moves, ∅ stays:   v = w

With (a, b) the DDIM step's coefficients, zbar_t and the pivot z*_{t-1} fixed:

    r(E) = a zbar_t + b (eps_fix + v (eps_E - eps_fix)) - z*_{t-1} = b v (eps_E - u*)
    u*   = eps_fix + (eps* - eps_fix) / v,   eps* = (z*_{t-1} - a zbar_t) / b
    L(E) = mean r^2

so the noise that the moving branch ought to predict, u*, is known in closed form, and r is the
distance rho = eps_E - u* from it, scaled by the gain b v. Where the gain is zero (a step that is
the identity; `schedule` says where there are some) r is the same under all E, and no u* exists:
`is_fittable` is false, and solvers are given no steps. Elsewhere a solver sees r and two products
with its Jacobian J: J^T u by a backward pass, J v by forward-mode differentiation (or nearly, by a
difference of two residuals).
Source: Mokady et al. 2023, eq. 3; u* follows from it and eq. 1 (guidance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from nulltext.diffusion.finite import ADVICE, check_finite
from nulltext.diffusion.guidance import guide
from nulltext.errors import NumericalError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.network_calls import through_half

PROMPT_SHARE = 0.5
"""A null embedding smaller than this part of its prompt's embedding, as SDXL's zeros are, is no
measure of how large embeddings are; the prompt's is."""


def is_fittable(gain: float, latents: Tensor) -> bool:
    """Tell whether a change of eps_E by 1 moves the latents behind a step by more than rounding.

    Where it does not, gradients are zero or noise, so that no method takes any.

    Args: gain: of the module's formula. latents: any shape, of the step; their dtype decides.
    """
    return abs(gain) > torch.finfo(latents.dtype).eps


@dataclass(frozen=True)
class Landing:
    """Where one step arrives under some embeddings."""

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
    noise_fixed: Tensor
    """eps_fix, [B, C, h, w]."""
    timestep: int
    cleaner_timestep: int
    share: float
    """v: what the moving branch counts for in the guided noise."""
    natural_sizes: Tensor
    """[B], norm of an embedding of each photo's prompt, times `PROMPT_SHARE`."""
    free_rows: Tensor | None = None
    """[R], 1 for the rows of an embedding that may move, 0 for those that stay; None frees all."""
    gradients: list[int] = field(default_factory=list)
    """Backward passes so far, one count for each photo."""

    @classmethod
    def at(
        cls,
        model: LatentDiffusion,
        latents: Tensor,
        targets: Tensor,
        fixed_embeds: Tensor,
        *,
        timestep: int,
        num_steps: int,
        share: float,
        prompt_embeds: Tensor,
        free_rows: Tensor | None = None,
    ) -> StepTask:
        """Set a timestep's problem up; costs one evaluation per photo, for eps_fix.

        Args:
            latents, targets: [B, C, h, w]. fixed_embeds: [B, R, D], of the branch that stays.
            prompt_embeds: [B, R, D], what embeddings are measured by. free_rows: see the field.
        """
        with torch.no_grad():
            noise_fixed = model.predict_noise(latents, timestep, fixed_embeds)
        return cls(
            model=model,
            latents=latents,
            targets=targets,
            noise_fixed=noise_fixed,
            timestep=timestep,
            cleaner_timestep=model.schedule.cleaner(timestep, num_steps),
            share=share,
            natural_sizes=PROMPT_SHARE * prompt_embeds.detach().flatten(1).norm(dim=1),
            free_rows=free_rows,
            gradients=[0] * len(latents),
        )

    @property
    def all_rows(self) -> Tensor:
        """[B], every photo."""
        return torch.arange(len(self.latents), device=self.latents.device)

    @property
    def noise_gain(self) -> float:
        """b v: what turns rho = eps_E - u* into r."""
        _, b = self.model.schedule.coefficients(start=self.timestep, end=self.cleaner_timestep)
        return b * self.share

    @property
    def fittable(self) -> bool:
        """Whether an embedding can change the residual; see `is_fittable`."""
        return is_fittable(self.noise_gain, self.latents)

    def evaluate(self, embeds: Tensor, rows: Tensor) -> Landing:
        """r under embeddings [b, R, D], differentiable; one evaluation per row."""
        latents = self.latents[rows]
        noise_moving = self.model.predict_noise(latents, self.timestep, embeds, rows.tolist())
        noise_pred = guide(self.noise_fixed[rows], noise_moving, self.share)
        cleaner = self.model.schedule.step(
            latents, noise_pred, noisier=self.timestep, cleaner=self.cleaner_timestep
        )
        return Landing(noise_pred, cleaner, cleaner - self.targets[rows])

    def pullback(self, outputs: Tensor, embeds: Tensor, cotangents: Tensor, rows: Tensor) -> Tensor:
        """J^T u for outputs that `evaluate` led to from embeds; a backward pass per row.

        The graph stays, so that one evaluation serves several products. Rows that stay get 0.

        Raises:
            NumericalError: it is infinite or NaN; names the timestep.
        """
        for row in rows.tolist():
            self.gradients[row] += 1
        (product,) = torch.autograd.grad(outputs, embeds, cotangents, retain_graph=True)
        check_finite(product, "The gradient in the embedding", self.timestep)
        return product if self.free_rows is None else product * self.free_rows[:, None]

    def pushforward(self, embeds: Tensor, tangents: Tensor, rows: Tensor) -> Tensor:
        """J v, exactly: [b, C, h, w] of tangents [b, R, D]; a forward-mode pass per row.

        Fused attention kernels have no forward-mode derivative, so plain attention takes over.

        Raises:
            NumericalError: it is infinite or NaN; names the timestep.
        """

        def push(vectors: Tensor) -> Tensor:
            residual = self.evaluate(forward_ad.make_dual(embeds, vectors), rows).residual
            return forward_ad.unpack_dual(residual).tangent

        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            product = through_half(push, tangents, self.model.unet.dtype)
        check_finite(product, "The derivative along the embedding", self.timestep)
        return product

    def sizes(self, embeds: Tensor, rows: Tensor) -> Tensor:
        """How large embeddings are at embeds [b, R, D]: [b], what steps are measured by."""
        own = embeds.detach().flatten(1).norm(dim=1)
        return torch.maximum(own, self.natural_sizes[rows])


class Best:
    """The best embedding that was tested, photo by photo."""

    def __init__(self, task: StepTask, start: Tensor) -> None:
        self.task = task
        self.embeds = start.detach().clone()
        self.noise_pred = torch.empty_like(task.latents)
        self.cleaner = torch.empty_like(task.latents)
        self.losses = task.latents.new_full((len(start),), math.inf)

    def offer(self, embeds: Tensor, landing: Landing, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what is better than before; returns (losses [b], whether each was better [b]).

        Raises:
            NumericalError: a loss is infinite or NaN; names the timestep.
        """
        losses = landing.losses.detach()
        if not bool(torch.isfinite(losses).all()):
            worst = losses[~torch.isfinite(losses)][0].item()
            raise NumericalError(
                f"The loss around the pivot is {worst} at timestep {self.task.timestep}; {ADVICE}."
            )
        better = losses < self.losses[rows]
        kept = rows[better]
        self.losses[kept] = losses[better]
        self.embeds[kept] = embeds.detach()[better]
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
