"""Encoding alone: no inversion, for editors that start from the photo itself.

    trajectory = [z_0]

FlowEdit needs no noise that the photo comes from. What is stored is the encoded photo with the
prompt, the noise levels and the seed; its "reconstruction" is the autoencoder's round trip, since
nothing else was done. Replays, and editors that start from z*_T, refuse it.
Source: Kulikov et al. 2025 (FlowEdit), sec. 4.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.loops import StepInfo
from nulltext.inversion.base import Problem, Solution
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Encode:
    """Encode the photo, and no more."""

    name: ClassVar[str] = "encode"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    """The editor does, from the seed that is stored."""
    flow_only: ClassVar[bool] = True
    replays: ClassVar[bool] = False
    """Whether there is anything to replay."""
    step_cost: ClassVar[int] = 0
    published_steps: ClassVar[int] = 50

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self,
        model: LatentDiffusion,  # noqa: ARG002
        problem: Problem,
    ) -> Generator[StepInfo, None, Solution]:
        """Return z_0, without an evaluation of the network."""
        yield from ()
        return Solution(trajectory=problem.latents, replayed=problem.latents)
