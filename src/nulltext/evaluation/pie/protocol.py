"""How PIE-Bench is run: the same Prompt-to-Prompt edit after every inversion.

50 DDIM steps, w = 7.5; cross-attention injected for 0.4 of the steps and self-attention for 0.6,
refinement alignment; where words to blend are given, the edit stays where they look, and the
target's one is doubled.
Source: Ju et al. 2024 (Direct Inversion), sec. 5.3; numbers as in its published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from nulltext.attention.blend import LocalBlend
from nulltext.constants import GUIDANCE_SCALE, NUM_STEPS
from nulltext.diffusion.guidance import guided_evaluations
from nulltext.editing.editors import PromptToPrompt
from nulltext.editing.spec import EditSpec
from nulltext.errors import OptionError
from nulltext.evaluation.pie.dataset import PieItem
from nulltext.evaluation.variants import VARIANTS
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.registry import method_named, with_options
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import has_word

METHODS = ("ddim", "null-text", "negative-prompt", "direct")
"""Those that the paper compares and nulltext has."""

EDIT_BRANCHES = 2
"""Source and target."""


@dataclass(frozen=True)
class Protocol:
    """The numbers of a run; the defaults are the published ones."""

    num_steps: int = NUM_STEPS
    """T."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of every replay and edit."""
    cross_steps: float = 0.4
    """Fraction of the steps with the source's cross-attention."""
    self_steps: float = 0.6
    """Fraction of the steps with the source's self-attention."""
    word_weight: float = 2.0
    """Factor on the target's word to blend."""
    inner_steps: int | None = None
    """N of the methods that optimise; None for each method's own default."""
    seed: int = 0
    """For the methods that draw noise."""

    def __post_init__(self) -> None:
        if self.inner_steps is not None and self.inner_steps < 1:
            raise OptionError(f"--inner-steps is {self.inner_steps}; choose 1 or more.")

    @property
    def deviations(self) -> list[str]:
        """What differs from the published protocol, in words."""
        said = []
        if self.num_steps != NUM_STEPS:
            said.append(f"{self.num_steps} steps instead of {NUM_STEPS}")
        if self.inner_steps is not None:
            said.append(f"N = {self.inner_steps} instead of each method's own")
        return said

    def method(self, name: str) -> InversionMethod:
        """An inversion method of the registry with the run's options."""
        method = method_named(name)
        if self.inner_steps is None or not VARIANTS[name].optimises:
            return method
        return with_options(method, inner_steps=self.inner_steps)

    def evaluations(self, name: str) -> int:
        """UNet evaluations that one row will take at most: inversion, and edit."""
        n = getattr(self.method(name), "inner_steps", 0)
        inverted = VARIANTS[name].evaluations(self.num_steps, n)
        passes = guided_evaluations(EDIT_BRANCHES, self.guidance_scale)
        return inverted + passes * self.num_steps


def check_methods(names: list[str]) -> tuple[str, ...]:
    """Names of methods, each once, in the order given.

    Raises:
        OptionError: one is unknown.
    """
    for name in names:
        method_named(name)
    return tuple(dict.fromkeys(names))


def spec_of(model: LatentDiffusion, item: PieItem, protocol: Protocol) -> tuple[EditSpec, str]:
    """The edit, and what to note about words to blend that cannot be used; "" mostly.

    Raises:
        PromptError: a prompt cannot be read.
    """
    source, target = model.tokenize(item.source), model.tokenize(item.target)
    usable = [w for w in dict.fromkeys(item.blend) if has_word(source, w) or has_word(target, w)]
    last = item.blend[-1] if item.blend else ""
    weighted = bool(last) and has_word(target, last)
    editor = PromptToPrompt(
        cross_steps=protocol.cross_steps,
        self_steps=protocol.self_steps,
        weights={last: protocol.word_weight} if weighted else {},
        alignment="refine",
    )
    blend = LocalBlend(tuple(usable)) if usable else None
    unused = [word for word in item.blend if word not in usable]
    notes = [f"{', '.join(unused)} is in neither prompt, so not blended"] if unused else []
    if last and last not in unused and not weighted:
        notes.append(f"{last} is not in the target, so not weighted")
    return EditSpec(item.target, editor=editor, blend=blend), "; ".join(notes)
