"""Who does the work: one model, and a folder that results are put into, unit by unit.

    inversions/ab/DIGEST.safetensors            by all that an inversion follows from
    inversions/ab/DIGEST.safetensors.partial    one on its way
    pictures/ab/NAME-ID.png                     by the job's id

An inversion is always read back from its file, also by who has just made it, so that no picture
depends on who made it. Rows are plain data; who keeps them is somebody else.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.constants import Precision
from nulltext.errors import InversionFileError, OutputError
from nulltext.jobs.captions import caption_of, check_readable
from nulltext.jobs.ledger import Row, failure
from nulltext.jobs.order import Order, Pictures, notes_of, pictures_of
from nulltext.jobs.request import Opened
from nulltext.jobs.units import Unit
from nulltext.models.choice import ModelChoice
from nulltext.storage.inversion_file import SUFFIX

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo
    from nulltext.editing.spec import EditSpec
    from nulltext.inversion.invert import InversionRequest
    from nulltext.inversion.record import Inversion

PICTURES, INVERSIONS = "pictures", "inversions"

LONGEST_STEM = 40
"""Letters of a photo's name that its pictures' names begin with."""


@dataclass(frozen=True)
class Setup:
    """What all workers of a batch have in common; plain data."""

    chosen: ModelChoice
    folder: Path
    """Absolute; for workers on several machines, at the same place on all of them."""


@dataclass(frozen=True)
class Identity:
    """What pictures depend on beside their jobs; equal for all workers of a batch."""

    fingerprints: tuple[str, ...]
    """Of the model's weights."""
    dtype: Precision
    """Of its UNet."""


