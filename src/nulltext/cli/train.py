"""`nulltext train`: from captioned photos to a model to edit with."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nulltext.captioning.caption_files import note_on_left_out
from nulltext.cli.options import DeviceOption, takes_options
from nulltext.cli.report import Reporter
from nulltext.errors import OptionError
from nulltext.storage.files import LOCK, lock_folder, output_error

if TYPE_CHECKING:
    from rich.progress import TaskID

    from nulltext.training.loop import TrainInfo
    from nulltext.training.stages import TrainingRun

STATE = "training"
"""What is appended to the model folder's name for the folder with checkpoints and samples."""

SHOWN_EVERY = 0.5
"""Seconds between two updates of the figures beside the bar."""


class Stage(StrEnum):
    """Names of the stages (a test keeps them equal to the registry's)."""

    AUTOENCODER = "autoencoder"
    DECODER = "decoder"
    DENOISER = "denoiser"
    EXPORT = "export"
    CAPTIONER = "captioner"


@takes_options
def train(
    *,
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Photos with labels.jsonl, captions.jsonl, or a .txt beside each photo.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL", help="Folder of the new model.")
    ],
    config: Annotated[
        str, typer.Option("--config", metavar="RECIPE", help="Name of a recipe, or a JSON file.")
    ] = "flowers",
    stage: Annotated[
        list[Stage] | None,
        typer.Option(
            "--stage", help="Only this stage; may be repeated. Default: all but the captioner."
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--fresh", help="Continue from the checkpoints, or begin anew."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="MODEL",
            help="Begin from this model's weights; some recipes need one.",
        ),
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            "--vision",
            metavar="DIR",
            help="With --stage captioner: begin from this CLIP vision model or EfficientNet.",
        ),
    ] = None,
    device: DeviceOption = None,
    autocast: Annotated[
        Literal["auto", "bfloat16", "off"],
        typer.Option("--autocast", help="Precision of products; auto: bfloat16 where it is fast."),
    ] = "auto",
    reporter: Reporter,
) -> None:
    """Make a small text-to-image model from photos and their captions.

    Checkpoints and sample pictures go to MODEL.training; after an interruption, --resume continues
    from there, also with other stages already done.

    Example: [bold]nulltext train photos/ -o my-flowers --config flowers[/bold]

    A captioner: [bold]nulltext train photos/ -o my-flowers --stage captioner --vision DIR[/bold]
    """
    wanted = stage or [name for name in Stage if name is not Stage.CAPTIONER]
    if vision is not None and Stage.CAPTIONER not in wanted:
        raise OptionError("--vision is for a captioner: give --stage captioner too.")
    shop = _workshop(photos, output, (config, init, vision), (device, autocast))
    trained, held_out = shop.splits
    _check_outputs(shop, output, wanted)
    values: dict[str, object] = {"model": None}
    with _prepared(shop.folder, resume):
        reporter.note(f"{len(trained)} photos to train on, {len(held_out)} held out.")
        if left_out := note_on_left_out(photos):
            reporter.note(left_out)
        from nulltext.training.stages import STAGES

        started = time.monotonic()
        for name, run in STAGES.items():
            if name in wanted:
                _with_bars(reporter, run(shop))
        values["seconds"] = round(time.monotonic() - started, 1)
        lines = _write(reporter, shop, output, wanted, values)
    reporter.result(values, lines or [f"Checkpoints and samples are in {shop.folder}"])


def _workshop(
    photos: Path,
    output: Path,
    begin: tuple[str, str | None, Path | None],
    machine: tuple[str | None, str],
) -> TrainingRun:
    """Everything that is asked for, found and read before anything is touched."""
    from nulltext.models.load import find_device, load
    from nulltext.training.captioner import PretrainedVision
    from nulltext.training.loop import autocast_dtype
    from nulltext.training.recipe import load_recipe
    from nulltext.training.stages import TrainingRun

    if not output.name:
        raise OptionError(f"'{output}' names no folder of its own; give -o a name for the model.")
    (config, init, vision), (device, autocast) = begin, machine
    target = find_device(device)
    return TrainingRun(
        recipe=load_recipe(config),
        photos=photos,
        folder=output.with_name(f"{output.name}.{STATE}"),
        device=target,
        autocast=autocast_dtype(autocast, target),
        origin=None if init is None else load(init, device="cpu"),
        vision=None if vision is None else PretrainedVision.load(vision),
    )


def _check_outputs(shop: TrainingRun, output: Path, wanted: Sequence[Stage]) -> None:
    """Refuse what cannot end well, before anything is touched and hours are spent."""
    if Stage.EXPORT in wanted:
        from nulltext.training.export import check_output

        check_output(output, shop.recipe)
    if set(wanted) != {Stage.CAPTIONER}:
        from nulltext.training.stages import check_origin

        check_origin(shop.recipe, shop.origin)
    if Stage.CAPTIONER in wanted:
        from nulltext.captioning.folder import check_captioner_target
        from nulltext.training.captioner import preprocessing_for

        check_captioner_target(captioner_beside(output))
        preprocessing_for(shop.recipe.captioner, shop.vision)


def _write(
    reporter: Reporter,
    shop: TrainingRun,
    output: Path,
    wanted: Sequence[Stage],
    values: dict[str, object],
) -> list[str]:
    """Write model and captioner where they are wanted; adds to `values`, returns what to say."""
    lines: list[str] = []
    if Stage.EXPORT in wanted:
        from nulltext.training.export import export_model

        with reporter.busy("Writing the model …"):
            export_model(shop, output, commit=commit_of())
        values["model"] = str(output)
        lines += [
            f"Saved the model {output}",
            f'Next: nulltext edit PHOTO --source "…" --target "…" --model '
            f"{shlex.quote(str(output))}",
        ]
    if Stage.CAPTIONER in wanted:
        from nulltext.training.export import export_captioner

        beside = captioner_beside(output)
        export_captioner(shop, beside)
        values["captioner"] = str(beside)
        lines += [
            f"Saved the captioner {beside}",
            f"Next: nulltext caption PHOTO --captioner {shlex.quote(str(beside))}",
        ]
    return lines


def captioner_beside(output: Path) -> Path:
    """The captioner's folder for a model's."""
    return output.with_name(f"{output.name}-{Stage.CAPTIONER}")


@contextmanager
def _prepared(folder: Path, resume: bool | None) -> Iterator[None]:
    """The folder of checkpoints, made ready and held; never takes old work for new by accident."""
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
    """Run a stage under a bar with its losses, its throughput and the time left."""
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
    """The commit of the code that runs, where it runs from nulltext's own clone; None where it is
    merely installed somewhere below another repository."""
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
