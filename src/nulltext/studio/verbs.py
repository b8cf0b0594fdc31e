"""Handlers of the page: open a photo, invert it, show attention, edit it, go back to an edit."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image
from torch import Tensor

from nulltext.captioning.captioner import Caption
from nulltext.constants import DETAIL
from nulltext.diffusion.loops import StepInfo
from nulltext.editing.heatmaps import heat_map_steps, heat_over
from nulltext.editing.loop import check_specs
from nulltext.editing.placing import Canvas, Placed, check_same_photo, ready_steps
from nulltext.errors import OptionError, PromptError
from nulltext.image.images import (
    MAX_PROPORTIONS,
    CropBox,
    Size,
    default_crop,
    from_uint8,
    psnr,
    to_tensor,
    to_uint8,
)
from nulltext.image.masks import load_mask, mask_on_crop
from nulltext.image.metadata import has_places
from nulltext.image.photos import Photo, has_position, load_photo
from nulltext.image.profiles import as_srgb
from nulltext.image.saving import Picture, coding_of, encode, save_image
from nulltext.inversion.invert import invert_steps
from nulltext.inversion.previews import Previews
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import check_model
from nulltext.jobs import export
from nulltext.jobs.edits import edits_of
from nulltext.jobs.options import EditOptions
from nulltext.jobs.pictures import BRANCHES, region_steps, save_steps
from nulltext.jobs.request import check_options, seed_of
from nulltext.jobs.settings import job_at, job_of
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.prompt_notes import notes_on_prompts
from nulltext.storage.files import replace_file, safe_name
from nulltext.storage.inversion_file import SUFFIX
from nulltext.studio.forms import (
    INVERTING,
    EditForm,
    InvertForm,
    PageRequest,
    chained,
    chips_of,
    edit_command,
    edit_options,
    read_integer,
    read_number,
    read_painting,
    read_text,
    weighed,
)
from nulltext.studio.resources import Meter, Progress, ReplacedError
from nulltext.studio.session import (
    PREVIEW_SIDE,
    EditRecord,
    Export,
    OpenInversion,
    OpenPhoto,
    Session,
    ShownAttention,
    Upload,
    url,
)
from nulltext.words.alignment import ARTICLES, align_words
from nulltext.words.prompts import TokenizedPrompt, has_word, listed, word_key

EXAMPLE = Path(__file__).parent / "front" / "dahlia.jpg"
EXAMPLE_SOURCE = "a photo of an orange flower with a dark background"

PREVIEW_INTERVAL = 0.7
"""Least seconds between two previews of an inversion."""
PREVIEW_SHARE = 0.1
"""Largest share of the time that they may take."""
LONGEST_OWN_NAME = 255
"""Bytes of the longest name that a file system takes."""
LARGEST_NUMBER = 2**53
"""Largest whole number of a page."""
MAP_SIDE = 1000
"""Longest side of a picture of attention in pixels."""
ZOOM_QUALITY = 92
"""Of the JPEGs that the page zooms into."""
MOST_ZOOMED = 2
"""Edits that the page shows at once."""


def open_photo(session: Session, request: PageRequest) -> Iterator[None]:
    yield from _open(session, request, _uploaded(session, request), source="")


def open_example(session: Session, request: PageRequest) -> Iterator[None]:
    yield from _open(session, request, Upload(EXAMPLE, EXAMPLE.name), source=EXAMPLE_SOURCE)


def _open(session: Session, request: PageRequest, file: Upload, *, source: str) -> Iterator[None]:
    """Open a photo, unless another one was requested meanwhile."""
    number = session.opening = session.next_number()
    with session.showing(Progress("Reading the photo")):
        yield
        path, photo, preview = _read(session, file)
    crop = _first_crop(photo.size)
    with session.commit(lambda: session.opening == number):
        session.clear()
        session.photo = OpenPhoto(
            path,
            file.name,
            photo.size,
            photo.sha256,
            photo.colours,
            preview,
            crop,
            has_position=has_position(photo.exif) or has_places(photo.metadata),
        )
        session.set_fields(
            request, source=source, proposed=False, target="", chips=[], crop=crop.as_list()
        )


def _first_crop(size: Size) -> CropBox:
    """Return the whole photo where a model takes its proportions, else its largest square."""
    fits = max(size) <= MAX_PROPORTIONS * min(size)
    return default_crop(size, "photo" if fits else None)


def _read(session: Session, file: Upload) -> tuple[Path, Photo, Path]:
    """Copy, decode and reduce a photo; return its file, the photo and its preview's file."""
    path = session.new_path(safe_name(file.name))
    shutil.copyfile(file.path, path)
    photo = session.resources.photo(path)
    _ = photo.sha256  # of every pixel, kept with the photo
    return path, photo, session.save_preview(photo.image, photo.icc_profile)


