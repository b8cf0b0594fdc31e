"""FlowEdit: a direct path from the photo to the target, without an inversion.

    z = z_0;  at the levels s of the last n_max of T steps, down to the last n_min
        z_src = (1 - s) z_0 + s eps,        eps ~ N(0, I), fresh
        z_tgt = z + z_src - z_0
        z <- z + (s' - s) D,   D = v(z_tgt, C_tgt, w_tgt) - v(z_src, C_src, w_src)
    where D is the mean of n_avg draws of eps. In the last n_min steps the target is sampled plainly
    from z_tgt, eps being kept:
        z_tgt <- z_tgt + (s' - s) v(z_tgt, C_tgt, w_tgt)
    which for z = z_tgt - z_src + z_0 is the step above with eps - z_0 in place of v(z_src, …).

z is a picture at every step, so regions and a pull hold it to z_0, or in a chain to the z of the
target before; each target of a chain is drawn from the photo by its whole prompt. eps comes from
the inversion's seed, and is the same for all targets of an edit. Null and source prompt are the
model's own embeddings, whatever an inversion optimised.
Source: Kulikov et al. 2025 (FlowEdit), alg. 1, and for the defaults its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nulltext.constants import N_AVG
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.editing.rules import Moment, Rule, check_flow
from nulltext.editing.strength import PUBLISHED, between, check_fractions, steps_until
from nulltext.errors import OptionError
from nulltext.models.families import Guidance
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import TokenizedPrompt

MOST_DRAWS = 100


class Published(NamedTuple):
    """The values of the paper for one kind of model."""

    n_max: float
    source_guidance: float
    target_guidance: float


PUBLISHED_FOR: Final[dict[Guidance, Published]] = {
    "branches": Published(33 / 50, 3.5, 13.5),  # Stable Diffusion 3
    "input": Published(24 / 28, 1.5, 5.5),  # FLUX.1 [dev]
    "none": Published(24 / 28, CONDITIONAL_ONLY, CONDITIONAL_ONLY),
}


@dataclass(frozen=True)
class FlowEdit:
    """Carries the photo over by the difference of two velocities."""

    name: ClassVar[str] = "flowedit"
    flow_only: ClassVar[bool] = True
    inversion: ClassVar[str] = "encode"
    """The method that it needs, where none is asked for."""

    n_max: float | None = None
    """Fraction of the steps that are taken, the cleanest ones (33 of 50 in the paper): higher
    changes more. None: as published for the model."""
    n_min: float = 0.0
    """Fraction of the steps, the last ones, in which the target is sampled plainly: higher lets
    details depart."""
    n_avg: int = N_AVG
    """Draws of noise that each step is averaged over: more is steadier and slower."""
    source_guidance: float | None = None
    """w of the photo's prompt. None: as published for the model."""
    strength: float = PUBLISHED
    """Moves n_max where that is None: up to 0.5 it is as published, at 1 all steps are taken."""

    def __post_init__(self) -> None:
        check_fractions(self, *(["n_max", "n_min"] if self.n_max is not None else ["n_min"]))
        if not isinstance(self.n_avg, int) or not 1 <= self.n_avg <= MOST_DRAWS:
            raise OptionError(
                f"n_avg is {self.n_avg}; choose a whole number from 1 to {MOST_DRAWS}."
            )
        if self.source_guidance is not None and not 0.0 <= self.source_guidance < float("inf"):
            raise OptionError(
                f"source_guidance is {self.source_guidance:g}; choose a number from 0 up."
            )
        between(self.strength, 0.0, 0.0, 0.0)  # refuses one outside 0 to 1

    @property
    def reweights(self) -> bool:
        """Never: the same words give the same picture."""
        return False

    def at_strength(self, strength: float) -> Self:
        """The editor with the n_max of a strength."""
        return replace(self, n_max=None, strength=strength)

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],  # noqa: ARG002
        num_steps: int,
        size: tuple[int, int],  # noqa: ARG002
    ) -> FlowEditRule:
        """First step, first plain step, and guidance."""
        check_flow(model, self.name)
        published = PUBLISHED_FOR[model.guidance]
        taken = self.n_max
        if taken is None:
            taken = between(self.strength, published.n_max, published.n_max, 1.0)
        if self.n_max is not None and self.n_min > self.n_max:
            raise OptionError(
                f"n_min is {self.n_min:g} and n_max {self.n_max:g}; choose an n_min of at most "
                "n_max."
            )
        scale = self.source_guidance
        if scale is None:
            scale = published.source_guidance
        model.check_guidance(scale)
        return FlowEditRule(
            first=num_steps - steps_until(taken, num_steps),
            plain=num_steps - steps_until(min(self.n_min, taken), num_steps),
            draws=self.n_avg,
            source_guidance=scale,
            target_guidance=published.target_guidance,
        )


@dataclass(frozen=True)
class FlowEditRule(Rule):
    """FlowEdit in numbers."""

    is_clean: ClassVar[bool] = True

    first: int
    """Index of the first step that is taken, T - n_max."""
    plain: int
    """Index of the first step of plain sampling, T - n_min."""
    draws: int
    source_guidance: float
    target_guidance: float

    @property
    def guidance_scale(self) -> float | None:
        """As published for the model."""
        return self.target_guidance

    @classmethod
    def outputs(cls, moment: Moment[Self]) -> Tensor:
        """D of all targets, zero before their first step."""
        total = torch.zeros_like(moment.latents)
        for draw in range(max(plan.draws for plan in moment.plans)):
            reads = moment.reads and draw == 0
            rows = [
                row
                for row, plan in enumerate(moment.plans)
                if reads or draw < plan.draws_at(moment.index)
            ]
            if not rows:
                continue
            for row, difference in zip(rows, _differences(moment, rows, draw, reads), strict=True):
                if draws := moment.plans[row].draws_at(moment.index):
                    total[row] += difference / draws
        return total

    def draws_at(self, index: int) -> int:
        """Return how many draws of noise a step takes: none before the first."""
        if index < self.first:
            return 0
        return self.draws if index < self.plain else 1


def _differences(moment: Moment[Any], rows: Sequence[int], draw: int, reads: bool) -> list[Tensor]:
    """D of some targets for one draw of noise, [C, h, w] each."""
    photo, level, index = moment.replaying.encoded, moment.step.noisier, moment.index
    plans = [moment.plans[row] for row in rows]
    fresh = _noise(moment, index, draw)
    noise = [fresh if index < plan.plain else _noise(moment, plan.plain, 0) for plan in plans]
    z_src = level.add_noise(photo, torch.cat(noise))
    z_tgt = moment.latents[list(rows)] + z_src - photo
    v_tgt = moment.target(z_tgt, rows, reads=reads)
    scales = {plan.source_guidance for plan in plans if reads or index < plan.plain}
    of_photo = level.add_noise(photo, fresh)
    v_src = {scale: moment.source(of_photo, scale) for scale in sorted(scales)}
    return [
        v - (v_src[plan.source_guidance] if index < plan.plain else eps - photo)[0]
        for v, plan, eps in zip(v_tgt, plans, noise, strict=True)
    ]


def _noise(moment: Moment[Any], index: int, draw: int) -> Tensor:
    """eps of a step and draw, [1, C, h, w]: always the same for the inversion's seed."""
    seed = moment.replaying.inversion.header.seed % 2**64
    state = np.random.SeedSequence([seed, index, draw]).generate_state(1, np.uint64)[0]
    photo = moment.replaying.encoded
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return torch.randn(photo.shape, generator=generator, dtype=photo.dtype).to(photo.device)
