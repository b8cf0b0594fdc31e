"""The five experiments: for a photo, the tasks that each of them consists of.

    reconstruction   every variant at every N, and the bounds
    captions         null-text under the photo's own caption, another of its, a stranger's, none
    guidance         DDIM inversion at w' = 1 … 8, replayed at the same w'
    attention        word maps of null-text and textual-pivot beside those of the unguided replay
    editing          methods and SDEdit by strength: content kept against text agreement

Source: Mokady et al. 2023, sec. 4.1 (ablations), 4.2 (comparisons) and appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from nulltext.diffusion.guidance import guided_evaluations
from nulltext.editing.editors import PUBLISHED
from nulltext.evaluation.datasets import Item
from nulltext.evaluation.measured import (
    measure_attention,
    measure_bound,
    measure_caption,
    measure_edit,
    measure_guidance,
    measure_reconstruction,
    measure_sdedit,
)
from nulltext.evaluation.plan import Plan
from nulltext.evaluation.tasks import Task
from nulltext.evaluation.variants import BOUND, DDIM, NULL_TEXT, SDEDIT, VARIANTS
from nulltext.evaluation.workbench import InversionKey

ATTENTIVE = (NULL_TEXT, "textual-pivot", "textual-pivot-shared")
"""Whose word maps are compared."""

EDITED = (DDIM, NULL_TEXT, "negative-prompt", "direct", "textual-pivot", "model-tuning")
"""Whose edits are compared, besides SDEdit."""


def tasks_of(item: Item, stranger: str | None, plan: Plan, judge_evaluations: int) -> list[Task]:
    """All rows of a photo, in the order of the plan's experiments.

    Args:
        stranger: another photo's caption; None if there is no other photo.
        judge_evaluations: UNet evaluations of one verdict on an edit.
    """
    makers: dict[str, Callable[[], Iterator[Task]]] = {
        "reconstruction": lambda: _reconstruction(item, plan),
        "captions": lambda: _captions(item, stranger, plan, judge_evaluations),
        "guidance": lambda: _guidance(item, plan),
        "attention": lambda: _attention(item, plan),
        "editing": lambda: _editing(item, plan, judge_evaluations),
    }
    chosen = [name for name in makers if name in plan.experiments]
    return [task for name in chosen for task in makers[name]() if task.variant in plan.lines]


def _key(item: Item, variant: str, inner_steps: int, plan: Plan) -> InversionKey:
    return InversionKey.of(variant, inner_steps, item.captions[0], plan.guidance_scale)


def _replayed(key: InversionKey, plan: Plan) -> dict[Hashable, int]:
    """What it takes to have an inversion and the picture of its replay."""
    replayed = plan.num_steps * guided_evaluations(1, key.guidance_scale)
    return {key: key.evaluations(plan.num_steps), ("replay", key): replayed}


def _edited(key: InversionKey, strengths: Sequence[float], plan: Plan) -> dict[Hashable, int]:
    """What it takes to have an inversion and its edits, sampled beside the source once."""
    branches = guided_evaluations(1 + len(strengths), key.guidance_scale)
    edited = plan.num_steps * branches
    return {key: key.evaluations(plan.num_steps), ("edit", key, *strengths): edited}


def _reconstruction(item: Item, plan: Plan) -> Iterator[Task]:
    yield Task("reconstruction", item.name, BOUND, {}, measure_bound)
    for variant in VARIANTS.values():
        for n in plan.iterations if variant.optimises else (0,):
            key = _key(item, variant.name, n, plan)
            yield Task(
                *("reconstruction", item.name, variant.name, {"N": n}),
                partial(measure_reconstruction, key=key),
                needs=_replayed(key, plan),
            )


def _captions(
    item: Item, stranger: str | None, plan: Plan, judge_evaluations: int
) -> Iterator[Task]:
    captions = {"own": item.captions[0], "none": ""}
    if len(item.captions) > 1:
        captions["another of its own"] = item.captions[1]
    if stranger is not None:
        captions["another photo's"] = stranger
    for kind, caption in captions.items():
        key = replace(_key(item, NULL_TEXT, plan.inner_steps, plan), caption=caption)
        edits = item.target not in (None, caption)
        yield Task(
            *("captions", item.name, NULL_TEXT, {"caption": kind}),
            partial(measure_caption, key=key),
            needs=_replayed(key, plan) | (_edited(key, (PUBLISHED,), plan) if edits else {}),
            evaluations=judge_evaluations if edits else 0,
        )


def _guidance(item: Item, plan: Plan) -> Iterator[Task]:
    for w in plan.inversion_guidances:
        key = InversionKey(DDIM, 0, item.captions[0], float(w), float(w))
        yield Task(
            *("guidance", item.name, DDIM, {"w": w}),
            partial(measure_guidance, key=key),
            needs=_replayed(key, plan),
        )


def _attention(item: Item, plan: Plan) -> Iterator[Task]:
    free = InversionKey(DDIM, 0, item.captions[0], 1.0)
    for name in ATTENTIVE:
        key = _key(item, name, plan.inner_steps, plan)
        watched = sum(guided_evaluations(1, each.guidance_scale) for each in (key, free))
        yield Task(
            *("attention", item.name, name, {}),
            partial(measure_attention, key=key, reference=free),
            needs=_replayed(key, plan) | {free: free.evaluations(plan.num_steps)},
            evaluations=watched * plan.num_steps,
        )


def _editing(item: Item, plan: Plan, judge_evaluations: int) -> Iterator[Task]:
    if item.target is None:
        return
    for name in EDITED:
        key = _key(item, name, plan.inner_steps, plan)
        for strength in plan.strengths:
            yield Task(
                *("editing", item.name, name, {"strength": strength}),
                partial(measure_edit, key=key, strength=strength, strengths=plan.strengths),
                needs=_edited(key, plan.strengths, plan),
                evaluations=judge_evaluations,
            )
    for strength in plan.strengths:
        yield Task(
            *("editing", item.name, SDEDIT, {"strength": strength}),
            partial(measure_sdedit, guidance_scale=plan.guidance_scale, strength=strength),
            evaluations=2 * max(1, round(strength * plan.num_steps)) + judge_evaluations,
        )


def strangers(items: Sequence[Item], seed: int) -> dict[str, str | None]:
    """For each photo, the caption of another one that says something else; None if there is none.

    Each photo's draw depends on the seed, on it and on the whole list alone, so that looking at
    fewer photos changes nothing.
    """
    import random

    found: dict[str, str | None] = {}
    for item in items:
        others = [o.captions[0] for o in items if o.captions[0] not in item.captions]
        draw = random.Random(f"{seed} {item.name}")
        found[item.name] = draw.choice(others) if others else None
    return found
