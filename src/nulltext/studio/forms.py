"""The forms of the page: read from a request, turned into options of the library and of a command.

A request is JSON from anyone who can reach the port, so every value is checked here.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from nulltext import constants
from nulltext.constants import Detail, Region
from nulltext.editing.spec import EditSpec
from nulltext.errors import ImageError, OptionError, PromptError
from nulltext.image.images import CropBox
from nulltext.inversion.budgets import Budget, planned
from nulltext.jobs.edits import base_edit
from nulltext.jobs.options import OPTIONS, EditOptions, arguments_of, combined
from nulltext.models.choice import ModelChoice
from nulltext.words.prompts import TokenizedPrompt, clean, name_word

PageRequest = Mapping[str, Any]

STEPS = (1, 200)
"""Fewest and most DDIM steps; more would hold the model for too long."""
GUIDANCE = (0.0, 30.0)
WEIGHTS = (-2.0, 4.0)
"""Lowest and highest weight of a word."""
MAX_CHIPS = 100
MAX_LETTERS = 1000
"""Of a text field, of a chip and of the gap before it."""
STRENGTH = 0.5
"""Initial value of the slider: the editor as published."""
PNG_URL = "data:image/png;base64,"


@dataclass(frozen=True)
class InvertForm:
    """How a photo is inverted."""

    source: str
    crop: CropBox
    method: str | None = None
    """None: that of the budget."""
    budget: str | None = None
    """None: the default budget, where no method is named."""
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    @classmethod
    def read(cls, request: PageRequest) -> InvertForm:
        """Read the form from a request.

        Raises:
            PromptError, OptionError: a field is empty, malformed or out of range.
        """
        source = read_text(request, "source")
        if not source:
            raise PromptError("Say what the photo shows first, in a few words.")
        method, budget = read_text(request, "method"), read_text(request, "budget")
        if method and budget:
            raise OptionError("A budget chooses the method; choose one of them, not both.")
        return cls(
            source=source,
            crop=CropBox.from_list(request.get("crop") or []),
            method=method or None,
            budget=budget or None,
            steps=read_integer(request, "steps", *STEPS),
            guidance=read_number(request, "guidance", *GUIDANCE),
            seed=read_integer(request, "seed", 0, 2**31 - 1) or 0,
        )

    def plan(self) -> Budget:
        """Return the method and the number of steps.

        Raises:
            OptionError: a name is unknown.
        """
        return planned(self.method, budget=self.budget, num_steps=self.steps)

    def options(self) -> EditOptions:
        """Return the options of `nulltext edit` that invert the same way."""
        return EditOptions.of(
            {
                "source": self.source,
                "crop": str(self.crop),
                "method": self.method,
                "budget": None if self.budget == constants.BUDGET else self.budget,
                "steps": self.steps,
                "guidance": self.guidance,
                "seed": self.seed or None,
            }
        )


@dataclass(frozen=True)
class Chip:
    """One word of the target while it is edited; `front/spelling.js` joins them to a prompt."""

    source: int | None
    """Index of the source prompt's word that it replaces; None if it was added."""
    text: str
    """The word; blank if it was removed."""
    weight: float = 1.0
    gap: str = " "
    """Text between this word and the one before."""


