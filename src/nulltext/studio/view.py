"""A session as the page shows it: one JSON object, whole every time, so nothing can go stale."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nulltext.defaults import BUDGET, NUM_STEPS
from nulltext.inversion.budgets import BUDGETS
from nulltext.inversion.registry import METHODS
from nulltext.studio.forms import GUIDANCE, STEPS
from nulltext.studio.house import Studio
from nulltext.studio.session import Entry, Inverted, OpenPhoto, Session

View = dict[str, Any]


def view_of(session: Session) -> View:
    """Everything that a page draws."""
    inverted = session.inverted
    return {
        "serial": session.serial(),
        "photo": _photo(session.photo) if session.photo else None,
        "fields": {name: _plain(name, field.value) for name, field in session.fields.items()},
        "filled": {name: [field.revision, field.ask] for name, field in session.fields.items()},
        "inversion": _inversion(inverted) if inverted else None,
        "words": [word.text for word in inverted.prompt.words] if inverted else [],
        "look": {"word": session.look[0], "url": url(session.look[1])} if session.look else None,
        "result": _entry(session.result) if session.result else None,
        "strip": [_entry(entry) for entry in session.strip],
        "history": [_entry(entry) for entry in session.history],
        "progress": asdict(session.progress) if session.progress else None,
        "gives_way": session.gives_way,
        "problem": session.problem,
        "notice": session.notice,
    }


def rules_of(studio: Studio) -> View:
    """What a page has to know once: the model, the choices, the limits."""
    return {
        "model": studio.model.name,
        "captioner": studio.captioner is not None,
        "methods": list(METHODS),
        "budgets": {name: budget.num_steps for name, budget in BUDGETS.items()},
        "budget": BUDGET,
        "usual_steps": NUM_STEPS,
        "usual_guidance": studio.model.guidance_scale,
        "steps": list(STEPS),
        "guidance": list(GUIDANCE),
        "upload_bytes": studio.limits.upload_bytes,
    }


def url(path: Path) -> str:
    """Where the page finds a file."""
    return f"gradio_api/file={quote(str(path))}"


def decibels(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 2) if math.isfinite(value) else None


def _photo(photo: OpenPhoto) -> View:
    width, height = photo.size
    return {"name": photo.name, "width": width, "height": height, "url": url(photo.shown)}


def _inversion(inverted: Inverted) -> View:
    header = inverted.header
    return {
        "key": inverted.key,
        "prompt": header.prompt,
        "crop": inverted.form.crop.as_list(),
        "method": header.method,
        "steps": len(header.levels),
        "psnr": decibels(header.psnr_reconstruction),
        "bound": decibels(header.psnr_bound),
        "seconds": round(header.seconds, 1),
        "cached": inverted.cached,
        "url": url(inverted.file),
        "name": inverted.file.name,
    }


def _entry(entry: Entry) -> View:
    return {
        "number": entry.number,
        "target": entry.form.target,
        "label": entry.label,
        "strength": entry.form.strength,
        "url": url(entry.shown),
        "download": url(entry.picture),
        "mask": url(entry.mask) if entry.mask else None,
        "command": entry.command,
        "changed": round(100 * entry.changed_fraction, 1),
        "outside": decibels(entry.psnr_outside),
        "reconstruction": decibels(entry.psnr_reconstruction),
        "remark": entry.remark,
    }


def _plain(name: str, value: Any) -> Any:
    """A field as JSON."""
    if name == "chips":
        return [asdict(chip) for chip in value]
    return url(value) if name == "mask" and value else value
