"""RF-Inversion's edit: the flow's ODE to the target, drawn to the photo by a controller.

    z <- z + (s' - s) [v + eta ((z - z_0) / s - v)],    v = v(z, s, C_tgt, w)

from level s to s', in the steps from `eta_start` up to `eta_stop`; elsewhere eta is 0. The velocity
(z - z_0) / s leads straight to the photo's z_0. Needed of an inversion are z_0 and the z_T that
targets start from, by the method `rf-inversion` as published.
Source: Rout et al. 2025 (RF-Inversion), eq. 17, alg. 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from nulltext.constants import ETA, ETA_STOP
from nulltext.editing.rules import Moment, Rule, check_flow
from nulltext.editing.strength import between, check_fractions, steps_until
from nulltext.errors import OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import TokenizedPrompt


@dataclass(frozen=True)
class RFInversionEdit:
    """Draws the target to the photo in the first steps."""

    name: ClassVar[str] = "rf-inversion"
    flow_only: ClassVar[bool] = True
    inversion: ClassVar[str] = "rf-inversion"
    """The method that it is published with, taken where none is asked for."""

    eta: float = ETA
    """Share of the controller: 1 leads straight to the photo, lower lets the target depart."""
    eta_start: float = 0.0
    """Fraction of the steps before the controller begins."""
    eta_stop: float = ETA_STOP
    """Fraction of the steps after which it ends (7 of 28 in the paper): higher keeps more."""

    def __post_init__(self) -> None:
        check_fractions(self, "eta", "eta_start", "eta_stop")
        if self.eta_start > self.eta_stop:
            raise OptionError(
                f"eta_start is {self.eta_start:g} and eta_stop {self.eta_stop:g}; choose a start "
                "of at most the stop."
            )

    @property
    def reweights(self) -> bool:
        """Never: the same words give the same picture."""
        return False

    def at_strength(self, strength: float) -> Self:
        """The editor with the eta_stop of a strength."""
        stop = between(strength, 1.0, ETA_STOP, 0.0)
        return replace(self, eta_start=min(self.eta_start, stop), eta_stop=stop)

    def plan(
        self,
        model: LatentDiffusion,
        line: Sequence[TokenizedPrompt],  # noqa: ARG002
        num_steps: int,
        size: tuple[int, int],  # noqa: ARG002
    ) -> ControllerRule:
        """The controller, and its steps."""
        check_flow(model, self.name)
        first, stop = (steps_until(part, num_steps) for part in (self.eta_start, self.eta_stop))
        return ControllerRule(self.eta, first, stop)


@dataclass(frozen=True)
class ControllerRule(Rule):
    """RF-Inversion's controller in numbers."""

    eta: float
    first: int
    """Index of its first step."""
    stop: int
    """Index of the first step without it."""

    @classmethod
    def outputs(cls, moment: Moment[Self]) -> Tensor:
        """The guided outputs, mixed with those that lead to the photo."""
        output = moment.target(moment.latents)
        straight = (moment.latents - moment.replaying.encoded) / moment.step.noisier.sigma
        for row, plan in enumerate(moment.plans):
            if plan.first <= moment.index < plan.stop:
                output[row] = output[row] + plan.eta * (straight[row] - output[row])
        return output