def _uploaded(session: Session, request: PageRequest) -> Upload:
    """Take the file that a request names, under a name that a file can have."""
    path, own_name = session.take_upload(request.get("file"))
    name = own_name.encode("utf-8", "replace").decode().replace("\0", "").rpartition("/")[2]
    if name in ("", ".", "..") or len(name.encode()) > LONGEST_OWN_NAME:
        name = safe_name(name)
    return Upload(path, name)


def propose(session: Session, request: PageRequest) -> Iterator[None]:
    """Have the captioner, if there is one, describe the crop; other jobs preempt it."""
    captioner, opened = session.resources.captioner, session.current_photo()
    if captioner is None:
        return
    box = CropBox.from_list(request.get("crop") or opened.crop.as_list())
    box.check_inside(opened.size)
    photo = session.load_photo()

    def steps() -> Generator[StepInfo, None, Caption]:
        yield from ()
        return captioner.describe(photo, crop=box)

    caption = yield from session.run_job(Meter("Looking at the photo"), steps, preemptible=True)
    with session.commit(lambda: session.photo is opened):
        if caption.text:
            proposed = caption.doubts or True
            session.set_fields(request, source=caption.text, proposed=proposed)


def known_words_of(model: LatentDiffusion) -> dict[str, Any] | None:
    """Return what the page marks and suggests words by; None where the model's are not known.

    It has the words that a prompt may say, the names of learnt tokens, the groups of words that
    may take each other's place, and a list to be shown.
    """
    known = model.known_words
    if known is None:
        return None
    learnt = [token.content for token in model.tokenizer.added_tokens_decoder.values()]
    return {
        "words": sorted(known.words | ARTICLES),
        "learnt": learnt,
        "groups": known.groups,
        "shown": listed(known.named or known.others),
    }


def open_inversion(session: Session, request: PageRequest) -> None:
    file, opened, photo = _uploaded(session, request), session.current_photo(), session.load_photo()
    path = session.new_path(f"{PurePath(safe_name(file.name)).stem}{SUFFIX}")
    shutil.copyfile(file.path, path)
    inversion = Inversion.load(path)
    header = inversion.header
    check_model(session.resources.model, inversion)
    check_same_photo(inversion, photo)
    box = CropBox.from_list(header.crop)
    box.check_inside(photo.size)
    inverted = OpenInversion(
        key=f"{session.folder.name}-{path.parent.name}",  # not shared with other sessions
        file=path,
        form=InvertForm(header.prompt, box, {"method": header.method}),
        header=header,
        prompt=session.resources.model.tokenize(header.prompt),
        uploaded_name=file.name,
        cached=True,
    )
    with session.commit(lambda: session.photo is opened):
        session.start_edits(request, inverted)


def invert(session: Session, request: PageRequest) -> Iterator[None]:
    opened, resources = session.current_photo(), session.resources
    form = InvertForm.read({**request, "crop": request.get("crop") or opened.crop.as_list()})
    form.crop.check_inside(opened.size)
    prompt = resources.model.tokenize(form.source)
    key = _inversion_key(resources.model, opened, form)
    cached = resources.inversions.get(key)
    inversion = cached
    if inversion is None:
        meter, photo = Meter("Encoding the photo"), session.load_photo()
        inversion = yield from session.run_job(
            meter, lambda: _invert_steps(resources.model, photo, form, meter)
        )
        resources.inversions.put(key, inversion)
    file = session.new_path(safe_name(f"{PurePath(opened.name).stem}{SUFFIX}"))
    inversion.save(file)
    inverted = OpenInversion(
        key, file, form, inversion.header, prompt, uploaded_name=None, cached=cached is not None
    )
    with session.commit(lambda: session.photo is opened):
        session.start_edits(request, inverted)


