"""One edit from its options to its pictures: the way that the command line and a batch share.

options --> Order --> Opened (files) --> EditSpecs (words, by the model) --> Pictures --> files
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext import constants
from nulltext.constants import AUTO, EditorName, SourceBranch
from nulltext.errors import OptionError
from nulltext.jobs.asked import FIELDS, Asked, parse_weights
from nulltext.jobs.request import Opened, Request
from nulltext.words.prompts import clean

if TYPE_CHECKING:
    from nulltext.diffusion.loops import StepInfo
    from nulltext.editing.loop import Edit
    from nulltext.editing.placing import Canvas, Placed
    from nulltext.editing.spec import EditSpec
    from nulltext.inversion.record import Inversion
    from nulltext.jobs.sweep import Sweep
    from nulltext.models.latent_diffusion import LatentDiffusion


WORDS = {"source", "target", "then", "weight", "masa_word", "blend", "blend_except"}
"""Options that are words of a person."""


@dataclass(frozen=True)
class Order:
    """Everything about an edit but where its pictures go."""

    request: Request
    asked: Asked
    source_branch: SourceBranch

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Order:
        """From options of `edit` by their long names; one that is None or left out is not given."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in WORDS & given.keys():
            said = given[name]
            given[name] = clean(said) if isinstance(said, str) else [clean(one) for one in said]
        own = {field.name for field in fields(Request)}
        return cls(
            request=Request(**{name: given[name] for name in given if name in own}),
            asked=Asked.given(
                {name: given[name] for name in FIELDS if name in given},
                targets=given.get("target", []),
                then=given.get("then", []),
                then_strength=given.get("then_strength"),
                editor=EditorName(given.get("editor", EditorName.PROMPT_TO_PROMPT)),
                strength=given.get("strength"),
                target_guidance=given.get("target_guidance"),
                blend=given.get("blend", []),
                blend_except=given.get("blend_except", []),
                blend_threshold=given.get("blend_threshold"),
                sweep=bool(given.get("sweep", False)),
                over=given.get("over", []),
            ),
            source_branch=given.get("source_branch", "replay"),
        )

    def check(self) -> None:
        """Refuse what cannot be meant; loads nothing.

        Raises:
            OptionError: so it is.
        """
        self.request.check(self.asked.targets, blends=bool(self.asked.blend))
        self.asked.check()
        own = [str(self.request.source)] if self.request.inversion is None else []
        if not all(prompt.strip() for prompt in [*own, *self.asked.prompts]):
            raise OptionError("A prompt is empty; say in a few words what the photo shall show.")
        self.check_targets(*own)

    def check_targets(self, source: str = AUTO) -> None:
        """Refuse targets that say what they start from.

        Raises:
            OptionError: so it is.
        """
        from nulltext.words.prompts import quoted

        weights = parse_weights(self.asked.own.get("weight", [])).values()
        for before, after in self.asked.changes("" if source == AUTO else source):
            if before.split() == after.split() and all(factor == 1 for factor in weights):
                raise OptionError(
                    f"The target {quoted(after)} says the same as the source {quoted(before)}; "
                    "change a word, or pass --weight WORD=FACTOR with another factor than 1."
                )


def notes_of(model: LatentDiffusion, order: Order, opened: Opened) -> list[str]:
    """See `notes_on_prompts`: of the source prompt and all that it is edited to.

    Raises:
        PromptError: the model cannot read one of them.
    """
    from nulltext.models.prompt_notes import notes_on_prompts

    source, asked = opened.prompt, order.asked
    own = [source] if source else []  # a saved inversion may have none
    return notes_on_prompts(model, [*own, *asked.prompts], asked.changes(source))


@dataclass(frozen=True)
class Pictures:
    """What came of an order."""

    inversion: Inversion
    edit: Edit
    canvas: Canvas
    wanted: Sequence[Placed]
    """What was asked for, in its order."""
    reconstructed_by: str
    """What the reconstruction beside the edits follows."""
    sweep: Sweep | None
    swept: Sequence[Placed]
    """`sweep.specs`, in their order."""
    note: str | None
    """What is odd about the model."""

    @property
    def figures(self) -> dict[str, Any]:
        """What JSON says of them."""
        header = self.inversion.header
        return {
            "psnr_bound": header.psnr_bound,
            "psnr_replay": header.psnr_reconstruction,
            "psnr_reconstruction": self.edit.psnr_reconstruction,
            "changed_fraction": max(one.changed_fraction for one in self.wanted),
            "psnr_outside": min(one.psnr_outside for one in self.wanted),
            "mask_fraction": [one.mask_fraction for one in self.wanted],
            "unchanged": [one.unchanged for one in self.wanted],
        }

    @property
    def remarks(self) -> list[str]:
        """What is odd about them, for a person."""
        from nulltext.jobs.saving import remark

        said = [self.note]
        said += [text for one in self.wanted for text in (remark(one), *one.lost)]
        return list(dict.fromkeys(text for text in said if text))

    def save(
        self,
        model: LatentDiffusion,
        outputs: Sequence[Path],
        strip: Path | None,
        sweep: Path | None,
        *,
        gps: bool,
    ) -> Pictures:
        """Write them, each file whole or not at all.

        Args:
            gps: whether the photo's position is written, too.

        Returns: the same, measured in their files.

        Raises:
            OutputError: one cannot be written.
        """
        from nulltext.jobs.saving import save_placed, save_strip, save_sweep

        wanted = save_placed(outputs, self.wanted, self.inversion, self.canvas, gps=gps)
        if strip:
            pictures = (self.inversion, self.edit, self.wanted, self.canvas)
            save_strip(strip, model, *pictures, self.reconstructed_by)
        if sweep and self.sweep:
            save_sweep(sweep, self.sweep, self.swept, self.canvas)
        return replace(self, wanted=wanted)


def pictures_of(
    model: LatentDiffusion,
    order: Order,
    opened: Opened,
    made: Inversion,
    specs: Sequence[EditSpec],
    sweep: Sweep | None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Pictures:
    """Sample all edits, the sweep's among them, and put them into their canvas.

    Args:
        specs, sweep: of `order.asked.specs`.

    Raises:
        NulltextError: see `editing.edit`.
    """
    from nulltext.diffusion.loops import run
    from nulltext.editing.loop import edit_steps
    from nulltext.editing.placing import Canvas, place
    from nulltext.health.noise import note_on_configuration
    from nulltext.inversion.replay import exact_source_step, source_step

    branches = {
        "exact": (exact_source_step, "exact trajectory"),
        "replay": (source_step, made.header.method),
    }
    branch, followed = branches[order.source_branch]
    everything = [*specs, *(sweep.specs if sweep else [])]
    result = run(edit_steps(model, made, everything, source_branch=branch), on_step)
    canvas = Canvas.of(made, opened.photo, full=order.request.full)
    detail = order.request.detail or constants.DETAIL
    placed = [place(canvas, result, row, spec, detail) for row, spec in enumerate(everything)]
    wanted, swept = placed[: len(specs)], placed[len(specs) :]
    note = note_on_configuration(model, made)
    return Pictures(made, result, canvas, wanted, followed, sweep, swept, note)
