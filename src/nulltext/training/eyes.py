"""A vision model that has learnt to see elsewhere, for a captioner to begin with.

Few captioned photos teach words, not sight. ClipCap looks with CLIP's weights for this reason and
keeps them as they are; here they are where training begins, and go on with the rest. Statistics of
batches, where a vision model has some, stay as they came.
Source: after Mokady, Hertz and Bermano 2021 (ClipCap), sec. 3.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nulltext.captioning.captioner import Eyes
from nulltext.captioning.folder import PREPROCESSOR, read_eyes
from nulltext.captioning.vision import VISIONS, embed, side_of
from nulltext.errors import ModelError, OptionError, shorten
from nulltext.models.checkpoint import Checkpoint, first_line, quiet_libraries
from nulltext.storage.untrusted import MEGABYTE, read_text

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
    """Digest of its weights, its config and its pixels."""
    name: str
    """Its folder's."""
    licence: str | None
    """Text of the licence in its folder, if there is one."""

    def at(self, side: int, share: float) -> Eyes:
        """Its pixels, at another size and of another share of the photo.

        Raises:
            OptionError: it has learnt the positions of squares of one size only.
            ModelError: it makes no embeddings, as its config is.
        """
        wanted = side_of(self.module)
        if wanted not in (None, side):
            raise OptionError(
                f"The vision model looks at {wanted} pixels and the recipe's captioner at {side}; "
                f'write "captioner": {{"side": {wanted}}} into the recipe.'
            )
        try:  # to look once at black: better now than after hours of something else
            with torch.no_grad():
                embed(self.module, torch.zeros(1, 3, side, side))
        except Exception as error:  # whatever the library fails with
            raise ModelError(
                f"The vision model '{self.name}' makes no embeddings of {side} pixels "
                f"({first_line(error)}); get it again."
            ) from error
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
    checkpoint = Checkpoint.at(place.parent)
    config = checkpoint.json(f"{place.name}/{CONFIG}")
    called = str(config.get("model_type"))
    names = {kind: name for name, own in VISIONS.items() for kind in own.model_types}
    if called not in names:
        raise OptionError(
            f"'{folder}' holds a model of the type {shorten(called)!r}; a captioner looks with "
            f"{', '.join(names)}."
        )
    with quiet_libraries():
        module = checkpoint.component(place.name, names[called])
    eyes = read_eyes(place / PREPROCESSOR)
    digest = hashlib.sha256(f"{json.dumps(config, sort_keys=True)} {eyes}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return Sight(module, eyes, digest.hexdigest()[:16], place.name, _licence(place / LICENCE))


def _licence(path: Path) -> str | None:
    try:
        return read_text(path, MAX_LICENCE)
    except (OSError, ValueError):  # there is none, or it is no text
        return None
