"""The study's variants: names, what they cost, and how they are built at N steps per timestep.

Every variant is an inversion method of the registry, but for two that invert nothing: `bound`, the
autoencoder's round trip, and `sdedit`, an editor that starts from random noise. Early stopping is
off, so that N means the same everywhere: T N gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from nulltext.errors import OptionError
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.registry import METHODS, method_named, with_options

BOUND = "bound"
SDEDIT = "sdedit"
DDIM = "ddim"
NULL_TEXT = "null-text"

NO_EARLY_STOP = {"loss_tolerance": 0.0, "loss_tolerance_slope": 0.0}


@dataclass(frozen=True)
class Variant:
    """One line of the tables that inverts photos."""

    name: str
    fixed: int
    """UNet evaluations per timestep, besides the gradient steps."""
    gradient: int = 0
    """UNet evaluations per gradient step; 0 where nothing is optimised."""

    @property
    def optimises(self) -> bool:
        """Whether N means anything to it."""
        return self.gradient > 0

    def method(self, inner_steps: int) -> InversionMethod:
        """The inversion method at N."""
        method = method_named(self.name)
        if not self.optimises:
            return method
        own = {field.name for field in fields(method)}  # type: ignore[arg-type]
        patience = {key: value for key, value in NO_EARLY_STOP.items() if key in own}
        return with_options(method, inner_steps=inner_steps, **patience)

    def evaluations(self, num_steps: int, inner_steps: int) -> int:
        """UNet evaluations that an inversion at guidance above 1 will take, early stopping off."""
        return num_steps * (self.fixed + self.gradient * inner_steps)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(DDIM, 3),
        Variant("direct", 3),
        Variant("negative-prompt", 3),
        Variant(NULL_TEXT, 3, 2),
        Variant("random-pivot", 2, 2),
        Variant("global-null", 3, 4),
        Variant("null-text-no-pivot", 3, 3),
        Variant("textual", 3, 2),
        Variant("textual-pivot", 3, 2),
        Variant("textual-pivot-shared", 3, 4),
        Variant("model-tuning", 3, 6),
    )
}
"""In the order of tables. (A test holds the costs to what the methods count.)"""

assert VARIANTS.keys() == METHODS.keys()

LINES = (BOUND, *VARIANTS, SDEDIT)
"""Everything that `--methods` may name."""


def check_lines(names: list[str]) -> tuple[str, ...]:
    """Names in the order of tables.

    Raises:
        OptionError: one is unknown.
    """
    for name in names:
        if name not in LINES:
            raise OptionError(f"There is no variant '{name}'; choose among {', '.join(LINES)}.")
    return tuple(line for line in LINES if line in names)
