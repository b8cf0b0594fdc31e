"""Verbs around the inversion: make it once, keep it by content, and look where its words look."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import PurePath

from torch import Tensor

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.heatmaps import heat_map_steps, heat_over
from nulltext.image.images import from_uint8, psnr, save_image, to_tensor, to_uint8
from nulltext.image.photos import Photo
from nulltext.inversion.invert import invert_steps
from nulltext.inversion.previews import Previews
from nulltext.inversion.record import Inversion
from nulltext.storage.inversion_file import SUFFIX
from nulltext.studio.forms import Asked, InvertForm, whole
from nulltext.studio.meter import Meter
from nulltext.studio.session import Inverted, Session
from nulltext.studio.worker import CancelledError

PREVIEW_INTERVAL = 0.7
"""Seconds between two previews: a person is watching."""
PREVIEW_SHARE = 0.1
"""Share of the time that they may take."""
SHOWN_LOOK = 1000
"""Longest side of a picture of attention."""


def invert(session: Session, asked: Asked) -> Iterator[None]:
    """Invert the crop of the photo, unless that has been done before."""
    table = session.table()
    form = InvertForm.read({**asked, "crop": asked.get("crop") or table.crop.as_list()})
    form.crop.check_inside(table.size)
    studio = session.studio
    prompt = studio.model.tokenize(form.source)
    key = studio.key_of(table.sha256, form)
    kept = studio.inversions.get(key)
    cached = kept is not None
    if kept is None:
        meter = Meter("Encoding the photo")
        photo = session.opened()
        kept = yield from session.do(meter, lambda: _steps(session, form, photo, meter))
        studio.keep_inversion(key, kept)
    file = session.place(f"{PurePath(table.name).stem}{SUFFIX}")
    kept.save(file)
    with session.unless_replaced(lambda: session.photo is table):
        session.begin_edits(asked, Inverted(key, file, form, kept.header, prompt, None, cached))
    yield


def _steps(
    session: Session, form: InvertForm, photo: Photo, meter: Meter
) -> Generator[StepInfo, None, Inversion]:
    """In the worker: the inversion, watched."""
    model, plan = session.studio.model, form.plan()
    pixels = from_uint8(to_uint8(to_tensor(photo, form.crop, model.sizes.of(form.crop, None))))
    loop = invert_steps(
        model,
        photo,
        form.source,
        method=plan.method,
        num_steps=plan.num_steps,
        guidance_scale=form.guidance,
        crop=form.crop,
        seed=form.seed,
    )
    bound = psnr(model.decode(model.encode(pixels)).cpu(), pixels)
    watched = Previews(model, pixels, interval=PREVIEW_INTERVAL, share=PREVIEW_SHARE)
    meter.watch(watched, bound)
    return (yield from loop)


def look(session: Session, asked: Asked) -> Iterator[None]:
    """Show where a word of the source prompt looks; the maps of all words are made at once."""
    inverted, inversion = session.inversion()
    index = whole(asked, "word", 0, len(inverted.prompt.words) - 1)
    if index is None:
        session.look = None
        return
    maps = session.studio.maps.get(inverted.key)
    if maps is None:
        meter = Meter("Looking where words look")
        loop = partial(_map_steps, session, inversion)
        try:
            maps = yield from session.do(meter, loop, gives_way=True)
        except CancelledError:  # for something that matters more
            return
        session.studio.keep_maps(inverted.key, maps)
    box = inverted.form.crop
    crop = session.opened().image.crop((box.x, box.y, box.x + box.width, box.y + box.height))
    crop.thumbnail((SHOWN_LOOK, SHOWN_LOOK))
    file = session.place("look.jpg")
    save_image(heat_over(crop, maps[index]), file)
    with session.unless_replaced(lambda: session.inverted is inverted):
        session.look = (index, file)


def _map_steps(session: Session, inversion: Inversion) -> Generator[StepInfo, None, list[Tensor]]:
    """In the worker: one map [h, w] per word of the source."""
    source, *_ = yield from heat_map_steps(session.studio.model, inversion)
    return [word.heat for word in source.words]
