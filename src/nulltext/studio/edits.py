"""Verbs around edits: one edit, a strip over strengths, and going back to an earlier one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from PIL import Image
from torch import Tensor

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import check_specs, edit_steps
from nulltext.editing.placing import Canvas, Placed, place
from nulltext.errors import OptionError, PromptError
from nulltext.image.images import save_image
from nulltext.image.masks import load_mask, mask_on_crop
from nulltext.image.photos import Photo
from nulltext.inversion.record import Inversion
from nulltext.jobs.pictures import save_placed
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.notes import notes_on_prompts
from nulltext.studio.chips import difference, read_chips
from nulltext.studio.command import Place, edit_command
from nulltext.studio.forms import Asked, EditForm, whole
from nulltext.studio.meter import Meter
from nulltext.studio.pictures import painted, shown
from nulltext.studio.session import Entry, Inverted, Session
from nulltext.studio.view import url
from nulltext.words.prompts import TokenizedPrompt, has_word

STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Of the strip to choose from."""


@dataclass(frozen=True)
class Made:
    """What the worker hands back."""

    placed: list[Placed]
    psnr_reconstruction: float


def edit(session: Session, asked: Asked) -> Iterator[None]:
    """Make one edit and show it."""
    table, (form, mask) = session.table(), _read(session, asked)
    entry, *_ = yield from _make(session, [form], mask)
    with session.unless_replaced(lambda: session.photo is table):
        _remember(session, entry)
        session.strip = []
    yield


def strip(session: Session, asked: Asked) -> Iterator[None]:
    """Make the same edit at several strengths, to choose from."""
    table, (form, mask) = session.table(), _read(session, asked)
    steered = replace(form, cross_steps=None, self_steps=None)
    forms = [replace(steered, strength=strength) for strength in STRENGTHS]
    entries = yield from _make(session, forms, mask)
    with session.unless_replaced(lambda: session.photo is table):
        session.strip = entries
    yield


def choose(session: Session, asked: Asked) -> Iterator[None]:
    """Take one of the strip."""
    wanted = _entry(session.strip, asked)
    _remember(session, wanted)
    _show_fields(session, asked, wanted)
    yield


def restore(session: Session, asked: Asked) -> Iterator[None]:
    """Go back to an edit of the history, with everything that made it."""
    wanted = _entry(session.history, asked)
    session.inverted, session.result, session.look = wanted.inverted, wanted, None
    _show_fields(session, asked, wanted)
    yield


def _entry(entries: Sequence[Entry], asked: Asked) -> Entry:
    number = whole(asked, "number", 0, 2**31)
    found = [entry for entry in entries if entry.number == number]
    if not found:
        raise OptionError("That picture is not kept any more; make it again.")
    return found[0]


def _show_fields(session: Session, asked: Asked, entry: Entry) -> None:
    form = entry.form
    session.revise(
        asked,
        source=entry.inverted.form.source,
        proposed=False,
        crop=entry.inverted.form.crop.as_list(),
        target=form.target,
        chips=list(form.chips),
        strength=form.strength,
        cross_steps=form.cross_steps,
        self_steps=form.self_steps,
        blend=", ".join(form.blend),
        threshold=form.threshold,
        target_guidance=form.target_guidance,
        detail=form.detail,
        mask=entry.mask,
    )


def _read(session: Session, asked: Asked) -> tuple[EditForm, Image.Image | None]:
    """The form, and what was painted."""
    inverted, _ = session.inversion()
    chips = read_chips(asked.get("chips") or [], len(inverted.prompt.words))
    return EditForm.read(asked, chips), _mask(session, asked.get("mask"))


def _mask(session: Session, value: object) -> Image.Image | None:
    """What the page shows as its mask: just painted, or of an edit that was gone back to."""
    for entry in session.history:
        if entry.mask is not None and value == url(entry.mask):
            return load_mask(entry.mask)
    return painted(value, session.studio.limits)


