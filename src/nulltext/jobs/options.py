"""The options of an inversion and of an edit, each described once.

An option is a field of `InversionOptions` (of `invert` and `edit`) or of `EditOptions` (of `edit`
alone), and what is known about it stands beside the field. Everything that shows or reads options
is made from these fields: the parameters of the command line (`cli.options`), the keys of a job
file (`job_files`), what a sweep varies (`sweep`), the fields and the copied command of the studio,
and the table in docs/options.md (`options_table`).

To add an option, add a field here and the code that uses it.
"""

from __future__ import annotations

import math
import sys
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
    Method,
    NullStart,
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
    """What it does to the result."""
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


@dataclass(frozen=True)
class Option:
    """An option as everything that shows or reads options sees it."""

    name: str
    kind: Kind
    type: Any
    """Of a value that is given."""
    default: Any
    about: About

    @property
    def flag(self) -> str:
        """As the command line writes it."""
        return flag_of(self.name)

    @property
    def help(self) -> str:
        """What it does, and what holds without it."""
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


def about(text: str, metavar: str | None = None, **more: Any) -> dict[str, About]:
    """Make the metadata of a field of an options class; `more` are further fields of `About`."""
    return {"about": About(text, metavar, **more)}


@dataclass(frozen=True)
class InversionOptions:
    """How a photo is inverted. None: not given."""

    method: Method | None = field(
        default=None, metadata=about("How to invert.", unset=Method(constants.METHOD))
    )
    steps: int | None = field(
        default=None,
        metadata=about(
            "DDIM steps, 1 to 1000; more is slower. Default 30 (20 by --budget fast, 50 by paper "
            "and other methods).",
            "T",
            low=1,
            high=1000,
        ),
    )
    budget: Budget | None = field(
        default=None,
        metadata=about(
            "How much work null-text may do: sets --method, --steps and --inner-steps; "
            "default balanced, paper is as published."
        ),
    )
    inner_steps: int | None = field(
        default=None,
        metadata=about("N where something is optimised: T N steps.", "N", low=0, high=9999),
    )
    null_start: NullStart | None = field(
        default=None,
        metadata=about(
            "Where the null embeddings begin: at the prompt's (default), which saves most of the "
            "work, or at the empty prompt's, as published."
        ),
    )
    guidance: float | None = field(
        default=None,
        metadata=about(
            "How strongly words steer; default: what the model suggests (flowers: 3), else 7.5.",
            "W",
            low=0,
        ),
    )
    captioner: str | None = field(
        default=None,
        metadata=about(
            "Captioner that `nulltext train --stage captioner` or `convert-captioner` made; "
            "default: the bundled one, which knows flowers only.",
            "FOLDER",
        ),
    )
    crop: str | None = field(
        default=None,
        metadata=about(
            "Square to edit, or X,Y,WIDTH,HEIGHT; default: the largest centred one.", "X,Y,SIZE"
        ),
    )
    size: str | None = field(
        default=None,
        metadata=about(
            "Size that the model works at, such as 768x512; photo: the whole photo in its own "
            "proportions; default: the model's own.",
            "WIDTHxHEIGHT",
        ),
    )
    seed: int | None = field(
        default=None, metadata=about("For the methods that draw noise.", "N", unset=constants.SEED)
    )
    fresh: bool = field(
        default=False,
        metadata=about(
            "Start over, even where an inversion that was broken off can go on.",
            no_job="it is the whole batch's: nulltext batch --fresh",
        ),
    )


_CHAINED = "starting from the one before; the whole prompt; may be repeated."


