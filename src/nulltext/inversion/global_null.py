"""Global null-text inversion: one null embedding for all timesteps.

    ∅ = argmin sum_t L_t(∅),   N rounds over t = T … 1, one gradient step at each (see `rollout`)

A single embedding cannot do at every timestep what T of them can; it is the ablation that shows why
there are T.
Source: Mokady et al. 2023, sec. 4.1 ("global null-text inversion"), supplementary algorithm.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.descent import check_effort
from nulltext.inversion.null_text import check_null_branch
from nulltext.inversion.per_step import Batch, null_moves
from nulltext.inversion.record import StepInfo
from nulltext.inversion.rollout import shared_embedding_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class GlobalNull:
    """Options of global null-text inversion."""

    name: ClassVar[str] = "global-null"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 3
    gradient_cost: ClassVar[int] = 4

    inner_steps: int = 10
    """N: rounds over all timesteps; T N gradient steps in all."""
    learning_rate: float = 3e-3
    """Of Adam: higher moves the embedding faster and less steadily (docs/study.md: the sweep)."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)

    def check(self, guidance_scale: float) -> None:
        """It needs a null branch; see `check_null_branch`."""
        check_null_branch("Global null-text inversion", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; costs T + 4 T N UNet evaluations."""
        roles = null_moves(model, Batch.of([problem]))
        return (
            yield from shared_embedding_steps(
                *(model, problem, roles), rounds=self.inner_steps, learning_rate=self.learning_rate
            )
        )
