"""From edits in words to rows of a batch: who takes what from whom.

The rows of an edit form a forest whose root is the source: a plain target is a child of the source
(parent None), the next target of a chain a child of the one before. Row i's plan and region are
relative to its parent, so a chain composes without being told how:

    M_1 = take(M_0),  M_2 = take(M_1), …        attention, from maps that were themselves taken
    z_2 <- z_1 + r m (z_2 - z_1)                regions

Source: ours; the plain case is Hertz et al. 2022, alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nulltext.attention.blend import blend_tokens
from nulltext.attention.store import Plan
from nulltext.editing.editors import steps_until
from nulltext.editing.regions import Region, Words, on_latents, rate
from nulltext.editing.spec import EditSpec, check_kinds, with_parents
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.alignment import check_edit
from nulltext.words.prompts import TokenizedPrompt


@dataclass(frozen=True)
class Row:
    """One target of an edit."""

    spec: EditSpec
    parent: int | None
    """The row that it starts from, above it; None for the source."""
    plan: Plan
    region: Region

    @property
    def generation(self) -> int:
        """Edits between it and the photo."""
        return len(self.spec.line) - 1

    @property
    def looks(self) -> bool:
        """Whether it needs token maps."""
        return self.region.words is not None or self.plan.foreground is not None


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
    return Words(tokens, spec.blend.threshold, steps_until(spec.blend.start, num_steps))
