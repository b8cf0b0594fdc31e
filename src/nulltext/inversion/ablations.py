"""The ablations of null-text inversion, each of which changes one choice.

    random-pivot          the trajectory is drawn, not walked: z*_t = alpha_t z_0 + sigma_t eps
    textual-pivot         the prompt's embedding C_t is fitted, the null embedding stays that of ""
    global-null           one null embedding for all timesteps: argmin sum_t L_t(∅)  (`rollout`)
    textual-pivot-shared  one prompt embedding for all timesteps: argmin sum_t L_t(C)
    null-text-no-pivot    ∅ = argmin E || eps - (guided eps)(z_t, ∅, C) ||^2, without a pivot
    textual               C = argmin E || eps - eps(z_t, C) ||^2, without pivot and guidance

Without a pivot, z_t = alpha_t z_0 + sigma_t eps with fresh eps ~ N(0, I) and t uniform over the
training's timesteps at each iteration, as diffusion models are trained.
Source: Mokady et al. 2023, sec. 4 and supplementary; Gal et al. 2022 (Textual Inversion), eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.guidance import guide
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import StepInfo, pivot_steps
from nulltext.inversion.base import Batch, Problem, Solution
from nulltext.inversion.fitting import (
    Branch,
    check_effort,
    check_null_branch,
    check_prompt_branch,
)
from nulltext.inversion.null_text import NullText
from nulltext.inversion.pivots import check_pivot, walk_steps
from nulltext.inversion.rollout import descend, rollout_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class RandomPivot(NullText):
    """Null-text inversion around a random trajectory: one draw of noise per photo.

    Such a trajectory is as noisy as a pivot and as near to z_0, but the model would not have
    walked it.
    """

    name: ClassVar[str] = "random-pivot"
    draws: ClassVar[bool] = True
    step_cost: ClassVar[int] = 2
    pivot: ClassVar[str] = "random"  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def trajectory_steps(
        self,
        model: LatentDiffusion,  # noqa: ARG002
        photos: Batch,
    ) -> Generator[StepInfo, None, Tensor]:
        """Draw z*_0 … z*_T, [T + 1, B, C, h, w]."""
        clean = photos.latents
        draws = [torch.randn(clean[:1].shape, generator=draw) for draw in photos.generators]
        noise = torch.cat(draws).to(clean)
        levels = [step.noisier for step in reversed(photos.grid)]
        yield from ()
        return torch.stack([clean, *(level.add_noise(clean, noise) for level in levels)])


@dataclass(frozen=True)
class TextualPivot(NullText):
    """Textual inversion around the pivot: the branches' roles are exchanged.

    It reconstructs about as well, but the words of C_t no longer attend where the prompt's own
    words did.
    """

    name: ClassVar[str] = "textual-pivot"
    branch: ClassVar[Branch] = "prompt_embeds"

    def check(self, guidance_scale: float) -> None:
        """Refuse the scale at which the prompt's embedding does not act."""
        check_prompt_branch("Textual inversion around the pivot", guidance_scale)

    def embeds(self, model: LatentDiffusion, photos: Batch) -> tuple[Tensor, Tensor]:
        """Return the prompt's embedding, which is fitted, and that of "", which stays."""
        null, prompt = super().embeds(model, photos)
        return prompt, null

    def share(self, guidance_scale: float) -> float:
        """What the prompt's branch counts for in the guided output."""
        return guidance_scale


@dataclass(frozen=True)
class SharedEmbedding:
    """One embedding for all timesteps: base of `GlobalNull` and `TextualPivotShared`."""

    differentiates: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    """Whether it computes both branches of guidance itself."""
    draws: ClassVar[bool] = False
    gradient_cost: ClassVar[int] = 4
    branch: ClassVar[Branch]

    inner_steps: int = 10
    """N: rounds over all timesteps; T N gradient steps in all."""
    learning_rate: float = 3e-3
    """Adam's: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""
    pivot: PivotName = "ddim"
    """The trajectory: as published, or exact; see `pivots`."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)
        check_pivot(self.pivot)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; costs T + 4 T N UNet evaluations.

        (A step that is the identity takes no gradient, and 2 instead of 4.)
        """
        walked = yield from walk_steps(self.pivot, model, problem)
        empty, w = model.embed([""]), problem.guidance_scale
        if self.branch == "null_embeds":
            fitted = FittedEmbedding(model, _leaf(empty), problem.prompt_embeds, 1.0 - w)
        else:
            fitted = FittedEmbedding(model, _leaf(problem.prompt_embeds), empty, w)
        pivot = walked[:, 0]
        gradients = yield from rollout_steps(
            model,
            pivot,
            problem.grid,
            fitted,
            rounds=self.inner_steps,
            learning_rate=self.learning_rate,
        )
        embeds: dict[str, Any] = {self.branch: fitted.embeds}
        return Solution(pivot, iterations=gradients, **embeds)


@dataclass(frozen=True)
class GlobalNull(SharedEmbedding):
    """Global null-text inversion: one null embedding for all timesteps."""

    name: ClassVar[str] = "global-null"
    branch: ClassVar[Branch] = "null_embeds"

    def check(self, guidance_scale: float) -> None:
        """Refuse scales at which the null embedding does not act."""
        check_null_branch("Global null-text inversion", guidance_scale)


@dataclass(frozen=True)
class TextualPivotShared(SharedEmbedding):
    """Textual inversion around the pivot with one prompt embedding (not in the paper)."""

    name: ClassVar[str] = "textual-pivot-shared"
    branch: ClassVar[Branch] = "prompt_embeds"

    def check(self, guidance_scale: float) -> None:
        """Refuse the scale at which the prompt's embedding does not act."""
        check_prompt_branch("Textual inversion around the pivot", guidance_scale)


