"""The one place where a solver's name becomes a solver."""

from __future__ import annotations

from collections.abc import Callable

from nulltext.errors import OptionError
from nulltext.inversion.solvers.adam import Adam
from nulltext.inversion.solvers.base import Solver
from nulltext.inversion.solvers.gauss_newton import GaussNewton
from nulltext.inversion.solvers.secant import Secant

SOLVERS: dict[str, Callable[[], Solver]] = {
    "adam": Adam,
    "gauss-newton": GaussNewton,
    "secant": Secant,
}


def solver_named(name: str) -> Solver:
    """A solver with its default options.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in SOLVERS:
        raise OptionError(f"There is no solver '{name}'; choose {', '.join(SOLVERS)}.")
    return SOLVERS[name]()
