"""The targets of an edit, sampled side by side through the grid.

The rows of an edit form a forest whose root is the source: a plain target is a child of the source
(parent None), the next target of a chain a child of the one before. The plan and the region of row
i are relative to its parent, so a chain composes:

    M_1 = take(M_0),  M_2 = take(M_1), …        attention, from maps that were themselves taken
    z_2 <- z_1 + r m (z_2 - z_1)                regions

All rows of a generation take a step as a batch, under the inversion's null embeddings and their own
guidance; see `loop` for the formulae. A negative prompt N moves a target's null embedding by what
it says beyond the empty prompt:

    ∅_t + embed(N) - embed("")

so what the inversion found stays in it, and the source, which runs under ∅_t, stays as it is.

A target's guidance may start later than its steps: before, w = 1. The noisiest steps fix the mean
colours, and there guidance adds the same at every step, wherever the target has come to.
Sources: Hertz et al. 2022, alg. 1; Kynkäänniemi et al. 2024 (Applying Guidance in a Limited
Interval), the upper end of the interval; chains and the difference are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nulltext.attention.blend import blend_tokens
from nulltext.attention.controller import AttentionController
from nulltext.attention.maps import NoOpController, ProbedController, RunningMean, StepMaps
from nulltext.attention.processor import attach
from nulltext.attention.store import AttentionStore, Plan, TargetControl
from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import CONDITIONAL_ONLY, guided_output, needs_null_branch
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import Conditions
from nulltext.editing.regions import Region, Words, on_latents, rate
from nulltext.editing.rules import Moment, Rule
from nulltext.editing.spec import EditSpec, check_kinds, with_parents
from nulltext.editing.strength import steps_until
from nulltext.errors import OptionError
from nulltext.inversion.replay import Replaying
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.alignment import check_edit
from nulltext.words.prompts import TokenizedPrompt, quoted


@dataclass(frozen=True)
class Row:
    """One target of an edit."""

    spec: EditSpec
    parent: int | None
    """The row that it starts from, above it; None for the source."""
    plan: Plan
    region: Region
    guided_from: int
    """Index of the first step with guidance."""

    @property
    def generation(self) -> int:
        """Edits between it and the photo."""
        return len(self.spec.line) - 1

    @property
    def looks(self) -> bool:
        """Whether it needs token maps."""
        return self.region.words is not None or self.plan.foreground is not None

    @property
    def is_clean(self) -> bool:
        """Whether its latents are pictures without noise; see `rules`."""
        return isinstance(self.plan, Rule) and self.plan.is_clean

    def guidance_scale(self, common: float) -> float:
        """Return its own w, its rule's, or the inversion's."""
        rule = self.plan.guidance_scale if isinstance(self.plan, Rule) else None
        given = (self.spec.guidance_scale, rule, common)
        return next(scale for scale in given if scale is not None)


def check_specs(model: LatentDiffusion, source_prompt: str, specs: Sequence[EditSpec]) -> None:
    """Find mistakes in edits before any work; needs no inversion.

    Raises:
        PromptError, OptionError: see `editing.edit`.
    """
    _, height, width = model.latents_shape
    rows_of(model, source_prompt, specs, 1, (height, width))


def rows_of(
    model: LatentDiffusion,
    source_prompt: str,
    specs: Sequence[EditSpec],
    num_steps: int,
    size: tuple[int, int],
) -> list[Row]:
    """The rows that edits need, parents first, on latents of size (h, w)."""
    check_kinds(specs)
    ordered = with_parents(specs)
    index = {id(spec): i for i, spec in enumerate(ordered)}
    source, rows = model.tokenize(source_prompt, allow_empty=True), []
    for spec in ordered:
        line = [source, *(model.tokenize(each.target) for each in spec.line)]
        check_edit(line[-2], line[-1], reweights=spec.editor.reweights)
        rows.append(
            Row(
                spec,
                None if spec.parent is None else index[id(spec.parent)],
                spec.editor.plan(model, line, num_steps, size),
                Region(
                    mask=None if spec.mask is None else on_latents(spec.mask, size),
                    words=_words(spec, line, num_steps),
                    rate=rate(spec.pull, num_steps),
                ),
                guided_from=steps_until(spec.guidance_start, num_steps),
            )
        )
    return rows


def passes_of(rows: Sequence[Row], most: int) -> list[range]:
    """Cut rows into stretches that pass the UNet together: one generation, one kind of plan, and
    at most so many."""
    passes = []
    together = groupby(range(len(rows)), key=lambda i: (rows[i].generation, type(rows[i].plan)))
    for _, group in together:
        members = list(group)
        for first in range(members[0], members[-1] + 1, most):
            passes.append(range(first, min(first + most, members[-1] + 1)))
    return passes


def _words(spec: EditSpec, line: Sequence[TokenizedPrompt], num_steps: int) -> Words | None:
    if spec.blend is None:
        return None
    tokens = blend_tokens(line, spec.blend)
    first = min(steps_until(spec.blend.start, num_steps), num_steps - 1)  # the last, at least
    return Words(tokens, spec.blend.threshold, first)


OnMaps = Callable[[Tensor, Tensor], None]
"""Called with one step's token maps of the source [1, L, h, w] and of the targets [K, L, h, w]."""


