"""Null-text inversion: one unconditional embedding per timestep, fitted to the pivot.

With z*_0 … z*_T the pivot, zbar_T = z*_T and ∅_T the embedding of "", for t = T … 1:

    L_t(∅) = mean || z*_{t-1} - step(zbar_t; eps_∅ + w (eps_C - eps_∅)) ||^2
    ∅_t    = argmin L_t by Adam, N inner steps, started at ∅_{t+1};  ∅_{T+1}: that of "", or C
    zbar_{t-1} = step(zbar_t; guided eps under ∅_t)

Weights and the prompt's embedding stay as they are, and eps_C is computed once per timestep.
How the minimum is looked for is a solver's business (see `solvers`); Adam is the paper's. With
∅ = C the guided noise is eps_C at any w, which is what the pivot was walked with: a start there is
off by the discretisation alone, so most timesteps need no step at all.
Source: Mokady et al. 2023, sec. 3.3, algorithm 1; learning rate and stopping rule as published
with the paper's code. The start at C is Miyake et al. 2023's whole method, sec. 3. Two things are
done better than there, neither of which moves the optimum: the loss is tested before a step is
taken and the best embedding tested is kept, so no timestep ends worse than it began; and its eps_∅
is reused to advance, so advancing costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from nulltext.constants import NullStart
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.per_step import Batch, PerStepOptions, fit_steps, null_moves, pivot_of_steps
from nulltext.inversion.record import StepInfo
from nulltext.models.latent_diffusion import LatentDiffusion


def check_null_branch(what: str, guidance_scale: float) -> None:
    """Refuse scales at which the null embedding has no say.

    Raises:
        OptionError: the scale is 1 or below.
    """
    if guidance_scale <= 1:
        raise OptionError(
            f"{what} cannot do anything at guidance {guidance_scale:g}: at 1 and "
            "below, the null embedding that it optimises does not guide the image; "
            "pass a higher --guidance or none, or --method ddim."
        )


@dataclass(frozen=True)
class NullText(PerStepOptions):
    """Options of null-text inversion; the defaults are the paper's."""

    name: ClassVar[str] = "null-text"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    start: NullStart = "empty"
    """Where the null embeddings begin: at that of "", as published, or at the prompt's, which is
    nearly there already."""
    pooled: Literal["fixed", "optimised"] = "fixed"
    """Whether the pooled null embedding moves with the tokens' (SDXL; elsewhere there is none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in get_args(NullStart):
            choices = " or ".join(map(repr, get_args(NullStart)))
            raise OptionError(f"start is {self.start!r}; choose {choices}.")
        if self.pooled not in ("fixed", "optimised"):
            raise OptionError(f"pooled is {self.pooled!r}; choose 'fixed' or 'optimised'.")

    def check(self, guidance_scale: float) -> None:
        """It needs a null branch; see `check_null_branch`."""
        check_null_branch("Null-text inversion", guidance_scale)

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Pivot, then fit; see the module's formulae.

        Raises:
            NumericalError: the loss stopped being finite; names the timestep.
        """
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """`steps` for several photos at once, each of which stops as early as it would alone."""
        batch = Batch.of(problems)
        pivots = yield from pivot_of_steps(model, batch)
        roles = null_moves(model, batch)
        if self.start == "prompt":
            roles = replace(roles, moving=batch.prompt_embeds)
        if self.pooled == "optimised":
            roles = replace(roles, free_rows=None)
        fits = yield from fit_steps(model, batch, pivots, roles, self)
        return fits.solutions(pivots)
