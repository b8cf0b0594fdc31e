"""Fixed-point inversion: an exact pivot, with the source prompt as null embedding.

    a z*_t + b o(z*_t, t, C) + d_t = z*_{t-1}    z*_t, with its remainder d_t: diffusion.fixed_point
    ∅ = C,  so that  o_∅ + w (o_C - o_∅) = o_C    for the source, whatever w

DDIM inversion takes the output at the cleaner latents and the replay takes it at the noisier ones.
The replay at w = 1 misses DDIM's pivot by that difference. The iteration removes it up to its
tolerance, and d_t carries the rest: a replay lands on z*_{t-1} at every step (`replay`), also where
the iteration did not converge; `Solution.unconverged` says at how many timesteps that was so.
Nothing is optimised.
Sources: Pan et al. 2023 (AIDI) and Meiri et al. 2023 (Fixed-point Inversion), the pivot; Miyake et
al. 2023 (Negative-prompt Inversion), sec. 3, the null embedding; Ju et al. 2024 (Direct Inversion),
alg. 1, d_t.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nulltext.diffusion.fixed_point import MOST_EVALUATIONS, TOLERANCE, fixed_point_steps
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import OptionError
from nulltext.inversion.base import Batch, Problem, SideBySide, Solution
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion

TOO_MANY = 0.25
"""Share of the timesteps above the tolerance from which on it is worth a note."""


def note_on_convergence(inversion: Inversion) -> str | None:
    """Say where the iteration did not converge; None where it did, or in a few timesteps alone."""
    missed, num_steps = inversion.header.unconverged, inversion.num_steps
    if missed is None or missed < TOO_MANY * num_steps:
        return None
    return (
        f"Note: the inversion did not converge at {missed} of {num_steps} timesteps. The "
        "reconstruction is steered onto the photo all the same, but edits may drift: more --steps "
        "help."
    )


@dataclass(frozen=True)
class FixedPoint(SideBySide):
    """Options of fixed-point inversion."""

    name: ClassVar[str] = "fixed-point"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 2
    """Estimate of UNet evaluations per timestep; slower convergence takes more."""
    prompt_as_null: ClassVar[bool] = True
    """Whether ∅ is the prompt's embedding, so that the source takes one evaluation a step."""
    pivot: ClassVar[str] = "fixed-point"

    tolerance: float = TOLERANCE
    """Largest remainder of a step, relative to the photo's part in the latents; lower is slower."""
    most_evaluations: int = MOST_EVALUATIONS
    """Evaluations per timestep at most: more reaches the tolerance more often."""

    def __post_init__(self) -> None:
        whole = isinstance(self.most_evaluations, int)
        if not self.tolerance >= 0 or not whole or self.most_evaluations < 1:
            raise OptionError(
                f"tolerance is {self.tolerance:g} and most_evaluations {self.most_evaluations}; "
                "choose a number from 0 up and a whole one from 1 up "
                f"({TOLERANCE:g} and {MOST_EVALUATIONS} are usual)."
            )

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """Invert photos side by side, each of which stops as early as it would alone.

        Costs T + 1 UNet evaluations per photo at least, and `most_evaluations` T + 1 at most.
        """
        photos = Batch.of(problems)
        found = yield from fixed_point_steps(
            model,
            photos.latents,
            photos.prompt_embeds,
            photos.grid,
            tolerance=self.tolerance,
            most_evaluations=self.most_evaluations,
            rounding=torch.finfo(model.network.dtype).eps,
            kept=photos.kept,
        )
        return [
            Solution(
                trajectory=found.trajectory[:, row],
                null_embeds=problem.prompt_embeds,
                prompt_embeds=problem.prompt_embeds,
                corrections=found.remainders[:, row],
                unconverged=int((~found.converged[:, row]).sum()),
                replayed=problem.latents,  # where the corrections lead
            )
            for row, problem in enumerate(problems)
        ]
