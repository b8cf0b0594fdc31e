"""The UNet's stage: noise from noisy latents and words, with the text encoder trained along.

    L = E min(SNR_t, gamma) / SNR_t |eps - eps_theta(z_t, t, C)|^2  +  g E G(A_t)
    G = (1 - sum over the word's part of the picture of A / sum over all of A)^2

with SNR_t = ab_t / (1 - ab_t), t uniform. G is the grounding of words: A is the cross-attention
that the words of the flower (its kind, its colour) or of the background get, at every site where
words have places and every timestep below `grounded_below`; their part of the picture is the
flower's outline, or what is outside it. Without it a small model paints what the words say but its
attention does not say where, and editing by attention has nothing to hold on to.
Sources: Ho et al. 2020, eq. 14; Hang et al. 2023 (min-SNR), eq. 6; Wang et al. 2024 (TokenCompose),
eq. 3, which grounds nouns by segmentation masks in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image
from torch import Tensor, nn

from nulltext.attention.maps import NoOpController, ProbedController, StepMaps
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.image.images import to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.training.captions import Caption, CaptionSettings, Role, compose
from nulltext.training.latents import Views
from nulltext.training.samples import sample

COLUMNS = 8
"""Pictures in a row of the sample pictures."""
SAMPLE_SEED = 7
TINY = 1e-6


@dataclass(frozen=True)
class DenoiserLoss:
    """What the UNet is punished for."""

    min_snr_gamma: float = 5.0
    """gamma: timesteps with a higher signal-to-noise ratio count less."""
    grounding: float = 0.05
    """g: words whose attention leaves their part of the picture; 0 to switch off."""
    grounded_below: int = 800
    """Noisier timesteps are not grounded: there nothing can be seen yet."""


class DenoiserStage:
    """Trains a UNet and its text encoder on encoded views."""

    stage = "denoiser"

    def __init__(
        self,
        model: LatentDiffusion,
        views: Views,
        *,
        captions: CaptionSettings,
        fillers: Sequence[str],
        loss: DenoiserLoss,
        prompts: Sequence[str],
    ) -> None:
        """Args: prompts: what the sample pictures shall show."""
        self.module: nn.Module = nn.ModuleDict(
            {name: model.components[name] for name in ("unet", "text_encoder")}
        )
        self.text_encoder = model.components["text_encoder"]
        self.model, self.views, self.weigh, self.prompts = model, views, loss, prompts
        self.captions, self.fillers = captions, fillers
        self.alphas_cumprod = torch.from_numpy(model.schedule.alphas_cumprod).float()
        self.scale = float(model.vae.config.scaling_factor)
        self.known: dict[tuple[str, ...], tuple[list[int], list[tuple[int, ...]]]] = {}

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of `batch_size` views under freshly composed captions."""
        device = self.model.device
        rows = torch.randint(len(self.views.examples), (batch_size,), generator=rng)
        clean = self.views.latents[rows].float() * self.scale
        timesteps = torch.randint(len(self.alphas_cumprod), (batch_size,), generator=rng)
        noise = torch.randn(clean.shape, generator=rng)
        signal = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1.0 - signal).sqrt() * noise
        captions = [
            compose(self.views.examples[row], self.captions, self.fillers, rng) for row in rows
        ]
        read = [self._read(caption) for caption in captions]
        ids = torch.tensor([row for row, _ in read], device=device)
        embeds = self.text_encoder(ids).last_hidden_state
        eye = StepMaps(largest_self_site(*clean.shape[-2:]))
        grounded = self.weigh.grounding > 0
        watching: AbstractContextManager[None] = nullcontext()
        if grounded:
            watching = attach(self.model.unet, ProbedController(NoOpController(guided=False), eye))
        with watching:
            predicted = self.model.unet(
                noisy.to(device), timesteps.to(device), encoder_hidden_states=embeds
            ).sample
        square = (predicted.float() - noise.to(device)).square().mean(dim=(1, 2, 3))
        snr = signal.flatten() / (1.0 - signal.flatten())
        weights = snr.clamp(max=self.weigh.min_snr_gamma) / snr
        loss = (weights.to(device) * square).mean()
        parts = {"noise": float(square.detach().mean())}
        if grounded:
            masks = self.views.masks[rows].float() / 255.0
            seen = timesteps < self.weigh.grounded_below
            spans = [spans for _, spans in read]
            astray = grounding_loss(
                eye, captions, spans, masks.to(device) * seen.view(-1, 1, 1).to(device)
            )
            loss = loss + self.weigh.grounding * astray
            parts["astray"] = float(astray.detach())
        return loss, parts

    def picture(self) -> Image.Image:
        """Samples of fixed prompts from fixed noise."""
        images = sample(self.model, self.prompts, seed=SAMPLE_SEED)
        tiles = [
            Tile(to_pil(image), prompt) for image, prompt in zip(images, self.prompts, strict=True)
        ]
        return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])

    def _read(self, caption: Caption) -> tuple[list[int], list[tuple[int, ...]]]:
        """Token ids of a caption, and each word's positions among them."""
        if caption.words not in self.known:
            prompt = self.model.tokenize(caption.text, allow_empty=True)
            starts = _starts(caption.words)
            spans = [
                tuple(
                    token
                    for word in prompt.words
                    if start <= word.start < start + len(text)
                    for token in word.tokens
                )
                for start, text in zip(starts, caption.words, strict=True)
            ]
            self.known[caption.words] = list(prompt.token_ids), spans
        return self.known[caption.words]


def _starts(words: Sequence[str]) -> list[int]:
    """Where each word begins in the words joined by blanks."""
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    return starts


def grounding_loss(
    eye: StepMaps,
    captions: Sequence[Caption],
    spans: Sequence[Sequence[tuple[int, ...]]],
    masks: Tensor,
) -> Tensor:
    """G: how much of the words' attention is outside their part of the picture, squared.

    Args:
        eye: has watched one pass of B captioned rows. spans: per caption and word, its tokens.
        masks: [B, h, w] in [0, 1], the flower's share of each latent pixel; all 0 where unknown.

    Returns: a scalar in [0, 1]; 0 where no caption has a grounded word.
    """
    words = named(captions, spans, length=next(iter(eye.sites.values())).shape[1]).to(masks)
    known = masks.flatten(1).amax(dim=1) > 0
    valid = (words.amax(dim=-1) > 0) & known[:, None]
    if not bool(valid.any()):
        return masks.new_zeros(())
    losses = []
    for maps in eye.sites.values():
        size = (maps.shape[-2], maps.shape[-1])
        flower = nn.functional.adaptive_avg_pool2d(masks[:, None], size)
        parts = torch.cat([flower, 1.0 - flower], dim=1)  # in the order of Role
        attention = torch.einsum("brl,blhw->brhw", words, maps)
        share = (attention * parts).sum((-2, -1)) / (attention.sum((-2, -1)) + TINY)
        losses.append((1.0 - share[valid]).square().mean())
    return torch.stack(losses).mean()


def named(
    captions: Sequence[Caption], spans: Sequence[Sequence[tuple[int, ...]]], *, length: int
) -> Tensor:
    """[B, roles, L]: 1 at the tokens of the words that speak of a part of the picture."""
    words = torch.zeros(len(captions), len(get_args(Role)), length)
    for row, caption in enumerate(captions):
        for place, role in enumerate(get_args(Role)):
            for own, span in zip(caption.roles, spans[row], strict=True):
                if own == role:
                    words[row, place, list(span)] = 1.0
    return words
