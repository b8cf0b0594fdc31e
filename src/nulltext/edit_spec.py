"""One edit as a person says it, and as the sampler takes it.

Source: Hertz et al. 2022 (Prompt-to-Prompt), sec. 3.2, and for the defaults its published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nulltext.alignment import Alignment, attention_map, check_edit, token_weights
from nulltext.attention.blend import LocalBlend, blend_tokens
from nulltext.attention.prompt_to_prompt import Injection
from nulltext.defaults import CROSS_STEPS, SELF_STEPS
from nulltext.errors import OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.prompts import TokenizedPrompt
from nulltext.regions import Region, Words, check_mask, on_latents, rate


@dataclass(frozen=True)
class EditSpec:
    """One edit, in words."""

    target: str
    """What the photo shall show."""
    cross_steps: float = CROSS_STEPS
    """Fraction of the steps in which words keep the places that they have in the source: higher
    keeps the composition, lower lets shapes change."""
    self_steps: float = SELF_STEPS
    """Fraction of the steps in which self-attention is the source's: higher keeps shapes and
    texture, lower lets them change."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors on single words of the target: above 1 stronger, below weaker, negative against."""
    alignment: Alignment = "auto"
    """How source and target words are paired: "auto" swaps changed words and adds new ones,
    "replace" pairs by position, "refine" injects only words that both prompts have."""

    blend: LocalBlend | None = None
    """Words that the change stays at; None lets it reach everywhere."""
    mask: Tensor | None = field(default=None, compare=False)
    """[H, W] in [0, 1], over the crop, of any size: 1 where the picture may change, between 0 and 1
    where it may change partly; None lets it change everywhere."""
    pull: float = 0.0
    """How strongly the target is drawn to its source: 0 not at all, infinite to the replay."""

    def __post_init__(self) -> None:
        if not self.pull >= 0.0:
            raise OptionError(f"The pull is {self.pull:g}; choose a number from 0 up.")
        if self.mask is not None:
            check_mask(self.mask)
        for name in ("cross_steps", "self_steps"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise OptionError(
                    f"{name} is {value:g}; it is a fraction of the steps, from 0 to 1."
                )


def check_specs(
    model: LatentDiffusion, source_prompt: str, specs: Sequence[EditSpec], num_steps: int = 1
) -> list[Injection]:
    """Turn edits in words into edits in numbers; needs no inversion, so mistakes show early.

    Raises:
        PromptError: see `editing.edit`.
    """
    source = model.tokenize(source_prompt, allow_empty=True)
    for spec in specs:
        _words(model, source, spec, num_steps)
    return [_injection(model, source, spec, num_steps) for spec in specs]


def regions(
    model: LatentDiffusion,
    source_prompt: str,
    specs: Sequence[EditSpec],
    num_steps: int,
    size: tuple[int, int],
) -> list[Region]:
    """Where each target may depart from the source, on latents of size (h, w)."""
    source = model.tokenize(source_prompt, allow_empty=True)
    return [
        Region(
            mask=None if spec.mask is None else on_latents(spec.mask, size),
            words=_words(model, source, spec, num_steps),
            rate=rate(spec.pull, num_steps),
        )
        for spec in specs
    ]


def _words(
    model: LatentDiffusion, source: TokenizedPrompt, spec: EditSpec, num_steps: int
) -> Words | None:
    if spec.blend is None:
        return None
    tokens = blend_tokens(source, model.tokenize(spec.target), spec.blend)
    return Words(tokens, spec.blend.threshold, _steps_until(spec.blend.start, num_steps))


def _injection(
    model: LatentDiffusion, source: TokenizedPrompt, spec: EditSpec, num_steps: int
) -> Injection:
    target = model.tokenize(spec.target)
    check_edit(source, target, spec.weights)
    words = attention_map(source, target, spec.alignment)
    return Injection(
        mapping=words.mapping.to(model.device),
        gate=words.gate.to(model.device),
        weights=token_weights(target, spec.weights).to(model.device),
        cross_until=_steps_until(spec.cross_steps, num_steps),
        self_until=_steps_until(spec.self_steps, num_steps),
    )


def _steps_until(fraction: float, num_steps: int) -> int:
    return math.floor(fraction * num_steps + 0.5)