def _inversion_key(model: LatentDiffusion, photo: OpenPhoto, form: InvertForm) -> str:
    plan, options = form.plan(), form.options()
    parts = {
        "photo": [photo.sha256, photo.colours],
        "crop": form.crop.as_list(),
        "prompt": form.source,
        "model": model.fingerprint,
        "method": [plan.method.name, asdict(plan.method)],  # type: ignore[call-overload]
        "steps": plan.num_steps,
        "guidance": model.guidance_scale if options.guidance is None else options.guidance,
        "seed": seed_of(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _invert_steps(
    model: LatentDiffusion, photo: Photo, form: InvertForm, meter: Meter
) -> Generator[StepInfo, None, Inversion]:
    plan, options = form.plan(), form.options()
    pixels = from_uint8(to_uint8(to_tensor(photo, form.crop, model.sizes.of(form.crop, None))))
    steps = invert_steps(
        model,
        photo,
        form.source,
        method=plan.method,
        num_steps=plan.num_steps,
        guidance_scale=options.guidance,
        crop=form.crop,
        seed=seed_of(options),
    )
    bound = psnr(model.decode(model.encode(pixels)).cpu(), pixels)
    meter.watch(Previews(model, pixels, interval=PREVIEW_INTERVAL, share=PREVIEW_SHARE), bound)
    return (yield from steps)


def look(session: Session, request: PageRequest) -> Iterator[None]:
    """Show where a word of the source prompt attends; the maps of all words are made at once."""
    inverted, resources = session.current_inversion(), session.resources
    earlier = _earlier(session, request)
    shown = resources.model.tokenize(earlier[-1].target) if earlier else inverted.prompt
    word = read_integer(request, "word", 0, len(shown.words) - 1)
    index = None if word is None else _source_word(inverted.prompt, shown, word)
    if word is None or index is None:
        session.look = None
        return
    maps = resources.maps.get(inverted.key)
    if maps is None:
        inversion = session.load_inversion(inverted)

        def steps() -> Generator[StepInfo, None, list[Tensor]]:
            source, *_ = yield from heat_map_steps(resources.model, inversion)
            return [word.heat for word in source.words]

        meter = Meter("Looking where words look", is_one_stage=True)
        maps = yield from session.run_job(meter, steps, preemptible=True)
        resources.maps.put(inverted.key, maps)
    box = inverted.form.crop
    photo = session.load_photo()
    crop = photo.image.crop(box.edges)
    crop.thumbnail((MAP_SIDE, MAP_SIDE))
    path = session.new_path("look.jpg")
    save_image(heat_over(as_srgb(crop, photo.icc_profile), maps[index]), path)
    with session.commit(lambda: session.inverted is inverted):
        session.look = session.last_look = ShownAttention(word, path)


def _source_word(source: TokenizedPrompt, shown: TokenizedPrompt, word: int) -> int | None:
    """Return the index of a source word that the prompt of an edit still has; else None."""
    pairs = align_words([one.name for one in source.words], [one.name for one in shown.words])
    before = {j: i for i, j in pairs if i is not None and j is not None}.get(word)
    if before is None or word_key(source.words[before].name) != word_key(shown.words[word].name):
        return None
    return before


def go_on(session: Session, request: PageRequest) -> None:
    """Have the next edit start from an edit of the history; without a number, from the photo."""
    tokenize = session.resources.model.tokenize
    inverted, base = session.current_inversion(), None
    chips = chips_of(inverted.prompt)
    if request.get("number") is not None:
        record = _find(session.history, request)
        inverted = record.inverted
        base = _base_value(session, inverted, record.number, (*record.earlier, record.form))
        prompt = tokenize(record.form.target)
        chips = weighed(chips_of(prompt), prompt, record.form.weights)
        session.result = record
    session.inverted, session.look, session.strip = inverted, None, []
    target = inverted.prompt.text if base is None else base["target"]
    session.set_fields(request, base=base, target=target, chips=chips)


def _base_value(
    session: Session, inverted: OpenInversion, number: int | None, earlier: Sequence[EditForm]
) -> dict[str, Any] | None:
    """Describe the edit that the next one starts from, and its words; None for the photo.

    Args:
        number: of the edit.
        earlier: the edits from the photo to it.
    """
    if not earlier:
        return None
    target = earlier[-1].target
    words = [word.text for word in session.resources.model.tokenize(target).words]
    label = _label(session, inverted, earlier)
    return {"number": number, "label": label, "target": target, "words": words}


def _earlier(session: Session, request: PageRequest) -> tuple[EditForm, ...]:
    """Find the edits from the photo to the one that a request's edit starts from.

    Raises:
        OptionError: it is not kept any more.
    """
    number = read_integer(request, "base", 0, LARGEST_NUMBER)
    if number is None:
        return ()
    inverted = session.current_inversion()
    for record in (*session.history, *session.strip):
        if record.inverted.file != inverted.file:
            continue  # its words are others
        if record.number == number:
            return (*record.earlier, record.form)
        if record.base == number:
            return record.earlier
    raise OptionError(
        "The edit that this one goes on from is not kept any more; start from the photo again."
    )


STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)


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


def fade(session: Session, request: PageRequest) -> Iterator[None]:
    """Lay an edit of the history over the photo at another opacity."""
    photo, record = session.current_photo(), _find(session.history, request)
    opacity = read_number(request, "opacity", 0, 1)
    number = session.fading[record.number] = session.next_number()
    with session.showing(Progress("Laying the edit over the photo")):
        yield
        with session.resources.decoding:
            if session.fading[record.number] != number:
                raise ReplacedError
            faded = _faded(session, photo, record, 1.0 if opacity is None else opacity)
    with session.commit(lambda: session.photo is photo):
        session.replace_edit(faded)


def _faded(session: Session, opened: OpenPhoto, record: EditRecord, opacity: float) -> EditRecord:
    photo, form = session.resources.photo(opened.path), replace(record.form, opacity=opacity)
    made = export.fade(record.picture, photo, opacity)
    edits, masked = (*record.earlier, form), record.mask is not None
    options = _options_of(session, opened.name, record.inverted, edits, masked=masked)
    path = None
    if opacity < 1:
        path = session.new_path(record.picture.name)
        replace_file(path, made.file)
    return replace(
        record,
        form=form,
        faded=path,
        command=edit_command(options, session.resources.chosen),
        job=job_at(record.job, opacity),
        changed_fraction=made.changed_fraction,
    )


def zoom(session: Session, request: PageRequest) -> Iterator[None]:
    """Write the photo and edits of the history at their own size, for the page to zoom into."""
    numbers = request.get("numbers")
    numbers = numbers[:MOST_ZOOMED] if isinstance(numbers, list) else []
    photo, limit = session.current_photo(), session.resources.limits.pixels
    records = [_find(session.history, {"number": number}) for number in numbers]
    pictures = {photo.preview: photo.path, **{one.preview: one.picture for one in records}}
    missing = {path: file for path, file in pictures.items() if full_size(path, photo.size) is None}
    if not missing:
        return
    with session.showing(Progress("Fetching every pixel")):
        yield
        for preview, file in missing.items():
            with session.resources.decoding:  # one at a time, to bound memory
                own = file == photo.path
                picture = session.load_photo() if own else load_photo(file, max_pixels=limit)
                shown = Picture(as_srgb(picture.image, picture.icc_profile))
                path = preview.with_name(FULL_SIZE)
                replace_file(path, encode(shown, path, coding=coding_of(ZOOM_QUALITY)))


FULL_SIZE = "full.jpg"
"""Name of a picture at its own size, beside its preview."""


def full_size(preview: Path, size: tuple[int, int]) -> Path | None:
    """Return the file with every pixel of a picture, for the page; None if there is none yet."""
    if max(size) <= PREVIEW_SIDE:
        return preview
    path = preview.with_name(FULL_SIZE)
    return path if path.exists() else None


def export_edit(session: Session, request: PageRequest) -> Iterator[None]:
    """Write an edit in another format, to be downloaded; what is there already is used again."""
    record = _find([*session.history, *session.strip], request)
    kind = read_text(request, "kind") or "png"
    quality, bits = read_integer(request, "quality", 1, 100), read_integer(request, "bits", 8, 16)
    gps = request.get("gps") is True
    export.check_export(kind, quality, bits)
    wanted = (record.number, kind, quality, bits, gps)
    photo = session.current_photo()
    with session.showing(Progress("Writing the file")):
        yield
        with session.resources.decoding:
            found = [one for one in session.exports if astuple(one)[: len(wanted)] == wanted]
            made = found[0] if found else _export(session, record, *wanted)
    with session.commit(lambda: session.photo is photo):
        others = [one for one in session.exports if one != made]
        session.exports = [*others, made][-session.resources.limits.exports :]
        ask = request.get("ask")
        session.exported = ask if type(ask) is int else 0


def _export(
    session: Session,
    record: EditRecord,
    number: int,
    kind: str,
    quality: int | None,
    bits: int | None,
    gps: bool,
) -> Export:
    name = safe_name(f"{record.name}{export.EXPORTS[kind]}")
    path = picture = record.faded or record.picture
    if (kind, bits, gps) != ("png", None, False):
        path = session.new_path(name)
        photo = session.load_photo()
        made = export.export(picture, photo, kind, quality=quality, bits=bits, gps=gps)
        replace_file(path, made)
    return Export(number, kind, quality, bits, gps, path, name)


def batch_of(session: Session, record: EditRecord) -> dict[str, Any]:
    """Return what makes an edit of other photos: a job without its image, and a command."""
    own = ("image", "mask", "crop", "size")
    job = {name: value for name, value in record.job.items() if name not in own}
    photo = session.photo
    if photo is not None and record.inverted.form.crop == CropBox(0, 0, *photo.size):
        job["size"] = "photo"
    name = f"{record.name}.jsonl"
    words = ["nulltext", "batch", name, "-o", f"{record.name} – edited"]
    command = shlex.join([*words, *session.resources.chosen.as_arguments()])
    return {"job": job, "name": name, "command": command}


def _find(records: Sequence[EditRecord], request: PageRequest) -> EditRecord:
    number = read_integer(request, "number", 0, LARGEST_NUMBER)
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
        base=_base_value(session, record.inverted, record.base, record.earlier),
        **{name: inverted.settings.get(name) for name in INVERTING},
        **record.form.values(),
    )


