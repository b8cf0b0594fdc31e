"""Answer the page: run the handler of a verb and return the session as JSON.

A handler takes a session and a request. It is a plain function, or a generator that yields whenever
the page should be drawn again, and raises a `NulltextError` for what cannot be done.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nulltext.constants import BUDGET
from nulltext.errors import FieldError, NulltextError
from nulltext.inversion.budgets import BUDGETS, planned
from nulltext.inversion.registry import METHODS
from nulltext.jobs.export import DEPTHS
from nulltext.studio import verbs
from nulltext.studio.forms import EDITING, INVERTING, PageRequest, fields_of, without_flags
from nulltext.studio.resources import ReplacedError, Resources
from nulltext.studio.session import EditRecord, OpenInversion, OpenPhoto, Session, url

LOG = logging.getLogger(__name__)

View = dict[str, Any]

INTERNAL_ERROR = (
    "Something went wrong here, not with you; the terminal that runs the studio says what."
)


def cancel(session: Session, request: PageRequest) -> None:  # noqa: ARG001
    session.cancel()


VERBS: dict[str, Callable[[Session, PageRequest], Iterator[None] | None]] = {
    "open": verbs.open_photo,
    "example": verbs.open_example,
    "propose": verbs.propose,
    "bring": verbs.open_inversion,
    "invert": verbs.invert,
    "look": verbs.look,
    "edit": verbs.edit,
    "strip": verbs.strip,
    "choose": verbs.choose,
    "restore": verbs.restore,
    "zoom": verbs.zoom,
    "fade": verbs.fade,
    "go_on": verbs.go_on,
    "export": verbs.export_edit,
    "cancel": cancel,
}


def handle(session: Session, verb: str, request: Any) -> Iterator[View]:
    """Do what a page requests; yields views, the first at once, until it is done.

    Args:
        request: JSON, not checked yet.
    """
    fields = request if isinstance(request, dict) else {}
    session.problem = session.wrong = session.notice = None
    try:
        with session.handling(verb):
            yield view_of(session)
            for _ in VERBS[verb](session, fields) or ():
                yield view_of(session)
    except ReplacedError:
        pass
    except CancelledError:
        session.notice = "Cancelled."
    except NulltextError as error:
        session.problem = session.without_folders(without_flags(str(error)))
        session.wrong = error.field if isinstance(error, FieldError) else None
    except Exception:
        LOG.exception("The verb %s failed", verb)
        session.problem = INTERNAL_ERROR
    yield view_of(session)


def view_of(session: Session) -> View:
    """Return everything that a page shows; whole every time, so that nothing can go stale."""
    photo, inverted, look = session.photo, session.inverted, session.look
    base = session.fields["base"].value if "base" in session.fields else None
    return {
        "boot": session.resources.boot,
        "serial": session.next_number(),
        "photo": _photo(photo) if photo else None,
        "fields": {name: _plain(name, field.value) for name, field in session.fields.items()},
        "filled": {
            name: [field.revision, field.ask, field.page] for name, field in session.fields.items()
        },
        "inversion": _inversion(inverted) if inverted else None,
        "base": base,
        "words": _words(inverted, base),
        "look": {"word": look.word, "url": url(look.picture)} if look else None,
        "result": _edit(session, session.result) if session.result else None,
        "strip": [_edit(session, record) for record in session.strip],
        "history": [_edit(session, record) for record in session.history],
        "export": _export(session),
        "running": list(session.running),
        "progress": asdict(session.progress) if session.progress else None,
        "preemptible": session.preemptible,
        "problem": session.problem,
        "wrong": session.wrong,
        "notice": session.notice,
    }


def rules_of(resources: Resources) -> View:
    return {
        "verbs": list(VERBS),
        "model": resources.model.name,
        "captioner": resources.captioner is not None,
        "methods": {name: planned(name).num_steps for name in METHODS},
        "budgets": {name: budget.num_steps for name, budget in BUDGETS.items()},
        "budget": BUDGET,
        "known_words": verbs.known_words_of(resources.model),
        "inverting": fields_of(INVERTING),
        "editing": fields_of(EDITING),
        "exports": DEPTHS,
        "usual_guidance": resources.model.guidance_scale,
        "upload_bytes": resources.limits.upload_bytes,
        "example": f"front/{verbs.EXAMPLE.name}",
        "kept": resources.is_kept,
    }


def recent_of(session: Session) -> View:
    """Return what the start page shows of a session that has a photo."""
    photo = session.current_photo()
    shown = session.result.preview if session.result else photo.preview
    name, edits = photo.name, len(session.history)
    return {"id": session.id, "name": name, "url": url(shown), "edits": edits}


def _photo(photo: OpenPhoto) -> View:
    width, height = photo.size
    return {
        "name": photo.name,
        "width": width,
        "height": height,
        **_shown(photo.preview, photo.size),
        "has_position": photo.has_position,
    }


def _shown(preview: Path, size: tuple[int, int]) -> View:
    """Return where the page finds a picture, and every pixel of it."""
    full = verbs.full_size(preview, size)
    return {"url": url(preview), "full": url(full) if full else None}


def _inversion(inverted: OpenInversion) -> View:
    header = inverted.header
    return {
        "prompt": header.prompt,
        "crop": inverted.form.crop.as_list(),
        "method": header.method,
        "steps": len(header.levels),
        "psnr": _decibels(header.psnr_reconstruction),
        "bound": _decibels(header.psnr_bound),
        "seconds": round(header.seconds, 1),
        "cached": inverted.cached,
        "url": url(inverted.file),
        "name": inverted.file.name,
    }


def _edit(session: Session, record: EditRecord) -> View:
    size = session.photo.size if session.photo else (0, 0)
    return {
        "number": record.number,
        "target": record.form.target,
        "label": record.label,
        "strength": record.form.strength,
        "opacity": record.form.opacity,
        **_shown(record.preview, size),
        "download": url(record.faded or record.picture),
        "name": record.name,
        "mask": url(record.mask) if record.mask else None,
        "region": url(record.region) if record.region else None,
        "command": record.command,
        "changed": round(100 * record.changed_fraction, 1),
        "outside": _decibels(record.psnr_outside),
        "remark": record.remark,
        "cut": list(record.cut),
        "batch": verbs.batch_of(session, record),
    }


def _words(inverted: OpenInversion | None, base: View | None) -> list[str]:
    """The words that the next edit changes: those of the photo, or of the edit it starts from."""
    if inverted is None or base is not None:
        return base["words"] if base and inverted else []
    return [word.text for word in inverted.prompt.words]


def _export(session: Session) -> View | None:
    if session.exported is None or not session.exports:
        return None
    last = session.exports[-1]
    return {"ask": session.exported, "url": url(last.path), "name": last.name}


def _decibels(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None  # JSON has no infinity


def _plain(name: str, value: Any) -> Any:
    if name == "chips":
        return [asdict(chip) for chip in value]
    return url(value) if name == "mask" and value else value
