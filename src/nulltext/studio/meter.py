"""What a person sees of a job while it runs: a bar, the time left, the PSNR on its way up.

The time left of a stage with n of N steps done after s seconds is s (N - n) / n.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from dataclasses import dataclass, replace

from PIL import Image

from nulltext.diffusion.loops import StepInfo
from nulltext.image.images import to_pil
from nulltext.inversion.previews import Previews

STAGES = {
    "pivot": "Following the photo into noise",
    "optimise": "Learning the way back",
    "correct": "Noting what the way back misses",
    "replay": "Trying the way back",
    "edit": "Painting the edit",
}
"""What each stage is to somebody who does not know its name."""

OPENING = ("pivot",)
"""Stages after which the main work still comes, so that their time left says nothing."""

PICTURE = 320
"""Longest side of a preview in pixels."""


@dataclass(frozen=True)
class Progress:
    """A moment of a job."""

    doing: str
    done: int = 0
    total: int = 0
    """Steps of this stage; 0 while there are none."""
    ahead: int = 0
    """Jobs of others that come first."""
    left: float | None = None
    """Seconds that this stage still takes."""
    curve: tuple[float, ...] = ()
    """PSNR of each preview so far, decibels."""
    bound: float | None = None
    """Decibels of the autoencoder's round trip."""
    picture: str | None = None
    """The last preview as a data URL."""


class Meter:
    """Takes steps from the worker's thread, and tells another how far they are."""

    def __init__(self, doing: str) -> None:
        self._now = Progress(doing)
        self._previews: Previews | None = None
        self._lock = threading.Lock()
        self._since = (time.monotonic(), 0)
        self._stage = ""

    def watch(self, previews: Previews, bound: float) -> None:
        """Show previews, too, and where their PSNR can get to at most."""
        self._previews = previews
        with self._lock:
            self._now = replace(self._now, bound=bound)

    def show(self, info: StepInfo) -> None:
        """Note a step."""
        preview = self._previews.of(info) if self._previews else None
        now = time.monotonic()
        if info.stage != self._stage:
            self._stage, self._since = info.stage, (now, info.index)
        since, first = self._since
        steps = info.index - first
        known = steps > 0 and info.stage not in OPENING
        with self._lock:
            self._now = replace(
                self._now,
                doing=STAGES.get(info.stage, info.stage),
                done=info.index,
                total=info.total,
                left=(now - since) * (info.total - info.index) / steps if known else None,
            )
            if preview is not None:
                self._now = replace(
                    self._now,
                    curve=(*self._now.curve, preview.psnr),
                    picture=data_url(to_pil(preview.picture), PICTURE),
                )

    def progress(self, ahead: int) -> Progress:
        """How it stands, with so many jobs before it."""
        with self._lock:
            return replace(self._now, ahead=ahead)


def data_url(image: Image.Image, longest: int) -> str:
    """A picture as JPEG text for a page, its sides at most `longest` pixels."""
    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
