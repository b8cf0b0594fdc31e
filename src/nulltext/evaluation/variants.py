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
    pivot: int
    """UNet evaluations per timestep, besides the gradient steps and the replay."""
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
        """UNet evaluations of an inversion at guidance above 1; the replay is not among them."""
        return num_steps * (self.pivot + self.gradient * inner_steps)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(DDIM, 1),
        Variant("direct", 3),
        Variant("negative-prompt", 1),
        Variant(NULL_TEXT, 3, 3),
        Variant("random-pivot", 2, 3),
        Variant("global-null", 1, 5),
        Variant("null-text-no-pivot", 1, 4),
        Variant("textual", 1, 3),
        Variant("textual-pivot", 3, 3),
        Variant("textual-pivot-shared", 1, 5),
        Variant("model-tuning", 1, 8),
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
