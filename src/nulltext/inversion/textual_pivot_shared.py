"""Textual inversion around the pivot with one prompt embedding for all timesteps.

    ∅ = the empty prompt's embedding, fixed;   C = argmin sum_t L_t(C)   (see `rollout`)

As global null-text inversion, with the branches' roles exchanged.
Source: Mokady et al. 2023, sec. 4.1 ("textual inversion with a pivot"; the shared form is ours).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.descent import check_effort
from nulltext.inversion.per_step import Batch, prompt_moves
from nulltext.inversion.record import StepInfo
from nulltext.inversion.rollout import shared_embedding_steps
from nulltext.inversion.textual_pivot import check_prompt_branch
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class TextualPivotShared:
    """Options of textual inversion with one embedding."""

    name: ClassVar[str] = "textual-pivot-shared"
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
        """It needs the prompt's branch; see `check_prompt_branch`."""
        check_prompt_branch("Textual inversion around the pivot", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; costs T + 4 T N UNet evaluations."""
        roles = prompt_moves(model, Batch.of([problem]))
        return (
            yield from shared_embedding_steps(
                *(model, problem, roles), rounds=self.inner_steps, learning_rate=self.learning_rate
            )
        )
