"""The options that `nulltext edit` alone has; see `options` for those it shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nulltext import constants
from nulltext.constants import EditorName

ImageArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[IMAGE]", help="The photo; may be left out with --inversion."),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="What the photo shows, in words; auto: ask a captioner."),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", help="What it shall show instead; may be repeated."),
]
ThenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--then",
        metavar="TARGET",
        help="The next edit, starting from the one before; the whole prompt; may be repeated.",
    ),
]
ThenStrengthOption = Annotated[
    float | None,
    typer.Option(
        "--then-strength",
        metavar="S",
        help="How far each --then may go from the picture before it; default: as far as the first.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT.png",
        help="Default: IMAGE's name-edited.png; several pictures add -1, -2, …",
    ),
]
StripOption = Annotated[
    Path | None,
    typer.Option(
        "--strip",
        metavar="STRIP.png",
        help="Also photo, bound, reconstruction, edits in a row.",
    ),
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Paste the edit back into the photo at its own size.")
]
KeepGpsOption = Annotated[
    bool,
    typer.Option(
        "--keep-gps",
        help="Write where the photo was taken into the result, too; date, exposure, kind of camera "
        "and lens, author and copyright are always kept, comments and serial numbers never.",
    ),
]
EditorOption = Annotated[
    EditorName,
    typer.Option(
        "--editor",
        help="prompt-to-prompt changes what things are and keeps their shapes; masactrl changes "
        "shapes and keeps the look.",
    ),
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weight", metavar="WORD=FACTOR", help="Stress a word of the target: yellow=2, red=-1."
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="S",
        help="How far the edit may go: 0 the reconstruction (with --full, the "
        "photo), 0.5 the default, 1 the words alone.",
    ),
]
TargetGuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--target-guidance",
        metavar="W",
        help="How strongly the target's words steer; the photo's own stay as inverted.",
    ),
]
SweepOption = Annotated[
    Path | None,
    typer.Option(
        "--sweep",
        metavar="GRID.png",
        help="Also a labelled grid over one knob or two (--over); default: strengths 0 to 1.",
    ),
]
OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="KNOB=VALUES",
        help="What --sweep varies: strength=0:1:5 (five values) or cross=0,0.5,1; a second --over "
        "goes down the grid. Knobs: strength, cross, self, masa-start, masa-layer, "
        "target-guidance.",
    ),
]
CrossStepsOption = Annotated[
    float | None,
    typer.Option(
        "--cross-steps",
        help=f"Fraction of steps in which words keep their place; default {constants.CROSS_STEPS}.",
    ),
]
SelfStepsOption = Annotated[
    float | None,
    typer.Option(
        "--self-steps",
        help=f"Fraction of steps in which shapes are kept; default {constants.SELF_STEPS}.",
    ),
]
MasaStartOption = Annotated[
    float | None,
    typer.Option(
        "--masa-start",
        metavar="S",
        help="masactrl: fraction of steps in which the words alone lay out the picture; default "
        f"{constants.MASA_START}.",
    ),
]
MasaLayerOption = Annotated[
    float | None,
    typer.Option(
        "--masa-layer",
        metavar="L",
        help="masactrl: share of the self-attention layers that keep to themselves; default "
        f"{constants.MASA_LAYER}.",
    ),
]
MasaWordOption = Annotated[
    list[str] | None,
    typer.Option(
        "--masa-word",
        metavar="WORD",
        help="masactrl: the word for the foreground, which is copied from the source's foreground, "
        "as the background is from its background; may be repeated.",
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="White where the photo may change; of its proportions; an image or .npy.",
    ),
]
BlendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--blend", metavar="WORD", help="Change only where this word looks; may be repeated."
    ),
]
BlendExceptOption = Annotated[
    list[str] | None,
    typer.Option("--blend-except", metavar="WORD", help="But not where this word looks."),
]
BlendThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--blend-threshold",
        help="0 to 1; higher keeps the change of a --blend smaller; default "
        f"{constants.BLEND_THRESHOLD}.",
    ),
]
InversionOption = Annotated[
    Path | None,
    typer.Option("--inversion", metavar="FILE", help="A saved inversion: no need to invert."),
]
SaveInversionOption = Annotated[
    Path | None,
    typer.Option("--save-inversion", metavar="FILE", help="Keep the inversion for later."),
]