@dataclass(frozen=True)
class EditForm:
    """What an edit changes, and how."""

    target: str
    chips: tuple[Chip, ...] = ()
    strength: float | None = STRENGTH
    """None where injection is set by hand."""
    cross_steps: float | None = None
    self_steps: float | None = None
    blend: tuple[str, ...] = ()
    threshold: float = constants.BLEND_THRESHOLD
    target_guidance: float | None = None
    detail: Detail = "auto"
    region: Region = constants.REGION
    negative: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    opacity: float = 1.0
    """How much of the finished edit lies over the photo; chosen when it is there."""

    @classmethod
    def read(
        cls, request: PageRequest, num_words: int, tokenize: Callable[[str], TokenizedPrompt]
    ) -> EditForm:
        """Read the form from a request.

        Args:
            num_words: number of words in the source prompt.
            tokenize: the model's, for the target.

        Raises:
            PromptError, OptionError: a field is empty, malformed or out of range.
        """
        by_hand = bool(request.get("by_hand"))
        detail, region = (_read_choice(request, name) for name in ("detail", "region"))
        target, chips = read_text(request, "target"), read_chips(request.get("chips"), num_words)
        words = [word.strip() for word in read_text(request, "blend").split(",")]
        threshold = read_number(request, "threshold", 0, 1)
        strength = read_number(request, "strength", 0, 1)
        return cls(
            target=target,
            chips=tuple(chips),
            strength=None if by_hand else (STRENGTH if strength is None else strength),
            cross_steps=read_number(request, "cross_steps", 0, 1) if by_hand else None,
            self_steps=read_number(request, "self_steps", 0, 1) if by_hand else None,
            blend=tuple(filter(None, words)),
            threshold=constants.BLEND_THRESHOLD if threshold is None else threshold,
            target_guidance=read_number(request, "target_guidance", *GUIDANCE),
            detail=detail,  # type: ignore[arg-type]
            region=region,  # type: ignore[arg-type]
            negative=read_text(request, "negative") or None,
            weights=weights_of(chips, tokenize(target)),
        )

    def at_strength(self, strength: float) -> EditForm:
        return replace(self, strength=strength, cross_steps=None, self_steps=None)

    def values(self) -> dict[str, Any]:
        """Return the values of the page's fields, the inverse of `read`."""
        values = {**vars(self), "chips": list(self.chips), "blend": ", ".join(self.blend)}
        del values["weights"], values["opacity"]  # the chips and the edit have them
        return values

    def spec(self, mask: Any) -> EditSpec:
        """Return the edit for the library.

        Args:
            mask: [H, W] in [0, 1] over the crop, or None.
        """
        spec = replace(base_edit(self.options()), target=self.target, mask=mask)
        if not self.weights:
            return spec
        return replace(spec, editor=replace(spec.editor, weights=dict(self.weights)))

    def options(self) -> EditOptions:
        """Return the options of `nulltext edit` that make the same edit, without the mask."""
        usual = not self.blend or self.threshold == constants.BLEND_THRESHOLD
        return EditOptions(
            target=(self.target,),
            weight=tuple(f"{word}={factor!r}" for word, factor in self.weights.items()),
            strength=self.strength,
            target_guidance=self.target_guidance,
            negative=self.negative,
            cross_steps=self.cross_steps,
            self_steps=self.self_steps,
            blend=self.blend,
            blend_threshold=None if usual else self.threshold,
            detail=None if self.detail == constants.DETAIL else self.detail,
            region=constants.REGION if self.blend else self.region,
            opacity=None if self.opacity == 1 else self.opacity,
        )


def _read_choice(request: PageRequest, name: str) -> str:
    """Read one of an option's names; its default where the page sends none.

    Raises:
        OptionError: there is no such name.
    """
    option = OPTIONS[name]
    value = read_text(request, name) or option.default or getattr(constants, name.upper())
    if value not in option.choices:
        known = ", ".join(option.choices)
        raise OptionError(f"There is no {name} '{value:.20}'; choose {known}.")
    return str(value)


def edit_options(
    photo: str, origin: InvertForm | str, edit: EditForm, *, mask: str | None
) -> EditOptions:
    """Return the options of `nulltext edit` that make the same picture, run in the photo's folder.

    Args:
        photo, mask: file names.
        origin: how the photo is inverted, or the file name of a saved inversion.
    """
    inverting = EditOptions(inversion=Path(origin)) if isinstance(origin, str) else origin.options()
    files = EditOptions(
        image=Path(photo),
        mask=None if mask is None else Path(mask),
        full=True,
        output=Path(f"{PurePath(photo).stem}-edited.png"),
    )
    editing = edit.options()
    if mask is not None:
        editing = replace(editing, region=constants.REGION)  # the mask says it
    return combined(files, inverting, editing)


