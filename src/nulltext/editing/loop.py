"""Editing: from a saved inversion and new words to new pictures.

At every step the source is sampled first and alone, by the same call as a replay, so what an edit
shows as reconstruction *is* the replay, bit for bit, however many targets stand beside it. The
targets then take the same step as a batch, under the inversion's null embeddings, while their
editors hand them attention of the source (A_t; `editors`), or in a chain of the target before:

    z^src_{t-1} = source_step(z^src_t)                       its attention A_t is recorded
    z^tgt_{t-1} = denoise(z^tgt_t, guided o(z^tgt_t, t, ∅_t, C_tgt; A_t))
    z^tgt_{t-1} <- z^src_{t-1} + m (z^tgt_{t-1} - z^src_{t-1})     where a region is set: `regions`

Targets whose editor starts from the photo itself (FlowEdit) need no source beside them: where all
do, nothing is replayed, and the reconstruction is the encoded photo.

Source: Hertz et al. 2022, alg. 1; Mokady et al. 2023, sec. 3.3 (the null embeddings serve both).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.attention.store import Recorder
from nulltext.diffusion.guidance import needs_null_branch
from nulltext.diffusion.loops import StepInfo, run
from nulltext.editing.regions import check_lies_on
from nulltext.editing.spec import EditSpec as EditSpec
from nulltext.editing.spec import specs_of
from nulltext.editing.targets import AttentionProbe, OnMaps, Row, Targets, probed, rows_of
from nulltext.editing.targets import check_specs as check_specs
from nulltext.errors import OptionError
from nulltext.image.images import from_uint8, psnr, to_pil, to_uint8
from nulltext.image.saving import encoded
from nulltext.image.strip import Tile, comparison_strip, figures_html
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import Replaying, SourceBranch, source_step
from nulltext.logs import timed
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.reprs import short_repr

logger = logging.getLogger(__name__)

FAINT = 0.05
"""Share of a change below which a mask is taken for the reason that nothing is seen of it."""


@dataclass(frozen=True)
class Edit:
    """The result of an edit."""

    images: Tensor
    """[K, 3, H, W], float32, about [-1, 1]: one picture per target."""
    reconstruction: Tensor
    """[1, 3, H, W]: the replay that ran beside them."""
    psnr_reconstruction: float
    """Decibels of the reconstruction against the photo's crop."""
    unet_evaluations: int
    """UNet evaluations of source and targets; see `models.network_calls`."""
    masks: Tensor
    """[K, h, w] in [0, 1], on the latents' grid: where each target was free at the last step, in a
    chain also where those before it were; ones without a blend and a mask."""
    unchanged: tuple[str | None, ...]
    """For each target, why its picture is the reconstruction, pixel by pixel; None if it is not."""
    source: str = ""
    """The source prompt."""
    targets: tuple[str, ...] = ()
    """The prompts of the pictures."""
    latents: Tensor | None = None
    """[K, C, h, w], scaled, on the model's device: what the pictures are decoded from."""

    __repr__ = short_repr

    def _repr_png_(self) -> bytes:
        return encoded(comparison_strip(self._tiles()), "PNG")

    def _repr_html_(self) -> str:
        return figures_html(self._tiles())

    def _tiles(self) -> list[Tile]:
        """The source's reconstruction, then the targets."""
        pictures = [to_pil(image) for image in (self.reconstruction, *self.images)]
        captions = [self.source, *self.targets]
        return [Tile(*pair) for pair in zip(pictures, captions, strict=True)]


