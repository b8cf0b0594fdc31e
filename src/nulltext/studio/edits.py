"""Handlers that edit: one edit, a strip of strengths, and going back to an earlier edit."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path, PurePath

from PIL import Image

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import check_specs, edit_steps
from nulltext.editing.placing import Canvas, Placed, place
from nulltext.errors import OptionError, PromptError
from nulltext.image.masks import load_mask, mask_on_crop
from nulltext.image.saving import save_image
from nulltext.inversion.record import Inversion
from nulltext.jobs.pictures import save_placed
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.prompt_notes import notes_on_prompts
from nulltext.studio.forms import EditForm, PageRequest, edit_command, read_integer, read_painting
from nulltext.studio.session import EditRecord, OpenInversion, Session, url
from nulltext.studio.worker import Meter
from nulltext.words.alignment import ARTICLES, align_words
from nulltext.words.prompts import TokenizedPrompt, has_word, word_key

STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Strengths of the strip."""


def edit(session: Session, request: PageRequest) -> Iterator[None]:
    photo = session.current_photo()
    record, *_ = yield from _make_edits(session, request)
    with session.commit(lambda: session.photo is photo):
        session.show_edit(record)
        session.strip = []


def strip(session: Session, request: PageRequest) -> Iterator[None]:
    """Make the same edit at several strengths, to choose from."""
    photo = session.current_photo()
    records = yield from _make_edits(session, request, STRENGTHS)
    with session.commit(lambda: session.photo is photo):
        session.strip = records


def choose(session: Session, request: PageRequest) -> None:
    """Add an edit of the strip to the history."""
    record = _find(session.strip, request)
    session.show_edit(record)
    _fill_form(session, request, record)


def restore(session: Session, request: PageRequest) -> None:
    """Go back to an edit of the history, with its inversion and settings."""
    record = _find(session.history, request)
    session.inverted, session.result, session.look = record.inverted, record, None
    _fill_form(session, request, record)


def _find(records: Sequence[EditRecord], request: PageRequest) -> EditRecord:
    number = read_integer(request, "number", 0, 2**31)
    found = [record for record in records if record.number == number]
    if not found:
        raise OptionError("That picture is not kept any more; make it again.")
    return found[0]


def _fill_form(session: Session, request: PageRequest, record: EditRecord) -> None:
    inverted = record.inverted.form
    session.set_fields(
        request,
        source=inverted.source,
        proposed=False,
        crop=inverted.crop.as_list(),
        mask=record.mask,
        **record.form.values(),
    )


def _make_edits(
    session: Session, request: PageRequest, strengths: Sequence[float] = ()
) -> Generator[None, None, list[EditRecord]]:
    inverted, model = session.current_inversion(), session.resources.model
    inversion = session.load_inversion(inverted)
    form = EditForm.read(request, len(inverted.prompt.words))
    forms = [form.at_strength(strength) for strength in strengths] or [form]
    painting = _read_mask(session, request.get("mask"))
    photo, mask = session.load_photo(), None
    if painting is not None:
        mask = mask_on_crop(load_mask(painting), photo.size, inverted.form.crop)
    specs = [one.spec(mask) for one in forms]
    _check_words(model, inverted.prompt, form)
    check_specs(model, inverted.prompt.text, specs)
    canvas = Canvas.of(inversion, photo, full=True)

    def steps() -> Generator[StepInfo, None, list[Placed]]:
        made = yield from edit_steps(model, inversion, specs)
        return [place(canvas, made, row, spec, form.detail) for row, spec in enumerate(specs)]

    placed = yield from session.run_job(Meter("Starting"), steps)
    return _save(session, inverted, inversion, canvas, forms, placed, painting)


def _read_mask(session: Session, value: object) -> Image.Image | None:
    """Read the page's mask: a new painting, or the address of an earlier edit's."""
    for record in session.history:
        if record.mask is not None and value == url(record.mask):
            return load_mask(record.mask)
    return read_painting(value, session.resources.limits.mask_pixels)


def _check_words(model: LatentDiffusion, source: TokenizedPrompt, form: EditForm) -> None:
    """Refuse an edit without a change, and words that neither prompt has.

    The library refuses them, too, but with options of the command line in its messages.
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


def _save(
    session: Session,
    inverted: OpenInversion,
    inversion: Inversion,
    canvas: Canvas,
    forms: Sequence[EditForm],
    placed: Sequence[Placed],
    painting: Image.Image | None,
) -> list[EditRecord]:
    name = session.current_photo().name
    stem = PurePath(name).stem
    mask: Path | None = None
    if painting is not None:
        mask = session.new_path(f"{stem}-mask.png")
        save_image(painting, mask)
    paths = [session.new_path(f"{stem}-edited.png") for _ in forms]
    saved = save_placed(paths, placed, inversion, canvas, gps=False)
    return [
        EditRecord(
            number=session.next_number(),
            form=form,
            inverted=inverted,
            picture=path,
            preview=session.save_preview(one.image, canvas.photo.icc_profile),
            mask=mask,
            label=_label(session, inverted, form),
            command=edit_command(
                name,
                inverted.uploaded_name or inverted.form,
                form,
                mask=mask.name if mask else None,
                chosen=session.resources.chosen,
            ),
            changed_fraction=one.changed_fraction,
            psnr_outside=one.psnr_outside,
            remark=_remark(session.resources.model, inverted.prompt.text, one),
        )
        for form, path, one in zip(forms, paths, saved, strict=True)
    ]


def _label(session: Session, inverted: OpenInversion, form: EditForm) -> str:
    source, target = inverted.prompt.words, session.resources.model.tokenize(form.target).words
    changes = difference([word.name for word in source], [word.name for word in target])
    weights = [f"{word} ×{weight:g}" for word, weight in form.weights.items()]
    return ", ".join(filter(None, [changes, *weights]))


def difference(source: Sequence[str], target: Sequence[str]) -> str:
    """Return what a target changes, in short: "orange → red, + snow, − dark"."""
    changes = []
    for i, j in align_words(source, target):
        before = None if i is None else source[i]
        after = None if j is None else target[j]
        if (before or "a").lower() in ARTICLES and (after or "a").lower() in ARTICLES:
            continue
        if before is None:
            changes.append(f"+ {after}")
        elif after is None:
            changes.append(f"− {before}")
        elif word_key(before) != word_key(after):
            changes.append(f"{before} → {after}")
    return ", ".join(changes)


def _remark(model: LatentDiffusion, source: str, placed: Placed) -> str | None:
    spec = placed.spec
    remarks = notes_on_prompts(model, [source, spec.target], [(source, spec.target)])
    if placed.nothing:
        remarks.append(f"The edit {placed.nothing}")
    elif spec.blend is not None and placed.mask_fraction == 1:
        words = ", ".join(spec.blend.words)
        remarks.append(
            f"“{words}” looks everywhere, so nothing is held back: raise the threshold, or paint."
        )
    return " ".join([*remarks, *placed.lost]) or None
