"""Handlers from a photo to its inversion: open a photo, describe it, invert it, show attention."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import NamedTuple

from torch import Tensor

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.heatmaps import heat_map_steps, heat_over
from nulltext.editing.placing import check_same_photo
from nulltext.errors import ImageError, OptionError
from nulltext.image.images import (
    CropBox,
    from_uint8,
    largest_centred,
    psnr,
    to_tensor,
    to_uint8,
)
from nulltext.image.photos import Photo
from nulltext.image.saving import save_image
from nulltext.inversion.invert import invert_steps
from nulltext.inversion.previews import Previews
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import check_model
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.storage.inversion_file import SUFFIX
from nulltext.studio.forms import InvertForm, PageRequest, read_integer
from nulltext.studio.resources import MEGABYTE
from nulltext.studio.session import OpenInversion, OpenPhoto, Session, ShownAttention
from nulltext.studio.worker import Meter

EXAMPLE = Path(__file__).parent / "front" / "dahlia.jpg"
EXAMPLE_SOURCE = "a photo of an orange flower with a dark background"

PREVIEW_INTERVAL = 0.7
"""Least seconds between two previews of an inversion."""
PREVIEW_SHARE = 0.1
"""Largest share of the time that they may take."""
MAP_SIDE = 1000
"""Longest side of a picture of attention in pixels."""


class Upload(NamedTuple):
    """A file that was uploaded, and a name for it that is safe to use."""

    path: Path
    name: str


def open_photo(session: Session, request: PageRequest) -> None:
    _open(session, request, _uploaded(session, request), source="")


def open_example(session: Session, request: PageRequest) -> None:
    _open(session, request, Upload(EXAMPLE, EXAMPLE.name), source=EXAMPLE_SOURCE)


def _open(session: Session, request: PageRequest, file: Upload, *, source: str) -> None:
    """Open a photo, unless another one was requested meanwhile."""
    number = session.opening = session.next_number()
    path = session.new_path(file.name)
    shutil.copyfile(file.path, path)
    photo = session.resources.photo(path)
    preview = session.save_preview(photo.image, photo.icc_profile)
    crop = largest_centred(*photo.size)
    with session.commit(lambda: session.opening == number):
        session.clear()
        session.photo = OpenPhoto(path, file.name, photo.size, photo.sha256, preview, crop)
        session.set_fields(
            request, source=source, proposed=False, target="", chips=[], crop=crop.as_list()
        )


def _uploaded(session: Session, request: PageRequest) -> Upload:
    """Find the uploaded file of a request."""
    file = request.get("file")
    given = file if isinstance(file, dict) else {}
    path = Path(str(given.get("path") or "/")).resolve()
    if not path.is_relative_to(session.resources.uploads.resolve()) or not path.is_file():
        raise OptionError("No file has arrived; choose it once more.")
    name = PurePath(str(given.get("orig_name") or path.name).replace("\\", "/")).name
    name = re.sub(r"[^\w .()+,=@-]", "_", name)[-80:] or path.name
    limit = session.resources.limits.upload_bytes
    if path.stat().st_size > limit:
        raise ImageError(
            f"'{name}' has more than {limit // MEGABYTE} MB, the most that is taken; "
            "shrink it first."
        )
    return Upload(path, name)


def propose(session: Session, request: PageRequest) -> Iterator[None]:
    """Have the captioner, if there is one, describe the crop; other jobs preempt it."""
    captioner, opened = session.resources.captioner, session.current_photo()
    if captioner is None:
        return
    box = CropBox.from_list(request.get("crop") or opened.crop.as_list())
    box.check_inside(opened.size)
    photo = session.load_photo()

    def steps() -> Generator[StepInfo, None, str]:
        yield from ()
        return captioner.caption(photo, crop=box)

    caption = yield from session.run_job(Meter("Looking at the photo"), steps, preemptible=True)
    with session.commit(lambda: session.photo is opened):
        if caption:
            session.set_fields(request, source=caption, proposed=True)


def open_inversion(session: Session, request: PageRequest) -> None:
    file, opened, photo = _uploaded(session, request), session.current_photo(), session.load_photo()
    path = session.new_path(file.name if file.name.endswith(SUFFIX) else f"{file.name}{SUFFIX}")
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
        form=InvertForm(header.prompt, box, header.method),
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
    key = _inversion_key(resources.model, opened.sha256, form)
    cached = resources.inversions.get(key)
    inversion = cached
    if inversion is None:
        meter, photo = Meter("Encoding the photo"), session.load_photo()
        inversion = yield from session.run_job(
            meter, lambda: _invert_steps(resources.model, photo, form, meter)
        )
        resources.inversions.put(key, inversion)
    file = session.new_path(f"{PurePath(opened.name).stem}{SUFFIX}")
    inversion.save(file)
    inverted = OpenInversion(
        key, file, form, inversion.header, prompt, uploaded_name=None, cached=cached is not None
    )
    with session.commit(lambda: session.photo is opened):
        session.start_edits(request, inverted)


def _inversion_key(model: LatentDiffusion, photo_sha256: str, form: InvertForm) -> str:
    plan = form.plan()
    parts = {
        "photo": photo_sha256,
        "crop": form.crop.as_list(),
        "prompt": form.source,
        "model": model.fingerprint,
        "method": [plan.method.name, asdict(plan.method)],  # type: ignore[call-overload]
        "steps": plan.num_steps,
        "guidance": model.guidance_scale if form.guidance is None else form.guidance,
        "seed": form.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _invert_steps(
    model: LatentDiffusion, photo: Photo, form: InvertForm, meter: Meter
) -> Generator[StepInfo, None, Inversion]:
    plan = form.plan()
    pixels = from_uint8(to_uint8(to_tensor(photo, form.crop, model.sizes.of(form.crop, None))))
    steps = invert_steps(
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
    meter.watch(Previews(model, pixels, interval=PREVIEW_INTERVAL, share=PREVIEW_SHARE), bound)
    return (yield from steps)


def look(session: Session, request: PageRequest) -> Iterator[None]:
    """Show where a word of the source prompt attends; the maps of all words are made at once."""
    inverted, resources = session.current_inversion(), session.resources
    index = read_integer(request, "word", 0, len(inverted.prompt.words) - 1)
    if index is None:
        session.look = None
        return
    maps = resources.maps.get(inverted.key)
    if maps is None:
        inversion = session.load_inversion(inverted)

        def steps() -> Generator[StepInfo, None, list[Tensor]]:
            source, *_ = yield from heat_map_steps(resources.model, inversion)
            return [word.heat for word in source.words]

        meter = Meter("Looking where words look")
        maps = yield from session.run_job(meter, steps, preemptible=True)
        resources.maps.put(inverted.key, maps)
    box = inverted.form.crop
    crop = session.load_photo().image.crop((box.x, box.y, box.x + box.width, box.y + box.height))
    crop.thumbnail((MAP_SIDE, MAP_SIDE))
    path = session.new_path("look.jpg")
    save_image(heat_over(crop, maps[index]), path)
    with session.commit(lambda: session.inverted is inverted):
        session.look = ShownAttention(index, path)
