"""`nulltext study`: the paper's ablations on a folder of photos, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nulltext import constants
from nulltext.captioning.caption_files import note_on_left_out
from nulltext.cli.exit_codes import end_of_rows
from nulltext.cli.model_options import CHOICE, takes_model
from nulltext.cli.options import (
    EstimateOption,
    JsonOption,
    QuietOption,
    ResumeOption,
    RetryFailedOption,
    StudySeedOption,
)
from nulltext.cli.report import Reporter, ahead, counted
from nulltext.cli.row_bars import make_rows
from nulltext.cli.study_request import StudyRequest
from nulltext.errors import OptionError
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.evaluation.datasets import CaptionedPhoto
    from nulltext.evaluation.study import StudySchedule
    from nulltext.jobs.ledger import Book
    from nulltext.models.latent_diffusion import LatentDiffusion


@takes_model
def study(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Photos with captions: captions.jsonl, labels.jsonl, COCO, or NAME.txt files.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Folder of rows and report.")
    ] = Path("study"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Four photos, ten steps: minutes, not to be quoted.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="The first N photos only.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", help="Draw N photos and a caption of each."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B", help="Variants; default: all (docs/study.md)."),
    ] = None,
    experiments: Annotated[
        str | None,
        typer.Option(
            "--experiments",
            metavar="A,B",
            help="Of reconstruction, captions, guidance, attention, editing; default: all.",
        ),
    ] = None,
    iterations: Annotated[
        str | None,
        typer.Option(
            "--iterations", metavar="N,N", help="Gradients per timestep, the curve's points."
        ),
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", metavar="FILE", help='JSON lines of {"file", "target", "mask"?}.'),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Which photos of a labels.jsonl.")
    ] = "validation",
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="CLIP",
            help="Folder or hub id of CLIP to judge edits; default: the model judges.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="T", help="DDIM steps; default 50.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", metavar="W", help="Of every replay; default 7.5, the paper's."),
    ] = None,
    resume: ResumeOption = None,
    retry_failed: RetryFailedOption = False,
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="N", help="Processes that share the photos."),
    ] = 1,
    estimate: EstimateOption = False,
    chosen: ModelChoice = CHOICE,
    seed: StudySeedOption = constants.SEED,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rerun the paper's ablations on your photos: rows, table, curves, report.

    Example: [bold]nulltext study photos/ -o study --quick[/bold]

    It may be stopped at any moment: the same command continues where it stopped. Exit code: 0 all
    rows done; 2 some failed, all for bad input; 1 some for another reason.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    request = StudyRequest(
        *(folder, output, quick, limit, sample, methods, experiments, iterations),
        *(edits, split, clip, steps, guidance, resume, seed),
    )
    plan, all_photos, items = request.open()
    from nulltext.cli.work import open_model
    from nulltext.evaluation.judges import load_judge
    from nulltext.evaluation.rows import failed_rows, finished_keys, open_results
    from nulltext.evaluation.study import (
        StudyWorker,
        parallel_study_steps,
        plan_study,
        study_steps,
    )
    from nulltext.models.fingerprint import spellings

    if workers < 1:
        raise OptionError(f"--workers is {workers}; choose 1 or more.")
    loaded = open_model(reporter, chosen)
    loaded.schedule.timesteps(plan.num_steps)  # refuses a number of steps that there is not
    judge = load_judge(clip, loaded, plan.seed)
    settings = request.settings(plan, all_photos, loaded, judge)
    older, fresh = spellings(settings, loaded.fingerprints), resume is False
    if estimate:
        done = finished_keys(output, settings, older, fresh=fresh, retry_failed=retry_failed)
        schedule = plan_study(items, all_photos, plan, done, judge.unet_evaluations)
        _estimate(reporter, schedule, len(items))
        return
    _note_prompts(reporter, loaded, items)
    with open_results(output, settings, fresh=fresh, older=older) as book:
        if retry_failed:
            book.forget_failed()
        schedule = plan_study(items, all_photos, plan, book.keys, judge.unet_evaluations)
        reporter.note(_said(schedule, len(items)))
        if request.without_edits(items):
            reporter.note("Note: " + request.without_edits(items))
        if left_out := note_on_left_out(folder):
            reporter.note(left_out)
        if workers == 1:
            steps_of = study_steps(loaded, schedule, plan, book, judge)
        else:
            worker = StudyWorker(chosen, clip, plan, output)
            steps_of = parallel_study_steps(worker, workers, schedule, book)
        make_rows(reporter, steps_of, book, schedule.all_rows)
        _hand_over(reporter, book, settings, schedule)
    end_of_rows(reporter, failed_rows(book.rows, schedule.keys))


def _note_prompts(
    reporter: Reporter, model: LatentDiffusion, items: Sequence[CaptionedPhoto]
) -> None:
    """Say what is odd about the first captions and the edits of photos, a few times at most."""
    from nulltext.models.prompt_notes import notes_on_writing
    from nulltext.words.prompts import SHOWN_WORDS

    changes = [(item.captions[0], item.target) for item in items if item.target is not None]
    prompts = [*(item.captions[0] for item in items), *(target for _, target in changes)]
    for note in notes_on_writing(model, prompts, changes)[:SHOWN_WORDS]:
        reporter.note(note)


def _estimate(reporter: Reporter, schedule: StudySchedule, photos: int) -> None:
    """What it would cost."""
    found = {
        "photos": photos,
        "rows": schedule.all_rows,
        "unet_evaluations": schedule.evaluations,
    }
    reporter.answer(found, [_said(schedule, photos)])


def _said(schedule: StudySchedule, photos: int) -> str:
    """What is ahead, in one line."""
    done = schedule.all_rows - schedule.open_rows
    return ahead(counted(photos, "photo"), schedule.all_rows, done, schedule.evaluations)


def _hand_over(
    reporter: Reporter, book: Book, settings: Mapping[str, Any], schedule: StudySchedule
) -> None:
    """Write summary, plots and report, and say where they are.

    Rows stand in the plan's order, in whichever they were made; those of earlier plans come last.
    """
    from nulltext.evaluation.report import publish
    from nulltext.evaluation.rows import failed_rows, key_of
    from nulltext.jobs.ledger import ROWS

    places = {key: place for place, key in enumerate(schedule.keys)}
    rows = sorted(book.rows, key=lambda row: places.get(key_of(row), len(places)))
    with reporter.busy("Writing the report …"):
        files = publish(book.folder, settings, rows)
    failed = len(failed_rows(book.rows, schedule.keys))
    result = {
        "rows": len(book.rows),
        "asked": schedule.all_rows,
        "failed": failed,
        "results": str(book.folder / ROWS),
        "report": str(files[0]),
        "files": [str(file) for file in files[1:]],
    }
    lines = [f"{counted(len(book.rows), 'row')} in {book.folder / ROWS}.", f"Report: {files[0]}"]
    if failed:
        lines.insert(
            1, f"{counted(failed, 'row')} failed; the report says why, --retry-failed tries again."
        )
    reporter.result(result, lines)
