"""The five experiments: the rows that each of them makes of a photo, and how they are measured.

    reconstruction   every variant at every N, and the bounds
    captions         null-text under the photo's own caption, another of its, another photo's, none
    guidance         DDIM inversion at w' = 1 … 8, replayed at the same w'
    attention        word maps of null-text and textual-pivot beside those of the unguided replay
    editing          methods and SDEdit by strength: content kept against text agreement

They share inversions (null-text at one N serves four of them), so a photo makes each inversion,
replay and edit once, by key. A failure is kept, too: it fails every row that needs the inversion,
and is not retried.
Source: Mokady et al. 2023, sec. 4 and 5, and appendix.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from nulltext.constants import PivotName
from nulltext.diffusion.guidance import guided_evaluations
from nulltext.diffusion.loops import Conditions, run, sample_step
from nulltext.editing.editors import PUBLISHED, at_strength
from nulltext.editing.heatmaps import PromptMaps, heat_map_steps
from nulltext.editing.loop import Edit, EditSpec, edit
from nulltext.errors import NulltextError
from nulltext.evaluation.datasets import CaptionedPhoto
from nulltext.evaluation.metrics import (
    Judge,
    MetricValue,
    PairMetric,
    Undefined,
    noise_statistics,
    outside_disc,
    region_psnr,
    region_ssim,
)
from nulltext.evaluation.plan import (
    BOUND,
    DDIM,
    DDIM_PIVOT,
    NULL_TEXT,
    SDEDIT,
    VARIANTS,
    StudyPlan,
)
from nulltext.evaluation.rows import Measurement, Task
from nulltext.image.images import from_uint8, largest_centred, to_tensor, to_uint8
from nulltext.image.masks import load_mask, mask_on_crop
from nulltext.image.photos import Photo, load_photo
from nulltext.inversion import ddim
from nulltext.inversion.invert import invert
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import replay
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class InversionKey:
    """Options of an inversion of the photo."""

    variant: str
    inner_steps: int
    """N; 0 where nothing is optimised."""
    caption: str
    guidance_scale: float
    inversion_guidance: float = 1.0
    """w of the inversion itself; plain DDIM only."""
    pivot: PivotName = DDIM_PIVOT

    @classmethod
    def of(cls, variant: str, inner_steps: int, caption: str, plan: StudyPlan) -> InversionKey:
        """Make the key of a variant as the plan has it, at N = `inner_steps`."""
        one = VARIANTS[variant]
        return cls(
            variant,
            inner_steps if one.optimises else 0,
            caption,
            plan.guidance_scale,
            pivot=plan.pivot if one.takes_pivot else DDIM_PIVOT,
        )

    @property
    def source_guidance(self) -> float:
        """w of the source's steps, replayed or beside its targets."""
        return VARIANTS[self.variant].source_guidance(self.guidance_scale)

    def evaluations(self, num_steps: int) -> int:
        if self.variant == DDIM:
            scales = (self.inversion_guidance, self.guidance_scale)
            return num_steps * sum(guided_evaluations(1, scale) for scale in scales)
        return VARIANTS[self.variant].evaluations(num_steps, self.inner_steps, self.pivot)


