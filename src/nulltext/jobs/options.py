"""The options of an inversion and of an edit, each described once.

An option is a field of `InversionOptions` (of `invert` and `edit`) or of `EditOptions` (of `edit`
alone), and what is known about it stands beside the field. Everything that shows or reads options
is made from these fields: the parameters of the command line (`cli.options`), the keys of a job
file (`job_files`), what a sweep varies (`edits`), the fields and the copied command of the studio,
and the tables of README and docs/options.md (docs/options_tables.py).

To add an option, add a field here and the code that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nulltext import constants
from nulltext.constants import (
    Alignment,
    Budget,
    Detail,
    EditorName,
    Hue,
    Method,
    PivotName,
    Region,
    SourceBranch,
)
from nulltext.errors import OptionError
from nulltext.words.prompts import clean


class Kind(Enum):
    """What the value of an option is."""

    TEXT = "text"
    TEXTS = "texts"
    """Several, by repeating the option."""
    NUMBER = "number"
    INTEGER = "whole number"
    FLAG = "flag"
    CHOICE = "name"
    """One of a few names."""
    FILE = "file"
    OUTPUT = "file to write"
    """Its name on the command line; in a job, which names no outputs, whether it is wanted."""


@dataclass(frozen=True)
class About:
    """What a field of an options class says of its option beside name, type and default."""

    help: str
    metavar: str | None = None
    """Stands for the value in `--help`."""
    unset: object = None
    """What holds where the option is not given, if that is a plain value."""
    low: float | None = None
    high: float | None = None
    """Least and largest value."""
    prose: bool = False
    """Whether it is text that a person writes; invisible characters are removed from it."""
    editor: EditorName | None = None
    """The editor that it belongs to; None for all."""
    setting: str | None = None
    """Its field of that editor, where the value is set as it is."""
    by_strength: bool = False
    """Whether `strength` sets it, too."""
    knob: str | None = None
    """Its name in `--over`; None where a sweep cannot vary it."""
    flags: str | None = None
    """Its flags, where they are not those that follow from its name: "--resume/--fresh"."""
    least: int | None = None
    """Least value that the command line itself lets pass."""
    no_job: str | None = None
    """Why a job cannot have it; None where it can."""
    short: str | None = None
    """Its one-letter flag."""
    positional: bool = False
    """Whether the command line takes it without a flag."""
    label: str | None = None
    """Its name in the studio's advanced settings; None where the page has another control or none.
    """


@dataclass(frozen=True)
class Option:
    """An option as everything that shows or reads options sees it."""

    name: str
    kind: Kind
    type: Any
    default: Any
    about: About

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def help(self) -> str:
        text = self.about.help.replace("{knobs}", ", ".join(KNOBS))
        return text if self.about.unset is None else f"{text[:-1]}; default {self.about.unset}."

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that it takes; none where it takes other values."""
        if self.kind is not Kind.CHOICE:
            return ()
        return tuple(str(name) for name in get_args(self.type) or self.type)

    def cleaned(self, value: Any) -> Any:
        """A value without invisible characters, where it is text that a person writes."""
        if not self.about.prose or value is None:
            return value
        return clean(value) if isinstance(value, str) else type(value)(map(clean, value))


def option_field(
    default: Any, text: str, metavar: str | None = None, *, kw_only: bool = False, **more: Any
) -> Any:
    """Make a field of an options class.

    Args:
        default: MISSING where the option has to be given.
        more: further fields of `About`.
    """
    about = About(text, metavar, **more)
    return field(default=default, kw_only=kw_only, metadata={"about": about})


