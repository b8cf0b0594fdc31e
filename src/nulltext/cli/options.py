"""Parameters of verbs, made from the fields of options classes; and the options that several share.

A verb takes whole options classes (`EditOptions`, `ModelChoice`, `Reporter`). `takes_options` gives
it a parameter of typer for each of their fields, and puts the values together again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from rich.markup import escape
from typer.core import TyperCommand

from nulltext import constants
from nulltext.errors import OptionError
from nulltext.jobs.options import (
    OPTIONS,
    REMOVED,
    Kind,
    Option,
    flag_of,
    option_field,
    options_of,
)

Value = TypeVar("Value")


class KnowsRemoved(TyperCommand):
    """A command that tells what to write instead of an option of an earlier version."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse removed options before the parser calls them unknown.

        Raises:
            OptionError: there is one.
        """
        removed = {flag_of(name): instead for name, instead in REMOVED.items()}
        for word in args:
            flag = word.partition("=")[0]
            if flag in removed:
                raise OptionError(f"There is no {flag} any more; {removed[flag]}.")
        return super().parse_args(ctx, args)


def takes_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is an options class by parameters for its fields."""
    own = inspect.signature(verb, eval_str=True)
    groups: dict[str, type] = {
        parameter.name: parameter.annotation
        for parameter in own.parameters.values()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name in groups:
            options = options_of(groups[parameter.name])
            parameters += [parameter_of(option) for option in options.values()]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        for name, group in groups.items():
            options = options_of(group).values()
            given[name] = group(**{one.name: _given(one, given.pop(one.name)) for one in options})
        verb(**given)

    run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def parameter_of(option: Option) -> inspect.Parameter:
    kind, default = option.type, option.default
    if option.kind is Kind.TEXTS:
        kind = list[get_args(option.type)[0]]  # type: ignore[misc]
        if default is not MISSING:
            kind, default = kind | None, None
    elif option.kind is Kind.OUTPUT:
        kind, default = Path | None, None
    elif default is None:
        kind = option.type | None
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, info_of(option)],
    )


def info_of(option: Option) -> Any:
    about = option.about
    text = escape(option.help)
    if about.positional:
        return typer.Argument(help=text, metavar=about.metavar)
    flags = [*filter(None, [about.short]), about.flags or option.flag]
    return typer.Option(*flags, help=text, metavar=about.metavar, min=about.least)


def _given(option: Option, value: Any) -> Any:
    if option.kind is Kind.TEXTS:
        return tuple(value or ())
    return option.default if value is None and option.default is not MISSING else value


def device_field() -> Any:
    return option_field(None, "cpu, cuda, mps; default: the best there is.", "DEVICE")


def shared_field(name: str) -> Any:
    """Make the field of an option that edits have, too."""
    return field(default=None, metadata={"about": OPTIONS[name].about})


@dataclass(frozen=True)
class RowOptions:
    """Options of the verbs that fill a folder with rows and a report."""

    resume: bool | None = option_field(
        None,
        "Continue what is in OUT, or throw it away; default: continue if there is any.",
        flags="--resume/--fresh",
    )
    retry_failed: bool = option_field(False, "Try rows that failed once more.")
    estimate: bool = option_field(False, "Say what it would cost, and do nothing.")
    seed: int = option_field(constants.SEED, "For the photos and the noise that are drawn.", "N")

    @property
    def fresh(self) -> bool:
        return self.resume is False


def listed(text: str, option: str, kind: Callable[[str], Value]) -> list[Value]:
    """Read "a,b,c".

    Raises:
        OptionError: it is empty, or a part is of another kind.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        values = [kind(part) for part in parts]
    except ValueError:
        values = []
    if not values:
        raise OptionError(f"--{option} '{text}' is no list such as a,b or 1,3,10.")
    return values
