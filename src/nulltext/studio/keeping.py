"""Sessions as JSON beside their files, written whole after every change.

What a dataclass of `session` and `forms` holds is an object by field names; a path is relative to
the session's folder; inversions and edits, which refer to each other, are lists. The header of an
inversion and its words are read from its own file again.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from nulltext.inversion.header import InversionHeader
from nulltext.storage.files import replace_file
from nulltext.storage.inversion_file import read_header
from nulltext.studio.forms import Chip
from nulltext.studio.session import (
    EditRecord,
    FieldValue,
    OpenInversion,
    OpenPhoto,
    Session,
    ShownAttention,
)

RECORD = "session.json"
VERSION = 1
FIELD_TYPES: Mapping[str, Any] = {"chips": list[Chip], "mask": Path | None}
"""Types of the page's fields that are not JSON as they are."""


def save_session(session: Session) -> None:
    """Write a session's record.

    Raises:
        OutputError: it cannot be written.
    """
    records = session.records()
    inversions = [record.inverted for record in records]
    inversions += [session.inverted] if session.inverted else []
    inversions = [*{one.file: one for one in inversions}.values()]
    places = {one.file: place for place, one in enumerate(inversions)}
    values = {
        "version": VERSION,
        "photo": session.photo,
        "inversions": [_without(one, "header", "prompt") for one in inversions],
        "inverted": places[session.inverted.file] if session.inverted else None,
        "edits": [
            {**_without(one, "inverted"), "inverted": places[one.inverted.file]} for one in records
        ],
        "history": [record.number for record in session.history],
        "strip": [record.number for record in session.strip],
        "result": session.result.number if session.result else None,
        "look": session.look,
        "fields": session.fields,
    }
    text = json.dumps(_encoded(values, session.folder), ensure_ascii=False)
    replace_file(session.folder / RECORD, text.encode())


def restore_session(session: Session) -> None:
    """Fill an empty session from its record.

    Raises:
        OSError, ValueError, KeyError, TypeError, NulltextError: it cannot be read.
    """
    values = json.loads((session.folder / RECORD).read_text(encoding="utf-8"))
    if values["version"] != VERSION:
        raise ValueError(f"it is of version {values['version']}")
    folder = session.folder
    inversions = [_inversion(session, one) for one in values["inversions"]]
    edits = {
        one["number"]: _decoded(EditRecord, one, folder, inverted=inversions[one["inverted"]])
        for one in values["edits"]
    }
    session.photo = _decoded(OpenPhoto | None, values["photo"], folder)
    session.inverted = None if values["inverted"] is None else inversions[values["inverted"]]
    session.history = [edits[number] for number in values["history"]]
    session.strip = [edits[number] for number in values["strip"]]
    session.result = edits.get(values["result"])
    session.look = session.last_look = _decoded(ShownAttention | None, values["look"], folder)
    for name, field in values["fields"].items():
        value = _decoded(FIELD_TYPES.get(name, Any), field["value"], folder)
        session.fields[name] = FieldValue(**{**field, "value": value})


def _inversion(session: Session, values: Mapping[str, Any]) -> OpenInversion:
    header = InversionHeader.from_json(read_header(session.folder / values["file"]))
    prompt = session.resources.model.tokenize(header.prompt)
    return _decoded(OpenInversion, values, session.folder, header=header, prompt=prompt)


def _without(value: Any, *names: str) -> dict[str, Any]:
    kept = [field.name for field in fields(value) if field.name not in names]
    return {name: getattr(value, name) for name in kept}


def _encoded(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return value.relative_to(folder).as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return _encoded(_without(value), folder)
    if isinstance(value, Mapping):
        return {name: _encoded(each, folder) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(each, folder) for each in value]
    return value


def _decoded(hint: Any, value: Any, folder: Path, **more: Any) -> Any:
    """Undo `_encoded` for a type.

    Args:
        more: fields of a dataclass that `value` does not have.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (one for one in arguments if one is not types.NoneType)
        return None if value is None else _decoded(hint, value, folder)
    if hint is Path:
        return folder / value
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        own = {
            name: _decoded(hints[name], value[name], folder) for name in hints if name not in more
        }
        return hint(**own, **more)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(_decoded(kind, one, folder) for kind, one in zip(kinds, value, strict=True))
    if origin is list:
        return [_decoded(arguments[0], one, folder) for one in value]
    return value
