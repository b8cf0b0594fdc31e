"""Options that several verbs have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nulltext import constants
from nulltext.constants import Budget, NullStart

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="An inversion that `nulltext invert` saved.")
]
CropOption = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="X,Y,SIZE",
        help="Square to edit, or X,Y,WIDTH,HEIGHT; default: the largest centred one.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="Size that the model works at, such as 768x512; photo: the whole photo in its own "
        "proportions; default: the model's own.",
    ),
]
CaptionerOption = Annotated[
    str | None,
    typer.Option(
        "--captioner",
        metavar="FOLDER",
        help="Captioner that `nulltext train --stage captioner` or `convert-captioner` made; "
        "default: the bundled one, which knows flowers only.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, mps; default: the best there is."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help=f"For the methods that draw noise; default {constants.SEED}."
    ),
]
StudySeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="For the photos and the noise that are drawn.")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="W",
        help="How strongly words steer; default: what the model suggests (flowers: 3), else 7.5.",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Start over, even where an inversion that was broken off can go on."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, the rest elsewhere.")
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Nothing but errors, and what is asked for: words, --json."),
]
BudgetOption = Annotated[
    Budget | None,
    typer.Option(
        "--budget",
        help="How much work null-text may do: sets --method, --steps and --inner-steps; "
        "default balanced, paper is as published.",
    ),
]
NullStartOption = Annotated[
    NullStart | None,
    typer.Option(
        "--null-start",
        help="Where the null embeddings begin: at the prompt's (default), which saves most of the "
        "work, or at the empty prompt's, as published.",
    ),
]
InnerStepsOption = Annotated[
    int | None,
    typer.Option("--inner-steps", metavar="N", help="N where something is optimised: T N steps."),
]

ResumeOption = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh",
        help="Continue what is in OUT, or throw it away; default: continue if there is any.",
    ),
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try rows that failed once more.")
]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Say what it would cost, and do nothing.")
]
