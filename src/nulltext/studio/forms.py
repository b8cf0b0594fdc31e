"""The forms of the page: read from a request, turned into options of the library and of a command.

A request is JSON from anyone who can reach the port, so every value is checked here.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from nulltext import constants
from nulltext.constants import Region
from nulltext.errors import FieldError, ImageError, OptionError, PromptError
from nulltext.image.images import CropBox
from nulltext.inversion.budgets import Budget, budget_of
from nulltext.jobs.export import result_name
from nulltext.jobs.job_files import read_value
from nulltext.jobs.options import (
    OPTIONS,
    EditOptions,
    InversionOptions,
    Kind,
    Option,
    arguments_of,
    check_range,
    combined,
    options_of,
)
from nulltext.models.choice import ModelChoice
from nulltext.words.prompts import TokenizedPrompt, clean, has_word, name_word

PageRequest = Mapping[str, Any]

MOST = {"steps": 200, "inner_steps": 100}
"""Most that the studio takes of options that say for how long its one model is held."""
WEIGHTS = (-2.0, 4.0)
"""Lowest and highest weight of a word."""
MAX_CHIPS = 100
MAX_LETTERS = 1000
"""Of a text field, of a chip and of the gap before it."""
STRENGTH = 0.5
"""Initial value of the slider: the editor as published."""
PNG_URL = "data:image/png;base64,"


FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
Settings = Mapping[str, Any]
"""Options of the advanced settings that are given: values of JSON, by name."""


def _shown(option: Option) -> Option:
    most = MOST.get(option.name, option.about.high)
    return replace(option, about=replace(option.about, high=most))


_LABELLED = {name: _shown(option) for name, option in OPTIONS.items() if option.about.label}
INVERTING = {name: _LABELLED[name] for name in options_of(InversionOptions) if name in _LABELLED}
"""The advanced settings of an inversion."""
EDITING = {name: option for name, option in _LABELLED.items() if name not in INVERTING}
"""Those of an edit."""


def fields_of(options: Mapping[str, Option]) -> list[dict[str, Any]]:
    """Describe options to the page, which makes a field of each."""
    return [
        {
            "name": name,
            "label": option.about.label,
            "help": without_flags(_help_of(option)),
            "kind": option.kind.name.lower(),
            "choices": list(option.choices),
            "default": option.default or None,
            "unset": option.about.unset,
            "low": option.about.low,
            "high": option.about.high,
            "editor": option.about.editor,
            "by_strength": option.about.by_strength,
        }
        for name, option in options.items()
    ]


def _help_of(option: Option) -> str:
    most = MOST.get(option.name)
    return (
        option.help.replace(f"to {OPTIONS[option.name].about.high}", f"to {most}")
        if most
        else option.help
    )


def without_flags(text: str) -> str:
    """Return a text of the command line with options as the page calls them."""

    def named(match: re.Match[str]) -> str:
        option = OPTIONS.get(match[1].replace("-", "_"))
        if option is None:
            return match[0]
        return f"“{option.about.label or match[1].replace('-', ' ').capitalize()}”"

    return FLAG.sub(named, text)


def read_settings(request: PageRequest, options: Mapping[str, Option]) -> Settings:
    """Read the advanced settings that a request gives.

    Raises:
        FieldError: one is malformed or out of range.
    """
    given = {name: request.get(name) for name in options}
    return {
        name: _read_setting(options[name], value)
        for name, value in given.items()
        if value not in (None, "", [])
    }


def _read_setting(option: Option, value: object) -> Any:
    if option.kind is Kind.TEXTS and isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    try:
        read = read_value(option, value)
        if option.kind in (Kind.NUMBER, Kind.INTEGER):
            check_range(option, read)
    except ValueError as error:
        message = f"{option.flag} is {error}; change it, or leave it empty."
        raise FieldError(option.name, without_flags(message)) from error
    except OptionError as error:
        raise FieldError(option.name, without_flags(str(error))) from error
    return option.cleaned(read)


@dataclass(frozen=True)
class InvertForm:
    """How a photo is inverted."""

    source: str
    crop: CropBox
    settings: Settings = field(default_factory=dict)

    @classmethod
    def read(cls, request: PageRequest) -> InvertForm:
        """Read the form from a request.

        Raises:
            PromptError, OptionError: a field is empty, malformed or out of range.
        """
        source = read_text(request, "source")
        if not source:
            raise PromptError("Say what the photo shows first, in a few words.")
        settings = read_settings(request, INVERTING)
        if "method" in settings and "budget" in settings:
            raise FieldError("budget", "A budget chooses the method; choose one of them, not both.")
        return cls(source, CropBox.from_list(request.get("crop") or []), settings)

    def plan(self) -> Budget:
        """Return the method and the number of steps.

        Raises:
            OptionError: the method has no such option.
        """
        return budget_of(self.options())

    def options(self) -> EditOptions:
        """Return the options of `nulltext edit` that invert the same way."""
        usual = {**{name: option.about.unset for name, option in INVERTING.items()}}
        usual["budget"] = constants.BUDGET
        settings = {name: value for name, value in self.settings.items() if value != usual[name]}
        return EditOptions.of({**settings, "source": self.source, "crop": str(self.crop)})


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
    blend: tuple[str, ...] = ()
    threshold: float = constants.BLEND_THRESHOLD
    region: Region = constants.REGION
    settings: Settings = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    opacity: float = 1.0
    """How much of the finished edit lies over the photo; chosen when it is there."""

    @classmethod
    def read(
        cls, request: PageRequest, num_words: int, tokenize: Callable[[str], TokenizedPrompt]
    ) -> EditForm:
        """Read the form from a request.

        Args:
            num_words: number of words in the prompt that the chips belong to.
            tokenize: the model's, for the target.

        Raises:
            PromptError, OptionError: a field is empty, malformed or out of range.
        """
        by_hand = bool(request.get("by_hand"))
        settings = read_settings(request, EDITING)
        region = read_settings({"region": request.get("region")}, {"region": OPTIONS["region"]})
        target, chips = read_text(request, "target"), read_chips(request.get("chips"), num_words)
        words = [word.strip() for word in read_text(request, "blend").split(",")]
        threshold = read_number(request, "threshold", 0, 1)
        strength = read_number(request, "strength", 0, 1)
        form = cls(
            target=target,
            chips=tuple(chips),
            strength=None,
            blend=tuple(filter(None, words)),
            threshold=constants.BLEND_THRESHOLD if threshold is None else threshold,
            region=region.get("region", constants.REGION),
            settings=settings,
            weights=weights_of(chips, tokenize(target)),
        )
        return form if by_hand else form.at_strength(STRENGTH if strength is None else strength)

    def at_strength(self, strength: float) -> EditForm:
        """Return the form at a strength, without the settings that it sets."""
        settings = {
            name: value
            for name, value in self.settings.items()
            if not EDITING[name].about.by_strength
        }
        return replace(self, strength=strength, settings=settings)

    def values(self) -> dict[str, Any]:
        """Return the values of the page's fields, the inverse of `read`."""
        settings = {name: self.settings.get(name) for name in EDITING}
        values = {**vars(self), "chips": list(self.chips), "blend": ", ".join(self.blend)}
        del values["weights"], values["opacity"], values["settings"]  # chips and edit have them
        return {**values, **settings}

    def options(self) -> EditOptions:
        """Return the options of `nulltext edit` that make the same edit, without the mask."""
        usual = not self.blend or self.threshold == constants.BLEND_THRESHOLD
        return EditOptions.of(
            {
                **self.settings,
                "target": [self.target],
                "weight": [f"{word}={factor!r}" for word, factor in self.weights.items()],
                "strength": self.strength,
                "blend": self.blend,
                "blend_threshold": None if usual else self.threshold,
                "region": constants.REGION if self.blend else self.region,
                "opacity": None if self.opacity == 1 else self.opacity,
            }
        )


