"""Heat maps: which part of the photo each word attends to, over a whole replay or edit.

    A[l] = mean over steps of A_t[l]            token maps, see `attention.maps`
    W    = sum over the word's tokens of A[l]   the share of each pixel's attention

Drawn over the photo, with l = (a - min a) / (max a - min a) of a map a, enlarged bicubically:

    c = (1 - o) grey + o (cold + l (hot - cold))

Source: Hertz et al. 2022, fig. 4; Tang et al. 2023 (DAAM), sec. 3.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nulltext.attention.maps import (
    NoOpController,
    ProbedController,
    RunningMean,
    StepMaps,
    word_map,
)
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.diffusion.guidance import needs_null_branch
from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import EditSpec, edit_steps
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import Replaying, source_step
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.reprs import short_repr
from nulltext.words.prompts import TokenizedPrompt

COLD, HOT = (32, 32, 160), (255, 64, 0)
"""Ends of the colour scale, RGB."""

OPACITY = 0.65
"""o: how much the heat covers of the photo, whose grey levels stay visible."""


@dataclass(frozen=True)
class WordMap:
    """The attention of one word of a prompt."""

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
    """Replay or edit, and gather the maps of the source prompt, then of each target.

    Args:
        specs: edits whose targets' attention is wanted, too, as it acts under injection.

    Raises:
        as `loop.edit`; without specs as `replay.replay`.
    """
    prompts = [inversion.header.prompt, *(spec.target for spec in specs)]
    read = [model.tokenize(prompt) for prompt in prompts]  # before any work: one may be empty
    seen: list[Tensor] = []
    if specs:
        yield from edit_steps(
            model, inversion, specs, on_maps=lambda s, t: seen.append(torch.cat([s, t]).cpu())
        )
    else:
        yield from _probed_replay(model, inversion, seen)
    mean = RunningMean()
    for maps in seen:
        mean.add(maps)
    return [
        _prompt_maps(prompt, mean.value[row], torch.stack([m[row] for m in seen]))
        for row, prompt in enumerate(read)
    ]


def _probed_replay(
    model: LatentDiffusion, inversion: Inversion, seen: list[Tensor]
) -> Generator[StepInfo, None, None]:
    """A replay that puts each step's token maps [1, L, h, w] on a list."""
    replaying = Replaying.of(model, inversion)
    latents = replaying.start
    limit = largest_self_site(*latents.shape[-2:])
    guided = needs_null_branch(replaying.model, replaying.source_guidance)
    for index, step in enumerate(replaying.grid):
        maps = StepMaps(limit)
        with attach(replaying.model.network, ProbedController(NoOpController(guided=guided), maps)):
            latents = source_step(replaying, latents, index).latents
        seen.append(maps.token_maps().cpu())
        yield StepInfo("replay", index + 1, inversion.num_steps, step.noisier)


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


def heat_over(photo: Image.Image, heat: Tensor) -> Image.Image:
    """A heat map [h, w] in colours over the grey photo: RGB, of the photo's size."""
    size = (photo.height, photo.width)
    smooth = interpolate(heat[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    spread = (smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-12)
    level = spread.numpy()[..., None]
    colours = (1 - level) * np.array(COLD) + level * np.array(HOT)
    grey = np.asarray(photo.convert("L"), dtype=float)[..., None]
    return Image.fromarray(np.rint((1 - OPACITY) * grey + OPACITY * colours).astype(np.uint8))
