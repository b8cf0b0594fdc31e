"""The strength s: one knob for how far an edit may go, from the photo itself to the words alone.

    s         0      …      0.5      …      1
    cross     1             0.8             0        fraction of steps with the source's word maps
    self      1             0.4             0        fraction with its self-attention
    start     0             0.08            1        MasaCtrl: fraction of steps before it begins
    n_max     0.66          0.66            1        FlowEdit: fraction of steps (FLUX: 0.86)
    eta_stop  1             0.25            0        RF-Inversion: fraction drawn to the photo
    alpha     0.6           0.6             1        UniEdit-Flow: fraction of steps
    pull      infinite      0               0        how strongly the target follows the source

Piecewise linear, but for the pull k ln(1 / (2 s)), which leaves (2 s)^k of a departure over a run;
so everything is monotone: at 0 the edit is the replay, at 0.5 the editor as published, at 1 the
target prompt from the same noise. Parts that do not change below 0.5 leave that half to the pull.
The strength is ours; 0.5 is each editor as published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nulltext.constants import CROSS_STEPS, SELF_STEPS
from nulltext.errors import OptionError

PUBLISHED = 0.5
"""The strength at which the parts have the values of their papers, and no pull."""
PULL = 1.1
"""k: with it the change grows evenly from 0 to the published strength; see docs/editing.md."""


@dataclass(frozen=True)
class Steering:
    """What a strength stands for; the fields are those of `EditSpec`."""

    cross_steps: float
    self_steps: float
    pull: float


def at_strength(strength: float) -> Steering:
    """Prompt-to-Prompt's parts that a strength from 0 to 1 stands for.

    Raises:
        OptionError: it is outside 0 to 1.
    """
    return Steering(
        cross_steps=between(strength, 1.0, CROSS_STEPS, 0.0),
        self_steps=between(strength, 1.0, SELF_STEPS, 0.0),
        pull=pull_at(strength),
    )


def between(strength: float, photo: float, published: float, words: float) -> float:
    """A part of the knob from its values at the strengths 0, 0.5 and 1.

    Raises:
        OptionError: the strength is outside 0 to 1.
    """
    if not 0.0 <= strength <= 1.0:
        raise OptionError(f"The strength is {strength:g}; choose a number from 0 to 1.")
    if strength < PUBLISHED:
        return photo + (published - photo) * strength / PUBLISHED
    return published + (words - published) * (strength - PUBLISHED) / (1 - PUBLISHED)


def pull_at(strength: float) -> float:
    """The pull of a strength, from infinite down to 0.

    Raises:
        OptionError: the strength is outside 0 to 1.
    """
    part = between(strength, 0.0, 1.0, 1.0)
    return math.inf if part == 0 else PULL * math.log(1 / part)


def check_fractions(options: object, *names: str) -> None:
    """Refuse fractions that are none.

    Raises:
        OptionError: one is outside 0 to 1.
    """
    for name in names:
        value = getattr(options, name)
        if not 0.0 <= value <= 1.0:
            raise OptionError(f"{name} is {value:g}; it is a fraction, from 0 to 1.")


def steps_until(fraction: float, num_steps: int) -> int:
    """The step index that a fraction of the steps comes to, rounded half up."""
    return math.floor(fraction * num_steps + 0.5)
