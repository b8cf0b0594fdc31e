"""Budgets: how much work null-text inversion may do, for people who do not want to know.

A budget names a solver, the number T of timesteps, the inner steps N and where the null embeddings
begin. Fewer timesteps, begun at the prompt's embedding, reach what the paper's 50 x 10 Adam steps
from the empty one do (docs/speed.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

from nulltext.constants import BUDGET, NUM_STEPS, NullStart
from nulltext.errors import OptionError
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.null_text import NullText
from nulltext.inversion.registry import method_named, with_options


@dataclass(frozen=True)
class Budget:
    """One way to spend time."""

    solver: str
    """Name of the solver."""
    num_steps: int
    """T."""
    inner_steps: int
    """N from this budget's own start; from the other one it is the paper's."""
    null_start: NullStart = "empty"
    """Where the null embeddings begin."""
    tolerated_steps: int | None = None
    """Timesteps over which the paper's tolerances may add up, shared among those that there are;
    None: the paper's tolerance at each, however many there are."""

    def method(
        self,
        *,
        solver: str | None = None,
        num_steps: int | None = None,
        inner_steps: int | None = None,
        null_start: NullStart | None = None,
    ) -> NullText:
        """Null-text inversion within this budget, but for what is said outright."""
        steps = self.num_steps if num_steps is None else max(1, num_steps)
        tolerance = (self.tolerated_steps or steps) / steps
        start = null_start or self.null_start
        usual = self.inner_steps if start == self.null_start else NullText.inner_steps
        return NullText(
            solver=solver or self.solver,
            inner_steps=usual if inner_steps is None else inner_steps,
            start=start,
            loss_tolerance=tolerance * NullText.loss_tolerance,
            loss_tolerance_slope=tolerance * NullText.loss_tolerance_slope,
        )


BUDGETS: dict[str, Budget] = {
    "fast": Budget("secant", 20, 1, null_start="prompt", tolerated_steps=NUM_STEPS),
    "balanced": Budget("secant", 30, 2, null_start="prompt"),
    "paper": Budget("adam", 50, 10),
}


def budget_named(name: str) -> Budget:
    """A budget by its name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in BUDGETS:
        raise OptionError(f"There is no budget '{name}'; choose {', '.join(BUDGETS)}.")
    return BUDGETS[name]


@dataclass(frozen=True)
class Plan:
    """What `invert` needs to know of a budget and of the options beside it."""

    method: InversionMethod
    num_steps: int
    """T."""


def planned(
    method: str,
    *,
    budget: str | None = None,
    solver: str | None = None,
    num_steps: int | None = None,
    inner_steps: int | None = None,
    null_start: NullStart | None = None,
) -> Plan:
    """Settle what is left open: a budget fills the gaps, and what is said outright wins.

    Without a budget, a solver brings the numbers of a budget that uses it, and a start at the empty
    prompt those of the paper's.

    Raises:
        OptionError: a name is unknown, or options are given to a method that has none of the kind.
    """
    if method != NullText.name:
        given = {"budget": budget, "solver": solver, "null-start": null_start}
        for name, value in given.items():
            if value is not None:
                raise OptionError(
                    f"--{name} is for --method null-text, and the method is {method}; "
                    f"leave --{name} out, or --method."
                )
        chosen: InversionMethod = method_named(method)
        if inner_steps is not None:
            chosen = with_options(chosen, inner_steps=inner_steps)
        return Plan(chosen, NUM_STEPS if num_steps is None else num_steps)
    filled = budget_named(budget or _budget_of(solver, null_start))
    fitted = filled.method(
        solver=solver, num_steps=num_steps, inner_steps=inner_steps, null_start=null_start
    )
    return Plan(fitted, filled.num_steps if num_steps is None else num_steps)


def _budget_of(solver: str | None, null_start: NullStart | None) -> str:
    """The default budget, or the paper's if only its start is asked for; for a solver, the most
    generous one of its own, or "balanced"."""
    if solver is None:
        return "paper" if null_start == "empty" else BUDGET
    own = [name for name, budget in BUDGETS.items() if budget.solver == solver]
    return own[-1] if own else "balanced"