@dataclass(frozen=True)
class EditOptions(InversionOptions):
    """What is edited, to what, and how. None, or empty: not given."""

    image: Path | None = field(
        default=None,
        metadata=about("The photo; may be left out with --inversion.", "[IMAGE]", positional=True),
    )
    source: str | None = field(
        default=None,
        metadata=about("What the photo shows, in words; auto: ask a captioner.", prose=True),
    )
    target: tuple[str, ...] = field(
        default=(), metadata=about("What it shall show instead; may be repeated.", prose=True)
    )
    then: tuple[str, ...] = field(
        default=(), metadata=about(f"The next edit, {_CHAINED}", "TARGET", prose=True)
    )
    then_strength: float | None = field(
        default=None,
        metadata=about(
            "How far each --then may go from the picture before it; default: as far as the first.",
            "S",
            low=0,
            high=1,
        ),
    )
    output: Path | None = field(
        default=None,
        metadata=about(
            "Default: IMAGE's name-edited.png; several pictures add -1, -2, …",
            "OUT.png",
            short="-o",
            no_job="a batch names its pictures itself",
        ),
    )
    strip: Path | bool = field(
        default=False,
        metadata=about("Also photo, bound, reconstruction, edits in a row.", "STRIP.png"),
    )
    full: bool = field(
        default=False, metadata=about("Paste the edit back into the photo at its own size.")
    )
    keep_gps: bool = field(
        default=False,
        metadata=about(
            "Write where the photo was taken into the result, too; date, exposure, kind of camera "
            "and lens, author and copyright are always kept, comments and serial numbers never."
        ),
    )
    editor: EditorName = field(
        default=EditorName.PROMPT_TO_PROMPT,
        metadata=about(
            "prompt-to-prompt changes what things are and keeps their shapes; masactrl changes "
            "shapes and keeps the look."
        ),
    )
    weight: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Stress a word of the target: yellow=2, red=-1.",
            "WORD=FACTOR",
            prose=True,
            editor=EditorName.PROMPT_TO_PROMPT,
        ),
    )
    strength: float | None = field(
        default=None,
        metadata=about(
            "How far the edit may go: 0 the reconstruction (with --full, the photo), 0.5 the "
            "default, 1 the words alone.",
            "S",
            low=0,
            high=1,
            knob="strength",
        ),
    )
    target_guidance: float | None = field(
        default=None,
        metadata=about(
            "How strongly the target's words steer; the photo's own stay as inverted.",
            "W",
            low=0,
            knob="target-guidance",
        ),
    )
    negative: str | None = field(
        default=None,
        metadata=about(
            "What the picture shall not show, in words: the target is steered away from it; the "
            "photo's reconstruction stays as it is.",
            prose=True,
        ),
    )
    sweep: Path | bool = field(
        default=False,
        metadata=about(
            "Also a labelled grid over one knob or two (--over); default: strengths 0 to 1.",
            "GRID.png",
        ),
    )
    over: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "What --sweep varies: strength=0:1:5 (five values) or cross=0,0.5,1; a second --over "
            "goes down the grid. Knobs: {knobs}.",
            "KNOB=VALUES",
        ),
    )
    cross_steps: float | None = field(
        default=None,
        metadata=about(
            "Fraction of steps in which words keep their places.",
            unset=constants.CROSS_STEPS,
            low=0,
            high=1,
            editor=EditorName.PROMPT_TO_PROMPT,
            setting="cross_steps",
            by_strength=True,
            knob="cross",
        ),
    )
    self_steps: float | None = field(
        default=None,
        metadata=about(
            "Fraction of steps in which shapes are kept.",
            unset=constants.SELF_STEPS,
            low=0,
            high=1,
            editor=EditorName.PROMPT_TO_PROMPT,
            setting="self_steps",
            by_strength=True,
            knob="self",
        ),
    )
    masa_start: float | None = field(
        default=None,
        metadata=about(
            "masactrl: fraction of steps in which the words alone lay out the picture.",
            "S",
            unset=constants.MASA_START,
            low=0,
            high=1,
            editor=EditorName.MASACTRL,
            setting="start",
            by_strength=True,
            knob="masa-start",
        ),
    )
    masa_layer: float | None = field(
        default=None,
        metadata=about(
            "masactrl: share of the self-attention layers that keep to themselves.",
            "L",
            unset=constants.MASA_LAYER,
            low=0,
            high=1,
            editor=EditorName.MASACTRL,
            setting="start_layer",
            knob="masa-layer",
        ),
    )
    masa_word: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "masactrl: the word for the foreground, which is copied from the source's foreground, "
            "as the background is from its background; may be repeated.",
            "WORD",
            prose=True,
            editor=EditorName.MASACTRL,
            setting="foreground",
        ),
    )
    mask: Path | None = field(
        default=None,
        metadata=about(
            "White where the photo may change; of its proportions; an image or .npy.", "FILE"
        ),
    )
    blend: tuple[str, ...] = field(
        default=(),
        metadata=about("Change only where this word looks; may be repeated.", "WORD", prose=True),
    )
    blend_except: tuple[str, ...] = field(
        default=(), metadata=about("But not where this word looks.", "WORD", prose=True)
    )
    blend_threshold: float | None = field(
        default=None,
        metadata=about(
            "0 to 1; higher keeps the change of a --blend smaller.",
            unset=constants.BLEND_THRESHOLD,
            low=0,
            high=1,
        ),
    )
    detail: Detail | None = field(
        default=None,
        metadata=about(
            "Fine detail of the photo, put back over the edit with --full, --mask or --blend: "
            "everywhere (photo), its light and shade alone (luminance), nowhere (model), or where "
            "the shapes stayed (auto, the default).",
        ),
    )
    source_branch: SourceBranch = field(
        default="replay",
        metadata=about("What targets follow: the replay, or the photo's exact trajectory."),
    )
    align: Alignment | None = field(
        default=None,
        metadata=about(
            "Which source word a target word takes its place from: auto (default) swaps changed "
            "words and adds new ones, refine leaves changed words free, replace pairs by position.",
            editor=EditorName.PROMPT_TO_PROMPT,
            setting="alignment",
        ),
    )
    inversion: Path | None = field(
        default=None, metadata=about("A saved inversion: no need to invert.", "FILE")
    )
    save_inversion: Path | None = field(
        default=None,
        metadata=about(
            "Keep the inversion for later.", "FILE", no_job="a batch keeps every inversion itself"
        ),
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.cleaned(getattr(self, name)))

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts to edit to, in the order of the pictures."""
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
    """An option's name as the command line writes it."""
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
    for one in fields(options):
        option, value = OPTIONS[one.name], getattr(options, one.name)
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
    """The type of a value that is given, by the type of the field."""
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
"""All options of an edit."""

