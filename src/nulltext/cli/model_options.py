"""The options of `ModelChoice` on the command line, made of its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape

from nulltext.models.choice import ModelChoice

CHOSEN = "chosen"
"""Parameter of a verb that stands for all of them."""


CHOICE = ModelChoice()
"""Default of that parameter."""


def takes_model(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `ModelChoice` in the place of its parameter `chosen`."""
    options = {parameter.name: parameter for parameter in _parameters()}
    own = inspect.signature(verb, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        parameters += [*options.values()] if parameter.name == CHOSEN else [parameter]

    def run(**given: Any) -> None:
        choice = {name: given.pop(name) for name in options}
        choice |= {name: tuple(value or ()) for name, value in choice.items() if name in REPEATED}
        verb(**given, chosen=ModelChoice(**choice))

    run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


REPEATED = {one.name for one in fields(ModelChoice) if isinstance(one.default, tuple)}
"""Options that may be given several times."""


def _parameters() -> list[inspect.Parameter]:
    types = get_type_hints(ModelChoice)
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if one.name in REPEATED else one.default,
            annotation=Annotated[
                list[str] | None if one.name in REPEATED else types[one.name],
                typer.Option(
                    f"--{one.name.replace('_', '-')}",
                    help=escape(one.metadata["help"]),
                    metavar=one.metadata["metavar"],
                ),
            ],
        )
        for one in fields(ModelChoice)
    ]
