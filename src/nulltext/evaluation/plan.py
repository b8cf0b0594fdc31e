"""What a study does: its experiments, variants and numbers, and three sizes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS
from nulltext.errors import OptionError
from nulltext.evaluation.variants import LINES

EXPERIMENTS = {
    "reconstruction": "Reconstruction against iterations",
    "captions": "Robustness to captions",
    "guidance": "Guidance of the inversion",
    "attention": "Attention maps",
    "editing": "Editing",
}
"""Names and titles, in the issue's order."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a study; the defaults are the standard size."""

    num_steps: int = NUM_STEPS
    """T."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of every replay and edit."""
    iterations: tuple[int, ...] = (1, 3, 10)
    """N: gradient steps per timestep, one point of the curves each."""
    seed: int = 0
    """For noise, and for drawing captions."""
    inversion_guidances: tuple[float, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """w of the inversion, for its experiment."""
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """How far edits go; see `strength.at_strength`. SDEdit's is the noise level."""
    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    lines: tuple[str, ...] = field(default=LINES)
    """Variants, see `variants`."""

    def __post_init__(self) -> None:
        if not self.iterations or min(self.iterations) < 1:
            raise OptionError("Give --iterations whole numbers from 1 up, such as 1,3,10.")
        if self.guidance_scale <= 1:
            raise OptionError(
                f"The guidance scale is {self.guidance_scale:g}; the study compares methods under "
                "guidance, so choose more than 1 (7.5 is usual)."
            )
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


STANDARD = Plan()
QUICK = Plan(num_steps=10, iterations=(1, 3), inversion_guidances=(1, 4, 8), strengths=(0.5, 1.0))
"""Minutes on a laptop: enough to see that everything works, too little to quote."""