class AttentionProbe:
    """Collects the token maps of source and targets where a region, an editor or a callback needs
    them."""

    def __init__(
        self, largest_pixels: int, on_maps: OnMaps | None, order: Tensor, *, needed: bool
    ) -> None:
        """Args: order: [K], the rows that `on_maps` is called with."""
        self.largest_pixels, self.on_maps, self.order = largest_pixels, on_maps, order
        self.wanted = needed or on_maps is not None
        self.source: StepMaps | None = None
        self.targets: StepMaps | None = None
        self.means = (RunningMean(), RunningMean())

    def begin_step(self) -> None:
        """Start the maps of a step."""
        if self.wanted:
            self.source, self.targets = (StepMaps(self.largest_pixels) for _ in range(2))

    def end_step(self) -> None:
        """Add the maps of the step to the means."""
        if self.source is None or self.targets is None:
            return
        maps = self.source.token_maps(), self.targets.token_maps()
        for mean, value in zip(self.means, maps, strict=True):
            mean.add(value)
        if self.on_maps is not None:
            self.on_maps(maps[0], maps[1][self.order])

    def maps_of(self, row: int, parent: int | None) -> tuple[Tensor, Tensor] | None:
        """Mean token maps [L, h, w] of a row's parent and of itself; None before the first step."""
        source, targets = self.means
        if not self.wanted or targets.count == 0:
            return None
        of_parent = source.value[0] if parent is None else targets.value[parent]
        return of_parent, targets.value[row]