@dataclass
class StudiedPhoto:
    """A photo with the model and the metrics, and the results that its rows share."""

    model: LatentDiffusion
    item: CaptionedPhoto
    num_steps: int
    seed: int
    judge: Judge
    lpips: PairMetric

    def __post_init__(self) -> None:
        self._inversions: dict[InversionKey, Inversion | NulltextError] = {}
        self._replays: dict[InversionKey, Tensor] = {}
        self._edits: dict[tuple[InversionKey, tuple[float, ...]], Edit] = {}

    @cached_property
    def photo(self) -> Photo:
        """The whole photo; raises ImageError where it cannot be read."""
        return load_photo(self.item.path)

    @cached_property
    def crop(self) -> Tensor:
        """What the model sees: [3, H, W] in [-1, 1]."""
        box = largest_centred(*self.photo.size)
        return from_uint8(to_uint8(to_tensor(self.photo, box, self.model.resolution)))[0]

    @cached_property
    def bound(self) -> Tensor:
        """The autoencoder's round trip of the crop, [3, H, W]."""
        return self.model.decode(self.model.encode(self.crop[None]))[0].cpu()

    @cached_property
    def mask(self) -> Tensor | None:
        """Where the edit belongs: [H, W], bool; None where the data has no mask."""
        if self.item.mask is None:
            return None
        box = largest_centred(*self.photo.size)
        drawn = mask_on_crop(load_mask(self.item.mask), self.photo.size, box)
        size = tuple(self.crop.shape[1:])
        return torch.nn.functional.interpolate(drawn[None, None], size, mode="area")[0, 0] > 0.5

    def inversion(self, key: InversionKey) -> Inversion:
        """Get an inversion of the photo, or raise at every call what it raised."""
        if key not in self._inversions:
            try:
                self._inversions[key] = self._invert(key)
            except NulltextError as error:
                self._inversions[key] = error
        found = self._inversions[key]
        if isinstance(found, NulltextError):
            raise found
        return found

    def _invert(self, key: InversionKey) -> Inversion:
        method = VARIANTS[key.variant].method(key.inner_steps, key.pivot)
        if key.inversion_guidance != 1.0:
            method = ddim.DDIM(inversion_guidance=key.inversion_guidance)
        return invert(
            self.model,
            self.photo,
            key.caption,
            method=method,
            num_steps=self.num_steps,
            guidance_scale=key.guidance_scale,
            seed=self.seed,
        )

    def reconstruction(self, key: InversionKey) -> Tensor:
        """Get the picture that an inversion replays to, [3, H, W]."""
        if key not in self._replays:
            self._replays[key] = replay(self.model, self.inversion(key)).image[0]
        return self._replays[key]

    def edited(self, key: InversionKey, target: str, strengths: Sequence[float]) -> list[Tensor]:
        """Get one edit [3, H, W] per strength; all are sampled in one batch."""
        wanted = (key, tuple(strengths))
        if wanted not in self._edits:
            specs = [EditSpec(target, **vars(at_strength(s))) for s in strengths]
            self._edits[wanted] = edit(self.model, self.inversion(key), specs)
        return list(self._edits[wanted].images)

    @torch.no_grad()
    def sdedit(self, target: str, strength: float, guidance_scale: float) -> Tensor:
        """Noise the photo to a fraction of the grid, then sample under the target: [3, H, W].

        Source: Meng et al. 2022 (SDEdit), alg. 1, with deterministic DDIM steps.
        """
        model, draw = self.model, torch.Generator()
        grid = model.grid(self.num_steps)
        visited = grid[len(grid) - max(1, round(strength * len(grid))) :]
        latents = model.encode(self.crop[None])
        noise = torch.randn(latents.shape, generator=draw.manual_seed(self.seed)).to(latents)
        latents = visited[0].noisier.add_noise(latents, noise)
        conditions = Conditions(*model.embed(["", target]).chunk(2))
        for step in visited:
            latents = sample_step(model, step, latents, conditions, guidance_scale).latents
        return model.decode(latents)[0].cpu()


WITH_WORD_MAPS = (NULL_TEXT, "textual-pivot", "textual-pivot-shared")
"""Variants whose word maps are compared: the null branch against the prompt's."""

NOT_EDITED = (
    "random-pivot",
    "global-null",
    "null-text-no-pivot",
    "textual",
    "textual-pivot-shared",
)
"""Ablations; all other variants are edited."""

FUNCTION_WORDS = frozenset("a an the of on in with and at to is are photo".split())  # noqa: SIM905
"""Words that have no place in a picture."""

UNLIT = 0.15
"""Brightness of the photo where a word's map is lowest."""