def _make_edits(
    session: Session, request: PageRequest, strengths: Sequence[float] = ()
) -> Generator[None, None, list[EditRecord]]:
    inverted, model = session.current_inversion(), session.resources.model
    inversion = session.load_inversion(inverted)
    earlier = _earlier(session, request)
    before = model.tokenize(earlier[-1].target) if earlier else inverted.prompt
    form = EditForm.read(request, len(before.words), model.tokenize)
    forms = [form.at_strength(strength) for strength in strengths] or [form]
    painting = _read_mask(session, request.get("mask"))
    photo, mask = session.load_photo(), None
    if painting is not None:
        mask = mask_on_crop(load_mask(painting), photo.size, inverted.form.crop)
    _check_words(model, inverted.prompt, earlier, form)
    name = session.current_photo().name
    stem = PurePath(name).stem
    asked = [
        _options_of(session, name, inverted, (*earlier, one), masked=painting is not None)
        for one in forms
    ]
    for options in asked:
        check_options(options)
    specs = [edits_of(options, model, mask, ()).specs[-1] for options in asked]
    check_specs(model, inverted.prompt.text, specs)
    how = asked[0]
    canvas = Canvas.of(inversion, photo, full=True)
    saved_mask: Path | None = None
    if painting is not None:
        saved_mask = session.new_path(safe_name(f"{stem}-mask.png"))
        save_image(painting, saved_mask)

    def steps() -> Generator[StepInfo, None, list[EditRecord]]:
        ready = yield from ready_steps(
            model,
            inversion,
            specs,
            region=how.region,
            hue=how.hue,
            source_branch=BRANCHES[how.source_branch],
        )
        records: list[EditRecord] = []
        for row, (each, options) in enumerate(zip(forms, asked, strict=True)):
            # One picture after the other, to bound memory.
            placed = yield from ready.place_steps(canvas, row, how.detail or DETAIL)
            path = session.new_path(safe_name(f"{stem}-edited.png"))
            saving = save_steps(path, placed, inversion, canvas, gps=False, options=options)
            placed = yield from saving
            region = None
            if placed.found is not None:
                region = session.new_path(safe_name(f"{stem}-region.png"))
                yield from region_steps(region, placed, canvas)
            label = _label(session, inverted, (*earlier, each))
            kept = (*session.history, *session.strip, *records)
            record = EditRecord(
                number=session.next_number(),
                form=each,
                inverted=inverted,
                name=export.result_name(name, label, "", [one.name for one in kept]),
                picture=path,
                preview=session.save_preview(placed.image, photo.icc_profile),
                mask=saved_mask,
                region=region,
                label=label,
                command=edit_command(options, session.resources.chosen),
                changed_fraction=placed.changed_fraction,
                psnr_outside=placed.psnr_outside,
                remark=_remark(model, before.text, placed),
                cut=placed.cut if placed.seam else (),
                base=read_integer(request, "base", 0, LARGEST_NUMBER),
                earlier=earlier,
                job=job_of(options, inversion, placed),
            )
            records.append(record)
            del placed
        return records

    return (yield from session.run_job(Meter("Starting"), steps))


