"""Jobs as units of work, and the worker that makes their pictures with one model.

    inversions/ab/DIGEST.safetensors            by all that an inversion follows from
    inversions/ab/DIGEST.safetensors.partial    one that was not finished
    pictures/ab/NAME-ID.png                     by the job's id

An inversion is always read back from its file, also where it has just been made, so that pictures
are the same whichever worker made it. A worker may be told first which units come next: it makes
their inversions side by side and stores them, and each unit finds its own, or makes it alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.constants import Precision
from nulltext.errors import (
    ImageError,
    InversionFileError,
    OutOfMemoryError,
    OutputError,
    UserError,
    reason_of,
)
from nulltext.jobs.edits import Edits, axes_of, base_edit, edits_of, plan_of
from nulltext.jobs.job_files import PATHS, Job, Refused
from nulltext.jobs.ledger import Row, failure, finite
from nulltext.jobs.options import EditOptions, InversionOptions
from nulltext.jobs.request import (
    Inputs,
    caption_of,
    check_options,
    check_readable,
    open_inputs,
    seed_of,
    size_of,
)
from nulltext.models.choice import ModelChoice
from nulltext.storage.inversion_file import SUFFIX
from nulltext.storage.untrusted import refuse_address

if TYPE_CHECKING:
    from nulltext.captioning.captioner import Caption
    from nulltext.diffusion.loops import StepInfo
    from nulltext.editing.spec import EditSpec
    from nulltext.image.images import CropBox
    from nulltext.image.photos import Photo
    from nulltext.inversion.invert import InversionRequest
    from nulltext.inversion.record import Inversion
    from nulltext.jobs.pictures import Pictures

logger = logging.getLogger(__name__)

PICTURES, INVERSIONS = "pictures", "inversions"

LONGEST_STEM = 40
"""Letters of a photo's name that its pictures' names begin with."""

ID_LENGTH = 24
"""Hexadecimal digits of an id: 96 bits."""

MOST_CAPTIONS = 1000
"""That a worker remembers, for jobs on the same photo."""

INVERTING = ("image", "source", "inversion", *(one.name for one in fields(InversionOptions)))
"""Options that an inversion follows from; under --full, the mask may place the crop as well."""


@dataclass(frozen=True)
class Unit:
    """One job, as plain data that can be sent to other processes.

    id     = SHA-256 of the options and of the contents of the files that they name
    group  = SHA-256 of what the inversion follows from

    Equal lines on equal files are one unit, wherever they stand; a photo that was changed makes its
    jobs new ones.
    """

    id: str
    group: str
    line: int
    place: str
    """Its line in words; see `Job`."""
    job: Job | None
    """None where the line cannot be understood."""
    reason: str = ""
    """Why it cannot be done, where that is known already."""

    @property
    def names(self) -> dict[str, Any]:
        options = {} if self.job is None else self.job.options
        shown = {name: options[name] for name in ("image", "source", "target") if name in options}
        return {"job": self.id, "line": self.line, **shown}


def unit_of(found: Job | Refused, within: Path | None = None) -> Unit:
    """Make a unit of a line.

    Args:
        within: the folder that all files of jobs have to be in.
    """
    if isinstance(found, Refused):
        name = _digest(found.text.decode("utf-8", "replace"))
        return Unit(name, name, found.line, found.place, None, found.reason)
    contents: dict[str, str] = {}
    reason = ""
    for option in sorted(PATHS & found.options.keys()):
        try:
            contents[option] = _contents(found.base / found.options[option], within)
        except UserError as error:
            reason = reason or f"{found.place}: {error}"
            contents[option] = "none"
    options = dict(found.options)
    shared = {name: options.get(name) for name in INVERTING}
    if options.get("full"):
        shared["mask"] = options.get("mask")
    return Unit(
        id=_digest([options, contents]),
        group=_digest([shared, contents.get("image"), contents.get("inversion")]),
        line=found.line,
        place=found.place,
        job=found,
        reason=reason,
    )


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return list(groups.values())


SIDE_BY_SIDE = ("method", "steps", "budget", "inner_steps", "pivot", "guidance", "size")
"""Options that photos which are inverted side by side have in common."""


def cut(groups: Sequence[Sequence[Unit]], most: int) -> list[list[Sequence[Unit]]]:
    """Put groups together whose photos may be inverted side by side, at most so many."""
    alike: dict[str, list[Sequence[Unit]]] = {}
    for group in groups:
        job = group[0].job
        options = {} if job is None else {name: job.options.get(name) for name in SIDE_BY_SIDE}
        alike.setdefault(_digest(options), []).append(group)
    return [
        like[first : first + most] for like in alike.values() for first in range(0, len(like), most)
    ]


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _contents(path: Path, within: Path | None) -> str:
    """SHA-256 of a regular file."""
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise ImageError(
                f"'{path}' is not in '{within}', where --within keeps the files of jobs."
            )
        if not path.is_file():
            refuse_address(path, ImageError)
            what = "is no regular file" if path.exists() else "does not exist"
            raise ImageError(f"'{path}' {what}: check the path.")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise ImageError(f"'{path}' cannot be read ({reason_of(error)}).") from error


@dataclass(frozen=True)
class Setup:
    """Settings that all workers of a batch share; plain data."""

    chosen: ModelChoice
    folder: Path
    """Absolute; for workers on several machines, at the same place on all of them."""
    batch_size: int | None = None
    """Photos that are inverted side by side; None: as the model's memory plan has it."""