@dataclass(frozen=True)
class PhotoTasks:
    """The rows of a photo."""

    item: CaptionedPhoto
    other_caption: str | None
    """Another photo's caption; None if there is no other photo."""
    plan: StudyPlan
    judge_evaluations: int
    """UNet evaluations of one verdict on an edit."""

    def of_plan(self) -> list[Task]:
        makers = {
            "reconstruction": self.reconstruction,
            "captions": self.captions,
            "guidance": self.guidance,
            "attention": self.attention,
            "editing": self.editing,
        }
        chosen = [makers[name] for name in makers if name in self.plan.experiments]
        return [t for make in chosen for t in make() if t.variant in self.plan.variants]

    def reconstruction(self) -> Iterator[Task]:
        photo = self.item.name
        yield Task("reconstruction", photo, BOUND, {}, measure_bound)
        for variant in VARIANTS.values():
            for n in self.plan.iterations if variant.optimises else (0,):
                key = self._key(variant.name, n)
                measure = partial(measure_reconstruction, key=key)
                needs = self._replay_costs(key)
                yield Task("reconstruction", photo, variant.name, {"N": n}, measure, needs)

    def captions(self) -> Iterator[Task]:
        captions = {"own": self.item.captions[0], "none": ""}
        if len(self.item.captions) > 1:
            captions["another of its own"] = self.item.captions[1]
        if self.other_caption is not None:
            captions["another photo's"] = self.other_caption
        for kind, caption in captions.items():
            key = replace(self._key(NULL_TEXT, self.plan.inner_steps), caption=caption)
            measure, needs = partial(measure_caption, key=key), self._replay_costs(key)
            judged = 0
            if self.item.target not in (None, caption):
                needs |= self._edit_costs(key, (PUBLISHED,))
                judged = self.judge_evaluations
            setting = {"caption": kind}
            yield Task("captions", self.item.name, NULL_TEXT, setting, measure, needs, judged)

    def guidance(self) -> Iterator[Task]:
        for w in self.plan.inversion_guidances:
            key = InversionKey(DDIM, 0, self.item.captions[0], float(w), float(w))
            measure, needs = partial(measure_guidance, key=key), self._replay_costs(key)
            yield Task("guidance", self.item.name, DDIM, {"w": w}, measure, needs)

    def attention(self) -> Iterator[Task]:
        num_steps = self.plan.num_steps
        unguided = InversionKey(DDIM, 0, self.item.captions[0], 1.0)
        for name in WITH_WORD_MAPS:
            key = self._key(name, self.plan.inner_steps)
            measure = partial(measure_attention, key=key, reference=unguided)
            needs = self._replay_costs(key) | {unguided: unguided.evaluations(num_steps)}
            mapped = sum(guided_evaluations(1, each.source_guidance) for each in (key, unguided))
            yield Task("attention", self.item.name, name, {}, measure, needs, mapped * num_steps)

    def editing(self) -> Iterator[Task]:
        if self.item.target is None:
            return
        photo, plan, judged = self.item.name, self.plan, self.judge_evaluations
        for name in VARIANTS:
            if name in NOT_EDITED:
                continue
            key = self._key(name, plan.inner_steps)
            needs = self._edit_costs(key, plan.strengths)
            for strength in plan.strengths:
                setting = {"strength": strength}
                measure = partial(
                    measure_edit, key=key, strength=strength, strengths=plan.strengths
                )
                yield Task("editing", photo, name, setting, measure, needs, judged)
        for strength in plan.strengths:
            setting = {"strength": strength}
            measure = partial(measure_sdedit, guidance_scale=plan.guidance_scale, strength=strength)
            sampled = 2 * max(1, round(strength * plan.num_steps))
            yield Task("editing", photo, SDEDIT, setting, measure, {}, sampled + judged)

    def _key(self, variant: str, inner_steps: int) -> InversionKey:
        return InversionKey.of(variant, inner_steps, self.item.captions[0], self.plan)

    def _replay_costs(self, key: InversionKey) -> dict[Hashable, int]:
        num_steps = self.plan.num_steps
        replayed = num_steps * guided_evaluations(1, key.source_guidance)
        return {key: key.evaluations(num_steps), ("replay", key): replayed}

    def _edit_costs(self, key: InversionKey, strengths: Sequence[float]) -> dict[Hashable, int]:
        num_steps = self.plan.num_steps
        source = guided_evaluations(1, key.source_guidance)
        targets = guided_evaluations(len(strengths), key.guidance_scale)
        edited = num_steps * (source + targets)
        return {key: key.evaluations(num_steps), ("edit", key, *strengths): edited}


def measure_bound(photo: StudiedPhoto) -> Measurement:
    pictures = {"picture": photo.bound, "photo": photo.crop}
    return Measurement(_similarity(photo, photo.bound), pictures)


def measure_reconstruction(photo: StudiedPhoto, key: InversionKey) -> Measurement:
    inversion, picture = photo.inversion(key), photo.reconstruction(key)
    return Measurement(_similarity(photo, picture), {"picture": picture}, inversion)


def measure_caption(photo: StudiedPhoto, key: InversionKey) -> Measurement:
    inversion, picture = photo.inversion(key), photo.reconstruction(key)
    figures, pictures = _similarity(photo, picture), {"picture": picture}
    notes, target = {"caption": key.caption}, photo.item.target
    if target is None or target == key.caption:
        same = "the caption already says what the edit asks for"
        missing = Undefined("the photo has no edit prompt" if target is None else same)
        figures |= {"agreement": missing, "prefers_target": missing}
    else:
        (edited,) = photo.edited(key, target, (PUBLISHED,))
        figures |= _agreement(photo, edited, target)
        pictures["edit"] = edited
        notes["target"] = target
    return Measurement(figures, pictures, inversion, notes)


