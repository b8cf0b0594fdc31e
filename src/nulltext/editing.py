"""Editing: a saved inversion and new words, to new pictures.

At every step the source is sampled first and alone, by the same call as a replay, so what an edit
shows as reconstruction *is* the replay, bit for bit, however many targets stand beside it. The
targets then take the same step as a batch, under the inversion's null embeddings, while
Prompt-to-Prompt hands them the source's attention maps:

    z^src_{t-1} = source_step(z^src_t)                       its maps M_t are recorded
    z^tgt_{t-1} = step(z^tgt_t, guided eps(z^tgt_t, t, ∅_t, C_tgt; M_t injected))

Source: Hertz et al. 2022, alg. 1; Mokady et al. 2023, sec. 3.3 (the null embeddings serve both).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nulltext.alignment import Alignment, attention_map, check_edit, token_weights
from nulltext.attention.maps import StepMaps
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import Injection, MapRecorder
from nulltext.defaults import CROSS_STEPS, SELF_STEPS
from nulltext.errors import OptionError
from nulltext.guidance import guided_evaluations
from nulltext.images import from_uint8, psnr
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.prompts import TokenizedPrompt
from nulltext.record import Inversion, StepInfo, run
from nulltext.sampling import Conditions, check_model, source_step, start_latents
from nulltext.targets import Targets, watched

OnMaps = Callable[[Tensor, Tensor], None]
"""Shown one step's token maps of the source [1, L, h, w] and of the targets [K, L, h, w]."""


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

    def __post_init__(self) -> None:
        for name in ("cross_steps", "self_steps"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise OptionError(
                    f"{name} is {value:g}; it is a fraction of the steps, from 0 to 1."
                )


@dataclass(frozen=True)
class Edit:
    """What came of an edit."""

    images: Tensor
    """[K, 3, H, W], float32, about [-1, 1]: one picture per target."""
    reconstruction: Tensor
    """[1, 3, H, W]: the replay that ran beside them."""
    psnr_reconstruction: float
    """Decibels of the reconstruction against the photo's crop."""
    unet_evaluations: int
    """Single-image UNet passes, the source's included."""


def edit(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: str | EditSpec | Sequence[str | EditSpec],
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Edit:
    """Edit an inverted photo, to one or several targets at once.

    Args:
        specs: target prompts, or `EditSpec`s where an option differs from its default.
        on_step: called with each step's `StepInfo`.

    Raises:
        InversionFileError: the inversion belongs to another model.
        PromptError: a target is empty, too long, or says the same as the source without weights.
        NumericalError: the latents became infinite or NaN.
    """
    listed = [specs] if isinstance(specs, str | EditSpec) else specs
    normal = [EditSpec(spec) if isinstance(spec, str) else spec for spec in listed]
    return run(edit_steps(model, inversion, normal), on_step)


def edit_steps(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: Sequence[EditSpec],
    *,
    on_maps: OnMaps | None = None,
) -> Generator[StepInfo, None, Edit]:
    """`edit` as a generator of steps that returns the `Edit`.

    Args:
        on_maps: called at every step with what source [1, L, h, w] and targets [K, L, h, w] attend
            to; see `attention.maps`. The pictures are the same with and without.
    """
    if not specs:
        raise OptionError("There is nothing to edit to; give at least one target prompt.")
    check_model(model, inversion)
    injections = check_specs(model, inversion.header.prompt, specs, inversion.num_steps)
    conditions = Conditions.of(model, inversion)
    targets = Targets.start(model, inversion, [spec.target for spec in specs], injections)
    source = start_latents(model, inversion)
    for index, timestep in enumerate(inversion.header.timesteps):
        with torch.no_grad():
            seen, seen_targets = _eyes(targets) if on_maps else (None, None)
            recorder = MapRecorder(injections, index, targets.self_pixels, targets.guided)
            with attach(model.unet, watched(recorder, seen)):
                source, _ = source_step(model, inversion, conditions, source, index)
            estimate = targets.step(
                model, conditions.null(index), index, timestep, recorder.maps, seen_targets
            )
            if on_maps and seen and seen_targets:
                on_maps(seen.token_maps(), seen_targets.token_maps())
        yield StepInfo("edit", index + 1, inversion.num_steps, timestep, clean_estimate=estimate)
    reconstruction = model.decode(source).cpu()
    per_step = guided_evaluations(1 + len(specs), inversion.header.guidance_scale)
    return Edit(
        images=torch.cat([model.decode(row).cpu() for row in targets.latents.split(1)]),
        reconstruction=reconstruction,
        psnr_reconstruction=psnr(reconstruction, from_uint8(inversion.photo)),
        unet_evaluations=per_step * inversion.num_steps,
    )


def check_specs(
    model: LatentDiffusion, source_prompt: str, specs: Sequence[EditSpec], num_steps: int = 1
) -> list[Injection]:
    """Turn edits in words into edits in numbers; needs no inversion, so mistakes show early.

    Raises:
        PromptError: see `edit`.
    """
    source = model.tokenize(source_prompt)
    return [_injection(model, source, spec, num_steps) for spec in specs]


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


def _eyes(targets: Targets) -> tuple[StepMaps, StepMaps]:
    """Something to look at source and targets with, for one step."""
    return StepMaps(targets.self_pixels), StepMaps(targets.self_pixels)


def _steps_until(fraction: float, num_steps: int) -> int:
    return math.floor(fraction * num_steps + 0.5)
