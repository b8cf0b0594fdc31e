"""How the tasks of each experiment are measured on a photo's bench."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nulltext.diffusion.loops import run
from nulltext.editing.editors import PUBLISHED
from nulltext.editing.heatmaps import PromptMaps, heat_map_steps
from nulltext.evaluation.measures import (
    Figure,
    Undefined,
    noise_figures,
    outside_disc,
    psnr_in,
    ssim_in,
)
from nulltext.evaluation.tasks import Measurement
from nulltext.evaluation.workbench import InversionKey, Workbench

FUNCTION_WORDS = frozenset("a an the of on in with and at to is are photo".split())  # noqa: SIM905
"""Words that have no place in a picture."""


def _likeness(bench: Workbench, picture: Tensor) -> dict[str, Figure]:
    """PSNR, SSIM and LPIPS of a reconstruction against the photo's crop."""
    return {
        "psnr": psnr_in(picture, bench.crop),
        "ssim": ssim_in(picture, bench.crop),
        "lpips": bench.lpips_between(picture, bench.crop),
    }


def measure_bound(bench: Workbench) -> Measurement:
    """The autoencoder's round trip."""
    pictures = {"picture": bench.bound, "photo": bench.crop}
    return Measurement(_likeness(bench, bench.bound), pictures)


def measure_reconstruction(bench: Workbench, key: InversionKey) -> Measurement:
    """A replay against the photo."""
    inversion, picture = bench.inversion(key), bench.reconstruction(key)
    return Measurement(_likeness(bench, picture), {"picture": picture}, inversion)


def measure_caption(bench: Workbench, key: InversionKey) -> Measurement:
    """Reconstruction under some caption, and whether the edit prompt still works from there."""
    inversion, picture = bench.inversion(key), bench.reconstruction(key)
    figures, pictures = _likeness(bench, picture), {"picture": picture}
    notes, target = {"caption": key.caption}, bench.item.target
    if target is None:
        missing = Undefined("the photo has no edit prompt")
        figures |= {"agreement": missing, "prefers_target": missing}
    elif target == key.caption:
        missing = Undefined("the caption already says what the edit asks for")
        figures |= {"agreement": missing, "prefers_target": missing}
    else:
        (edited,) = bench.edited(key, target, (PUBLISHED,))
        figures |= _agreement(bench, edited)
        pictures["edit"] = edited
        notes["target"] = target
    return Measurement(figures, pictures, inversion, notes)


def measure_guidance(bench: Workbench, key: InversionKey) -> Measurement:
    """Guided DDIM inversion: reconstruction, and how Gaussian the noise is."""
    inversion, picture = bench.inversion(key), bench.reconstruction(key)
    figures = _likeness(bench, picture) | noise_figures(inversion.trajectory[-1])
    return Measurement(figures, {"picture": picture}, inversion)


def measure_attention(bench: Workbench, key: InversionKey, reference: InversionKey) -> Measurement:
    """Word maps of a replay beside those of the unguided replay of the pivot."""
    inversion = bench.inversion(key)
    maps, free = (run(heat_map_steps(bench.model, bench.inversion(k)))[0] for k in (key, reference))
    pairs = [
        (mine.word, mine.heat, theirs.heat)
        for mine, theirs in zip(maps.words, free.words, strict=True)
        if mine.word.lower() not in FUNCTION_WORDS
    ]
    figures: dict[str, Figure] = {
        "map_correlation": _mean([_correlation(mine, theirs) for _, mine, theirs in pairs]),
        "psnr": psnr_in(bench.reconstruction(key), bench.crop),
    }
    pictures = {"pivot's words": _strip(bench.crop, free), "words": _strip(bench.crop, maps)}
    words = ", ".join(word for word, _, _ in pairs)
    return Measurement(figures, pictures, inversion, {"words": words})


def measure_edit(
    bench: Workbench, key: InversionKey, strength: float, strengths: Sequence[float]
) -> Measurement:
    """Prompt-to-Prompt from an inversion, at one strength."""
    target = bench.item.target
    assert target is not None
    picture = bench.edited(key, target, strengths)[strengths.index(strength)]
    return Measurement(
        _kept(bench, picture) | _agreement(bench, picture),
        {"picture": picture},
        bench.inversion(key),
        {"caption": key.caption, "target": target},
    )


def measure_sdedit(bench: Workbench, guidance_scale: float, strength: float) -> Measurement:
    """The baseline that inverts nothing."""
    target = bench.item.target
    assert target is not None
    picture = bench.sdedit(target, strength, guidance_scale)
    figures = _kept(bench, picture) | _agreement(bench, picture)
    return Measurement(figures, {"picture": picture}, notes={"target": target})


def _kept(bench: Workbench, picture: Tensor) -> dict[str, Figure]:
    """What stayed outside the edit, against the autoencoder's round trip of the photo.

    LPIPS has no meaning inside a region, so the edit's inside is taken from the round trip first.
    """
    drawn, reference = bench.mask, bench.bound
    height, width = reference.shape[1:]
    outside = outside_disc(height, width) if drawn is None else ~drawn
    pasted = torch.where(outside, picture, reference)
    return {
        "psnr_outside": psnr_in(picture, reference, outside),
        "ssim_outside": ssim_in(picture, reference, outside),
        "lpips_outside": bench.lpips_between(pasted, reference),
    }


def _agreement(bench: Workbench, picture: Tensor) -> dict[str, Figure]:
    target = bench.item.target
    assert target is not None
    verdict = bench.judge.judge(picture, bench.item.captions[0], target)
    return {"agreement": verdict.score, "prefers_target": float(verdict.prefers_target)}


def _correlation(a: Tensor, b: Tensor) -> Figure:
    """Pearson's, of two maps."""
    x, y = (m.double().flatten() - m.double().mean() for m in (a, b))
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else Undefined("a word's map is flat")


def _mean(figures: Sequence[Figure]) -> Figure:
    values = [f for f in figures if not isinstance(f, Undefined)]
    return sum(values) / len(values) if values else Undefined("no word has a map with structure")


def _strip(crop: Tensor, maps: PromptMaps) -> Tensor:
    """The photo lit by each word's map, one below the other: [3, n H, W]."""
    panels = []
    for word in maps.words:
        if word.word.lower() in FUNCTION_WORDS:
            continue
        heat = torch.nn.functional.interpolate(
            word.heat[None, None], tuple(crop.shape[1:]), mode="bilinear", align_corners=False
        )[0, 0]
        low, high = heat.min(), heat.max()
        lit = (heat - low) / (high - low).clamp_min(torch.finfo().tiny)
        panels.append((crop + 1) * (0.15 + 0.85 * lit) - 1)
    return torch.cat(panels, dim=1) if panels else crop