def measure_guidance(photo: StudiedPhoto, key: InversionKey) -> Measurement:
    inversion, picture = photo.inversion(key), photo.reconstruction(key)
    figures = _similarity(photo, picture) | noise_statistics(inversion.trajectory[-1])
    return Measurement(figures, {"picture": picture}, inversion)


def measure_attention(
    photo: StudiedPhoto, key: InversionKey, reference: InversionKey
) -> Measurement:
    inversion = photo.inversion(key)
    maps = run(heat_map_steps(photo.model, inversion))[0]
    reference_maps = run(heat_map_steps(photo.model, photo.inversion(reference)))[0]
    words, correlations = [], []
    for own, other in zip(maps.words, reference_maps.words, strict=True):
        if own.word.lower() not in FUNCTION_WORDS:
            words.append(own.word)
            correlations.append(_correlation(own.heat, other.heat))
    defined = [value for value in correlations if not isinstance(value, Undefined)]
    figures: dict[str, MetricValue] = {
        "map_correlation": sum(defined) / len(defined)
        if defined
        else Undefined("no word has a map with structure"),
        "psnr": region_psnr(photo.reconstruction(key), photo.crop),
    }
    pictures = {
        "pivot's words": _lit_by_words(photo.crop, reference_maps),
        "words": _lit_by_words(photo.crop, maps),
    }
    return Measurement(figures, pictures, inversion, {"words": ", ".join(words)})


def measure_edit(
    photo: StudiedPhoto, key: InversionKey, strength: float, strengths: Sequence[float]
) -> Measurement:
    target = photo.item.target
    assert target is not None
    picture = photo.edited(key, target, strengths)[strengths.index(strength)]
    return Measurement(
        _preservation(photo, picture) | _agreement(photo, picture, target),
        {"picture": picture},
        photo.inversion(key),
        {"caption": key.caption, "target": target},
    )


def measure_sdedit(photo: StudiedPhoto, guidance_scale: float, strength: float) -> Measurement:
    target = photo.item.target
    assert target is not None
    picture = photo.sdedit(target, strength, guidance_scale)
    figures = _preservation(photo, picture) | _agreement(photo, picture, target)
    return Measurement(figures, {"picture": picture}, notes={"target": target})


def _similarity(photo: StudiedPhoto, picture: Tensor) -> dict[str, MetricValue]:
    return {
        "psnr": region_psnr(picture, photo.crop),
        "ssim": region_ssim(picture, photo.crop),
        "lpips": photo.lpips(picture, photo.crop),
    }


def _preservation(photo: StudiedPhoto, picture: Tensor) -> dict[str, MetricValue]:
    """Compare what is outside the edit with the autoencoder's round trip of the photo.

    LPIPS has no meaning inside a region, so the edit's inside is taken from the round trip first.
    """
    reference = photo.bound
    height, width = reference.shape[1:]
    outside = outside_disc(height, width) if photo.mask is None else ~photo.mask
    return {
        "psnr_outside": region_psnr(picture, reference, outside),
        "ssim_outside": region_ssim(picture, reference, outside),
        "lpips_outside": photo.lpips(torch.where(outside, picture, reference), reference),
    }


def _agreement(photo: StudiedPhoto, picture: Tensor, target: str) -> dict[str, MetricValue]:
    verdict = photo.judge.judge(picture, photo.item.captions[0], target)
    return {"agreement": verdict.score, "prefers_target": float(verdict.prefers_target)}


def _correlation(a: Tensor, b: Tensor) -> MetricValue:
    """Compute Pearson's correlation of two maps."""
    x, y = (m.double().flatten() - m.double().mean() for m in (a, b))
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else Undefined("a word's map is flat")


def _lit_by_words(crop: Tensor, maps: PromptMaps) -> Tensor:
    """Light the photo by each word's map, one below the other: [3, n H, W]."""
    panels = []
    for word in maps.words:
        if word.word.lower() in FUNCTION_WORDS:
            continue
        heat = torch.nn.functional.interpolate(
            word.heat[None, None], tuple(crop.shape[1:]), mode="bilinear", align_corners=False
        )[0, 0]
        low, high = heat.min(), heat.max()
        lit = (heat - low) / (high - low).clamp_min(torch.finfo().tiny)
        panels.append((crop + 1) * (UNLIT + (1 - UNLIT) * lit) - 1)
    return torch.cat(panels, dim=1) if panels else crop
