"""PIE-Bench, row by row: every edit by every method; what is there already is not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from nulltext.editing.loop import edit
from nulltext.evaluation.pie.dataset import CATEGORIES, PieItem, decode_mask
from nulltext.evaluation.pie.metrics import Networks, pie_figures
from nulltext.evaluation.pie.protocol import Protocol, spec_of
from nulltext.evaluation.results import Book
from nulltext.evaluation.rows import made_row
from nulltext.evaluation.study import StudyInfo
from nulltext.evaluation.tasks import Key, Measurement, row_key
from nulltext.image.images import from_uint8
from nulltext.inversion.invert import invert
from nulltext.models.latent_diffusion import LatentDiffusion

EXPERIMENT = "pie"


@dataclass(frozen=True)
class Schedule:
    """What is to be done."""

    open_rows: list[tuple[PieItem, str]]
    """Edit and method, photo by photo."""
    keys: list[Key]
    """Of all rows, the finished ones included."""
    protocol: Protocol

    @property
    def all_rows(self) -> int:
        """How many there are with the finished ones."""
        return len(self.keys)

    @property
    def evaluations(self) -> int:
        """UNet evaluations that the open rows will take at most."""
        return sum(self.protocol.evaluations(method) for _, method in self.open_rows)


def plan_pie(
    items: Sequence[PieItem],
    methods: Sequence[str],
    protocol: Protocol,
    done: Collection[Hashable],
) -> Schedule:
    """What is still open.

    Args:
        done: keys of rows that there are.
    """
    wanted = {_key(item, method): (item, method) for item in items for method in methods}
    still = [row for key, row in wanted.items() if key not in done]
    return Schedule(still, list(wanted), protocol)


def pie_steps(
    model: LatentDiffusion, schedule: Schedule, book: Book, networks: Networks
) -> Generator[StudyInfo, None, None]:
    """Make every open row, yielding before each and at the end.

    Raises:
        OutputError: the folder cannot be written any more.
        OutOfMemoryError: the device's memory does not suffice.
    """
    done = schedule.all_rows - len(schedule.open_rows)
    spent, total = 0, schedule.evaluations
    shown = {row["image"] for row in book.rows if "photo" in row.get("pictures", {})}
    for item, method in schedule.open_rows:
        yield StudyInfo(done, schedule.all_rows, spent, total, f"{item.key}: {method}")
        measure = partial(_measured, model, item, method, schedule.protocol, networks)
        row = made_row(_key(item, method), partial(measure, item.key not in shown), book.folder)
        book.add(row)
        shown |= {item.key} if "photo" in row.get("pictures", {}) else set()
        done, spent = done + 1, spent + schedule.protocol.evaluations(method)
    yield StudyInfo(done, schedule.all_rows, spent, total, "")


def digest(items: Sequence[PieItem]) -> str:
    """Identifies the edits: prompts, words and masks (not the pictures' bytes)."""
    said = [(i.key, i.source, i.target, i.category, i.blend, i.runs) for i in items]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _key(item: PieItem, method: str) -> Key:
    return row_key(EXPERIMENT, item.key, method, {"category": _category(item)})


def _category(item: PieItem) -> str:
    return f"{item.category} {CATEGORIES[item.category]}"


def _measured(
    model: LatentDiffusion,
    item: PieItem,
    method: str,
    protocol: Protocol,
    networks: Networks,
    show_photo: bool,
) -> Measurement:
    """Invert, edit, look; the photo itself is kept with one row of it."""
    mask = decode_mask(item.runs)
    spec, remark = spec_of(model, item, protocol)
    inversion = invert(
        model,
        item.path,
        item.source,
        method=protocol.method(method),
        num_steps=protocol.num_steps,
        guidance_scale=protocol.guidance_scale,
        seed=protocol.seed,
    )
    picture: Tensor = edit(model, inversion, spec).images[0]
    photo = from_uint8(inversion.photo)[0]
    figures = pie_figures(photo, picture, mask, (item.source, item.target), networks)
    notes = {"source": item.source, "target": item.target}
    notes |= {"remark": remark} if remark else {}
    pictures = {"picture": picture, **({"photo": photo} if show_photo else {})}
    return Measurement(figures, pictures, inversion, notes)
