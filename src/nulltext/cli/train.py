"""`nulltext train`: from captioned photos to a model to edit with."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nulltext.captioning.caption_files import note_on_left_out
from nulltext.cli.options import device_field, takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.jobs.options import option_field
from nulltext.storage.files import LOCK, lock_folder, output_error

if TYPE_CHECKING:
    from rich.progress import TaskID

    from nulltext.training.loop import TrainInfo
    from nulltext.training.stages import TrainingRun

SHOWN_EVERY = 0.5
"""Seconds between two updates of the figures beside the bar."""


class Stage(StrEnum):
    """Names of the stages (a test keeps them equal to the registry's)."""

    AUTOENCODER = "autoencoder"
    DECODER = "decoder"
    DENOISER = "denoiser"
    FLOW = "flow"
    EXPORT = "export"
    CAPTIONER = "captioner"


@dataclass(frozen=True)
class TrainOptions:
    """The options of `train`."""

    photos: Path = option_field(
        MISSING,
        "Photos with labels.jsonl, captions.jsonl, or a .txt beside each photo.",
        "DIR",
        positional=True,
    )
    output: Path = option_field(MISSING, "Folder of the new model.", "MODEL", short="-o")
    config: str = option_field("flowers", "Name of a recipe, or a JSON file.", "RECIPE")
    stage: tuple[Stage, ...] = option_field(
        (), "Only this stage; may be repeated. Default: all that the recipe's model takes."
    )
    resume: bool | None = option_field(
        None, "Continue from the checkpoints, or begin anew.", flags="--resume/--fresh"
    )
    init: str | None = option_field(
        None, "Begin from this model's weights; some recipes need one.", "MODEL"
    )
    vision: Path | None = option_field(
        None,
        "With --stage captioner: begin from this CLIP vision model or EfficientNet.",
        "DIR",
    )
    device: str | None = device_field()
    autocast: Literal["auto", "bfloat16", "off"] = option_field(
        "auto", "Precision of products; auto: bfloat16 where it is fast."
    )

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages to run."""
        from nulltext.training.recipe import load_recipe

        return self.stage or [Stage(name) for name in load_recipe(self.config).stages]

    @property
    def captioner(self) -> Path:
        """The captioner's folder, beside the model's."""
        return self.output.with_name(f"{self.output.name}-{Stage.CAPTIONER}")

    def open(self) -> TrainingRun:
        """Find and read all that the options name, before anything is changed."""
        from nulltext.models.load import find_device, load
        from nulltext.training.captioner import PretrainedVision
        from nulltext.training.loop import autocast_dtype
        from nulltext.training.recipe import load_recipe
        from nulltext.training.stages import TrainingRun

        if self.vision is not None and Stage.CAPTIONER not in self.stages:
            raise OptionError("--vision is for a captioner: give --stage captioner too.")
        if not self.output.name:
            raise OptionError(
                f"'{self.output}' names no folder of its own; give -o a name for the model."
            )
        device = find_device(self.device)
        return TrainingRun(
            recipe=load_recipe(self.config),
            photos=self.photos,
            folder=self.output.with_name(f"{self.output.name}.training"),
            device=device,
            autocast=autocast_dtype(self.autocast, device),
            origin=None if self.init is None else load(self.init, device="cpu"),
            vision=None if self.vision is None else PretrainedVision.load(self.vision),
        )


@takes_options
def train(options: TrainOptions, reporter: Reporter) -> None:
    """Make a small text-to-image model from photos and their captions.

    Checkpoints and sample pictures go to MODEL.training; after an interruption, --resume continues
    from there, also with other stages already done.

    Example: [bold]nulltext train photos/ -o my-flowers --config flowers[/bold]

    A captioner: [bold]nulltext train photos/ -o my-flowers --stage captioner --vision DIR[/bold]
    """
    training = options.open()
    trained, held_out = training.splits
    _check_outputs(training, options)
    values: dict[str, object] = {"model": None}
    with _prepared(training.folder, options.resume):
        reporter.note(f"{len(trained)} photos to train on, {len(held_out)} held out.")
        if left_out := note_on_left_out(options.photos):
            reporter.note(left_out)
        from nulltext.training.stages import STAGES

        started = time.monotonic()
        for name, run in STAGES.items():
            if name in options.stages:
                _with_bars(reporter, run(training))
        values["seconds"] = round(time.monotonic() - started, 1)
        lines = _write(reporter, training, options, values)
    reporter.result(values, lines or [f"Checkpoints and samples are in {training.folder}"])


def _check_outputs(training: TrainingRun, options: TrainOptions) -> None:
    """Refuse models and captioners that cannot be written, before hours are spent."""
    if Stage.EXPORT in options.stages:
        from nulltext.training.export import check_output

        check_output(options.output, training.recipe)
    if training.recipe.makes == "flow":
        training.teacher()
    elif set(options.stages) != {Stage.CAPTIONER}:
        from nulltext.training.stages import check_origin

        check_origin(training.recipe, training.origin)
    if Stage.CAPTIONER in options.stages:
        from nulltext.captioning.folder import check_captioner_target
        from nulltext.training.captioner import preprocessing_for

        check_captioner_target(options.captioner)
        preprocessing_for(training.recipe.captioner, training.vision)


def _write(
    reporter: Reporter, training: TrainingRun, options: TrainOptions, values: dict[str, object]
) -> list[str]:
    """Write model and captioner; adds them to `values`, returns what to print."""
    lines: list[str] = []
    if Stage.EXPORT in options.stages:
        from nulltext.training.export import export_model

        with reporter.busy("Writing the model …"):
            export_model(training, options.output, commit=commit_of())
        values["model"] = str(options.output)
        lines += [
            f"Saved the model {options.output}",
            f'Next: nulltext edit PHOTO --source "…" --target "…" --model '
            f"{shlex.quote(str(options.output))}",
        ]
    if Stage.CAPTIONER in options.stages:
        from nulltext.training.export import export_captioner

        with reporter.busy("Writing the captioner …"):
            export_captioner(training, options.captioner)
        values["captioner"] = str(options.captioner)
        lines += [
            f"Saved the captioner {options.captioner}",
            f"Next: nulltext caption PHOTO --captioner {shlex.quote(str(options.captioner))}",
        ]
    return lines


@contextmanager
def _prepared(folder: Path, resume: bool | None) -> Iterator[None]:
    """Make and lock the folder of checkpoints; an earlier training needs --resume or --fresh."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    with lock_folder(folder):
        try:
            earlier = [path for path in folder.iterdir() if path.name != LOCK]
            if resume is None and earlier:
                raise OptionError(
                    f"'{folder}' holds an earlier training: pass --resume to continue it, or "
                    "--fresh to begin anew (its checkpoints are then deleted)."
                )
            for path in [] if resume else earlier:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise output_error(folder, error) from error
        yield


def _with_bars(reporter: Reporter, steps: Iterable[TrainInfo]) -> None:
    with reporter.bars() as progress:
        bars: dict[str, TaskID] = {}
        since, seen, due = time.monotonic(), 0, 0.0
        for info in steps:
            if info.stage not in bars:
                bars[info.stage] = progress.add_task(info.stage, total=info.total, remark="")
                since, seen = time.monotonic(), 0
            progress.update(bars[info.stage], completed=info.step)
            seen += info.seen
            now = time.monotonic()
            if now >= due or info.step == info.total:
                figures = [f"{name} {value:.3g}" for name, value in info.parts.items()]
                figures.append(f"{seen / max(now - since, 1e-9):.3g}/s")
                progress.update(bars[info.stage], remark="  ".join(figures))
                due = now + SHOWN_EVERY


def commit_of(code: Path = Path(__file__)) -> str | None:
    """Return the commit of the running code; None where it does not run from nulltext's clone.

    A folder below another repository, into which it was installed, has that repository's commit.
    """
    own = code.resolve().parents[3]  # of src/nulltext/cli/train.py
    try:
        done = subprocess.run(
            ["git", "-C", str(own), "rev-parse", "--show-toplevel", "--short=12", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    top, _, commit = done.stdout.strip().partition("\n")
    is_own = Path(top).resolve() == own and code.resolve().is_relative_to(own / "src" / "nulltext")
    return commit if is_own and commit else None
