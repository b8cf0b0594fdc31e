"""`nulltext benchmark`: published benchmarks, each a verb of its own; PIE-Bench is the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nulltext.cli.options import RowOptions, listed, takes_options
from nulltext.cli.report import Reporter, ahead, counted, end_of_rows, make_rows
from nulltext.constants import __version__
from nulltext.errors import ModelError, OptionError
from nulltext.jobs.options import OPTIONS, option_field
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.evaluation.pie import PieItem, Protocol
    from nulltext.evaluation.pie_metrics import Networks
    from nulltext.evaluation.rows import Schedule
    from nulltext.jobs.ledger import Book
    from nulltext.models.latent_diffusion import LatentDiffusion

benchmark = typer.Typer(no_args_is_help=True)


@benchmark.callback()
def root() -> None:
    """Run a published benchmark on your model: [bold]nulltext benchmark pie DIR[/bold]."""


@dataclass(frozen=True)
class PieOptions(RowOptions):
    """The options of `benchmark pie`."""

    folder: Path = option_field(
        MISSING,
        "PIE-Bench: mapping_file.json and annotation_images/ (docs/pie.md).",
        "DIR",
        positional=True,
        kw_only=True,
    )
    output: Path = option_field(Path("pie"), "Folder of rows and report.", "OUT", short="-o")
    methods: str | None = option_field(
        None,
        "Inversion methods; default: fixed-point,ddim,null-text,negative-prompt,direct.",
        "A,B",
    )
    categories: str | None = option_field(None, "Types of edits, 0 to 9; default: all.", "0,9")
    limit: int | None = option_field(None, "The first N edits only.", "N")
    dino: str | None = option_field(
        None,
        "Folder or hub id for the structure distance, or none; default: facebook/dino-vitb8 "
        "if it is here already.",
        "VIT",
    )
    clip: str | None = option_field(
        None,
        "Folder or hub id of CLIP, or none; default: openai/clip-vit-large-patch14 if it is "
        "here already.",
        "CLIP",
    )
    lpips: Path | None = option_field(None, "LPIPS weights, safetensors (docs/pie.md).", "FILE")
    steps: int | None = option_field(None, "DDIM steps; the protocol has 50.", "T")
    inner_steps: int | None = option_field(None, OPTIONS["inner_steps"].help, "N")

    def open(self) -> tuple[list[PieItem], list[PieItem]]:
        """(all edits of the folder, those to run).

        Raises:
            UserError: an option is out of range, the folder is no PIE-Bench, or a library is
                missing.
        """
        from nulltext.errors import require
        from nulltext.evaluation.pie import read_pie, select_categories

        require("skimage.metrics", "study", "The benchmark's SSIM")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"The limit is {self.limit}; choose 1 edit or more.")
        if self.resume and not self.output.is_dir():
            raise OptionError(f"There is no '{self.output}' to continue; leave --resume out.")
        if self.lpips is not None and not self.lpips.is_file():
            raise ModelError(f"There is no file '{self.lpips}'; docs/pie.md says how to write it.")
        self.protocol()
        self.lines()
        everything = read_pie(self.folder)
        items = everything
        if self.categories is not None:
            items = select_categories(items, listed(self.categories, "categories", str))
        return everything, items[: self.limit]

    def protocol(self) -> Protocol:
        from nulltext.evaluation.pie import Protocol

        given: dict[str, Any] = {"seed": self.seed, "inner_steps": self.inner_steps}
        if self.steps is not None:
            given["num_steps"] = self.steps
        return Protocol(**given)

    def lines(self) -> tuple[str, ...]:
        from nulltext.evaluation.pie import METHODS
        from nulltext.inversion.registry import method_named

        if self.methods is None:
            return METHODS
        names = dict.fromkeys(listed(self.methods, "methods", str))
        for name in names:
            method_named(name)
        return tuple(names)

    def settings(
        self,
        everything: Sequence[PieItem],
        model: LatentDiffusion,
        protocol: Protocol,
        networks: Networks,
    ) -> dict[str, Any]:
        """What all rows of a folder have in common; the rest only chooses among rows."""
        from nulltext.evaluation.pie import items_digest

        height, width = model.resolution
        return {
            "nulltext": __version__,
            "benchmark": "PIE-Bench",
            "model": f"{model.name} ({model.fingerprint[:8]})",
            "size": f"{width} x {height} px",
            "dtype": str(model.network.dtype).removeprefix("torch."),
            **{name.replace("_", " "): value for name, value in asdict(protocol).items()},
            **networks.names,
            "edits": items_digest(everything),
        }


@benchmark.command()
@takes_options
def pie(options: PieOptions, chosen: ModelChoice, reporter: Reporter) -> None:
    """Run PIE-Bench: its edits by several inversions, its eight metrics, published figures beside.

    Example: [bold]nulltext benchmark pie PIE-Bench_v1/ --model CompVis/stable-diffusion-v1-4
    --methods null-text,direct --limit 20[/bold]

    It may be stopped at any moment: the same command continues where it stopped. Exit code: 0 all
    rows done; 2 some failed, all for bad input; 1 some for another reason.
    """
    everything, items = options.open()
    protocol, lines = options.protocol(), options.lines()
    from nulltext.cli.work import open_model
    from nulltext.evaluation.pie import pie_steps, plan_pie
    from nulltext.evaluation.pie_metrics import load_networks
    from nulltext.evaluation.rows import failed_rows, finished_keys, open_results
    from nulltext.models.fingerprint import spellings

    loaded = open_model(reporter, chosen)
    output, fresh, retry_failed = options.output, options.fresh, options.retry_failed
    loaded.grid(protocol.num_steps)  # refuses a number of steps that there is not
    if options.estimate and (fresh or not output.is_dir()):  # needs no networks
        _estimate(reporter, plan_pie(items, lines, protocol, ()), len(items))
        return
    with reporter.busy("Loading the networks of the metrics …"):
        networks = load_networks(options.dino, options.clip, options.lpips, loaded.device)
    settings = options.settings(everything, loaded, protocol, networks)
    older = spellings(settings, loaded.fingerprints)
    if options.estimate:
        done = finished_keys(output, settings, older, fresh=fresh, retry_failed=retry_failed)
        _estimate(reporter, plan_pie(items, lines, protocol, done), len(items))
        return
    with open_results(output, settings, fresh=fresh, older=older) as book:
        if retry_failed:
            book.forget_failed()
        schedule = plan_pie(items, lines, protocol, book.keys)
        reporter.note(ahead(schedule, len(items), "edit"))
        for reason in networks.missing.values():
            reporter.note(f"Note: a metric will be missing: {reason}.")
        if protocol.deviations:
            reporter.note(f"Note: not the published protocol: {'; '.join(protocol.deviations)}.")
        steps_of = pie_steps(loaded, schedule, book, networks)
        make_rows(reporter, steps_of, book, schedule.all_rows)
        _hand_over(reporter, book, settings, schedule, protocol.deviations)
    end_of_rows(reporter, failed_rows(book.rows, schedule.keys))


def _estimate(reporter: Reporter, schedule: Schedule[PieItem], edits: int) -> None:
    found = {"edits": edits, "rows": schedule.all_rows, "unet_evaluations": schedule.evaluations}
    reporter.answer(found, [ahead(schedule, edits, "edit")])


def _hand_over(
    reporter: Reporter,
    book: Book,
    settings: Mapping[str, Any],
    schedule: Schedule[PieItem],
    deviations: list[str],
) -> None:
    from nulltext.evaluation.pie_report import (
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
