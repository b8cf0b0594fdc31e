"""Budgets: presets of a method and the number T of timesteps.

`paper` is null-text inversion as published; the others are fixed-point inversion, whose source
replays exactly at any T, so that fewer timesteps change edits alone (docs/speed.md has figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from nulltext.constants import BUDGET, NUM_STEPS, PivotName
from nulltext.errors import OptionError
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.null_text import NullText
from nulltext.inversion.registry import METHODS, method_named, with_options


@dataclass(frozen=True)
class Budget:
    """A method with its options, and its number of timesteps."""

    method: InversionMethod
    num_steps: int
    """T."""


BUDGETS: dict[str, Budget] = {
    "fast": Budget(FixedPoint(), 12),
    "balanced": Budget(FixedPoint(), 20),
    "paper": Budget(NullText(), NUM_STEPS),
}


def budget_named(name: str) -> Budget:
    """Return a budget by its name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in BUDGETS:
        raise OptionError(f"There is no budget '{name}'; choose {', '.join(BUDGETS)}.")
    return BUDGETS[name]


def usual_steps(method: str) -> int:
    """Return the T that a method has by default: the default budget's, or else another budget's
    that uses it, or else what it was published with, or else null-text's 50."""
    ordered = [BUDGETS[BUDGET], *BUDGETS.values()]
    published = getattr(METHODS.get(method), "published_steps", NUM_STEPS)
    return next((own.num_steps for own in ordered if own.method.name == method), published)


class Choices(Protocol):
    """What a user chooses of an inversion; None: not given."""

    @property
    def method(self) -> str | None: ...
    @property
    def budget(self) -> str | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def inner_steps(self) -> int | None: ...
    @property
    def pivot(self) -> PivotName | None: ...


def budget_of(choices: Choices) -> Budget:
    """Return the method and the number of steps that options stand for; see `planned`."""
    return planned(
        choices.method,
        budget=choices.budget,
        num_steps=choices.steps,
        inner_steps=choices.inner_steps,
        pivot=choices.pivot,
    )


def planned(
    method: str | None = None,
    *,
    budget: str | None = None,
    num_steps: int | None = None,
    inner_steps: int | None = None,
    pivot: PivotName | None = None,
) -> Budget:
    """Choose method and timesteps: a budget fills the gaps, and options given beside it win.

    A method without a budget has its own defaults, and the timesteps of the budget that uses it.

    Raises:
        OptionError: a name is unknown, the budget is of another method, or the method has no such
            option.
    """
    if method is None or budget is not None:
        chosen = budget_named(budget or BUDGET)
        if method is not None and method != chosen.method.name:
            raise OptionError(
                f"--budget {budget} is the method {chosen.method.name}, and the method given is "
                f"{method}; leave one of them out."
            )
    else:
        chosen = Budget(method_named(method), usual_steps(method))
    given: dict[str, Any] = {"inner_steps": inner_steps, "pivot": pivot}
    options = {
        name: value
        for name, value in given.items()
        if value is not None and value != getattr(chosen.method, name, None)
    }
    return Budget(
        with_options(chosen.method, **options),
        chosen.num_steps if num_steps is None else num_steps,
    )
