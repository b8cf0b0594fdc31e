"""Null-text inversion: Algorithm 1 of Mokady et al. 2023.

    z*_0 … z*_T: the pivot, DDIM inversion at w = 1
    zbar_T = z*_T,  ∅_T = embedding of ""
    for t = T, T - 1, …, 1:
        for j = 0, …, N - 1:
            ∅_t <- ∅_t - eta grad_∅ || z*_{t-1} - z_{t-1}(zbar_t, ∅_t, C) ||^2
        zbar_{t-1} = z_{t-1}(zbar_t, ∅_t, C),  ∅_{t-1} = ∅_t

z_{t-1}(z, ∅, C) is the DDIM step under the guided output o_∅ + w (o_C - o_∅), which is
o_C + (1 - w) (o_∅ - o_C). The gradient step is Adam's, begun anew at every timestep.

Learning rate, stopping rule and the mean over ||.||^2 are those of the published code. Differences
from it: the loss is tested before a step is taken, the best embedding tested is kept, so that no
timestep ends worse than it began, and its o_∅ is reused to advance, at no evaluation.
Source: Mokady et al. 2023, sec. 3.3, algorithm 1; Kingma & Ba 2015, alg. 1 (Adam).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.loops import StepInfo
from nulltext.inversion.base import Batch, Problem, Solution
from nulltext.inversion.fitting import Best, Branch, FittingMethod, State, check_null_branch
from nulltext.inversion.pivots import walk_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class NullText(FittingMethod):
    """Options of null-text inversion; the defaults are the paper's."""

    name: ClassVar[str] = "null-text"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    branch: ClassVar[Branch] = "null_embeds"

    inner_steps: int = 10
    """N: gradient steps per timestep at most; more is closer to the pivot and slower."""
    learning_rate: float = 1e-2
    """eta at step i (0 is the noisiest) is this times max(1 - i / 100, 0.01), and times the size of
    the family's embeddings where it is not Stable Diffusion 1, 2 or XL (`step_scale`)."""
    loss_tolerance: float = 1e-5
    """Loss below which the noisiest timestep is good enough."""
    loss_tolerance_slope: float = 2e-5
    """What each further timestep adds to that tolerance."""
    pivot: PivotName = "ddim"
    """The trajectory: as published, or exact; see `pivots`."""

    def check(self, guidance_scale: float) -> None:
        """Refuse scales at which the null embedding does not act."""
        check_null_branch("Null-text inversion", guidance_scale)

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """Invert photos side by side, each of which stops as early as it would alone.

        Costs 3 T + 2 N T UNet evaluations per photo at most.
        """
        photos = Batch.of(problems)
        state = None if photos.kept is None else State.of(photos.kept)
        if state is None:
            state = State.start((yield from self.trajectory_steps(model, photos)))
        start, fixed = self.embeds(model, photos)  # ∅ is fitted, C stays
        share = self.share(photos.guidance_scale)
        rate = self.learning_rate * model.text.step_scale(model.embed([""]))
        for i in range(state.done, len(photos.grid)):
            step, latents, target = photos.grid[i], state.latents, state.target(i)
            embeds = (state.fitted[-1] if state.fitted else start).clone().requires_grad_(True)
            with torch.no_grad():
                output_fixed = model.predict(latents, step.noisier, fixed)
            eta = rate * max(1.0 - i / 100, 0.01)
            adam = torch.optim.Adam([embeds], lr=eta)
            tolerance = self.loss_tolerance + self.loss_tolerance_slope * i
            most = self.inner_steps if step.moves(share, latents.dtype) else 0
            best, rows = Best(embeds, latents, step), state.rows
            gradients = torch.zeros_like(rows)
            with model.frozen():
                for j in range(most + 1):
                    with torch.set_grad_enabled(j < most):
                        output = model.predict(
                            latents[rows], step.noisier, embeds[rows], rows.tolist()
                        )
                        output = output_fixed[rows] + share * (output - output_fixed[rows])
                        landed = step.denoise(latents[rows], output)
                        losses = (target[rows] - landed).square().flatten(1).mean(dim=1)
                    tested, _ = best.offer(embeds[rows], output, losses, rows)
                    going = tested >= tolerance
                    if j == most or not bool(going.any()):
                        break
                    (slope,) = torch.autograd.grad(losses.sum(), embeds)
                    check_finite(slope, "The gradient in the embedding", step.noisier)
                    embeds.grad = slope * model.token_rows  # a pooled row (SDXL) stays
                    adam.step()
                    gradients[rows] += 1
                    rows = rows[going]
            state = state.after(best, gradients)
            yield state.info(best, inner_steps=j)
        return state.solutions(self.branch)

    def trajectory_steps(
        self, model: LatentDiffusion, photos: Batch
    ) -> Generator[StepInfo, None, Tensor]:
        """Walk the pivot, [T + 1, B, C, h, w]."""
        return (yield from walk_steps(self.pivot, model, photos))

    def embeds(self, model: LatentDiffusion, photos: Batch) -> tuple[Tensor, Tensor]:
        """Return where the fitted branch starts, and the branch that stays, [B, R, D] each."""
        return model.embed([""]).repeat(len(photos.latents), 1, 1), photos.prompt_embeds

    def share(self, guidance_scale: float) -> float:
        """What the fitted branch counts for in the guided output."""
        return 1.0 - guidance_scale
