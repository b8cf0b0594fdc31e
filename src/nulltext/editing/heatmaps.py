"""Which part of the photo each word is about: cross-attention over a whole replay or edit.

    A[l] = mean over steps of A_t[l]            token maps, see `attention.maps`
    W    = sum over the word's tokens of A[l]   the share of each pixel's attention

Source: Hertz et al. 2022, fig. 4; Tang et al. 2023 (DAAM), sec. 3.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.attention.maps import Bystander, RunningMean, StepMaps, Watched, word_map
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.editing.loop import EditSpec, edit_steps
from nulltext.inversion.record import Inversion, StepInfo
from nulltext.inversion.sampling import Conditions, model_of, source_step, start_latents
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.reprs import short_repr
from nulltext.words.prompts import TokenizedPrompt


@dataclass(frozen=True)
class WordMap:
    """Where one word of a prompt looks."""

    word: str
    """As it was typed; a learnt token that is written out has the name of its first part."""
    heat: Tensor
    """[h, w], float32, in [0, 1] but for word weights: the word's share of each pixel's attention,
    averaged over steps."""
    steps: Tensor
    """[T, h, w]: the same, step by step, noisiest first."""

    __repr__ = short_repr


@dataclass(frozen=True)
class PromptMaps:
    """The maps of all words of a prompt, in the prompt's order."""

    prompt: str
    words: tuple[WordMap, ...]


def heat_map_steps(
    model: LatentDiffusion, inversion: Inversion, specs: Sequence[EditSpec] = ()
) -> Generator[StepInfo, None, list[PromptMaps]]:
    """Replay or edit, and watch: the maps of the source prompt, then of each target.

    Args:
        specs: edits whose targets' attention is wanted, too, as it acts under injection.

    Raises:
        as `loop.edit`; without specs as `sampling.replay`.
    """
    prompts = [inversion.header.prompt, *(spec.target for spec in specs)]
    read = [model.tokenize(prompt) for prompt in prompts]  # before any work: one may be empty
    seen: list[Tensor] = []
    if specs:
        yield from edit_steps(
            model, inversion, specs, on_maps=lambda s, t: seen.append(torch.cat([s, t]).cpu())
        )
    else:
        yield from _watched_replay(model, inversion, seen)
    mean = RunningMean()
    for maps in seen:
        mean.add(maps)
    return [
        _prompt_maps(prompt, mean.value[row], torch.stack([m[row] for m in seen]))
        for row, prompt in enumerate(read)
    ]


def _watched_replay(
    model: LatentDiffusion, inversion: Inversion, seen: list[Tensor]
) -> Generator[StepInfo, None, None]:
    """A replay that puts each step's token maps [1, L, h, w] on a list."""
    model = model_of(model, inversion)
    conditions = Conditions.of(model, inversion)
    latents = start_latents(model, inversion)
    limit = largest_self_site(*latents.shape[-2:])
    guided = inversion.header.guidance_scale != CONDITIONAL_ONLY
    for index, timestep in enumerate(inversion.header.timesteps):
        maps = StepMaps(limit)
        with torch.no_grad(), attach(model.unet, Watched(Bystander(guided=guided), maps)):
            latents, _ = source_step(model, inversion, conditions, latents, index)
        seen.append(maps.token_maps().cpu())
        yield StepInfo("replay", index + 1, inversion.num_steps, timestep)


def _prompt_maps(prompt: TokenizedPrompt, mean: Tensor, steps: Tensor) -> PromptMaps:
    words = tuple(
        WordMap(
            word.name,
            word_map(mean, word.tokens),
            torch.stack([word_map(step, word.tokens) for step in steps]),
        )
        for word in prompt.words
    )
    return PromptMaps(prompt.text, words)
