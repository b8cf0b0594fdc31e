"""What a study compares: its experiments, its variants of inversion, and its numbers.

A variant is an inversion method of the registry at N gradient steps per timestep, or one of two
that invert nothing: `bound`, the autoencoder's round trip, and `sdedit`, an editor that starts from
random noise. Early stopping is off, so that N means the same everywhere: T N gradients. Methods
that have the option `pivot` work around the one that the plan names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS, PivotName
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.errors import OptionError
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.pivots import check_pivot
from nulltext.inversion.registry import METHODS, method_named, with_options

EXPERIMENTS = {
    "reconstruction": "Reconstruction against iterations",
    "captions": "Robustness to captions",
    "guidance": "Guidance of the inversion",
    "attention": "Attention maps",
    "editing": "Editing",
}
"""Names and titles, in report order."""

BOUND, SDEDIT = "bound", "sdedit"
DDIM, NULL_TEXT = "ddim", "null-text"

NO_EARLY_STOP = {"loss_tolerance": 0.0, "loss_tolerance_slope": 0.0}


STEP_COST, GRADIENT_COST = 3, 2
"""UNet evaluations per timestep of an inversion and its guided replay, and per gradient step, of a
method without attributes `step_cost` and `gradient_cost`."""

DDIM_PIVOT: PivotName = "ddim"
FURTHER_PIVOT_COST = 1
"""What the midpoint pivot, and by estimate the fixed-point one, takes per timestep beyond DDIM's
one evaluation."""


@dataclass(frozen=True)
class Variant:
    """An inversion method of the registry, as the study runs it."""

    name: str

    @property
    def replays(self) -> bool:
        """Whether there is anything to replay."""
        return getattr(METHODS[self.name], "replays", True)

    @property
    def flow_only(self) -> bool:
        """Whether it is for rectified-flow models alone."""
        return getattr(METHODS[self.name], "flow_only", False)

    @property
    def optimises(self) -> bool:
        return "inner_steps" in self._options

    @property
    def takes_pivot(self) -> bool:
        return "pivot" in self._options

    @property
    def _options(self) -> set[str]:
        method = METHODS[self.name]
        return {one.name for one in fields(method)} if is_dataclass(method) else set()

    def method(self, inner_steps: int, pivot: PivotName = DDIM_PIVOT) -> InversionMethod:
        options: dict[str, Any] = {"pivot": pivot} if self.takes_pivot else {}
        if self.optimises:
            options |= {n: value for n, value in NO_EARLY_STOP.items() if n in self._options}
            options["inner_steps"] = inner_steps
        return with_options(method_named(self.name), **options)

    def evaluations(self, num_steps: int, inner_steps: int, pivot: PivotName = DDIM_PIVOT) -> int:
        """Count the UNet evaluations of an inversion at guidance above 1, early stopping off.

        Of fixed points it is an estimate.
        """
        method = METHODS[self.name]
        cost = getattr(method, "step_cost", STEP_COST)
        if self.takes_pivot and pivot != DDIM_PIVOT:
            cost += FURTHER_PIVOT_COST
        if self.optimises:
            cost += getattr(method, "gradient_cost", GRADIENT_COST) * inner_steps
        return num_steps * int(cost)

    def source_guidance(self, guidance_scale: float) -> float:
        """Return w of the source's steps, of which 1 takes one evaluation and others two."""
        as_null = getattr(METHODS[self.name], "prompt_as_null", False)
        return CONDITIONAL_ONLY if as_null else guidance_scale


VARIANTS = {
    variant.name: variant
    for variant in sorted(map(Variant, METHODS), key=lambda v: v.optimises)
    if variant.replays
}
"""In table order: first the methods without gradients, each group in the registry's order."""

VARIANT_NAMES = (BOUND, *VARIANTS, SDEDIT)
"""The values of `--methods`, in table order."""

USUAL_VARIANTS = tuple(
    name for name in VARIANT_NAMES if name not in VARIANTS or not VARIANTS[name].flow_only
)
"""Those that run where none are chosen: all that any model takes."""


def variant_order(name: str) -> int:
    return VARIANT_NAMES.index(name) if name in VARIANT_NAMES else len(VARIANT_NAMES)


def check_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Sort names of variants into table order.

    Raises:
        OptionError: one is unknown.
    """
    for name in names:
        if name not in VARIANT_NAMES:
            raise OptionError(
                f"There is no variant '{name}'; choose among {', '.join(VARIANT_NAMES)}."
            )
    return tuple(name for name in VARIANT_NAMES if name in names)


@dataclass(frozen=True)
class StudyPlan:
    """The numbers of a study; the defaults are the standard size."""

    num_steps: int = NUM_STEPS
    """T."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of every replay and edit."""
    iterations: tuple[int, ...] = (1, 3, 10)
    """N: gradient steps per timestep, one point of the curves each."""
    pivot: PivotName = DDIM_PIVOT
    """What the methods that have the choice invert around."""
    seed: int = 0
    """For noise, and for drawing captions."""
    inversion_guidances: tuple[float, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """w of the inversion, for its experiment."""
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Strengths of edits, see `at_strength`; SDEdit's is the noise level."""
    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    variants: tuple[str, ...] = USUAL_VARIANTS

    def __post_init__(self) -> None:
        if not self.iterations or min(self.iterations) < 1:
            raise OptionError("Give --iterations whole numbers from 1 up, such as 1,3,10.")
        if self.guidance_scale <= 1:
            raise OptionError(
                f"The guidance scale is {self.guidance_scale:g}; the study compares methods under "
                "guidance, so choose more than 1 (7.5 is usual)."
            )
        check_pivot(self.pivot)
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"The seed is {self.seed}; choose a whole number from 0, below 2^63.")
        unknown = set(self.experiments) - EXPERIMENTS.keys()
        if unknown:
            raise OptionError(
                f"There is no experiment '{min(unknown)}'; choose among {', '.join(EXPERIMENTS)}."
            )

    @property
    def inner_steps(self) -> int:
        """N of the experiments that have only one: the largest of the curve."""
        return max(self.iterations)


STANDARD = StudyPlan()
QUICK = StudyPlan(
    num_steps=10, iterations=(1, 3), inversion_guidances=(1, 4, 8), strengths=(0.5, 1.0)
)
"""Minutes on a laptop: enough to see that everything works, too little to quote."""