@dataclass(frozen=True)
class FittedEmbedding:
    """One embedding [1, R, D] of a branch; a pooled row (SDXL) stays. See `rollout.Fitted`."""

    model: LatentDiffusion
    embeds: Tensor
    """A leaf that requires gradients."""
    fixed: Tensor
    """The other branch's embedding, [1, R, D]."""
    share: float

    @property
    def parameters(self) -> list[Tensor]:
        """The embedding."""
        return [self.embeds]

    def output_at(self, latents: Tensor, level: Level) -> Callable[[], Tensor]:
        """Compute the branch that stays once; see `rollout.Fitted`."""
        with torch.no_grad():
            fixed = self.model.predict(latents, level, self.fixed)

        def guided() -> Tensor:
            moving = self.model.predict(latents, level, tokens_alone(self.model, self.embeds))
            return guide(fixed, moving, self.share)

        return guided


@dataclass(frozen=True)
class NullTextNoPivot:
    """Null-text optimisation without a pivot: one null embedding, fitted to random noise.

    The replay starts at the z*_T of DDIM inversion, as all others do.
    """

    name: ClassVar[str] = "null-text-no-pivot"
    differentiates: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    """Whether it computes both branches of guidance itself."""
    draws: ClassVar[bool] = True
    gradient_cost: ClassVar[int] = 3

    inner_steps: int = 10
    """N: T N gradient steps are made, so that N means what it does with a pivot."""
    learning_rate: float = 1e-2
    """Adam's: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def check(self, guidance_scale: float) -> None:
        """Refuse scales at which the null embedding does not act."""
        check_null_branch("Null-text optimisation without a pivot", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot (for z*_T), and fit; costs T + 3 T N UNet evaluations."""
        prompt_embeds = problem.prompt_embeds
        pivot = yield from pivot_steps(model, problem.latents, prompt_embeds, problem.grid)
        null_embeds = _leaf(model.embed([""]))

        def predict(latents: Tensor, level: Level) -> Tensor:
            with torch.no_grad():
                noise_prompt = model.predict_noise(latents, level, prompt_embeds)
            noise_null = model.predict_noise(latents, level, tokens_alone(model, null_embeds))
            return guide(noise_null, noise_prompt, problem.guidance_scale)

        iterations = yield from random_noise_steps(
            model,
            problem,
            null_embeds,
            predict,
            inner_steps=self.inner_steps,
            learning_rate=self.learning_rate,
        )
        return Solution(pivot[:, 0], null_embeds=null_embeds, iterations=iterations)


@dataclass(frozen=True)
class Textual:
    """Textual inversion: the prompt's embedding is fitted to the photo, without pivot and guidance.

    The photo is then inverted by DDIM under C (w = 1) and replayed under C and the plain empty
    prompt.
    """

    name: ClassVar[str] = "textual"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    inner_steps: int = 10
    """N: T N gradient steps are made, so that N means what it does with a pivot."""
    learning_rate: float = 1e-3
    """Adam's: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def check(self, guidance_scale: float) -> None:
        """Refuse the scale at which the prompt's embedding does not act."""
        check_prompt_branch("Textual inversion", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Fit, then pivot; costs 2 T N + T UNet evaluations."""
        embeds = _leaf(problem.prompt_embeds)
        iterations = yield from random_noise_steps(
            model,
            problem,
            embeds,
            lambda latents, level: model.predict_noise(latents, level, tokens_alone(model, embeds)),
            inner_steps=self.inner_steps,
            learning_rate=self.learning_rate,
        )
        learnt = embeds.detach()
        pivot = yield from pivot_steps(model, problem.latents, learnt, problem.grid)
        return Solution(pivot[:, 0], prompt_embeds=learnt, iterations=iterations)


def random_noise_steps(
    model: LatentDiffusion,
    problem: Problem,
    embeds: Tensor,
    predict: Callable[[Tensor, Level], Tensor],
    *,
    inner_steps: int,
    learning_rate: float,
) -> Generator[StepInfo, None, int]:
    """Fit `embeds` [1, R, D], a leaf, in place by T N steps on random noise; returns T N.

    Args:
        predict: eps [1, C, h, w] of latents [1, C, h, w] at a level, under the embedding now.

    Raises:
        NumericalError: the loss stopped being finite; names the timestep.
    """
    latents, draw = problem.latents, problem.generator
    iterations = len(problem.grid) * inner_steps
    optimiser = torch.optim.Adam([embeds], lr=learning_rate)
    for done in range(1, iterations + 1):
        level = model.schedule.random_level(draw)
        noise = torch.randn(latents.shape, generator=draw).to(latents)
        with torch.enable_grad(), model.frozen():
            noise_pred = predict(level.add_noise(latents, noise), level)
            loss = (noise - noise_pred).square().mean()
            descend(optimiser, [embeds], loss, level)
        yield StepInfo("optimise", done, iterations, level, loss=loss.item())
    return iterations


def tokens_alone(model: LatentDiffusion, embeds: Tensor) -> Tensor:
    """Return the same embeddings [B, R, D], where only the tokens' rows get gradients."""
    tokens, others = embeds.split([model.max_tokens, embeds.shape[1] - model.max_tokens], dim=1)
    return torch.cat([tokens, others.detach()], dim=1)


def _leaf(embeds: Tensor) -> Tensor:
    return embeds.detach().clone().requires_grad_(True)
