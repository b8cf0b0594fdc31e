"""What a page asks for, read with suspicion: whoever can reach the port can send anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from nulltext import defaults
from nulltext.attention.blend import LocalBlend
from nulltext.editing.spec import EditSpec
from nulltext.errors import OptionError, PromptError
from nulltext.image.compositing import Detail
from nulltext.image.images import CropBox
from nulltext.inversion.budgets import Budget, planned
from nulltext.studio.chips import Chip, weights_of
from nulltext.words.invisible import clean

Asked = Mapping[str, Any]
"""JSON from a page."""

STEPS = (1, 200)
"""Fewest and most DDIM steps: one person shall not hold the model for an hour."""
GUIDANCE = (0.0, 30.0)
LETTERS = 1000
STRENGTH = 0.5
"""What the slider stands at: the editor as published."""


@dataclass(frozen=True)
class InvertForm:
    """How a photo is inverted."""

    source: str
    crop: CropBox
    method: str = defaults.METHOD
    budget: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    @classmethod
    def read(cls, asked: Asked) -> InvertForm:
        """Raises PromptError, OptionError: a field is empty, malformed or out of range."""
        source = text(asked, "source")
        if not source:
            raise PromptError("Say what the photo shows first, in a few words.")
        return cls(
            source=source,
            crop=CropBox.from_list(asked.get("crop") or []),
            method=text(asked, "method") or defaults.METHOD,
            budget=text(asked, "budget") or None,
            steps=whole(asked, "steps", *STEPS),
            guidance=number(asked, "guidance", *GUIDANCE),
            seed=whole(asked, "seed", 0, 2**31 - 1) or 0,
        )

    def plan(self) -> Budget:
        """Method and number of steps.

        Raises:
            OptionError: a name is unknown, or a budget is given to a method that has none.
        """
        method = None if self.budget else self.method
        return planned(method, budget=self.budget, num_steps=self.steps)


@dataclass(frozen=True)
class EditForm:
    """What an edit shall be."""

    target: str
    chips: tuple[Chip, ...] = ()
    strength: float | None = STRENGTH
    """None where injection is set by hand."""
    cross_steps: float | None = None
    self_steps: float | None = None
    blend: tuple[str, ...] = ()
    threshold: float = defaults.BLEND_THRESHOLD
    target_guidance: float | None = None
    detail: Detail = "auto"
    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, asked: Asked, chips: list[Chip]) -> EditForm:
        """Raises PromptError, OptionError: a field is empty, malformed or out of range."""
        by_hand = bool(asked.get("by_hand"))
        detail = text(asked, "detail") or "auto"
        if detail not in get_args(Detail):
            known = ", ".join(get_args(Detail))
            raise OptionError(f"There is no detail '{detail:.20}'; choose {known}.")
        threshold = number(asked, "threshold", 0, 1)
        strength = number(asked, "strength", 0, 1)
        return cls(
            target=text(asked, "target"),
            chips=tuple(chips),
            strength=None if by_hand else (STRENGTH if strength is None else strength),
            cross_steps=number(asked, "cross_steps", 0, 1) if by_hand else None,
            self_steps=number(asked, "self_steps", 0, 1) if by_hand else None,
            blend=tuple(word.strip() for word in text(asked, "blend").split(",") if word.strip()),
            threshold=defaults.BLEND_THRESHOLD if threshold is None else threshold,
            target_guidance=number(asked, "target_guidance", *GUIDANCE),
            detail=detail,  # type: ignore[arg-type]
            weights=weights_of(chips),
        )

    def spec(self, mask: Any) -> EditSpec:
        """The edit in the library's words.

        Args:
            mask: [H, W] in [0, 1] over the crop, or None.
        """
        spec = EditSpec(
            self.target,
            cross_steps=self.cross_steps,
            self_steps=self.self_steps,
            weights=dict(self.weights),
            blend=LocalBlend(self.blend, (), self.threshold) if self.blend else None,
            mask=mask,
            guidance_scale=self.target_guidance,
        )
        return spec if self.strength is None else spec.at_strength(self.strength)


def text(asked: Asked, name: str) -> str:
    """A line of text, without what surrounds it; empty where there is none."""
    value = asked.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LETTERS:
        raise PromptError(f"The {name} is no text of at most {LETTERS} letters; write less.")
    return clean(value).strip()


def number(asked: Asked, name: str, low: float, high: float) -> float | None:
    """A number within bounds; None where there is none."""
    value = asked.get(name)
    if value is None or value == "":
        return None
    called = name.replace("_", " ")
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        raise OptionError(f"The {called} is {value!r:.20}; give a number from {low:g} to {high:g}.")
    return float(value)


def whole(asked: Asked, name: str, low: int, high: int) -> int | None:
    """A whole number within bounds; None where there is none."""
    value = number(asked, name, low, high)
    if value is None:
        return None
    if value != int(value):
        raise OptionError(f"The {name} is {value:g}; give a whole number from {low} to {high}.")
    return int(value)