@dataclass
class Targets:
    """Latents of all targets, at one place of the grid."""

    latents: Tensor
    """[K, C, h, w]."""
    prompt_embeds: Tensor
    """[K, L, D]."""
    rows: Sequence[Row]
    """K of them, parents first."""
    guidance_scales: Sequence[float]
    """K of them, from the steps on at which their guidance starts."""
    null_shifts: Tensor | None
    """[K, R, D], added to the null embeddings of each target; None where all are zero."""
    replaying: Replaying
    """What they are sampled beside."""
    shares: Tensor = field(init=False)
    """[K, h, w] in [0, 1]: where each was free of its parent at the last step."""
    passes: list[range] = field(init=False)
    """Rows that pass the UNet together, in order."""

    def __post_init__(self) -> None:
        self.shares = torch.ones_like(self.latents[:, 0])
        self.passes = passes_of(self.rows, self.replaying.model.memory.targets)

    @classmethod
    def start(cls, replaying: Replaying, rows: Sequence[Row]) -> Targets:
        """All targets at z*_T, or at z*_0 where their rules begin there."""
        common = replaying.inversion.header.guidance_scale
        scales = [row.guidance_scale(common) for row in rows]
        for row, scale in zip(rows, scales, strict=True):
            replaying.model.check_guidance(scale, row.spec.negative)
        return cls(
            latents=torch.cat(
                [replaying.encoded if row.is_clean else replaying.start for row in rows]
            ),
            prompt_embeds=replaying.model.embed([row.spec.target for row in rows]),
            rows=rows,
            guidance_scales=scales,
            null_shifts=_null_shifts(replaying.model, rows, scales),
            replaying=replaying,
        )

    def store_of(self, row: int | None, index: int) -> AttentionStore:
        """Return the empty store of the source (None) or a row for a step."""
        return AttentionStore([child.plan for child in self.rows if child.parent == row], index)

    def guidance_at(self, row: int, index: int) -> float:
        """Return w of a row at a step."""
        guided = index >= self.rows[row].guided_from
        return self.guidance_scales[row] if guided else CONDITIONAL_ONLY

    def step(self, index: int, source_store: AttentionStore, probe: AttentionProbe) -> Tensor:
        """Take one step with all rows; returns their estimates of x0, [K, C, h, w].

        Args: source_store: filled by the source's pass.
        """
        step = self.replaying.grid[index]
        moved, estimates = [], []
        stores = [self.store_of(row, index) for row in range(len(self.rows))]
        for rows in self.passes:
            latents = self.latents[rows.start : rows.stop]
            controls = [self._control(row, source_store, stores, probe) for row in rows]
            asked = _Pass(self, rows, index, controls, probe)
            output = asked.output()
            moved.append(step.denoise(latents, output))
            if self.rows[rows.start].is_clean:
                estimates.append(moved[-1])
            else:
                estimates.append(step.clean_estimate(latents, output))
        self.latents = torch.cat(moved)
        check_finite(self.latents, "The edit", step.noisier)
        return torch.cat(estimates)

    def _control(
        self,
        index: int,
        source_store: AttentionStore,
        stores: Sequence[AttentionStore],
        probe: AttentionProbe,
    ) -> TargetControl[Any]:
        row = self.rows[index]
        parent = source_store if row.parent is None else stores[row.parent]
        return TargetControl(row.plan, parent, stores[index], probe.maps_of(index, row.parent))

    def hold_to_parents(self, source: Tensor, index: int, probe: AttentionProbe) -> None:
        """Move the targets back to their parents where they may not depart from them.

        Args:
            source: [1, C, h, w], the parent of the first generation.
        """
        held: list[Tensor] = []
        for number, row in enumerate(self.rows):
            target = self.latents[number : number + 1]
            if not row.region.free:
                root = self.replaying.encoded if row.is_clean else source
                parent = root if row.parent is None else held[row.parent]
                maps = probe.maps_of(number, row.parent)
                self.shares[number] = row.region.share(index, maps, target)
                # lerp: the ends 0 and 1 give parent and target bit for bit
                target = torch.lerp(parent, target, self.shares[number] * row.region.rate)
            held.append(target)
        self.latents = torch.cat(held)

    @cached_property
    def plain(self) -> Conditions:
        """The model's own embeddings of "" and the source prompt, [1, R, D] each."""
        prompt = self.replaying.inversion.header.prompt
        return Conditions(*self.replaying.model.embed(["", prompt]).chunk(2))

    def conditions(self, row: int, index: int) -> Conditions:
        """Return the embeddings that the photo, and a row's null branch, have at a step."""
        if self.rows[row].is_clean:
            return self.plain
        return self.replaying.conditions.at(index)

    def masks(self) -> Tensor:
        """[K, h, w] in [0, 1]: where each is free of the photo: its own share or an ancestor's."""
        masks: list[Tensor] = []
        for row, share in zip(self.rows, self.shares, strict=True):
            masks.append(share if row.parent is None else torch.maximum(share, masks[row.parent]))
        return torch.stack(masks)