def chained(
    earlier: Sequence[EditForm], edit: EditForm, tokenize: Callable[[str], TokenizedPrompt]
) -> EditOptions:
    """Return the options of an edit that goes on from others, as the chain of them all.

    As on the command line, a chain has one value of each option: that of its last edit. Only the
    strength of the first is its own, and weights of words that went are kept.

    Args:
        earlier: the edits from the photo on; none for a plain edit.
        tokenize: the model's.
    """
    options = edit.options()
    if not earlier:
        return options
    target = tokenize(edit.target)
    former = {word: factor for one in earlier for word, factor in one.weights.items()}
    gone = [f"{w}={factor!r}" for w, factor in former.items() if not has_word(target, w)]
    targets = tuple(one.target for one in (*earlier, edit))
    first = earlier[0].strength
    if first is None or edit.strength is None:
        first = edit.strength
    return replace(
        options,
        target=targets[:1],
        then=targets[1:],
        weight=(*gone, *options.weight),
        strength=first,
        then_strength=None if first == edit.strength else edit.strength,
    )


def edit_options(
    photo: str, origin: InvertForm | str, editing: EditOptions, *, mask: str | None
) -> EditOptions:
    """Return the options of `nulltext edit` that make the same picture, run in the photo's folder.

    Args:
        photo, mask: file names.
        origin: how the photo is inverted, or the file name of a saved inversion.
        editing: the options of the edit alone.
    """
    inverting = EditOptions(inversion=Path(origin)) if isinstance(origin, str) else origin.options()
    files = EditOptions(
        image=Path(photo),
        mask=None if mask is None else Path(mask),
        full=True,
        output=Path(result_name(photo, "", ".png")),
    )
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


def weighed(
    chips: Sequence[Chip], prompt: TokenizedPrompt, weights: Mapping[str, float]
) -> list[Chip]:
    """Give a prompt's chips the weights of its words, by the words' names."""
    names = [name_word(prompt, word.text, word.end) for word in prompt.words]
    pairs = zip(chips, names, strict=True)
    return [replace(chip, weight=weights.get(name, 1.0)) for chip, name in pairs]


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
        raise FieldError(
            name,
            f"The {name.replace('_', ' ')} is {value!r:.20}; give a number from {low:g} to "
            f"{high:g}.",
        )
    return float(value)


def read_integer(request: PageRequest, name: str, low: int, high: int) -> int | None:
    """Read a whole number within bounds; None where there is none."""
    value = read_number(request, name, low, high)
    if value is not None and value != int(value):
        raise FieldError(
            name, f"The {name} is {value:g}; give a whole number from {low} to {high}."
        )
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
