"""Fixed-point inversion: an exact pivot, and the source prompt where the empty one stood.

    a z*_t + b o(z*_t, t, C) + d_t = z*_{t-1}    z*_t, with its remainder d_t: diffusion.fixed_point
    ∅ = C,  so that  o_∅ + w (o_C - o_∅) = o_C    for the source, whatever w

DDIM inversion takes the output at the cleaner latents and the replay takes it at the noisier ones.
That difference is the whole residual which null-text has to absorb when it starts at the prompt;
here it is removed at its root. Nothing is optimised. The d_t are rounding or little more; where the
iteration does not converge, they still make the replay exact, and `Solution.unconverged` says at
how many timesteps that was so.
Sources: Meiri et al. 2023 (Fixed-point Inversion) and Pan et al. 2023 (AIDI), the pivot; Miyake et
al. 2023 (Negative-prompt Inversion), sec. 3, the null embedding; Ju et al. 2024 (Direct Inversion),
alg. 1, d_t.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nulltext.diffusion.fixed_point import MOST_EVALUATIONS, TOLERANCE, fixed_point_steps
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.fitting import Batch
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion

TOO_MANY = 0.25
"""Share of the timesteps above the tolerance from which on it is worth a note."""


def note_on_convergence(inversion: Inversion) -> str | None:
    """Say where the iteration did not converge; None where it did, or in a few timesteps alone."""
    missed, num_steps = inversion.header.unconverged, inversion.num_steps
    if missed < TOO_MANY * num_steps:
        return None
    return (
        f"Note: the inversion did not converge at {missed} of {num_steps} timesteps. The "
        "reconstruction is exact all the same, but edits may drift: more --steps help."
    )


@dataclass(frozen=True)
class FixedPoint:
    """Options of fixed-point inversion."""

    name: ClassVar[str] = "fixed-point"
    differentiates: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    step_cost: ClassVar[int] = 2
    """On photos; a map that does not contract takes more."""
    prompt_as_null: ClassVar[bool] = True
    """Whether ∅ is the prompt's embedding, so that the source takes one evaluation a step."""
    pivot: ClassVar[str] = "fixed-point"

    tolerance: float = TOLERANCE
    """Of what a step may miss the trajectory by, relative to the photo's part in the latents: lower
    is slower."""
    most_evaluations: int = MOST_EVALUATIONS
    """Evaluations per timestep at most: more reaches the tolerance more often."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or self.most_evaluations < 1:
            raise OptionError(
                f"tolerance is {self.tolerance:g} and most_evaluations {self.most_evaluations}; "
                f"choose 0 or more, and 1 or more ({TOLERANCE:g} and {MOST_EVALUATIONS} are usual)."
            )

    def check(self, guidance_scale: float) -> None:
        """Accept any scale."""

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Invert one photo."""
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution

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
            kept=problems[0].kept,
        )
        solutions = []
        for row, problem in enumerate(problems):
            unconverged = int((~found.converged[:, row]).sum())
            # a map that expands makes more of any rounding, so its replay is measured
            exact = unconverged < TOO_MANY * len(photos.grid)
            solutions.append(
                Solution(
                    trajectory=found.trajectory[:, row],
                    null_embeds=problem.prompt_embeds,
                    prompt_embeds=problem.prompt_embeds,
                    corrections=found.remainders[:, row],
                    unconverged=unconverged,
                    replayed=problem.latents if exact else None,
                )
            )
        return solutions