def edit(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: str | EditSpec | Sequence[str | EditSpec],
    *,
    source_branch: SourceBranch = source_step,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Edit:
    """Edit an inverted photo, to one or several targets at once.

    Args:
        specs: target prompts, or `EditSpec`s where an option differs from its default.
        source_branch: how the source is sampled beside the targets; see `edit_steps`.
        on_step: called with each step's `StepInfo`.

    Raises:
        InversionFileError: the inversion belongs to another model.
        PromptError: a target is empty, too long, lacks a word that an option names, or says the
            same as what it starts from, without weights.
        OptionError: there is no target, or an option does not fit the model or the chain, or a mask
            lies over the photo where it should over the crop, or the inversion holds no noise to
            start from.
        NumericalError: the latents became infinite or NaN.
    """
    steps = edit_steps(model, inversion, specs_of(specs), source_branch=source_branch)
    return run(steps, on_step)


def edit_steps(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: Sequence[EditSpec],
    *,
    source_branch: SourceBranch = source_step,
    on_maps: OnMaps | None = None,
) -> Generator[StepInfo, None, Edit]:
    """`edit` as a generator of steps that returns the `Edit`.

    Args:
        source_branch: `replay.source_step` (the replay) or `replay.exact_source_step` (the stored
            trajectory itself, whatever the method).
        on_maps: called at every step with the token maps of source [1, L, h, w] and targets
            [K, L, h, w]; see `attention.maps`. The pictures are the same with and without.
    """
    if not specs:
        raise OptionError("There is nothing to edit to; give at least one target prompt.")
    for mask in (earlier.mask for spec in specs for earlier in spec.line):
        if mask is not None:
            check_lies_on(mask, inversion)
    started = time.perf_counter()
    replaying = Replaying.of(model.counted(), inversion)
    model, header, encoded = replaying.model, inversion.header, replaying.encoded
    size = (encoded.shape[-2], encoded.shape[-1])
    rows = rows_of(model, header.prompt, specs, inversion.num_steps, size)
    order = torch.tensor([_index(rows, spec) for spec in specs], device=encoded.device)
    replays = not all(row.is_clean for row in rows)
    source = replaying.start if replays else encoded
    targets = Targets.start(replaying, rows)
    probe = AttentionProbe(
        largest_self_site(*size), on_maps, order, needed=any(row.looks for row in rows)
    )
    for index, step in enumerate(replaying.grid):
        with torch.no_grad():
            probe.begin_step()
            source_store = targets.store_of(None, index)
            if replays:
                recorder = Recorder(
                    source_store, needs_null_branch(model, replaying.source_guidance)
                )
                with attach(model.network, probed(recorder, probe.source)):
                    source = source_branch(replaying, source, index).latents
            estimate = targets.step(index, source_store, probe)
            probe.end_step()
            targets.hold_to_parents(source, index, probe)
        yield StepInfo(
            "edit", index + 1, inversion.num_steps, step.noisier, clean_estimate=estimate[order]
        )
    evaluations = model.passes.total
    logger.info(
        "edit: targets: %d, %d steps, %d UNet evaluations, %.2f s",
        len(specs),
        inversion.num_steps,
        evaluations,
        time.perf_counter() - started,
    )
    return _decoded(
        model,
        inversion,
        specs,
        source=source,
        latents=targets.latents[order],
        masks=targets.masks()[order].cpu(),
        evaluations=evaluations,
    )


def _decoded(
    model: LatentDiffusion,
    inversion: Inversion,
    specs: Sequence[EditSpec],
    *,
    source: Tensor,
    latents: Tensor,
    masks: Tensor,
    evaluations: int,
) -> Edit:
    """The pictures of latents: the source's [1, C, h, w] and the targets' [K, C, h, w]."""
    with timed(logger, "decode: %d pictures", 1 + len(specs)):
        reconstruction = model.decode(source).cpu()
        images = torch.cat([model.decode(row).cpu() for row in latents.split(1)])
    same = to_uint8(reconstruction)
    return Edit(
        images=images,
        reconstruction=reconstruction,
        psnr_reconstruction=psnr(reconstruction, from_uint8(inversion.photo)),
        unet_evaluations=evaluations,
        masks=masks,
        unchanged=tuple(
            _why_unchanged(spec, free) if torch.equal(to_uint8(image), same) else None
            for spec, free, image in zip(specs, masks, images, strict=True)
        ),
        source=inversion.header.prompt,
        targets=tuple(spec.target for spec in specs),
        latents=latents,
    )


def _why_unchanged(spec: EditSpec, free: Tensor) -> str:
    """Why an edit is the reconstruction, for a person.

    Args: free: [h, w] in [0, 1], where it was free at the last step.
    """
    if math.isinf(spec.pull):
        return "at strength 0 (an infinite pull) an edit is its source: choose a higher strength"
    if spec.blend is not None and not free.any():
        words = ", ".join(spec.blend.words)
        return f"the blend of {words} is empty (0 % of the picture): lower its threshold"
    if float(free.max()) < FAINT:
        return f"its mask is hardly more than black ({100 * free.max():.1f} %): paint it white"
    return (
        "the model draws the same picture for both prompts: choose other words, a higher strength, "
        "or weights further from 1"
    )


def _index(rows: Sequence[Row], spec: EditSpec) -> int:
    return next(i for i, row in enumerate(rows) if row.spec is spec)
