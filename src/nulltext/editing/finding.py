"""Find where an edit belongs: from the words that differ, and from what the model makes of them.

Along the stored pivot, at three noise levels t in the middle of the run, the network is asked for
both prompts; its cross-attention A is read meanwhile, and nothing is sampled:

    D = G mean over t and channels of |o(z*_t, t, C_target) - o(z*_t, t, C_source)|
    s = [[A] + [D]]                [x]: x between its 5 % and 98 % quantiles, cut off to [0, 1]
    s = rank of [A]                by attention alone

for each thing that changes (`words.changes`), A being the token map of its noun. C are the prompts'
plain embeddings, whatever an inversion optimised; G is a mean over squares of about an eighth of
the side. A thing that the source names is looked for by the source's maps, one that comes by the
target's. For a change of the background A is that of a thing which stays, and the region is all but
these. Attention alone is taken where that is asked for, for backgrounds, and
where the embeddings are the same (weights). From s to the region of pixels it is `image.outlines`,
on the photo at hand; where a noun comes, goes or changes, the union with the outline in the edited
picture.

Where an inversion holds z*_0 alone, z*_t is z*_0 noised afresh.

Source: Couairon et al. 2023 (DiffEdit), sec. 3.2, eq. 5, which noises afresh where we have a pivot;
Brack et al. 2024 (LEdits++), sec. 4.3 (both kinds of evidence). Combination and outlines are ours.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from nulltext.attention.maps import NoOpController, ProbedController, StepMaps, word_map
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.constants import Region
from nulltext.diffusion.loops import StepInfo
from nulltext.editing.editors import PromptToPrompt
from nulltext.editing.spec import EditSpec
from nulltext.editing.strength import steps_until
from nulltext.image.outlines import feather, outline
from nulltext.inversion.record import Inversion
from nulltext.inversion.replay import Replaying
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.changes import Change, read_change
from nulltext.words.prompts import TokenizedPrompt

PROBED: Final = (0.35, 0.5, 0.65)
"""Fractions of the run at which it is asked: earlier it lays out, later it draws detail."""
SMOOTHING: Final = 1 / 16
"""Radius of G in parts of the latents' side."""
LOW, HIGH = 0.05, 0.98
"""Quantiles between which evidence counts."""
GROWTH: Final = 1.0
"""Radius by which a region is dilated, in the model's pixels: more lets what the edit changed
beside a thing show as a glow around it."""


@dataclass(frozen=True)
class Finding:
    """Where an edit belongs, as far as the model knows."""

    change: Change
    scores: Tensor
    """s of each thing, [N, H, W] in [0, 1], over the crop at the model's resolution."""
    words: tuple[str, ...]
    """The things' nouns, as typed."""

    @property
    def said(self) -> str:
        """Where the edit belongs, in words."""
        things = ", ".join(dict.fromkeys(self.words))
        return f"all but {things}" if self.change.about == "background" else things

    def region(self, picture: Tensor, edited: Tensor) -> Tensor:
        """Return the region's weight in [0, 1], with the outlines of the pictures at hand.

        Args:
            picture: the photo's crop, [3, H, W] in about [-1, 1], at any resolution.
            edited: the edit, [3, H', W'] in about [-1, 1], at the model's resolution.

        Returns: [h, w], at most `outlines.CUT_SIDE` on the longer side.
        """
        found = torch.stack([outline(picture, s) for s in self.scores]).amax(dim=0)
        if self.change.reshaped:
            drawn = torch.stack([outline(edited, s) for s in self.scores]).amax(dim=0)
            if drawn.shape != found.shape:
                drawn = interpolate(drawn[None, None], size=found.shape, mode="nearest")[0, 0]
            found = torch.maximum(found, drawn)
        pixel = max(found.shape) / max(self.scores.shape[1:])
        region = 1 - found if self.change.about == "background" else found
        return feather(region, picture, GROWTH * pixel)


def find_steps(
    model: LatentDiffusion, inversion: Inversion, specs: Sequence[EditSpec], region: Region
) -> Generator[StepInfo, None, list[Finding | None]]:
    """Find where edits belong, as a generator of steps.

    Costs one evaluation of the network for the photo and one for each different target, at each of
    `PROBED`; none where everything may change or masks and blends say what.

    Args:
        region: "auto" (attention and predictions), "words" (attention alone) or "everywhere".

    Returns: for each edit, where it belongs; None where its own mask or blend says so, or it may
    change everything.

    Raises:
        InversionFileError: the inversion belongs to another model.
        PromptError: the model cannot read a target.
    """
    source = model.tokenize(inversion.header.prompt, allow_empty=True)
    wanted: list[_Wanted | None] = []
    for spec in specs:
        target = model.tokenize(spec.target)
        change = read_change(source, target, weights_of(spec))
        if not isinstance(spec.editor, PromptToPrompt):
            change = replace(change, reshaped=True)  # others do not keep shapes
        local = spec.mask is None and spec.blend is None and change.about != "picture"
        wanted.append(_Wanted(spec.target, target, change) if local else None)
    asked = list(dict.fromkeys(each.text for each in wanted if each is not None))
    if region == "everywhere" or not asked:
        return [None] * len(specs)
    probes = yield from _probe(model, inversion, asked)
    alone = region == "words"
    found: dict[_Wanted, Finding] = {}
    for each in wanted:
        if each is not None and each not in found:
            row = asked.index(each.text)
            scores = _scores(probes, row, source, each, alone=alone)
            nouns = [source.words[i].text for i in each.change.source]
            nouns += [each.prompt.words[j].text for j in each.change.added]
            found[each] = Finding(each.change, scores, tuple(nouns))
    return [None if each is None else found[each] for each in wanted]