@dataclass(frozen=True)
class Identity:
    """Model and precision, which pictures depend on; equal for all workers of a batch."""

    fingerprints: tuple[str, ...]
    dtype: Precision
    """Of its UNet."""


class Worker:
    """Does units of work with one model.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, setup: Setup, on_bytes: Callable[[int, int], None] | None = None) -> None:
        self.setup = setup
        self.model = setup.chosen.load(on_bytes)
        self.batch_size = setup.batch_size or self.model.memory.photos
        self._captions: dict[Hashable, Caption] = {}
        dtype: Any = str(self.model.network.dtype).removeprefix("torch.")
        self.identity = Identity(self.model.fingerprints, dtype)

    def invert(
        self, units: Sequence[Unit], on_step: Callable[[StepInfo], None] | None = None
    ) -> None:
        """Make the inversions of units that come next, those side by side that can be.

        An inversion that is stored, or begun, or cannot be made with another is left to `do`, and
        so is one that fails: it says why in the row of its own unit.

        Raises:
            OutputError: the folder cannot be written any more.
        """
        requests: dict[str, InversionRequest] = {}
        for job in (unit.job for unit in units if not unit.reason):
            if job is None or "inversion" in job.options:
                continue
            with _failures_left_to_rows():
                inputs, edits = self._opened(job)
                request = self._request(inputs, edits.everything)
                name, is_begun = self._name_of(request)
                if not is_begun:
                    requests[name] = request
        self._invert_together(requests, on_step)

    def _invert_together(
        self,
        requests: Mapping[str, InversionRequest],
        on_step: Callable[[StepInfo], None] | None,
    ) -> None:
        """Make and store inversions, by their names; out of memory, with fewer at a time."""
        from nulltext.diffusion.loops import run
        from nulltext.inversion.invert import many_steps, side_by_side

        names = list(requests)
        for indices in side_by_side([*requests.values()], self.batch_size):
            own = {names[index]: requests[names[index]] for index in indices}
            if len(own) == 1:
                continue  # alone it keeps a partial file
            with _failures_left_to_rows() as failures:
                made = run(many_steps(self.model, [*own.values()], len(own)), on_step)
                for name, inversion in zip(own, made, strict=True):
                    inversion.save(target_in(self.setup.folder, name))
            if OutOfMemoryError in failures:
                self.batch_size = len(own) // 2
                self._invert_together(own, on_step)

    def do(self, unit: Unit, on_step: Callable[[StepInfo], None] | None = None) -> Row:
        """Make a unit's pictures and its row, which says why where there are none.

        Raises:
            OutputError: the folder cannot be written any more.
        """
        if unit.job is None or unit.reason:
            return failed(unit, unit.reason, user_error=True)
        try:
            return self._done(unit, unit.job, on_step)
        except OutputError:
            raise
        except Exception as error:  # one bad job is no reason to lose the others
            found = failure(error)
            return failed(unit, f"{unit.place}: {found['reason']}", user_error=found["input"])

    def _done(self, unit: Unit, job: Job, on_step: Callable[[StepInfo], None] | None) -> Row:
        from nulltext.jobs.pictures import pictures_of, prompt_notes

        inputs, edits = self._opened(job)
        inversion, stored_as = self._inversion(inputs, edits.everything, on_step)
        notes = prompt_notes(self.model, inputs)
        started = time.perf_counter()
        pictures = pictures_of(self.model, inputs, inversion, edits, on_step)
        seconds = time.perf_counter() - started
        pictures, files = self._saved(unit, inputs.options, pictures)
        return finite(
            {
                **unit.names,
                "status": "ok",
                "source": inputs.prompt,
                **inputs.doubts,
                **files,
                "inversion": stored_as,
                "unet_evaluations_invert": inversion.header.unet_evaluations,
                "seconds_invert": round(inversion.header.seconds, 3),
                **pictures.figures,
                "seconds_edit": round(seconds, 3),
                "unet_evaluations_edit": pictures.edit.unet_evaluations,
                "remarks": [*inputs.notes, *notes, *pictures.remarks],
            }
        )

    def _opened(self, job: Job) -> tuple[Inputs, Edits]:
        """Check a job, and open its files.

        Raises:
            UserError: it cannot be done.
        """
        options = job.edit_options()
        check_options(options)
        axes = axes_of(options)
        base_edit(options)
        inputs = open_inputs(options).with_caption(partial(self._caption, options.captioner))
        if inputs.caption is not None:
            check_readable(self.model, "source", inputs.prompt)
        return inputs, edits_of(options, self.model, inputs.mask, axes)

    def _caption(self, captioner: str | None, photo: Photo, box: CropBox) -> Caption:
        """Ask a captioner once for units that come soon after each other."""
        asked = (photo.sha256, photo.colours, *box.as_list(), captioner)
        if asked not in self._captions:
            if len(self._captions) >= MOST_CAPTIONS:
                self._captions.clear()
            self._captions[asked] = caption_of("source", photo, box, captioner, None)
        return self._captions[asked]

    def _inversion(
        self,
        inputs: Inputs,
        specs: Sequence[EditSpec],
        on_step: Callable[[StepInfo], None] | None,
    ) -> tuple[Inversion, str | None]:
        """(inversion, its name in the folder): the job's saved one, or a stored or new one."""
        from nulltext.editing.loop import check_specs
        from nulltext.inversion.replay import check_model

        if inputs.saved is None:
            return self._stored(self._request(inputs, specs), on_step)
        check_model(self.model, inputs.saved)
        check_specs(self.model, inputs.prompt, specs)
        return inputs.saved, None

    def _request(self, inputs: Inputs, specs: Sequence[EditSpec]) -> InversionRequest:
        """The inversion that edits need, checked with them."""
        from nulltext.editing.loop import check_specs
        from nulltext.inversion.invert import InversionRequest

        check_specs(self.model, inputs.prompt, specs)
        assert inputs.photo is not None
        plan = plan_of(inputs.options)
        return InversionRequest.checked(
            self.model,
            inputs.photo,
            inputs.prompt,
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=inputs.options.guidance,
            crop=inputs.box,
            size=size_of(inputs.options),
            seed=seed_of(inputs.options),
        )

    def _name_of(self, request: InversionRequest) -> tuple[str, bool]:
        """(name of an inversion in the folder, whether a file of it or a part of it is there)"""
        from nulltext.inversion.partial import digests_of, partial_of

        digests = digests_of(request.identity(self.model), self.model.fingerprints)
        names = [f"{INVERSIONS}/{digest[:2]}/{digest}{SUFFIX}" for digest in digests]
        for name in names:
            path = self.setup.folder / name
            if path.exists() or partial_of(path).exists():
                return name, True
        return names[0], False

    def _stored(
        self, request: InversionRequest, on_step: Callable[[StepInfo], None] | None
    ) -> tuple[Inversion, str]:
        from nulltext.diffusion.loops import run
        from nulltext.inversion.invert import request_steps
        from nulltext.inversion.partial import partial_of, remove_partial
        from nulltext.inversion.record import Inversion

        name, _ = self._name_of(request)
        path = target_in(self.setup.folder, name)
        try:
            found = Inversion.load(path)
        except InversionFileError:  # none yet, or damaged
            made = run(request_steps(self.model, request, partial_of(path)), on_step)
            made.save(path)
            found = Inversion.load(path)
        remove_partial(path)
        return found, name

    def _saved(
        self, unit: Unit, options: EditOptions, pictures: Pictures
    ) -> tuple[Pictures, dict[str, Any]]:
        """(pictures as they are in their files, names in the folder and digests for the row)"""
        from nulltext.jobs.pictures import PictureFiles

        folder = self.setup.folder
        stem = Path(str(options.image or options.inversion)).stem
        stem = re.sub(r"[^\w-]+", "-", stem)[:LONGEST_STEM].strip("-") or "picture"
        base = f"{PICTURES}/{unit.id[:2]}/{stem}-{unit.id}"
        count = len(pictures.wanted)
        outputs = [f"{base}.png"] if count == 1 else [f"{base}-{i + 1}.png" for i in range(count)]
        strip = f"{base}-strip.png" if options.strip else None
        sweep = f"{base}-sweep.png" if pictures.sweep else None
        regions = [
            f"{name.removesuffix('.png')}-region.png" for name in outputs if options.region_out
        ]
        files = PictureFiles(
            outputs=[target_in(folder, name) for name in outputs],
            strip=None if strip is None else target_in(folder, strip),
            sweep=None if sweep is None else target_in(folder, sweep),
            regions=[target_in(folder, name) for name in regions],
        )
        pictures = pictures.save(self.model, files, gps=options.keep_gps)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.outputs]
        named = {"outputs": outputs, "sha256": digests, "strip": strip, "sweep": sweep}
        if regions:
            named["regions"] = regions
        return pictures, named


@contextmanager
def _failures_left_to_rows() -> Iterator[list[type[Exception]]]:
    """Leave the block at a failure, which the unit's own row will tell; yields its class."""
    failures: list[type[Exception]] = []
    try:
        yield failures
    except OutputError:
        raise
    except Exception as error:  # one bad photo is no reason to lose its neighbours
        logger.info("invert: left to its own row: %s", error)
        failures.append(type(error))  # the error itself would hold the tensors of its frames


def target_in(folder: Path, name: str) -> Path:
    """Find the file of a name within a folder, and make the folders between.

    Raises:
        OutputError: they cannot be made, or a symbolic link leads out of the folder.
    """
    from nulltext.storage.files import output_error

    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve() != folder.resolve() / name:
            raise OutputError(
                f"'{path}' leads elsewhere by a symbolic link; remove the link, or choose another "
                "folder."
            )
    except (OSError, RuntimeError) as error:
        raise output_error(path, error) from error
    return path


def failed(unit: Unit, reason: str, *, user_error: bool) -> Row:
    """Make the row of a unit that could not be done.

    Args:
        user_error: whether a change of the job would mend it.
    """
    return {**unit.names, "status": "failed", "reason": reason, "input": user_error}
