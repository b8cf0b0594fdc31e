"""`nulltext study`: the paper's ablations on a folder of photos, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.captioning.caption_files import note_on_left_out
from nulltext.cli.options import RowOptions, listed, takes_options
from nulltext.cli.report import Reporter, ahead, counted, end_of_rows, make_rows
from nulltext.constants import PivotName, __version__
from nulltext.errors import OptionError
from nulltext.jobs.options import option_field
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.evaluation.datasets import CaptionedPhoto
    from nulltext.evaluation.metrics import Judge
    from nulltext.evaluation.plan import StudyPlan
    from nulltext.evaluation.study import StudySchedule
    from nulltext.jobs.ledger import Book
    from nulltext.models.latent_diffusion import LatentDiffusion


QUICK_PHOTOS = 4


@dataclass(frozen=True)
class StudyOptions(RowOptions):
    """The options of `study`."""

    folder: Path = option_field(
        MISSING,
        "Photos with captions: captions.jsonl, labels.jsonl, COCO, or NAME.txt files.",
        "DIR",
        positional=True,
        kw_only=True,
    )
    output: Path = option_field(Path("study"), "Folder of rows and report.", "OUT", short="-o")
    quick: bool = option_field(False, "Four photos, ten steps: minutes, not to be quoted.")
    limit: int | None = option_field(None, "The first N photos only.", "N")
    sample: int | None = option_field(None, "Draw N photos and a caption of each.", "N")
    methods: str | None = option_field(
        None, "Variants; default: all that any model takes (docs/study.md).", "A,B"
    )
    experiments: str | None = option_field(
        None, "Of reconstruction, captions, guidance, attention, editing; default: all.", "A,B"
    )
    iterations: str | None = option_field(
        None, "Gradients per timestep, the curve's points.", "N,N"
    )
    edits: Path | None = option_field(None, 'JSON lines of {"file", "target", "mask"?}.', "FILE")
    split: str = option_field("validation", "Which photos of a labels.jsonl.")
    clip: str | None = option_field(
        None, "Folder or hub id of CLIP to judge edits; default: the model judges.", "CLIP"
    )
    steps: int | None = option_field(None, "DDIM steps; default 50.", "T")
    guidance: float | None = option_field(None, "Of every replay; default 7.5, the paper's.", "W")
    pivot: PivotName | None = option_field(
        None,
        "What the methods that have the choice invert around: ddim (default), as published, or "
        "fixed-point.",
    )
    workers: int = option_field(1, "Processes that share the photos.", "N")

    def open(self) -> tuple[StudyPlan, list[CaptionedPhoto], list[CaptionedPhoto]]:
        """(plan, all photos, photos to study).

        Raises:
            UserError: an option is out of range, the folder has no photos, or a library is missing.
        """
        from nulltext.errors import require
        from nulltext.evaluation.datasets import read_photos, sample_photos

        plan = self._plan()
        require("skimage.metrics", "study", "The study's SSIM")
        require("matplotlib.figure", "study", "The study's plots")
        if self.resume and not self.output.is_dir():
            raise OptionError(f"There is no '{self.output}' to continue; leave --resume out.")
        all_photos = read_photos(self.folder, split=self.split, edits=self.edits)
        if self.sample is not None:
            all_photos = sample_photos(all_photos, self.sample, self.seed)
        limit = QUICK_PHOTOS if self.quick and self.limit is None else self.limit
        if limit is not None and limit < 1:
            raise OptionError(f"The limit is {limit}; choose 1 photo or more.")
        return plan, all_photos, all_photos[:limit]

    def settings(
        self,
        plan: StudyPlan,
        all_photos: Sequence[CaptionedPhoto],
        model: LatentDiffusion,
        judge: Judge,
    ) -> dict[str, Any]:
        """What all rows of a folder have in common; the rest only chooses among rows."""
        from nulltext.evaluation.datasets import photos_digest

        return {
            "nulltext": __version__,
            "model": f"{model.name} ({model.fingerprint[:8]})",
            "dtype": str(model.network.dtype).removeprefix("torch."),
            "steps T": plan.num_steps,
            "guidance w": plan.guidance_scale,
            "pivot": plan.pivot,
            "N beyond the curve": plan.inner_steps,
            "strengths": list(plan.strengths),
            "seed": plan.seed,
            "judge of edits": judge.name,
            "photos and captions": photos_digest(all_photos),
        }

    def without_edits(self, items: Sequence[CaptionedPhoto]) -> str:
        """What to tell about photos that have no edit prompt; empty if all have one."""
        missing = sum(item.target is None for item in items)
        if not missing:
            return ""
        return (
            f"{missing} of {len(items)} photos have no edit prompt, so no rows of editing; "
            'give some with --edits FILE, lines of {"file": …, "target": …}.'
        )

    def _plan(self) -> StudyPlan:
        from nulltext.evaluation.plan import EXPERIMENTS, QUICK, STANDARD, check_variants

        given: dict[str, Any] = {"seed": self.seed}
        if self.steps is not None:
            given["num_steps"] = self.steps
        if self.guidance is not None:
            given["guidance_scale"] = self.guidance
        if self.pivot is not None:
            given["pivot"] = self.pivot
        if self.iterations is not None:
            given["iterations"] = tuple(sorted(set(listed(self.iterations, "iterations", int))))
        if self.methods is not None:
            given["variants"] = check_variants(listed(self.methods, "methods", str))
        if self.experiments is not None:
            named = listed(self.experiments, "experiments", str)
            unknown = [name for name in named if name not in EXPERIMENTS]
            given["experiments"] = tuple(unknown + [n for n in EXPERIMENTS if n in named])
        return replace(QUICK if self.quick else STANDARD, **given)


@takes_options
def study(options: StudyOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Rerun the paper's ablations on your photos: rows, table, curves, report.

    Example: [bold]nulltext study photos/ -o study --quick[/bold]

    It may be stopped at any moment: the same command continues where it stopped. Exit code: 0 all
    rows done; 2 some failed, all for bad input; 1 some for another reason.
    """
    plan, all_photos, items = options.open()
    from nulltext.cli.work import open_model
    from nulltext.evaluation.metrics import load_judge
    from nulltext.evaluation.plan import DDIM_PIVOT
    from nulltext.evaluation.rows import failed_rows, finished_keys, open_results
    from nulltext.evaluation.study import (
        StudyWorker,
        parallel_study_steps,
        plan_study,
        study_steps,
    )
    from nulltext.models.fingerprint import spellings

    if options.workers < 1:
        raise OptionError(f"--workers is {options.workers}; choose 1 or more.")

    loaded = open_model(reporter, chosen)
    loaded.grid(plan.num_steps)  # refuses a number of steps that there is not
    judge = load_judge(options.clip, loaded, plan.seed)
    settings = options.settings(plan, all_photos, loaded, judge)
    older, output = spellings(settings, loaded.fingerprints), options.output
    if plan.pivot == DDIM_PIVOT:  # a folder made before there was a choice does not name it
        older += [{name: one[name] for name in one if name != "pivot"} for one in older]
    fresh, retry_failed = options.fresh, options.retry_failed
    if options.estimate:
        done = finished_keys(output, settings, older, fresh=fresh, retry_failed=retry_failed)
        schedule = plan_study(items, all_photos, plan, done, judge.unet_evaluations)
        _estimate(reporter, schedule, len(items))
        return
    _note_prompts(reporter, loaded, items)
    with open_results(output, settings, fresh=fresh, older=older) as book:
        if retry_failed:
            book.forget_failed()
        schedule = plan_study(items, all_photos, plan, book.keys, judge.unet_evaluations)
        reporter.note(ahead(schedule, len(items), "photo"))
        if options.without_edits(items):
            reporter.note("Note: " + options.without_edits(items))
        if left_out := note_on_left_out(options.folder):
            reporter.note(left_out)
        steps = study_steps(loaded, schedule, plan, book, judge)
        worker = StudyWorker(chosen, options.clip, plan, output)
        if options.workers > 1:
            steps = parallel_study_steps(worker, options.workers, schedule, book)
        make_rows(reporter, steps, book, schedule.all_rows)
        _hand_over(reporter, book, settings, schedule)
    end_of_rows(reporter, failed_rows(book.rows, schedule.keys))


def _note_prompts(
    reporter: Reporter, model: LatentDiffusion, items: Sequence[CaptionedPhoto]
) -> None:
    from nulltext.models.prompt_notes import notes_on_writing
    from nulltext.words.prompts import SHOWN_WORDS

    changes = [(item.captions[0], item.target) for item in items if item.target is not None]
    prompts = [*(item.captions[0] for item in items), *(target for _, target in changes)]
    for note in notes_on_writing(model, prompts, changes)[:SHOWN_WORDS]:
        reporter.note(note)


def _estimate(reporter: Reporter, schedule: StudySchedule, photos: int) -> None:
    found = {
        "photos": photos,
        "rows": schedule.all_rows,
        "unet_evaluations": schedule.evaluations,
    }
    reporter.answer(found, [ahead(schedule, photos, "photo")])


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