@dataclass(frozen=True)
class _Wanted:
    """A target whose region is looked for."""

    text: str
    prompt: TokenizedPrompt
    change: Change


@dataclass(frozen=True)
class _Probes:
    """What the network said along the pivot."""

    size: tuple[int, int]
    """(H, W) of the model's pictures."""
    differences: Tensor
    """[K, h, w]: D of each target."""
    source_maps: Tensor
    """[L, h', w'], token maps."""
    target_maps: Tensor
    """[K, L, h', w']."""


def weights_of(spec: EditSpec) -> dict[str, float]:
    """Return the factors on words of an edit's target; empty where its editor has none."""
    return dict(asdict(spec.editor).get("weights", {}))


def _probe(
    model: LatentDiffusion, inversion: Inversion, targets: Sequence[str]
) -> Generator[StepInfo, None, _Probes]:
    replaying = Replaying.of(model, inversion)
    model, steps = replaying.model, inversion.num_steps
    embeds = model.embed([inversion.header.prompt, *targets])
    indices = sorted({min(steps_until(part, steps), steps - 1) for part in PROBED})
    differences, maps = [], []
    for done, index in enumerate(indices, start=1):
        level = replaying.grid[index].noisier
        latents = _latents(replaying, index)
        seen = StepMaps(largest_self_site(*latents.shape[-2:]))
        probe = ProbedController(NoOpController(guided=False), seen)
        with torch.no_grad(), attach(model.network, probe):
            outputs = torch.cat(
                [
                    model.predict(latents.expand(len(part), -1, -1, -1), level, part)
                    for part in embeds.split(model.memory.targets)
                ]
            )
        differences.append((outputs[1:] - outputs[:1]).float().abs().mean(dim=1).cpu())
        maps.append(seen.token_maps().cpu())
        yield StepInfo("region", done, len(indices), level)
    attention = torch.stack(maps).mean(dim=0)
    height, width = inversion.photo.shape[-2:]
    return _Probes(
        (height, width),
        _smoothed(torch.stack(differences).mean(dim=0)),
        attention[0],
        attention[1:],
    )


def _latents(replaying: Replaying, index: int) -> Tensor:
    """z*_t where the step with this index starts, [1, C, h, w]; of z*_0 alone, noised afresh."""
    inversion = replaying.inversion
    if not inversion.is_encoded_only:
        return inversion.trajectory[inversion.num_steps - index][None].to(replaying.model.device)
    clean = replaying.encoded
    generator = torch.Generator().manual_seed(inversion.header.seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return replaying.grid[index].noisier.add_noise(clean, noise.to(clean.device))


def _scores(
    probes: _Probes, row: int, source: TokenizedPrompt, wanted: _Wanted, *, alone: bool
) -> Tensor:
    """s of the module's formula, [N, H, W]."""
    change = wanted.change
    looks = [word_map(probes.source_maps, source.words[i].tokens) for i in change.source]
    target_maps = probes.target_maps[row]
    looks += [word_map(target_maps, wanted.prompt.words[j].tokens) for j in change.added]
    attention = [_spread(_enlarged(look, probes.size)) for look in looks]
    difference = _enlarged(probes.differences[row], probes.size)
    differs = bool(difference.max() > difference.min())
    if alone or change.about == "background" or not differs:
        return torch.stack([_ranks(a) for a in attention])
    return torch.stack([_spread(a + _spread(difference)) for a in attention])


def _smoothed(maps: Tensor) -> Tensor:
    radius = max(1, round(SMOOTHING * min(maps.shape[-2:])))
    padded = pad(maps[:, None], [radius] * 4, mode="replicate")
    return avg_pool2d(padded, 2 * radius + 1, stride=1)[:, 0]


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _spread(x: Tensor) -> Tensor:
    low, high = _quantile(x, LOW), _quantile(x, HIGH)
    return ((x - low) / max(high - low, torch.finfo().tiny)).clamp(0, 1)


def _quantile(x: Tensor, part: float) -> float:
    values = x.flatten().sort().values  # torch.quantile takes 16 million numbers at most
    return float(values[round(part * (len(values) - 1))])


def _ranks(x: Tensor) -> Tensor:
    flat = x.flatten()
    ranks = torch.empty_like(flat)
    ranks[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat))
    return ranks.view(x.shape)
