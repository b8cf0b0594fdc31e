"""One edit as a person says it.

An edit starts from the photo, or, in a chain, from an earlier edit: then that edit is to it what
the source is to a plain one. Words that came with the earlier target keep their places and looks,
masks hold back to the earlier picture, and still everything is sampled from the inversion, all at
once, so nothing decays however long the chain.
Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2, and for the defaults its published code;
chains are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nulltext.attention.blend import LocalBlend
from nulltext.constants import Alignment
from nulltext.editing.editors import Editor, PromptToPrompt
from nulltext.editing.strength import pull_at
from nulltext.errors import OptionError
from nulltext.image.masks import mask_tensor
from nulltext.image.opening import ImageLike
from nulltext.reprs import short_repr
from nulltext.words.prompts import clean


@dataclass(frozen=True, init=False)
class EditSpec:
    """One edit, in words."""

    target: str
    """What the photo shall show."""
    editor: Editor
    """How the target takes over from the photo."""
    guidance_scale: float | None
    """w of the target alone: higher follows its words more strongly; None for the inversion's."""
    guidance_start: float
    """Fraction of steps, the noisiest ones, that the target takes at w = 1; see `targets`."""
    negative: str | None
    """What the picture shall not show, in words; see `targets`."""
    blend: LocalBlend | None
    """Words that the change stays at; None lets it reach everywhere."""
    mask: Tensor | None = field(compare=False)
    """[H, W] in [0, 1], over the crop, of any size: 1 where the picture may change, between 0 and 1
    where it may change partly; None lets it change everywhere."""
    pull: float
    """How strongly the target is drawn to its source: 0 not at all, infinite to the replay."""
    parent: EditSpec | None = field(compare=False)
    """The edit that this one starts from; None for the photo."""

    __repr__ = short_repr

    def __init__(
        self,
        target: str,
        cross_steps: float | None = None,
        self_steps: float | None = None,
        weights: Mapping[str, float] | None = None,
        alignment: Alignment | None = None,
        blend: LocalBlend | None = None,
        mask: ImageLike | None = None,
        pull: float = 0.0,
        *,
        editor: Editor | None = None,
        guidance_scale: float | None = None,
        guidance_start: float = 0.0,
        negative: str | None = None,
        parent: EditSpec | None = None,
    ) -> None:
        """`cross_steps` to `alignment` are short for the fields of `editor=PromptToPrompt(...)`.

        Args:
            mask: over the crop that was inverted (of one over the photo, pass `mask_for`'s): a
                file, a PIL image, or an array or tensor [H, W]. Bools, and integers that are 0 or
                some k, are hard masks; other integers are of 255 (or 65535), floats in [0, 1].
                Coloured masks may have one colour on black.

        Raises:
            OptionError: a value is out of range, or given both here and in the editor.
            ImageError: the mask cannot be read, or has labels or several colours.
        """
        given: dict[str, Any] = {
            "cross_steps": cross_steps,
            "self_steps": self_steps,
            "weights": weights,
            "alignment": alignment,
        }
        short = {name: value for name, value in given.items() if value is not None}
        if editor is not None and short:
            raise OptionError(
                f"{', '.join(short)} cannot stand beside an editor; set it in the editor."
            )
        for name, text in {"target": target, "negative": negative or ""}.items():
            if not isinstance(text, str):
                raise OptionError(
                    f"The {name} of an edit is one text, not a {type(text).__name__}; make an "
                    "EditSpec of each."
                )
        if not pull >= 0.0:
            raise OptionError(f"The pull is {pull:g}; choose a number from 0 up.")
        if guidance_scale is not None and not 0.0 <= guidance_scale < float("inf"):
            raise OptionError(
                f"The target's guidance is {guidance_scale:g}; choose a number from 0 up."
            )
        if not 0.0 <= guidance_start <= 1.0:
            raise OptionError(
                f"The start of the guidance is {guidance_start:g}; choose a number from 0 to 1."
            )
        if negative and guidance_start == 1.0:
            raise OptionError(
                "A negative prompt steers nothing where guidance starts after the last step; leave "
                "it out, or choose a start of the guidance below 1."
            )
        values = {
            "target": clean(target),
            "editor": PromptToPrompt(**short) if editor is None else editor,
            "guidance_scale": guidance_scale,
            "guidance_start": guidance_start,
            "negative": None if negative is None else clean(negative).strip() or None,
            "blend": blend,
            "mask": None if mask is None else mask_tensor(mask),
            "pull": pull,
            "parent": parent,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def then(self, target: str) -> EditSpec:
        """The next edit of a chain: it starts from this one, with the same options.

        A weight is kept as long as its word is there. For other options, use `dataclasses.replace`
        on the result.
        """
        return replace(self, target=target, parent=self)

    def at_strength(self, strength: float) -> EditSpec:
        """This edit at a strength in [0, 1]; see `editors.at_strength`.

        Raises:
            OptionError: it is outside 0 to 1.
        """
        return replace(self, editor=self.editor.at_strength(strength), pull=pull_at(strength))

    @property
    def line(self) -> list[EditSpec]:
        """The edits from the photo to this one, itself included."""
        return [*(self.parent.line if self.parent else []), self]


def specs_of(given: str | EditSpec | Sequence[str | EditSpec]) -> list[EditSpec]:
    """Make edits of target prompts, one or several."""
    listed = [given] if isinstance(given, str | EditSpec) else given
    return [EditSpec(each) if isinstance(each, str) else each for each in listed]


def chain(first: str | EditSpec, *further: str) -> list[EditSpec]:
    """Edits that each start from the one before: `edit(model, inversion, chain("…", "…"))`.

    Args:
        first: the first target; as an `EditSpec`, its options hold for all.
        further: the whole prompt of each further target.
    """
    specs = [EditSpec(first) if isinstance(first, str) else first]
    for target in further:
        specs.append(specs[-1].then(target))
    return specs


def with_parents(specs: Sequence[EditSpec]) -> list[EditSpec]:
    """All edits that must be sampled for these, each once, parents before children.

    Edits of one generation and one kind of editor stand together, since they pass the UNet
    together. An edit is the same as another if it is the same object.
    """
    found = list({id(each): each for spec in specs for each in spec.line}.values())
    kinds = list(dict.fromkeys(type(spec.editor) for spec in found))
    return sorted(found, key=lambda spec: (len(spec.line), kinds.index(type(spec.editor))))


def check_kinds(specs: Sequence[EditSpec]) -> None:
    """Refuse chains that change their editor.

    Raises:
        OptionError: an edit has another kind of editor than the one that it starts from.
    """
    for spec in specs:
        if spec.parent is not None and type(spec.parent.editor) is not type(spec.editor):
            raise OptionError(
                f"A chain keeps one kind of editor, but {type(spec.editor).__name__} follows "
                f"{type(spec.parent.editor).__name__}; save the first picture and invert it."
            )