@dataclass(frozen=True)
class _Pass:
    """One step of rows that pass the network together."""

    targets: Targets
    rows: range
    index: int
    controls: Sequence[TargetControl[Any]]
    probe: AttentionProbe

    def output(self) -> Tensor:
        """The output by which they step, [B, C, h, w]."""
        latents, plan = self.targets.latents[self.rows.start : self.rows.stop], self._plan
        if not issubclass(plan, Rule):
            return self.of_targets(latents)
        moment: Moment[Any] = Moment(
            plans=[control.plan for control in self.controls],
            latents=latents,
            index=self.index,
            replaying=self.targets.replaying,
            reads=self.probe.wanted,
            target=self.of_targets,
            source=self.of_source,
        )
        return plan.outputs(moment)

    def of_targets(
        self, latents: Tensor, rows: Sequence[int] | None = None, *, reads: bool = True
    ) -> Tensor:
        """See `rules.TargetOutput`."""
        targets, places = self.targets, range(len(self.rows)) if rows is None else rows
        numbers = [self.rows[place] for place in places]
        scales = [targets.guidance_at(row, self.index) for row in numbers]
        null = targets.conditions(numbers[0], self.index).null_embeds
        if targets.null_shifts is not None:
            null = null + targets.null_shifts[numbers]
        controller = self._plan.controller(
            [self.controls[place] for place in places],
            self.index,
            guided=needs_null_branch(self._model, scales),
        )
        maps = self.probe.targets if reads else None
        with attach(self._model.network, probed(controller, maps)):
            return guided_output(
                self._model,
                latents,
                self._level,
                null_embeds=null,
                prompt_embeds=targets.prompt_embeds[numbers],
                guidance_scale=scales,
            )

    def of_source(self, latents: Tensor, guidance_scale: float) -> Tensor:
        """See `rules.SourceOutput`; read where no replay is."""
        conditions = self.targets.conditions(self.rows.start, self.index)
        maps = self.probe.source
        if maps is not None and maps.passes:
            maps = None
        guided = needs_null_branch(self._model, guidance_scale)
        with attach(self._model.network, probed(NoOpController(guided=guided), maps)):
            return guided_output(
                self._model,
                latents,
                self._level,
                null_embeds=conditions.null_embeds,
                prompt_embeds=conditions.prompt_embeds,
                guidance_scale=guidance_scale,
            )

    @property
    def _plan(self) -> Any:
        """The class of their plans."""
        return type(self.controls[0].plan)

    @property
    def _model(self) -> LatentDiffusion:
        return self.targets.replaying.model

    @property
    def _level(self) -> Level:
        return self.targets.replaying.grid[self.index].noisier


def probed(controller: AttentionController, maps: StepMaps | None) -> AttentionController:
    """Return a controller whose maps are read where a probe is given."""
    return controller if maps is None else ProbedController(controller, maps)


def _null_shifts(
    model: LatentDiffusion, rows: Sequence[Row], guidance_scales: Sequence[float]
) -> Tensor | None:
    """Embed negative prompts as differences from the empty prompt, [K, R, D].

    Raises:
        OptionError: a target with a negative prompt has a guidance of 1 or below.
    """
    prompts = [row.spec.negative for row in rows]
    if not any(prompts):
        return None
    for prompt, scale in zip(prompts, guidance_scales, strict=True):
        if prompt and scale <= CONDITIONAL_ONLY:
            raise OptionError(
                f"The negative prompt {quoted(prompt)} steers nothing at guidance 1, where there "
                "is no null branch, and towards it below; leave it out, or choose a guidance of "
                "the target above 1."
            )
    return model.embed([prompt or "" for prompt in prompts]) - model.embed([""])
