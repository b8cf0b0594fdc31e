"""Budgets: how much work null-text inversion may do, for people who do not want to know.

A budget names a solver, the number T of timesteps and the inner steps N. Fewer timesteps with a
stronger solver reach what the paper's 50 x 10 Adam steps reach (docs/speed.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

from nulltext.errors import OptionError
from nulltext.inversion.null_text import NullText


@dataclass(frozen=True)
class Budget:
    """One way to spend time."""

    solver: str
    """Name of the solver."""
    num_steps: int
    """T."""
    inner_steps: int
    """N."""

    def method(self) -> NullText:
        """Null-text inversion within this budget."""
        return NullText(solver=self.solver, inner_steps=self.inner_steps)


BUDGETS: dict[str, Budget] = {
    "fast": Budget(solver="secant", num_steps=20, inner_steps=1),
    "balanced": Budget(solver="secant", num_steps=20, inner_steps=3),
    "paper": Budget(solver="adam", num_steps=50, inner_steps=10),
}


def budget_named(name: str) -> Budget:
    """A budget by its name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in BUDGETS:
        raise OptionError(f"There is no budget '{name}'; choose {', '.join(BUDGETS)}.")
    return BUDGETS[name]
