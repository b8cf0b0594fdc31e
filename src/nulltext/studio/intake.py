"""Verbs that bring something in: a photo, the example, words for it, a saved inversion.

A verb takes a session and what the page asks (JSON); it is a generator that yields whenever the
page should be drawn again, and raises a `UserError` for what cannot be done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path, PurePath

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.placing import check_same_photo
from nulltext.errors import ImageError, InversionFileError, OptionError, UserError
from nulltext.image.images import CropBox, largest_centred_square
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import check_model
from nulltext.storage.inversion_file import SUFFIX
from nulltext.studio.forms import Asked, InvertForm
from nulltext.studio.meter import Meter
from nulltext.studio.pictures import shown
from nulltext.studio.session import Inverted, OpenPhoto, Session
from nulltext.studio.worker import CancelledError

EXAMPLE = Path(__file__).parent / "front" / "dahlia.jpg"
EXAMPLE_SOURCE = "a photo of an orange flower with a dark background"
MEGABYTE = 1 << 20


def open_photo(session: Session, asked: Asked) -> Iterator[None]:
    """A file that was uploaded becomes the photo on the table."""
    path, name = _uploaded(session, asked)
    _begin(session, asked, (path, name), "")
    yield


def open_example(session: Session, asked: Asked) -> Iterator[None]:
    """The photo that comes with nulltext, and what it shows."""
    _begin(session, asked, (EXAMPLE, EXAMPLE.name), EXAMPLE_SOURCE)
    yield


def propose(session: Session, asked: Asked) -> Iterator[None]:
    """Ask the captioner, where there is one, what the crop shows; anything else comes first."""
    captioner, table = session.studio.captioner, session.table()
    if captioner is None:
        return
    box = CropBox.from_list(asked.get("crop") or table.crop.as_list())
    box.check_inside(table.size)
    photo = session.opened()

    def steps() -> Generator[StepInfo, None, str]:
        yield from ()
        return captioner.caption(photo, crop=box)

    try:
        said = yield from session.do(Meter("Looking at the photo"), steps, gives_way=True)
    except CancelledError:  # for something that matters more
        return
    with session.unless_replaced(lambda: session.photo is table):
        if said:
            session.revise(asked, source=said, proposed=True)


def open_inversion(session: Session, asked: Asked) -> Iterator[None]:
    """A saved inversion of the photo on the table: no need to invert again."""
    path, name = _uploaded(session, asked)
    table, photo = session.table(), session.opened()
    kept = session.place(name if name.endswith(SUFFIX) else f"{name}{SUFFIX}")
    shutil.copyfile(path, kept)
    try:
        inversion = Inversion.load(kept)
        header = inversion.header
        check_model(session.studio.model, inversion)
        check_same_photo(inversion, photo)
        box = CropBox.from_list(header.crop)
        box.check_inside(photo.size)
        prompt = session.studio.model.tokenize(header.prompt)
    except UserError as error:
        raise InversionFileError(_named(error, kept, name)) from error
    form = InvertForm(header.prompt, box, header.method)
    key = f"{session.folder.name}-{kept.parent.name}"  # nobody else's
    inverted = Inverted(key, kept, form, header, prompt, brought=name, cached=True)
    with session.unless_replaced(lambda: session.photo is table):
        session.begin_edits(asked, inverted)
    yield


def _begin(session: Session, asked: Asked, file: tuple[Path, str], source: str) -> None:
    """Put a photo on a cleared table, unless another one was asked for meanwhile."""
    path, name = file
    ticket = session.opening = session.number()
    kept = session.place(name)
    shutil.copyfile(path, kept)
    try:
        photo = session.studio.photo(kept)
    except ImageError as error:
        raise ImageError(_named(error, kept, name)) from error
    picture, crop = session.place("shown.jpg"), largest_centred_square(*photo.size)
    shown(photo.image, photo.icc_profile, picture)
    with session.unless_replaced(lambda: session.opening == ticket):
        _clear(session)
        session.photo = OpenPhoto(kept, name, photo.size, photo.sha256, picture, crop)
        session.revise(
            asked, source=source, proposed=False, target="", chips=[], crop=crop.as_list()
        )


def _clear(session: Session) -> None:
    session.cancel()
    if session.photo is not None:
        session.studio.photos.forget(str(session.photo.path))
    session.inverted = session.look = session.result = None
    session.history, session.strip = [], []


def _uploaded(session: Session, asked: Asked) -> tuple[Path, str]:
    """The file that arrived, and a harmless form of its name.

    Raises:
        OptionError: no file arrived here. ImageError: it is too large.
    """
    file = asked.get("file")
    given = file if isinstance(file, dict) else {}
    path = Path(str(given.get("path") or "/")).resolve()
    if not path.is_relative_to(session.studio.uploads.resolve()) or not path.is_file():
        raise OptionError("No file has arrived; choose it once more.")
    name = PurePath(str(given.get("orig_name") or path.name).replace("\\", "/")).name
    name = re.sub(r"[^\w .()+,=@-]", "_", name)[-80:] or path.name
    most = session.studio.limits.upload_bytes
    if path.stat().st_size > most:
        raise ImageError(
            f"'{name}' has more than {most // MEGABYTE} MB, the most that is taken; "
            "shrink it first."
        )
    return path, name


def _named(error: UserError, path: Path, name: str) -> str:
    """An error's sentence about the file as the person knows it."""
    return str(error).replace(str(path), name)