def _make(
    session: Session, forms: Sequence[EditForm], mask: Image.Image | None
) -> Generator[None, None, list[Entry]]:
    """Edits of the photo, from forms to files."""
    inverted, inversion = session.inversion()
    photo, drawn = session.opened(), None
    if mask is not None:
        drawn = mask_on_crop(load_mask(mask), photo.size, inverted.form.crop)
    specs = [form.spec(drawn) for form in forms]
    _check_words(session.studio.model, inverted.prompt, forms[0])
    check_specs(session.studio.model, inverted.prompt.text, specs)
    meter = Meter("Starting")
    made = yield from session.do(meter, lambda: _steps(session, inversion, photo, forms, drawn))
    painted_file = None
    if mask is not None:
        painted_file = session.place(f"{PurePath(session.table().name).stem}-mask.png")
        save_image(mask, painted_file)
    canvas = Canvas.of(inversion, photo, full=True)
    return [
        _written(
            session,
            inverted,
            inversion,
            form,
            placed,
            made.psnr_reconstruction,
            canvas,
            painted_file,
        )
        for form, placed in zip(forms, made.placed, strict=True)
    ]


def _check_words(model: LatentDiffusion, source: TokenizedPrompt, form: EditForm) -> None:
    """Refuse an edit that changes nothing and a word that is nowhere, in the page's words.

    Raises:
        PromptError: the target is the source, or neither has a word to blend by.
    """
    target = model.tokenize(form.target)
    if source.token_ids == target.token_ids and not form.weights:
        raise PromptError("Nothing is changed yet: retype a word, or give one another weight.")
    for word in form.blend:
        if not has_word(source, word) and not has_word(target, word):
            known = dict.fromkeys(each.name for each in (*source.words, *target.words))
            raise PromptError(
                f"“{word:.40}” is a word of neither prompt; the words are {', '.join(known)}."
            )


def _steps(
    session: Session,
    inversion: Inversion,
    photo: Photo,
    forms: Sequence[EditForm],
    mask: Tensor | None,
) -> Generator[StepInfo, None, Made]:
    """In the worker: edits put into the photo at its own size (that takes memory, too)."""
    specs = [form.spec(mask) for form in forms]
    result = yield from edit_steps(session.studio.model, inversion, specs)
    canvas = Canvas.of(inversion, photo, full=True)
    pairs = enumerate(zip(specs, forms, strict=True))
    placed = [place(canvas, result, row, spec, form.detail) for row, (spec, form) in pairs]
    return Made(placed, result.psnr_reconstruction)


def _written(
    session: Session,
    inverted: Inverted,
    inversion: Inversion,
    form: EditForm,
    placed: Placed,
    psnr_reconstruction: float,
    canvas: Canvas,
    mask: Path | None,
) -> Entry:
    """One edit as files."""
    name = session.table().name
    picture = session.place(f"{PurePath(name).stem}-edited.png")
    (placed,) = save_placed([picture], [placed], inversion, canvas, gps=False)
    small = picture.with_name("shown.jpg")
    shown(placed.image, canvas.photo.icc_profile, small)
    studio = session.studio
    where = Place(name, inverted.brought, studio.chosen)
    return Entry(
        number=session.number(),
        form=form,
        inverted=inverted,
        picture=picture,
        shown=small,
        mask=mask,
        label=_label(session, inverted, form),
        command=edit_command(where, inverted.form, form, masked=mask is not None),
        changed_fraction=placed.changed_fraction,
        psnr_outside=placed.psnr_outside,
        psnr_reconstruction=psnr_reconstruction,
        remark=_remark(session.studio.model, inverted.prompt.text, placed),
    )


def _label(session: Session, inverted: Inverted, form: EditForm) -> str:
    """What an edit is called in the history."""
    source, target = inverted.prompt.words, session.studio.model.tokenize(form.target).words
    changed = difference([word.name for word in source], [word.name for word in target])
    weighed = [f"{word} ×{weight:g}" for word, weight in form.weights.items()]
    return ", ".join(filter(None, [changed, *weighed]))


def _remark(model: LatentDiffusion, source: str, placed: Placed) -> str | None:
    target = placed.spec.target
    notes = notes_on_prompts(model, [source, target], [(source, target)])
    nothing = f"The edit {placed.nothing}" if placed.nothing else None
    said = [*notes, nothing or _remark_on_blend(placed), *placed.lost]
    return " ".join(filter(None, said)) or None


def _remark_on_blend(placed: Placed) -> str | None:
    if placed.spec.blend is None or placed.mask_fraction < 1:
        return None
    words = ", ".join(placed.spec.blend.words)
    return f"“{words}” looks everywhere, so nothing is held back: raise the threshold, or paint."


def _remember(session: Session, entry: Entry) -> None:
    """Show an edit, and put it on top of the history."""
    session.result, session.look = entry, None
    history = [entry, *(old for old in session.history if old.number != entry.number)]
    session.history = history[: session.studio.limits.history]