def _options_of(
    session: Session, name: str, inverted: OpenInversion, edits: Sequence[EditForm], *, masked: bool
) -> EditOptions:
    """Return the options of `nulltext edit` that make the same picture.

    Args:
        name: of the photo's file.
        edits: from the photo on; the last is the one that is made.
    """
    editing = chained(edits[:-1], edits[-1], session.resources.model.tokenize)
    mask = f"{PurePath(name).stem}-mask.png" if masked else None
    return edit_options(name, inverted.uploaded_name or inverted.form, editing, mask=mask)


def _read_mask(session: Session, value: object) -> Image.Image | None:
    """Read the page's mask: a new painting, or the address of an earlier edit's mask or region."""
    for record in session.history:
        for file in (record.mask, record.region):
            if file is not None and value == url(file):
                return load_mask(file)
    return read_painting(value, session.resources.limits.mask_pixels)


def _check_words(
    model: LatentDiffusion, source: TokenizedPrompt, earlier: Sequence[EditForm], form: EditForm
) -> None:
    """Refuse an edit without a change, and words that no prompt has.

    The library refuses them, too, but with options of the command line in its messages.
    """
    targets = [model.tokenize(one.target) for one in (*earlier, form)]
    prompts = [source, *targets]
    weights = earlier[-1].weights if earlier else {}
    if prompts[-2].token_ids == prompts[-1].token_ids and form.weights == weights:
        raise PromptError("Nothing is changed yet: retype a word, or give one another weight.")
    for word in form.blend:
        if not any(has_word(prompt, word) for prompt in prompts):
            known = dict.fromkeys(each.name for prompt in prompts for each in prompt.words)
            raise PromptError(
                f"“{word:.40}” is a word of neither prompt; the words are {', '.join(known)}."
            )


def _label(session: Session, inverted: OpenInversion, edits: Sequence[EditForm]) -> str:
    """Return what edits change, one after the other, in short."""
    words, labels = inverted.prompt.words, []
    weights: Mapping[str, float] = {}
    for form in edits:
        target = session.resources.model.tokenize(form.target).words
        changes = difference([word.name for word in words], [word.name for word in target])
        new = {word: factor for word, factor in form.weights.items() if weights.get(word) != factor}
        said = [changes, *(f"{word} ×{factor:g}" for word, factor in new.items())]
        labels.append(", ".join(filter(None, said)))
        words, weights = target, form.weights
    return ", then ".join(labels)


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
    elif placed.seam:
        remarks.append(f"The edit {placed.seam}: draw the crop around all that changes.")
    elif placed.oddity:
        remarks.append(
            f"The region that was found {placed.oddity}: paint a mask, or choose another region."
        )
    elif spec.blend is not None and placed.mask_fraction == 1:
        words = ", ".join(spec.blend.words)
        remarks.append(
            f"“{words}” looks everywhere, so nothing is held back: raise the threshold, or paint."
        )
    return " ".join([*remarks, *placed.lost]) or None
