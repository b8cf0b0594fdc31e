"""Model tuning: the UNet's weights are fitted to the photo around the pivot.

    delta = argmin sum_t L_t,   o under W + delta, ∅ and C as they are     (see `rollout`)

The comparison with pivotal tuning: exact for the photo, but every photo has a model of its own.
delta is of low rank in every layer, is trained as it is stored (see `models.network_calls`), and is
applied per call by forward hooks: the loaded weights are never written.
Source: Roich et al. 2021 (Pivotal Tuning), sec. 3.2; Mokady et al. 2023, sec. 4 and appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.guidance import guided_output
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.fitting import check_effort
from nulltext.inversion.pivots import check_pivot, walk_steps
from nulltext.inversion.rollout import rollout_steps
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.network_calls import layers_of, new_delta
from nulltext.models.placement import PLANS


@dataclass(frozen=True)
class ModelTuning:
    """Options of model tuning."""

    name: ClassVar[str] = "model-tuning"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    gradient_cost: ClassVar[int] = 6

    inner_steps: int = 10
    """N: rounds over all timesteps; T N gradient steps in all."""
    learning_rate: float = 1e-4
    """Adam's: higher moves the weights faster and less steadily (docs/study.md: the sweep)."""
    rank: int = 4
    """Of the difference in each layer: higher fits the photo closer, in a larger file."""
    pivot: PivotName = "ddim"
    """The trajectory: as published, or exact; see `pivots`."""

    def __post_init__(self) -> None:
        check_effort(self.inner_steps, self.learning_rate)
        check_pivot(self.pivot)
        if self.rank < 1:
            raise OptionError(f"The rank is {self.rank}; choose 1 or more (4 is usual).")

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; costs T + 6 T N UNet evaluations (T + 3 T N at w = 1).

        Raises:
            OptionError: the UNet is float16, or no layer of it takes the rank.
        """
        if model.network.dtype == torch.float16:
            raise OptionError(
                "Model tuning takes gradients of weights, which vanish in float16; pass --dtype "
                "float32, or bfloat16 on a GPU."
            )
        if not layers_of(model.network, self.rank):
            raise OptionError(f"No layer of '{model.name}' takes a rank of {self.rank}; lower it.")
        walked = yield from walk_steps(self.pivot, model, problem)
        pivot = walked[:, 0]
        delta = new_delta(model.network, self.rank, problem.generator)
        for factor in delta.values():
            factor.requires_grad_(True)
        # blocks that are computed again in the backward pass would be so without the difference
        tuned = replace(model, weight_delta=delta, memory=PLANS["plenty"])
        fitted = FittedWeights(tuned, delta, problem, model.embed([""]))
        gradients = yield from rollout_steps(
            model,
            pivot,
            problem.grid,
            fitted,
            rounds=self.inner_steps,
            learning_rate=self.learning_rate,
        )
        return Solution(trajectory=pivot, weight_delta=delta, iterations=gradients)


@dataclass(frozen=True)
class FittedWeights:
    """The factors of the difference; see `rollout.Fitted`."""

    model: LatentDiffusion
    """With the difference."""
    delta: dict[str, Tensor]
    problem: Problem
    null_embeds: Tensor
    """[1, R, D], of the empty prompt."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """All factors."""
        return list(self.delta.values())

    @property
    def share(self) -> float:
        """1: both branches move."""
        return 1.0

    def output_at(self, latents: Tensor, level: Level) -> Callable[[], Tensor]:
        """Leave both branches to be computed, as both move; see `rollout.Fitted`."""
        return lambda: guided_output(
            self.model,
            latents,
            level,
            null_embeds=self.null_embeds,
            prompt_embeds=self.problem.prompt_embeds,
            guidance_scale=self.problem.guidance_scale,
        )