def edit_command(options: EditOptions, chosen: ModelChoice) -> str:
    """Return the `nulltext edit …` of options, quoted for a POSIX shell."""
    return shlex.join(["nulltext", "edit", *arguments_of(options), *chosen.as_arguments()])


def chips_of(prompt: TokenizedPrompt) -> list[Chip]:
    ends = [0, *(word.end for word in prompt.words)]
    gaps = [prompt.text[end : word.start] for end, word in zip(ends, prompt.words, strict=False)]
    pairs = zip(prompt.words, gaps, strict=True)
    return [Chip(index, word.text, gap=gap) for index, (word, gap) in enumerate(pairs)]


def weights_of(chips: Sequence[Chip], target: TokenizedPrompt) -> dict[str, float]:
    """Return the weights other than 1, by names that each find one word of the target.

    Raises:
        PromptError: the target does not say the chips' words in their order.
    """
    weights: dict[str, float] = {}
    end = 0
    for chip in chips:
        text = chip.text.strip()
        start = target.text.find(text, end)
        if start < 0 and chip.weight != 1:
            raise PromptError(
                f"The target does not say “{text:.40}” where its words do; load the page again."
            )
        end = end if start < 0 else start + len(text)
        if text and chip.weight != 1:
            weights[name_word(target, text, end)] = chip.weight
    return weights


def read_chips(values: object, num_words: int) -> list[Chip]:
    """Read a list of {source, text, weight, gap}; empty where there is none.

    Args:
        num_words: number of words in the source prompt.

    Raises:
        OptionError: it is something else.
    """
    values = values or []
    if not isinstance(values, list) or len(values) > MAX_CHIPS:
        raise OptionError(f"The words are no list of at most {MAX_CHIPS}; load the page again.")
    return [_read_chip(value, num_words) for value in values]


def _read_chip(value: Any, num_words: int) -> Chip:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    source, weight = fields.get("source"), fields.get("weight", 1)
    text, gap = fields.get("text"), fields.get("gap", " ")
    low, high = WEIGHTS
    is_known = source is None or (type(source) is int and 0 <= source < num_words)
    is_number = isinstance(weight, int | float) and low <= weight <= high
    is_text = all(isinstance(one, str) and len(one) <= MAX_LETTERS for one in (text, gap))
    if not (is_known and is_number and is_text):
        raise OptionError(f"A word cannot be read; its weight goes from {low:g} to {high:g}.")
    return Chip(source, clean(str(text)), float(weight), str(gap))


def read_text(request: PageRequest, name: str) -> str:
    """Read a line of text without surrounding space; empty where there is none."""
    value = request.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_LETTERS:
        raise PromptError(f"The {name} is no text of at most {MAX_LETTERS} letters; write less.")
    return clean(value).strip()


def read_number(request: PageRequest, name: str, low: float, high: float) -> float | None:
    """Read a number within bounds; None where there is none."""
    value = request.get(name)
    if value is None or value == "":
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        raise OptionError(
            f"The {name.replace('_', ' ')} is {value!r:.20}; give a number from {low:g} to "
            f"{high:g}."
        )
    return float(value)


def read_integer(request: PageRequest, name: str, low: int, high: int) -> int | None:
    """Read a whole number within bounds; None where there is none."""
    value = read_number(request, name, low, high)
    if value is not None and value != int(value):
        raise OptionError(f"The {name} is {value:g}; give a whole number from {low} to {high}.")
    return None if value is None else int(value)


def read_painting(value: object, max_pixels: int) -> Image.Image | None:
    """Read a painted mask, mode L, from the data URL of a PNG; None where nothing is painted.

    Raises:
        ImageError: it is no PNG, or larger than `max_pixels`.
    """
    if not value:
        return None
    error = ImageError("The painted mask cannot be read; clear it and paint again.")
    if not isinstance(value, str) or not value.startswith(PNG_URL) or len(value) > 2 * max_pixels:
        raise error
    try:
        data = base64.b64decode(value.removeprefix(PNG_URL), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > max_pixels:
                raise error
            return image.convert("L")
    except (binascii.Error, OSError, ValueError, SyntaxError) as cause:
        raise error from cause
