"""`nulltext VERB`: the application, its verbs, and the border where errors become exit codes.

A mistake is one sentence on standard error. Nothing here imports torch: verbs do that once it is
clear that they have work to do, so that help and most mistakes are answered at once.
"""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from nulltext.cli import EXIT_INTERRUPTED, EXIT_OURS, EXIT_USER
from nulltext.cli.batch import OptionalAddress, batch
from nulltext.cli.benchmark import benchmark
from nulltext.cli.caption import caption, convert_captioner
from nulltext.cli.doctor import doctor
from nulltext.cli.edit import edit
from nulltext.cli.inversions import attention, inspect, invert, replay
from nulltext.cli.options import KnowsRemoved
from nulltext.cli.report import LogLevel, open_streams, show_logs, unwritten, visible
from nulltext.cli.studio import studio
from nulltext.cli.study import study
from nulltext.cli.train import train
from nulltext.constants import __version__
from nulltext.errors import NulltextError, UserError, reason_of

app = typer.Typer(
    name="nulltext",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=KnowsRemoved)(edit)
app.command(cls=KnowsRemoved)(invert)
app.command()(replay)
app.command()(inspect)
app.command()(attention)
app.command()(study)
app.command(cls=OptionalAddress)(batch)
app.command()(caption)
app.command()(studio)
app.command()(train)
app.command()(doctor)
app.add_typer(benchmark, name="benchmark")
app.command("convert-captioner")(convert_captioner)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nulltext {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            help="Say on standard error what each stage does and how long it takes: info, debug; "
            "before the verb.",
        ),
    ] = None,
) -> None:
    """Edit a real photograph by changing the words that describe it.

    Example: [bold]nulltext edit photo.jpg --source "a photo of an orange flower"
    --target "a photo of a white daisy" -o daisy.png[/bold]
    """
    if log_level is not None:
        show_logs(log_level)


def main() -> None:
    """Run the command line; the console script's entry.

    The garbage collector rests while libraries and model are loaded, whose objects stay to the end
    (`open_model` wakes it): looking through them again and again is a quarter of the start.
    """
    open_streams()
    gc.disable()
    code: str | int | None = None
    try:
        app(standalone_mode=True)
    except NulltextError as error:
        _complain(str(error))
        code = EXIT_USER if isinstance(error, UserError) else EXIT_OURS
    except SystemExit as stop:  # the framework turns Ctrl-C into this
        code = stop.code
        if code == EXIT_INTERRUPTED:
            sys.stderr.write("Interrupted; files that were finished before are whole.\n")
    finally:
        gc.enable()
    lost = unwritten()
    if lost is not None:
        _complain(
            f"Standard output does not take what is written to it ({reason_of(lost)}); files that "
            "were finished are whole."
        )
    sys.exit(code or (None if lost is None else EXIT_OURS))


def _complain(problem: str) -> None:
    sys.stderr.write(f"Error: {visible(problem)}\n")


if __name__ == "__main__":
    main()
