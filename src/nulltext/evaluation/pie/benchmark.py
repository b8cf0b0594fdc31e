"""PIE-Bench: the same Prompt-to-Prompt edit after every inversion, and its metrics.

50 DDIM steps, w = 7.5; cross-attention injected for 0.4 of the steps and self-attention for 0.6,
refinement alignment; where words to blend are given, the edit stays where their maps are, and the
target's word has twice its weight.
Source: Ju et al. 2024 (Direct Inversion), sec. 5.3; numbers as in its published code.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from nulltext.attention.blend import LocalBlend
from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS
from nulltext.diffusion.guidance import guided_evaluations
from nulltext.editing.editors import PromptToPrompt
from nulltext.editing.loop import edit
from nulltext.editing.spec import EditSpec
from nulltext.errors import OptionError
from nulltext.evaluation.pie.dataset import CATEGORIES, PieItem, decode_mask
from nulltext.evaluation.pie.metrics import Networks, pie_metrics
from nulltext.evaluation.plan import VARIANTS
from nulltext.evaluation.rows import Measurement, Progress, Schedule, Task, run_tasks
from nulltext.image.images import from_uint8
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.invert import invert
from nulltext.inversion.registry import method_named, with_options
from nulltext.jobs.ledger import Book
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import has_word

METHODS = ("ddim", "null-text", "negative-prompt", "direct")
"""The methods that are compared by default: those of the paper that nulltext has."""

EDIT_BRANCHES = 2
"""Source and target."""


@dataclass(frozen=True)
class Protocol:
    """The numbers of a run; the defaults are the published ones."""

    num_steps: int = NUM_STEPS
    """T."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of every replay and edit."""
    cross_steps: float = 0.4
    """Fraction of the steps with the source's cross-attention."""
    self_steps: float = 0.6
    """Fraction of the steps with the source's self-attention."""
    word_weight: float = 2.0
    """Factor on the target's word to blend."""
    inner_steps: int | None = None
    """N of the methods that optimise; None for each method's own default."""
    seed: int = 0
    """For the methods that draw noise."""

    def __post_init__(self) -> None:
        if self.inner_steps is not None and self.inner_steps < 1:
            raise OptionError(f"--inner-steps is {self.inner_steps}; choose 1 or more.")

    @property
    def deviations(self) -> list[str]:
        found = []
        if self.num_steps != NUM_STEPS:
            found.append(f"{self.num_steps} steps instead of {NUM_STEPS}")
        if self.inner_steps is not None:
            found.append(f"N = {self.inner_steps} instead of each method's own")
        return found

    def method(self, name: str) -> InversionMethod:
        method = method_named(name)
        if self.inner_steps is None or not VARIANTS[name].optimises:
            return method
        return with_options(method, inner_steps=self.inner_steps)

    def evaluations(self, name: str) -> int:
        n = getattr(self.method(name), "inner_steps", 0)
        inverted = VARIANTS[name].evaluations(self.num_steps, n)
        passes = guided_evaluations(EDIT_BRANCHES, self.guidance_scale)
        return inverted + passes * self.num_steps


def spec_of(model: LatentDiffusion, item: PieItem, protocol: Protocol) -> tuple[EditSpec, str]:
    """Build the edit, and a remark on words to blend that cannot be used ("" where all can).

    Raises:
        PromptError: a prompt cannot be read.
    """
    source, target = model.tokenize(item.source), model.tokenize(item.target)
    usable = [w for w in dict.fromkeys(item.blend) if has_word(source, w) or has_word(target, w)]
    last = item.blend[-1] if item.blend else ""
    weighted = bool(last) and has_word(target, last)
    editor = PromptToPrompt(
        cross_steps=protocol.cross_steps,
        self_steps=protocol.self_steps,
        weights={last: protocol.word_weight} if weighted else {},
        alignment="refine",
    )
    blend = LocalBlend(tuple(usable)) if usable else None
    unused = [word for word in item.blend if word not in usable]
    notes = [f"{', '.join(unused)} is in neither prompt, so not blended"] if unused else []
    if last and last not in unused and not weighted:
        notes.append(f"{last} is not in the target, so not weighted")
    return EditSpec(item.target, editor=editor, blend=blend), "; ".join(notes)


def plan_pie(
    items: Sequence[PieItem],
    methods: Sequence[str],
    protocol: Protocol,
    done: Collection[Hashable],
) -> Schedule[PieItem]:
    return Schedule.of(
        [(item, [_task(item, name, protocol) for name in methods]) for item in items], done
    )


def pie_steps(
    model: LatentDiffusion, schedule: Schedule[PieItem], book: Book, networks: Networks
) -> Generator[Progress, None, None]:
    shown = {row["image"] for row in book.rows if "photo" in row.get("pictures", {})}
    return run_tasks(
        schedule, book, lambda item: EditedPhoto(model, networks, item, item.key not in shown)
    )


@dataclass
class EditedPhoto:
    """An edit of the benchmark with what measures it."""

    model: LatentDiffusion
    networks: Networks
    item: PieItem
    show_photo: bool
    """Whether the next row keeps the photo; one row of each edit does."""


def _task(item: PieItem, method: str, protocol: Protocol) -> Task:
    return Task(
        "pie",
        item.key,
        method,
        {"category": f"{item.category} {CATEGORIES[item.category]}"},
        partial(_measure, method=method, protocol=protocol),
        evaluations=protocol.evaluations(method),
    )


def _measure(photo: EditedPhoto, method: str, protocol: Protocol) -> Measurement:
    model, item = photo.model, photo.item
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
    edited = edit(model, inversion, spec).images[0]
    crop = from_uint8(inversion.photo)[0]
    values = pie_metrics(crop, edited, mask, item.source, item.target, photo.networks)
    notes = {"source": item.source, "target": item.target}
    pictures = {"picture": edited}
    if remark:
        notes["remark"] = remark
    if photo.show_photo:
        pictures["photo"] = crop
        photo.show_photo = False
    return Measurement(values, pictures, inversion, notes)
