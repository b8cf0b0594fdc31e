"""One knob for how far an edit may go: from the photo itself to the words alone.

    s         0      …      0.5      …      1
    cross     1             0.8             0        fraction of steps with the source's word maps
    self      1             0.4             0        fraction with its self-attention
    start     0             0.08            1        MasaCtrl: fraction of steps before it begins
    pull      infinite      0               0        how strongly the target follows the source

Piecewise linear, but for the pull k (1 / (2 s) - 1), so everything is monotone: at 0 the edit is
the replay, at 0.5 the editor as published, at 1 the target prompt from the same noise. The knob is
ours; its parts are from Hertz et al. 2022, sec. 3.2, Cao et al. 2023, and `regions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nulltext.constants import CROSS_STEPS, SELF_STEPS
from nulltext.errors import OptionError

PUBLISHED = 0.5
"""The strength at which the parts have the values of their papers, and no pull."""
PULL = 1.5
"""k: chosen so that the change grows about evenly from 0 to the published strength."""


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
    return math.inf if part == 0 else PULL * (1 / part - 1)