@dataclass(frozen=True)
class InversionOptions:
    """How a photo is inverted. None: not given."""

    method: Method | None = option_field(
        None, "How to invert; default: as the editor or the budget does.", label="Method"
    )
    steps: int | None = option_field(
        None,
        "Steps, 1 to 1000; more is slower. Default 20 (12 by --budget fast, 50 by paper and other "
        "methods, or as a method of rectified flow was published).",
        "T",
        low=1,
        high=1000,
        label="Steps",
    )
    budget: Budget | None = option_field(
        None,
        "Sets --method and --steps: balanced (default) and fast are fixed-point inversion, paper "
        "is null-text inversion as published.",
        label="Budget",
    )
    inner_steps: int | None = option_field(
        None,
        "N where something is optimised: T N steps.",
        "N",
        low=0,
        high=9999,
        label="Inner steps",
    )
    pivot: PivotName | None = option_field(
        None,
        "The trajectory that null-text, direct, negative-prompt, global-null, textual-pivot, "
        "textual-pivot-shared and model-tuning steer along: ddim, as published (default), "
        "fixed-point, from which a replay without guidance is exact to a tolerance, or midpoint, "
        "of second order, for rectified-flow models.",
        label="Pivot",
    )
    guidance: float | None = option_field(
        None,
        "How strongly words steer; default: what the model suggests (flowers: 3), else 7.5.",
        "W",
        low=0,
        label="Guidance",
    )
    captioner: str | None = option_field(
        None,
        "Captioner that `nulltext train --stage captioner` or `convert-captioner` made; "
        "default: the bundled one, which knows flowers only.",
        "FOLDER",
    )
    crop: str | None = option_field(
        None, "Square to edit, or X,Y,WIDTH,HEIGHT; default: the largest centred one.", "X,Y,SIZE"
    )
    size: str | None = option_field(
        None,
        "Size that the model works at, such as 768x512; photo: the whole photo in its own "
        "proportions; default: the model's own.",
        "WIDTHxHEIGHT",
    )
    seed: int | None = option_field(
        None, "For the methods that draw noise.", "N", unset=constants.SEED, label="Seed"
    )
    fresh: bool = option_field(
        False,
        "Start over, even where an inversion that was broken off can go on.",
        no_job="it is the whole batch's: nulltext batch --fresh",
    )


_CHAINED = "starting from the one before; the whole prompt; may be repeated."


