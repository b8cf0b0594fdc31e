"""`nulltext benchmark`: published benchmarks, each a verb of its own; PIE-Bench is the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nulltext.cli.exit_codes import end_of_rows
from nulltext.cli.model_options import CHOICE, takes_model
from nulltext.cli.options import (
    EstimateOption,
    InnerStepsOption,
    JsonOption,
    QuietOption,
    ResumeOption,
    RetryFailedOption,
    StudySeedOption,
)
from nulltext.cli.pie_request import PieRequest
from nulltext.cli.report import Reporter, ahead, counted
from nulltext.cli.row_bars import make_rows
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.evaluation.pie.dataset import PieItem
    from nulltext.evaluation.pie.metrics import Networks
    from nulltext.evaluation.rows import Schedule
    from nulltext.jobs.ledger import Book

benchmark = typer.Typer(no_args_is_help=True)


@benchmark.callback()
def root() -> None:
    """Run a published benchmark on your model: [bold]nulltext benchmark pie DIR[/bold]."""


@benchmark.command()
@takes_model
def pie(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="PIE-Bench: mapping_file.json and annotation_images/ (docs/pie.md)."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Folder of rows and report.")
    ] = Path("pie"),
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B",
            help="Inversion methods; default: ddim,null-text,negative-prompt,direct.",
        ),
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option("--categories", metavar="0,9", help="Types of edits, 0 to 9; default: all."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="The first N edits only.")
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(
            "--dino",
            metavar="VIT",
            help="Folder or hub id for the structure distance, or none; default: "
            "facebook/dino-vitb8 if it is here already.",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="CLIP",
            help="Folder or hub id of CLIP, or none; default: openai/clip-vit-large-patch14 if it "
            "is here already.",
        ),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option("--lpips", metavar="FILE", help="LPIPS weights, safetensors (docs/pie.md)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="T", help="DDIM steps; the protocol has 50."),
    ] = None,
    inner_steps: InnerStepsOption = None,
    resume: ResumeOption = None,
    retry_failed: RetryFailedOption = False,
    estimate: EstimateOption = False,
    chosen: ModelChoice = CHOICE,
    seed: StudySeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run PIE-Bench: its edits by several inversions, its eight metrics, published figures beside.

    Example: [bold]nulltext benchmark pie PIE-Bench_v1/ --model CompVis/stable-diffusion-v1-4
    --methods null-text,direct --limit 20[/bold]

    It may be stopped at any moment: the same command continues where it stopped. Exit code: 0 all
    rows done; 2 some failed, all for bad input; 1 some for another reason.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    request = PieRequest(
        *(folder, output, methods, categories, limit, dino, clip, lpips, steps, inner_steps),
        *(resume, seed),
    )
    everything, items = request.open()
    protocol, lines = request.protocol(), request.lines()
    from nulltext.cli.work import open_model
    from nulltext.evaluation.pie.benchmark import pie_steps, plan_pie
    from nulltext.evaluation.rows import failed_rows, finished_keys, open_results
    from nulltext.models.fingerprint import spellings

    loaded = open_model(reporter, chosen)
    fresh = resume is False
    loaded.schedule.timesteps(protocol.num_steps)  # refuses a number of steps that there is not
    if estimate and (fresh or not output.is_dir()):  # needs no networks
        _estimate(reporter, plan_pie(items, lines, protocol, ()), len(items))
        return
    with reporter.busy("Loading the networks of the metrics …"):
        networks = request.networks(loaded)
    settings = request.settings(everything, loaded, protocol, networks)
    older = spellings(settings, loaded.fingerprints)
    if estimate:
        done = finished_keys(output, settings, older, fresh=fresh, retry_failed=retry_failed)
        _estimate(reporter, plan_pie(items, lines, protocol, done), len(items))
        return
    with open_results(output, settings, fresh=fresh, older=older) as book:
        if retry_failed:
            book.forget_failed()
        schedule = plan_pie(items, lines, protocol, book.keys)
        reporter.note(_said(schedule, len(items)))
        _remarks(reporter, networks, protocol.deviations)
        steps_of = pie_steps(loaded, schedule, book, networks)
        make_rows(reporter, steps_of, book, schedule.all_rows)
        _hand_over(reporter, book, settings, schedule, protocol.deviations)
    end_of_rows(reporter, failed_rows(book.rows, schedule.keys))


def _estimate(reporter: Reporter, schedule: Schedule[PieItem], edits: int) -> None:
    """What it would cost."""
    found = {"edits": edits, "rows": schedule.all_rows, "unet_evaluations": schedule.evaluations}
    reporter.answer(found, [_said(schedule, edits)])


def _said(schedule: Schedule[PieItem], edits: int) -> str:
    """What is ahead, in one line."""
    done = schedule.all_rows - schedule.open_rows
    return ahead(counted(edits, "edit"), schedule.all_rows, done, schedule.evaluations)


def _remarks(reporter: Reporter, networks: Networks, deviations: list[str]) -> None:
    """What the figures will lack, before hours are spent on them."""
    for reason in networks.missing.values():
        reporter.note(f"Note: a metric will be missing: {reason}.")
    if deviations:
        reporter.note(f"Note: not the published protocol: {'; '.join(deviations)}.")


def _hand_over(
    reporter: Reporter,
    book: Book,
    settings: Mapping[str, Any],
    schedule: Schedule[PieItem],
    deviations: list[str],
) -> None:
    """Write summary and page, and print the table."""
    from nulltext.evaluation.pie.report import (
        PUBLISHED_SOURCE,
        by_category,
        overall,
        publish,
        to_json,
        to_text,
    )
    from nulltext.evaluation.rows import failed_rows
    from nulltext.jobs.ledger import ROWS

    with reporter.busy("Writing the report …"):
        files = publish(book.folder, settings, book.rows)
    lines = overall(book.rows)
    failed = len(failed_rows(book.rows, schedule.keys))
    result = {
        "rows": len(book.rows),
        "asked": schedule.all_rows,
        "failed": failed,
        "table": to_json(lines),
        "by_category": to_json(by_category(book.rows)),
        "published_source": PUBLISHED_SOURCE,
        "deviations": deviations,
        "results": str(book.folder / ROWS),
        "report": str(files[0]),
        "files": [str(file) for file in files[1:]],
    }
    said = [*to_text(lines), f"{counted(len(book.rows), 'row')} in {book.folder / ROWS}."]
    said += [f"{counted(failed, 'row')} failed; --retry-failed tries again."] if failed else []
    reporter.result(result, [*said, f"Report: {files[0]}"])
