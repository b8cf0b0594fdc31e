"""Negative-prompt inversion: the source prompt as null embedding, around a pivot.

    ∅ = C,  so that  o_∅ + w (o_C - o_∅) = o_C  for the source, whatever w

The source is replayed as at w = 1, off the pivot by the discretisation error alone; targets are
guided away from the source prompt. Nothing is optimised.
Source: Miyake et al. 2023 (Negative-prompt Inversion), sec. 3.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.constants import PivotName
from nulltext.diffusion.loops import StepInfo
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.pivots import check_pivot, walk_steps
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class NegativePrompt:
    """Options of negative-prompt inversion."""

    name: ClassVar[str] = "negative-prompt"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 2
    prompt_as_null: ClassVar[bool] = True
    """Whether ∅ is the prompt's embedding, so that the source takes one evaluation a step."""

    pivot: PivotName = "ddim"
    """The trajectory: as published, or exact; see `pivots`."""

    def __post_init__(self) -> None:
        check_pivot(self.pivot)

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Walk the pivot; costs T UNet evaluations around DDIM's, more around the other."""
        embeds = problem.prompt_embeds
        walked = yield from walk_steps(self.pivot, model, problem)
        return Solution(trajectory=walked[:, 0], null_embeds=embeds, prompt_embeds=embeds)