@dataclass(frozen=True)
class EditOptions(InversionOptions):
    """What is edited, to what, and how. None, or empty: not given."""

    image: Path | None = option_field(
        None, "The photo; may be left out with --inversion.", "[IMAGE]", positional=True
    )
    source: str | None = option_field(
        None, "What the photo shows, in words; auto: ask a captioner.", prose=True
    )
    target: tuple[str, ...] = option_field(
        (), "What it shall show instead; may be repeated.", prose=True
    )
    then: tuple[str, ...] = option_field((), f"The next edit, {_CHAINED}", "TARGET", prose=True)
    then_strength: float | None = option_field(
        None,
        "How far each --then may go from the picture before it; default: as far as the first.",
        "S",
        low=0,
        high=1,
    )
    output: Path | None = option_field(
        None,
        "Default: IMAGE's name-edited.png; several pictures add -1, -2, …",
        "OUT.png",
        short="-o",
        no_job="a batch names its pictures itself",
    )
    quality: int | None = option_field(
        None,
        "Of a JPEG: 1 (small) to 100; default: compressed as the photo's own JPEG, else 95.",
        "Q",
        low=1,
        high=100,
        no_job="a batch writes PNG, which has none",
    )
    strip: Path | bool = option_field(
        False, "Also photo, bound, reconstruction, edits in a row.", "STRIP.png"
    )
    full: bool = option_field(False, "Paste the edit back into the photo at its own size.")
    keep_gps: bool = option_field(
        False,
        "Write where the photo was taken into the result, too; date, exposure, kind of camera "
        "and lens, author and copyright are always kept, comments and serial numbers never.",
    )
    editor: EditorName = option_field(
        EditorName.PROMPT_TO_PROMPT,
        "prompt-to-prompt changes what things are and keeps their shapes; masactrl changes "
        "shapes and keeps the look; flowedit, rf-inversion and uniedit are of rectified-flow "
        "models, and flowedit needs no inversion.",
        label="Editor",
    )
    weight: tuple[str, ...] = option_field(
        (),
        'Stress a word of the target: yellow=2, red=-1; red#2=3: the second "red" alone.',
        "WORD=FACTOR",
        prose=True,
        editor=EditorName.PROMPT_TO_PROMPT,
    )
    strength: float | None = option_field(
        None,
        "How far the edit may go: 0 the photo, 0.5 the default, 1 the words alone.",
        "S",
        low=0,
        high=1,
        knob="strength",
    )
    target_guidance: float | None = option_field(
        None,
        "How strongly the target's words steer; the photo's own stay as inverted.",
        "W",
        low=0,
        knob="target-guidance",
        label="Target guidance",
    )
    guidance_start: float | None = option_field(
        None,
        "Fraction of steps, the noisiest, before guidance steers a target; with 0.2 a colour runs "
        "less far past its word, and more of the photo stays.",
        "S",
        unset=0,
        low=0,
        high=1,
        knob="guidance-start",
        label="Guidance starts",
    )
    negative: str | None = option_field(
        None,
        "What the picture shall not show, in words: the target is steered away from it; the "
        "photo's reconstruction stays as it is.",
        prose=True,
        label="Not in the picture",
    )
    sweep: Path | bool = option_field(
        False,
        "Also a labelled grid over one knob or two (--over); default: strengths 0 to 1.",
        "GRID.png",
    )
    over: tuple[str, ...] = option_field(
        (),
        "What --sweep varies: strength=0:1:5 (five values) or cross=0,0.5,1; a second --over "
        "goes down the grid. Knobs: {knobs}.",
        "KNOB=VALUES",
    )
    cross_steps: float | None = option_field(
        None,
        "Fraction of steps in which words keep their places.",
        unset=constants.CROSS_STEPS,
        low=0,
        high=1,
        editor=EditorName.PROMPT_TO_PROMPT,
        setting="cross_steps",
        by_strength=True,
        knob="cross",
        label="Words keep places",
    )
    self_steps: float | None = option_field(
        None,
        "Fraction of steps in which shapes are kept.",
        unset=constants.SELF_STEPS,
        low=0,
        high=1,
        editor=EditorName.PROMPT_TO_PROMPT,
        setting="self_steps",
        by_strength=True,
        knob="self",
        label="Shapes are kept",
    )
    masa_start: float | None = option_field(
        None,
        "masactrl: fraction of steps in which the words alone lay out the picture.",
        "S",
        unset=constants.MASA_START,
        low=0,
        high=1,
        editor=EditorName.MASACTRL,
        setting="start",
        by_strength=True,
        knob="masa-start",
        label="Looks begin",
    )
    masa_layer: float | None = option_field(
        None,
        "masactrl: share of the self-attention layers that keep to themselves.",
        "L",
        unset=constants.MASA_LAYER,
        low=0,
        high=1,
        editor=EditorName.MASACTRL,
        setting="start_layer",
        knob="masa-layer",
        label="Looks from layer",
    )
    masa_word: tuple[str, ...] = option_field(
        (),
        "masactrl: the word for the foreground, which is copied from the source's foreground, "
        "as the background is from its background; may be repeated.",
        "WORD",
        prose=True,
        editor=EditorName.MASACTRL,
        setting="foreground",
        label="Foreground",
    )
    n_max: float | None = option_field(
        None,
        "flowedit: fraction of steps, the last ones, that are taken; higher changes more. Default "
        "0.66 (FLUX 0.86).",
        "N",
        low=0,
        high=1,
        editor=EditorName.FLOWEDIT,
        setting="n_max",
        by_strength=True,
        knob="n-max",
        label="Steps taken",
    )
    n_min: float | None = option_field(
        None,
        "flowedit: fraction of steps, the last ones, in which the target is sampled plainly.",
        "N",
        unset=0,
        low=0,
        high=1,
        editor=EditorName.FLOWEDIT,
        setting="n_min",
        knob="n-min",
        label="Steps sampled plainly",
    )
    n_avg: int | None = option_field(
        None,
        "flowedit: draws of noise per step; more is steadier and slower.",
        "N",
        unset=constants.N_AVG,
        low=1,
        high=100,
        editor=EditorName.FLOWEDIT,
        setting="n_avg",
        label="Draws per step",
    )
    source_guidance: float | None = option_field(
        None,
        "flowedit: how strongly the photo's words steer; default 3.5 (FLUX 1.5), and "
        "--target-guidance 13.5 (FLUX 5.5).",
        "W",
        low=0,
        editor=EditorName.FLOWEDIT,
        setting="source_guidance",
        knob="source-guidance",
        label="Source guidance",
    )
    eta: float | None = option_field(
        None,
        "rf-inversion: how strongly the target is drawn to the photo, while it is.",
        "E",
        unset=constants.ETA,
        low=0,
        high=1,
        editor=EditorName.RF_INVERSION,
        setting="eta",
        knob="eta",
        label="Drawn to the photo",
    )
    eta_stop: float | None = option_field(
        None,
        "rf-inversion: fraction of steps in which the target is drawn to the photo.",
        "S",
        unset=constants.ETA_STOP,
        low=0,
        high=1,
        editor=EditorName.RF_INVERSION,
        setting="eta_stop",
        by_strength=True,
        knob="eta-stop",
        label="Drawn until",
    )
    uni_alpha: float | None = option_field(
        None,
        "uniedit: fraction of steps, the last ones, that are edited; higher changes more.",
        "A",
        unset=constants.UNI_ALPHA,
        low=0,
        high=1,
        editor=EditorName.UNIEDIT,
        setting="alpha",
        by_strength=True,
        knob="uni-alpha",
        label="Steps edited",
    )
    uni_omega: float | None = option_field(
        None,
        "uniedit: how far the difference between both prompts is taken beyond the target.",
        "O",
        unset=constants.UNI_OMEGA,
        low=0,
        editor=EditorName.UNIEDIT,
        setting="omega",
        knob="uni-omega",
        label="Beyond the target",
    )
    region: Region = option_field(
        constants.REGION,
        "Where the edit shows: where the words look and the two prompts differ, within the photo's "
        "own outlines (auto); where the words look (words); wherever it changed something "
        "(everywhere). A --mask or a --blend says it instead.",
    )
    region_out: Path | bool = option_field(
        False,
        "Also where the edit shows, as a picture that --mask takes; of several, -1, -2, …",
        "REGION.png",
    )
    mask: Path | None = option_field(
        None, "White where the photo may change; of its proportions; an image or .npy.", "FILE"
    )
    blend: tuple[str, ...] = option_field(
        (),
        "Change only where this word looks (flower#2: the second one); may be repeated.",
        "WORD",
        prose=True,
    )
    blend_except: tuple[str, ...] = option_field(
        (),
        "But not where this word looks.",
        "WORD",
        prose=True,
        label="But not where these words look",
    )
    blend_threshold: float | None = option_field(
        None,
        "0 to 1; higher keeps the change of a --blend smaller.",
        unset=constants.BLEND_THRESHOLD,
        low=0,
        high=1,
    )
    detail: Detail | None = option_field(
        None,
        "Fine detail of the photo, put back over the edit: "
        "everywhere (photo), its light and shade alone (luminance), nowhere (model), or as the "
        "edit changed what is around it (auto, the default).",
        label="Fine detail",
    )
    hue: Hue = option_field(
        constants.HUE,
        "Of an edit to another colour: turned to the colour's own hue where the model misses it "
        "(named), or as the model drew it (model).",
        label="Hue",
    )
    opacity: float | None = option_field(
        None,
        "How much of the finished edit lies over the photo: 0 the photo, 0.5 half of each, 1 the "
        "edit. Pixels that the edit left alone stay exact.",
        "A",
        unset=1,
        low=0,
        high=1,
    )
    source_branch: SourceBranch = option_field(
        "replay",
        "What targets follow: the replay, or the photo's exact trajectory.",
        label="What targets follow",
    )
    align: Alignment | None = option_field(
        None,
        "Which source word a target word takes its place from: auto (default) swaps changed "
        "words and adds new ones, refine leaves changed words free, replace pairs by position.",
        editor=EditorName.PROMPT_TO_PROMPT,
        setting="alignment",
        label="Pairing of words",
    )
    inversion: Path | None = option_field(None, "A saved inversion: no need to invert.", "FILE")
    save_inversion: Path | None = option_field(
        None, "Keep the inversion for later.", "FILE", no_job="a batch keeps every inversion itself"
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.cleaned(getattr(self, name)))

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.target + self.then

    @property
    def editor_settings(self) -> dict[str, Any]:
        """The options given that belong to one editor, by name."""
        return {
            name: getattr(self, name)
            for name, option in OPTIONS.items()
            if option.about.editor is not None and getattr(self, name) != option.default
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EditOptions:
        """Options from plain values, such as JSON's; one that is None is not given."""
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            option = OPTIONS[name]
            if option.kind is Kind.TEXTS:
                given[name] = tuple(value)
            elif isinstance(option.type, type) and issubclass(option.type, StrEnum):
                given[name] = option.type(value)
        return cls(**given)


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_range(option: Option, value: float) -> None:
    """Refuse a number that is out of an option's range.

    Raises:
        OptionError: it is.
    """
    low, high = option.about.low, option.about.high
    if low is None or (low <= value < math.inf and (high is None or value <= high)):
        return
    whole = option.kind is Kind.INTEGER
    said, kind = (str(value), "whole number") if whole else (f"{value:g}", "number")
    to = "up" if high is None else f"to {high:g}"
    raise OptionError(f"{option.flag} is {said}; choose a {kind} from {low:g} {to}.")


def check_ranges(options: InversionOptions) -> None:
    """Refuse numbers that are out of their options' ranges.

    Raises:
        OptionError: one is.
    """
    for name, option in OPTIONS.items():
        value = getattr(options, name, None)
        if option.kind in (Kind.NUMBER, Kind.INTEGER) and value is not None:
            check_range(option, value)


def options_of(group: type) -> dict[str, Option]:
    """The options of an options class by name, its own before those that it inherits."""
    hints = get_type_hints(group)
    taken = [one for one in fields(group) if one.init]
    ordered = sorted(taken, key=lambda one: one.name not in group.__annotations__)
    return {
        one.name: Option(
            name=one.name,
            kind=_kind_of(hints[one.name]),
            type=_given_type(hints[one.name]),
            default=one.default,
            about=one.metadata.get("about") or About(**one.metadata),
        )
        for one in ordered
    }


def _given_type(hint: Any) -> Any:
    if get_origin(hint) in (tuple, Literal):
        return hint
    return next((one for one in get_args(hint) if one is not NoneType), hint)


def _kind_of(hint: Any) -> Kind:
    given = _given_type(hint)
    if get_origin(given) is tuple:
        return Kind.TEXTS
    if get_origin(given) is Literal or issubclass(given, StrEnum):
        return Kind.CHOICE
    if given is Path:
        return Kind.OUTPUT if bool in get_args(hint) else Kind.FILE
    return {str: Kind.TEXT, float: Kind.NUMBER, int: Kind.INTEGER, bool: Kind.FLAG}[given]


OPTIONS = options_of(EditOptions)

KNOBS = {one.about.knob: one for one in OPTIONS.values() if one.about.knob is not None}
"""The options that a sweep can vary, by their names in `--over`."""


REMOVED = {
    "solver": "--method null-text is the published solver, Adam",
    "null_start": "--method fixed-point, the default, takes the prompt's embedding as it is, and "
    "--method null-text begins at the empty prompt's, as published",
}
"""Options of earlier versions, and what to write instead."""


def combined(*parts: EditOptions) -> EditOptions:
    given = {
        name: getattr(part, name)
        for part in parts
        for name, option in OPTIONS.items()
        if getattr(part, name) != option.default
    }
    return EditOptions(**given)


def arguments_of(options: EditOptions) -> list[str]:
    """The options that differ from their defaults, as a command line writes them."""
    words: list[str] = []
    for option in OPTIONS.values():
        value = getattr(options, option.name)
        if value == option.default:
            continue
        if option.about.positional:
            words.append(_path_argument(Path(value)))
        elif value is True:
            words.append(option.flag)
        else:
            values = value if option.kind is Kind.TEXTS else [value]
            flag = option.about.short or option.flag
            words += [word for each in values for word in (flag, _path_argument(each))]
    return words


def _path_argument(value: Any) -> str:
    """Write a value, a path so that it is not taken for a flag."""
    text = str(value)
    return f"./{text}" if isinstance(value, Path) and text.startswith("-") else text
