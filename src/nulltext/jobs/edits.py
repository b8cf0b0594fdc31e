"""From options to edits: one for each prompt, a chain, or a grid of them.

A sweep varies one option or two, which it calls knobs; the first goes across the grid, the second
down. All its cells are edits like any other, sampled in one batch beside those that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nulltext.constants import BLEND_THRESHOLD
from nulltext.diffusion.guidance import CONDITIONAL_ONLY
from nulltext.errors import OptionError
from nulltext.jobs.options import KNOBS, OPTIONS, EditOptions, check_range, flag_of

if TYPE_CHECKING:
    from torch import Tensor

    from nulltext.editing.spec import EditSpec
    from nulltext.inversion.budgets import Budget
    from nulltext.models.latent_diffusion import LatentDiffusion

DEFAULT_SWEEP = "strength=0:1:5"

MOST_CELLS = 64
"""Pictures per target, at most: more cannot be read."""

MOST_AXES = 2


@dataclass(frozen=True)
class Axis:
    """One side of a grid: the knob that it varies, and the values."""

    knob: str
    values: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        return [f"{self.knob} {value:g}" for value in self.values]


@dataclass(frozen=True)
class Sweep:
    """The edits of a grid."""

    axes: Sequence[Axis]
    """Across, then down."""
    cells: Sequence[Sequence[Sequence[EditSpec]]]
    """[down][across][prompt]."""

    @property
    def specs(self) -> list[EditSpec]:
        return [spec for row in self.cells for cell in row for spec in cell]


@dataclass(frozen=True)
class Edits:
    """What options ask for."""

    specs: Sequence[EditSpec]
    sweep: Sweep | None

    @property
    def everything(self) -> list[EditSpec]:
        return [*self.specs, *(self.sweep.specs if self.sweep else [])]


def edits_of(
    options: EditOptions, model: LatentDiffusion, mask: Tensor | None, axes: Sequence[Axis]
) -> Edits:
    """Put the edits together.

    Args:
        mask: [H, W] in [0, 1], over the crop.
        axes: from `axes_of`.

    Raises:
        PromptError: no target has a word that is weighted.
    """
    weights = _weights_of_targets(model, options)

    def specs(options: EditOptions) -> list[EditSpec]:
        base = replace(base_edit(options), mask=mask)
        made: list[EditSpec] = []
        for prompt in options.prompts:
            parent = made[-1] if options.then and made else None
            spec = replace(base, target=prompt, parent=parent)
            if parent is not None and options.then_strength is not None:
                spec = spec.at_strength(options.then_strength)
            if options.weight:
                spec = replace(spec, editor=replace(spec.editor, weights=weights[prompt]))
            made.append(spec)
        return made

    def varied(options: EditOptions, axis: Axis) -> list[EditOptions]:
        settings: list[dict[str, Any]] = [{KNOBS[axis.knob].name: value} for value in axis.values]
        return [replace(options, **setting) for setting in settings]

    if not axes:
        return Edits(specs(options), None)
    across, *down = axes
    rows = varied(options, down[0]) if down else [options]
    cells = [[specs(cell) for cell in varied(row, across)] for row in rows]
    return Edits(specs(options), Sweep(axes, cells))


def base_edit(options: EditOptions) -> EditSpec:
    """An edit with all options but the prompt, the weights and the mask.

    What is set outright holds beside a strength, so that a sweep can vary it.
    """
    from nulltext.attention.blend import LocalBlend
    from nulltext.editing.editors import EDITORS
    from nulltext.editing.spec import EditSpec

    given = options.blend_threshold
    threshold = BLEND_THRESHOLD if given is None else given
    spec = EditSpec(
        "",
        editor=EDITORS[options.editor](),
        guidance_scale=options.target_guidance,
        guidance_start=options.guidance_start or 0.0,
        negative=options.negative,
        blend=LocalBlend(options.blend, options.blend_except, threshold) if options.blend else None,
    )
    if options.strength is not None:
        spec = spec.at_strength(options.strength)
    settings = {
        setting: value
        for name, value in options.editor_settings.items()
        if (setting := OPTIONS[name].about.setting) is not None
    }
    return replace(spec, editor=replace(spec.editor, **settings))


def plan_of(options: EditOptions) -> Budget:
    """Return the method and the number of steps that an edit inverts with.

    Where neither --method nor --budget is given, an editor may have a method of its own.

    Raises:
        OptionError: options do not go together.
    """
    from nulltext.editing.editors import EDITORS
    from nulltext.inversion.budgets import budget_of
    from nulltext.inversion.encode import Encode

    own = getattr(EDITORS[options.editor], "inversion", None)
    if own is not None and options.method is None and options.budget is None:
        options = replace(options, method=own)
    plan = budget_of(options)
    if isinstance(plan.method, Encode) and options.guidance is not None:
        raise OptionError(
            f"--guidance steers nothing with --method {plan.method.name}, which inverts nothing; "
            "leave it out, or pass --source-guidance and --target-guidance."
        )
    return plan


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


def _weights_of_targets(
    model: LatentDiffusion, options: EditOptions
) -> Mapping[str, Mapping[str, float]]:
    from nulltext.words.prompts import find_words, has_word

    prompts = {target: model.tokenize(target) for target in options.prompts}
    weights: dict[str, dict[str, float]] = {target: {} for target in prompts}
    for word, factor in parse_weights(options.weight).items():
        having = [target for target, prompt in prompts.items() if has_word(prompt, word)]
        if not having:
            find_words(prompts[options.prompts[0]], word)  # raises, naming the words there are
        for target in having:
            weights[target][word] = factor
    return weights


def axes_of(options: EditOptions) -> list[Axis]:
    """Read what a sweep varies: across, then down; nothing without a sweep.

    Raises:
        OptionError: an axis is malformed, out of range, or does not fit the editor, another option
            or the other axis.
    """
    if not options.sweep:
        return []
    axes = [parse_axis(text) for text in options.over or [DEFAULT_SWEEP]]
    names = [axis.knob for axis in axes]
    if len(axes) > MOST_AXES:
        raise OptionError(
            f"A grid has two sides, so --over may occur twice, not {len(axes)} times."
        )
    if len(set(names)) < len(names):
        raise OptionError(f"--over {names[0]} occurs twice; put all its values into one.")
    if "strength" in names and len(names) > 1:
        other = names[1 - names.index("strength")]
        if KNOBS[other].about.by_strength:
            raise OptionError(f"strength turns {other}, too; sweep one of them.")
    for axis in axes:
        _check_axis(axis, options)
    cells = math.prod(len(axis.values) for axis in axes)
    if cells > MOST_CELLS:
        raise OptionError(
            f"The grid would have {cells} pictures per target; choose values for {MOST_CELLS} "
            "at most."
        )
    return axes


def _check_axis(axis: Axis, options: EditOptions) -> None:
    """Refuse a knob of another editor, a value out of range, or one that another option sets."""
    if KNOBS[axis.knob].about.editor not in (None, options.editor):
        raise OptionError(f"--over {axis.knob} is a knob of another --editor; leave it out.")
    for value in axis.values:
        check_range(KNOBS[axis.knob], value)
    guidance = KNOBS[axis.knob] is OPTIONS["target_guidance"]
    if options.negative is not None and guidance and min(axis.values) <= CONDITIONAL_ONLY:
        raise OptionError(
            f"--negative steers nothing at guidance 1, and towards it below, which --over "
            f"{axis.knob} has; choose values above 1."
        )
    _check_beside_options(axis.knob, options)


def parse_axis(text: str) -> Axis:
    """Read `KNOB=A:B:N` (N values from A to B) or `KNOB=V,V,…`.

    Raises:
        OptionError: it is neither, or there is no such knob.
    """
    name, _, listed = text.partition("=")
    name = name.strip()
    if name not in KNOBS:
        raise OptionError(
            f"--over '{text}' names no knob; write {', '.join(KNOBS)}, an equals sign and values, "
            "such as --over strength=0:1:5."
        )
    try:
        if ":" in listed:
            ends, count = listed.rsplit(":", 1)
            first, last = map(float, ends.split(":"))
            if not 2 <= int(count) <= MOST_CELLS:
                raise ValueError(count)
            steps = int(count) - 1
            values = tuple(first + (last - first) * i / steps for i in range(steps + 1))
        else:
            values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise OptionError(
            f"--over '{text}' has no values that can be read; write {name}=FIRST:LAST:COUNT with "
            f"a count from 2, or {name}=VALUE,VALUE."
        ) from None
    return Axis(name, values)


def _check_beside_options(knob: str, options: EditOptions) -> None:
    """Refuse to vary what would undo another option, or what another option would undo."""
    given: list[str] = []
    if knob == "strength":
        given += map(flag_of, set_by_strength(options))
    if options.then_strength is not None and (knob == "strength" or KNOBS[knob].about.by_strength):
        given.append("--then-strength")
    if given:
        raise OptionError(
            f"The sweep varies {knob}, which {given[0]} sets as well; leave that out, or say "
            "with --over what else to vary."
        )


def set_by_strength(options: EditOptions) -> list[str]:
    return [name for name in options.editor_settings if OPTIONS[name].about.by_strength]
