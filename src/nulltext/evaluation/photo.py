"""A photo under study: opened once, and each inversion, replay and edit of it made once.

Experiments share inversions (null-text at one N serves four of them) and ask for them by key. A
failure is kept, too: it fails every row that needs the inversion, and is not retried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nulltext.diffusion.guidance import guided_evaluations
from nulltext.diffusion.loops import Conditions, sample_step
from nulltext.editing.editors import at_strength
from nulltext.editing.loop import Edit, EditSpec, edit
from nulltext.errors import NulltextError
from nulltext.evaluation.datasets import CaptionedPhoto
from nulltext.evaluation.judges import Judge
from nulltext.evaluation.metrics import PairMetric
from nulltext.evaluation.plan import DDIM, VARIANTS
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

    @classmethod
    def of(cls, variant: str, inner_steps: int, caption: str, guidance: float) -> InversionKey:
        optimises = VARIANTS[variant].optimises
        return cls(variant, inner_steps if optimises else 0, caption, guidance)

    def evaluations(self, num_steps: int) -> int:
        if self.variant == DDIM:
            scales = (self.inversion_guidance, self.guidance_scale)
            return num_steps * sum(guided_evaluations(1, scale) for scale in scales)
        return VARIANTS[self.variant].evaluations(num_steps, self.inner_steps)


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
        """Get an inversion of the photo.

        Raises:
            NulltextError: what the inversion raised, at every call.
        """
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
        method = VARIANTS[key.variant].method(key.inner_steps)
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
        grid = model.schedule.grid(self.num_steps)
        visited = grid[len(grid) - max(1, round(strength * len(grid))) :]
        latents = model.encode(self.crop[None])
        noise = torch.randn(latents.shape, generator=draw.manual_seed(self.seed)).to(latents)
        latents = visited[0].noisier.add_noise(latents, noise)
        conditions = Conditions(*model.embed(["", target]).chunk(2))
        for step in visited:
            latents = sample_step(model, step, latents, conditions, guidance_scale).latents
        return model.decode(latents)[0].cpu()
