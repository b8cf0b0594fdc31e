"""UniEdit-Flow's edit: the target's velocity where both prompts differ, the photo's elsewhere.

    v_tgt, v_src = v(z, s, C_tgt), v(z, s, C_src)         both on the target's latents
    d = v_tgt - v_src,   m = minmax(mean over channels of |d|)
    z <- z + (s' - s) [m v_tgt + (1 - m) v_src + omega (1 + m) d]

in the last alpha T steps. Before, the target is the photo's stored trajectory. omega takes the
place of guidance, which is 1 unless the target has one of its own. Two evaluations per step.
Source: Jiao et al. 2025 (UniEdit-Flow), alg. 2, with the absolute value in m of its code for FLUX
(that for SD 3 has none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from nulltext.constants import UNI_ALPHA, UNI_OMEGA
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.editing.rules import Moment, Rule, check_flow
from nulltext.editing.strength import between, check_fractions, steps_until
from nulltext.errors import OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import TokenizedPrompt


@dataclass(frozen=True)
class UniEdit:
    """Steps by the target where it differs from the photo, and beyond it."""

    name: ClassVar[str] = "uniedit"
    flow_only: ClassVar[bool] = True
    inversion: ClassVar[str] = "uni-inv"
    """The method that it is published with, taken where none is asked for."""

    alpha: float = UNI_ALPHA
    """Fraction of the steps, the last ones, that are edited: higher changes more."""
    omega: float = UNI_OMEGA
    """How far the difference between both prompts is taken beyond the target."""

    def __post_init__(self) -> None:
        check_fractions(self, "alpha")
        if not 0.0 <= self.omega < float("inf"):
            raise OptionError(f"omega is {self.omega:g}; choose a number from 0 up.")

    @property
    def reweights(self) -> bool:
        """Never: the same words give the same picture."""
        return False

    def at_strength(self, strength: float) -> Self:
        """The editor with the alpha of a strength."""
        return replace(self, alpha=between(strength, UNI_ALPHA, UNI_ALPHA, 1.0))

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],  # noqa: ARG002
        num_steps: int,
        size: tuple[int, int],  # noqa: ARG002
    ) -> FusionRule:
        """First step, and omega."""
        check_flow(model, self.name)
        return FusionRule(num_steps - steps_until(self.alpha, num_steps), self.omega)


@dataclass(frozen=True)
class FusionRule(Rule):
    """UniEdit-Flow in numbers."""

    first: int
    """Index of the first step that is edited."""
    omega: float

    @property
    def guidance_scale(self) -> float | None:
        """1: omega takes its place."""
        return CONDITIONAL_ONLY

    @classmethod
    def outputs(cls, moment: Moment[Self]) -> Tensor:
        """The fused velocities; before, those along the stored trajectory."""
        replaying, step = moment.replaying, moment.step
        along = (replaying.cleaner(moment.index) - moment.latents) / step.gain
        rows = [
            row
            for row, plan in enumerate(moment.plans)
            if moment.reads or plan.first <= moment.index
        ]
        if not rows:
            return along
        towards = moment.target(moment.latents[rows], rows)
        of_photo = moment.source(moment.latents[rows], CONDITIONAL_ONLY)
        for place, row in enumerate(rows):
            plan = moment.plans[row]
            if plan.first <= moment.index:
                along[row] = fused(towards[place], of_photo[place], plan.omega)
        return along


def fused(v_tgt: Tensor, v_src: Tensor, omega: float) -> Tensor:
    """Fuse the velocities [C, h, w] of one target; see the module's formulae."""
    d = v_tgt - v_src
    size = d.abs().mean(dim=0)
    low, high = size.min(), size.max()
    m = (size - low) / (high - low).clamp_min(torch.finfo(size.dtype).tiny)
    return m * v_tgt + (1 - m) * v_src + omega * (1 + m) * d
