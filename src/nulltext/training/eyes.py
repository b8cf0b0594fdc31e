"""A vision model that has learnt to see elsewhere, for a captioner to begin with.

ClipCap's own recipe: few captioned photos teach words, not sight. What the captioner learns here
goes on from its weights; its statistics of batches, where it has some, stay as they came.
Source: Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nulltext.captioning.captioner import Eyes
from nulltext.captioning.folder import PREPROCESSOR, read_eyes
from nulltext.captioning.vision import VISIONS, about
from nulltext.errors import OptionError, shortened
from nulltext.models.checkpoint import Checkpoint, quiet_libraries
from nulltext.untrusted import MEGABYTE, read_text

CONFIG = "config.json"
LICENCE = "LICENSE"
"""File that goes with weights wherever they go."""
MAX_LICENCE = MEGABYTE


@dataclass(frozen=True)
class Sight:
    """A vision model and the pixels that it is used to."""

    module: Any
    """One of `captioning.vision.VISIONS`, on the CPU, in float32."""
    eyes: Eyes
    fingerprint: str
    """Digest of its weights."""
    name: str
    """Its folder's."""
    licence: str | None
    """Text of the licence in its folder, if there is one."""

    def at(self, side: int, share: float) -> Eyes:
        """Its pixels, at another size and of another share of the photo.

        Raises:
            OptionError: it has learnt the positions of squares of one size only.
        """
        setting = about(self.module).side
        wanted = side if setting is None else int(getattr(self.module.config, setting))
        if wanted != side:
            raise OptionError(
                f"The vision model looks at {wanted} pixels and the recipe's captioner at {side}; "
                f'write "captioner": {{"side": {wanted}}} into the recipe.'
            )
        return replace(self.eyes, side=side, share=share)


def load_sight(folder: Path) -> Sight:
    """A vision model as transformers writes it.

    Raises:
        OptionError: there is no such folder.
        ModelError: it is another kind of model, damaged, or not in safetensors.
    """
    place = folder.expanduser().resolve()
    if not (place / CONFIG).is_file():
        raise OptionError(
            f"'{folder}' is no folder of a vision model: it has no {CONFIG}. Give one as "
            "transformers writes it (openai/clip-vit-base-patch32, google/efficientnet-b0)."
        )
    checkpoint = Checkpoint(place.parent)
    called = str(checkpoint.json(f"{place.name}/{CONFIG}").get("model_type"))
    names = {kind: name for name, own in VISIONS.items() for kind in own.model_types}
    if called not in names:
        raise OptionError(
            f"'{folder}' holds a model of the type {shortened(called)!r}; a captioner looks with "
            f"{', '.join(names)}."
        )
    with quiet_libraries():
        module = checkpoint.component(place.name, names[called])
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    eyes = read_eyes(place / PREPROCESSOR)
    return Sight(module, eyes, digest.hexdigest()[:16], place.name, _licence(place / LICENCE))


def _licence(path: Path) -> str | None:
    try:
        return read_text(path, MAX_LICENCE)
    except (OSError, ValueError):  # there is none, or it is no text
        return None