class Worker:
    """A model at work.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, setup: Setup, on_bytes: Callable[[int, int], None] | None = None) -> None:
        """Args: on_bytes: see `ModelChoice.load`."""
        self.setup = setup
        self.model = setup.chosen.load(on_bytes)
        dtype: Any = str(self.model.unet.dtype).removeprefix("torch.")
        self.identity = Identity(self.model.fingerprints, dtype)

    def do(self, unit: Unit, on_step: Callable[[StepInfo], None] | None = None) -> Row:
        """Make a unit's pictures, and the row that tells of them, or of why there are none.

        Raises:
            OutputError: the folder cannot be written any more.
        """
        if unit.job is None or unit.reason:
            return failed(unit, unit.reason, theirs=True)
        try:
            return self._done(unit, unit.job.order(), on_step)
        except OutputError:
            raise
        except Exception as error:  # one bad job is no reason to lose the others
            found = failure(error)
            return failed(unit, f"{unit.place}: {found['reason']}", theirs=found["input"])

    def _done(self, unit: Unit, order: Order, on_step: Callable[[StepInfo], None] | None) -> Row:
        order.check()
        axes = order.asked.axes()
        words = partial(caption_of, "source", captioner=order.request.captioner, device=None)
        opened = Opened.of(order.request).with_words(words)
        if opened.captioned:
            check_readable(self.model, "source", opened.prompt)
        specs, sweep = order.asked.specs(self.model, opened.mask, axes)
        everything = [*specs, *(sweep.specs if sweep else [])]
        made, kept_as = self._inversion(opened, everything, on_step)
        notes = notes_of(self.model, order, opened)
        started = time.perf_counter()
        pictures = pictures_of(self.model, order, opened, made, specs, sweep, on_step)
        seconds = time.perf_counter() - started
        options = {} if unit.job is None else unit.job.options
        strip = bool(options.get("strip"))
        pictures, files = self._saved(unit, pictures, strip=strip, gps=order.request.keep_gps)
        return finite(
            {
                **unit.names,
                "status": "ok",
                "source": opened.prompt,
                **files,
                "inversion": kept_as,
                "unet_evaluations_invert": made.header.unet_evaluations,
                "seconds_invert": round(made.header.seconds, 3),
                **pictures.figures,
                "seconds_edit": round(seconds, 3),
                "unet_evaluations_edit": pictures.edit.unet_evaluations,
                "remarks": [*filter(None, [opened.mask_note]), *notes, *pictures.remarks],
            }
        )

    def _inversion(
        self,
        opened: Opened,
        specs: list[EditSpec],
        on_step: Callable[[StepInfo], None] | None,
    ) -> tuple[Inversion, str | None]:
        """The saved one, one that another job of this batch has made, or a new one; and its name
        in the folder."""
        from nulltext.editing.loop import check_specs
        from nulltext.inversion.invert import InversionRequest
        from nulltext.inversion.replay import check_model

        if opened.saved is not None:
            check_model(self.model, opened.saved)
        check_specs(self.model, opened.prompt, specs)
        if opened.saved is not None:
            return opened.saved, None
        asked, photo = opened.request, opened.photo
        assert photo is not None
        plan = asked.plan()
        request = InversionRequest.checked(
            self.model,
            photo,
            opened.prompt,
            method=plan.method,
            num_steps=plan.num_steps,
            guidance_scale=asked.guidance,
            crop=opened.box,
            size=asked.size_choice,
            seed=asked.noise_seed,
        )
        return self._stored(request, on_step)

    def _stored(
        self, request: InversionRequest, on_step: Callable[[StepInfo], None] | None
    ) -> tuple[Inversion, str]:
        from nulltext.diffusion.loops import run
        from nulltext.inversion.invert import request_steps
        from nulltext.inversion.partial import digests_of, partial_of, remove_partial
        from nulltext.inversion.record import Inversion

        digests = digests_of(request.identity(self.model), self.model.fingerprints)
        names = [f"{INVERSIONS}/{digest[:2]}/{digest}{SUFFIX}" for digest in digests]
        begun = (name for name in names if self._is_begun(self.setup.folder / name))
        name = next(begun, names[0])
        path = self._target(name)
        try:
            found = Inversion.load(path)
        except InversionFileError:  # none yet, or damaged
            made = run(request_steps(self.model, request, partial_of(path)), on_step)
            made.save(path)
            found = Inversion.load(path)
        remove_partial(path)
        return found, name

    def _is_begun(self, path: Path) -> bool:
        from nulltext.inversion.partial import partial_of

        return path.exists() or partial_of(path).exists()

    def _saved(
        self, unit: Unit, pictures: Pictures, *, strip: bool, gps: bool
    ) -> tuple[Pictures, dict[str, Any]]:
        """Write everything; returns the pictures as they are in their files, and for the row their
        names relative to the folder, and digests."""
        options = {} if unit.job is None else unit.job.options
        stem = Path(str(options.get("image") or options.get("inversion"))).stem
        stem = re.sub(r"[^\w-]+", "-", stem)[:LONGEST_STEM].strip("-") or "picture"
        base = f"{PICTURES}/{unit.id[:2]}/{stem}-{unit.id}"
        count = len(pictures.wanted)
        outputs = [f"{base}.png"] if count == 1 else [f"{base}-{i + 1}.png" for i in range(count)]
        strip_name = f"{base}-strip.png" if strip else None
        sweep_name = f"{base}-sweep.png" if pictures.sweep else None
        pictures = pictures.save(
            self.model,
            [self._target(name) for name in outputs],
            self._target(strip_name) if strip_name else None,
            self._target(sweep_name) if sweep_name else None,
            gps=gps,
        )
        digests = [
            hashlib.sha256((self.setup.folder / name).read_bytes()).hexdigest() for name in outputs
        ]
        named = {"outputs": outputs, "sha256": digests, "strip": strip_name, "sweep": sweep_name}
        return pictures, named

    def _target(self, name: str) -> Path:
        return target_in(self.setup.folder, name)


def target_in(folder: Path, name: str) -> Path:
    """The file of a name of ours in a folder; makes the folders between.

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


def failed(unit: Unit, reason: str, *, theirs: bool) -> Row:
    """The row of a unit that could not be done.

    Args:
        theirs: whether it is the job's fault, so that whoever wrote it can mend it.
    """
    return {**unit.names, "status": "failed", "reason": reason, "input": theirs}


def finite(row: Row) -> Row:
    """JSON has no infinity (the PSNR of equal pictures): it becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