KNOBS = {one.about.knob: one for one in OPTIONS.values() if one.about.knob is not None}
"""The options that a sweep can vary, by their names in `--over`."""


REMOVED = {"solver": "--method null-text is Adam, --method null-text-secant the secant solver"}
"""Options of earlier versions, and what to write instead."""


def combined(*parts: EditOptions) -> EditOptions:
    """Put options together; of an option given in several, the last holds."""
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
            words.append(f"./{value}" if str(value).startswith("-") else str(value))
        elif value is True:
            words.append(option.flag)
        else:
            values = value if option.kind is Kind.TEXTS else [value]
            flag = option.about.short or option.flag
            words += [word for each in values for word in (flag, str(each))]
    return words


TABLE_BEGIN = "<!-- options: written by `make options` -->"
TABLE_END = "<!-- end of options -->"


def options_table() -> str:
    """The options of an edit as a table of Markdown."""
    rows = [
        "| option | value | also of `invert` | in a job | in `--over` | what it does |",
        "|---|---|---|---|---|---|",
    ]
    inverting = options_of(InversionOptions)
    for option in OPTIONS.values():
        cells = [
            "IMAGE" if option.about.positional else f"`{option.flag}`",
            _said_value(option),
            "yes" if option.name in inverting else "",
            "" if option.about.no_job else f"`{option.name}`",
            f"`{option.about.knob}`" if option.about.knob else "",
            option.help,
        ]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _said_value(option: Option) -> str:
    if option.kind is Kind.CHOICE:
        return ", ".join(f"`{name}`" for name in option.choices)
    low, high = option.about.low, option.about.high
    if low is None:
        return option.kind.value
    return f"{option.kind.value} from {low:g}" + ("" if high is None else f" to {high:g}")


def main() -> None:
    """Write the table into a page, between its markers: `python -m nulltext.jobs.options PAGE`."""
    page = Path(sys.argv[1])
    before, _, rest = page.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    text = f"{before}{TABLE_BEGIN}\n{options_table()}{TABLE_END}{after}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
