"""What edits were asked for: checked before anything is loaded, then put together.

Which option belongs to which editor is said once, in `FIELDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nulltext.constants import BLEND_THRESHOLD, EditorName
from nulltext.errors import OptionError
from nulltext.jobs.sweep import Axis, Sweep, axes_of

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.attention.blend import LocalBlend
    from nulltext.editing.spec import EditSpec
    from nulltext.models.latent_diffusion import LatentDiffusion

FIELDS = {
    "cross_steps": (EditorName.PROMPT_TO_PROMPT, "cross_steps"),
    "self_steps": (EditorName.PROMPT_TO_PROMPT, "self_steps"),
    "align": (EditorName.PROMPT_TO_PROMPT, "alignment"),
    "weight": (EditorName.PROMPT_TO_PROMPT, "weights"),
    "masa_start": (EditorName.MASACTRL, "start"),
    "masa_layer": (EditorName.MASACTRL, "start_layer"),
    "masa_word": (EditorName.MASACTRL, "foreground"),
}
"""Option to the editor that it is for, and to its field there."""

STEERED = ("cross_steps", "self_steps", "masa_start")
"""Options that a strength sets as well."""

KNOBS_OF = {"cross_steps": "cross", "self_steps": "self", "masa_start": "masa-start"}
"""Such an option to the knob of a sweep that sets it, too."""


@dataclass(frozen=True)
class Asked:
    """The options that say what the edits are, as they were typed."""

    targets: Sequence[str]
    then: Sequence[str]
    then_strength: float | None
    editor: EditorName
    own: Mapping[str, Any]
    """Options of editors that were given, by name; see `FIELDS`."""
    strength: float | None
    target_guidance: float | None
    blend: Sequence[str]
    blend_except: Sequence[str]
    blend_threshold: float | None
    sweep: bool
    """Whether there is one."""
    over: Sequence[str]

    @classmethod
    def given(cls, own: Mapping[str, Any], **common: Any) -> Asked:
        """With those of the editors' options that were given: not None, not an empty list."""
        kept = {name: value for name, value in own.items() if value is not None and value != []}
        return cls(own=kept, **common)

    def check(self) -> None:
        """Refuse what cannot be meant together; loads nothing."""
        if self.then and len(self.targets) != 1:
            raise OptionError(
                f"--then goes on from one --target, and there are {len(self.targets)}; "
                "pass one, or one command per chain."
            )
        if self.then_strength is not None and not self.then:
            raise OptionError("--then-strength is for the edits that --then adds; add one.")
        for name in self.own:
            editor, _ = FIELDS[name]
            if editor is not self.editor:
                raise OptionError(
                    f"{_flag(name)} belongs to --editor {editor}; leave it out, or pass that one "
                    f"instead of {self.editor}."
                )
        doubled = [name for name in STEERED if name in self.own]
        if self.strength is not None and doubled:
            raise OptionError(f"--strength sets {_flag(doubled[0])}, too; leave one of them out.")
        if self.over and not self.sweep:
            raise OptionError("--over says what --sweep varies; add --sweep GRID.png.")
        parse_weights(self.own.get("weight", []))
        if self.blend_except and not self.blend:
            raise OptionError("--blend-except takes away from a --blend; name a word to blend.")
        if self.blend_threshold is not None and not self.blend:
            raise OptionError("--blend-threshold is for a --blend; name a word to blend.")

    @property
    def prompts(self) -> list[str]:
        """All prompts to edit to, in the order of the pictures."""
        return [*self.targets, *self.then]

    def changes(self, source: str) -> list[tuple[str, str]]:
        """Each prompt behind the one that it starts from: the source, or along a chain the last."""
        before = [source] * len(self.targets) + self.prompts[len(self.targets) - 1 : -1]
        return list(zip(before, self.prompts, strict=True))

    def axes(self) -> list[Axis]:
        """What a sweep varies: across, then down; nothing without a sweep.

        Raises:
            OptionError: a value is out of range, also of options that are not swept.
        """
        base = self._link(self.base())
        axes = [] if not self.sweep else axes_of(self.over, base)
        for axis in axes:
            self._check_axis(axis.name)
        return axes

    def _check_axis(self, knob: str) -> None:
        """Refuse to vary what would undo another option, or what another option would undo."""
        turns_steered = knob in ("strength", *KNOBS_OF.values())
        given = [_flag(name) for name in STEERED if knob == "strength" and name in self.own]
        given += ["--then-strength"] if turns_steered and self.then_strength is not None else []
        if given:
            raise OptionError(
                f"The sweep varies {knob}, which {given[0]} sets as well; leave that out, or say "
                "with --over what else to vary."
            )

    def base(self) -> EditSpec:
        """An edit with all options but the weights, the mask, and the words."""
        from nulltext.editing.editors import EDITORS
        from nulltext.editing.spec import EditSpec

        settings = {
            field: tuple(value) if isinstance(value, list) else value
            for name, value in self.own.items()
            for field in [FIELDS[name][1]]
            if field != "weights"
        }
        spec = EditSpec(
            "",
            editor=EDITORS[self.editor](**settings),
            guidance_scale=self.target_guidance,
            blend=self._blend(),
        )
        return spec if self.strength is None else spec.at_strength(self.strength)

    def _link(self, base: EditSpec) -> EditSpec:
        """The base of the edits that --then adds."""
        return base if self.then_strength is None else base.at_strength(self.then_strength)

    def _blend(self) -> LocalBlend | None:
        from nulltext.attention.blend import LocalBlend

        if not self.blend:
            return None
        given = self.blend_threshold
        threshold = BLEND_THRESHOLD if given is None else given
        return LocalBlend(tuple(self.blend), tuple(self.blend_except), threshold)

    def specs(
        self, model: LatentDiffusion, mask: Tensor | None, axes: Sequence[Axis]
    ) -> tuple[list[EditSpec], Sweep | None]:
        """The edits in the order of the pictures, and the sweep's.

        Args:
            mask: [H, W] in [0, 1], over the crop.

        Raises:
            PromptError: no target has a word that is weighted.
        """
        from nulltext.jobs.opening import weights_of_targets

        factors = parse_weights(self.own.get("weight", []))
        weights = weights_of_targets(model, self.prompts, factors)
        base = replace(self.base(), mask=mask)

        def edits(base: EditSpec) -> list[EditSpec]:
            specs: list[EditSpec] = []
            for words in self.prompts:
                parent = specs[-1] if self.then and specs else None
                spec = replace(self._link(base) if parent else base, target=words, parent=parent)
                if factors:
                    spec = replace(spec, editor=replace(spec.editor, weights=weights[words]))
                specs.append(spec)
            return specs

        sweep = Sweep.of(axes, base, edits) if axes else None
        return edits(base), sweep


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Read `WORD=FACTOR` pairs.

    Raises:
        OptionError: a pair is malformed.
    """
    weights: dict[str, float] = {}
    for text in texts:
        word, _, factor = text.rpartition("=")
        try:
            weights[word.strip()] = float(factor)
        except ValueError:
            word = ""
        if not word.strip():
            raise OptionError(
                f"--weight '{text}' is not WORD=FACTOR with a number; write --weight yellow=2."
            )
    return weights


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
