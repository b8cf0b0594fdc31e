"""JSON that is kept beside a model's weights, under their fingerprint.

    {"version": 1, "fingerprint": "…", …}

It may come from a stranger, with the weights, so it is bounded and checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nulltext.errors import ModelError, reason_of
from nulltext.storage.files import replace_file
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

MAX_BYTES = 4 * MEGABYTE

Content = TypeVar("Content")


def write_beside(path: Path, version: int, fingerprint: str, content: Mapping[str, Any]) -> Path:
    """Keep it for the weights of this fingerprint; returns the file.

    Raises:
        OutputError: it cannot be written.
    """
    whole = {"version": version, "fingerprint": fingerprint, **content}
    replace_file(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read_beside(
    path: Path, version: int, parse: Callable[[Mapping[str, Any]], Content]
) -> Content | None:
    """What `parse` makes of it; None where nobody kept anything.

    Args:
        parse: raises ValueError, KeyError, TypeError or AttributeError for what it cannot use.

    Raises:
        ModelError: the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        content = parse_json(read_text(path, MAX_BYTES))
        if content["version"] != version or not isinstance(content["fingerprint"], str):
            raise ValueError(f"its version is {content['version']!r}")
        return parse(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"'{path}' cannot be read ({reason_of(error)}); get it again, or delete it."
        ) from error
