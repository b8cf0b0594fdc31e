"""The stage of the UNet: noise from noisy latents and words, with the text encoder trained along.

    L = E min(SNR_t, gamma) / SNR_t |eps - eps_theta(z_t, t, C)|^2  +  g E G(A_t)

with SNR_t = ab_t / (1 - ab_t), t uniform. G is the grounding of words (`training.grounding`), of
the cross-attention A_t at every site where words have places and every timestep below
`grounded_below`.
Sources: Ho et al. 2020, eq. 14; Hang et al. 2023 (min-SNR), eq. 6; Song et al. 2021 (DDIM), eq. 12,
for the sample pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from nulltext.attention.maps import NoOpController, ProbedController, StepMaps
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.diffusion.loops import Conditions, sample_step
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.image.images import to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.training.components import common_words
from nulltext.training.dataset import compose
from nulltext.training.grounding import CaptionTokenizer, grounding_loss
from nulltext.training.loop import step_generator
from nulltext.training.recipe import Recipe
from nulltext.training.views import EncodedViews

COLUMNS = 8
TOGETHER = 8
"""Sample pictures that go through the UNet at once."""
SAMPLE_SEED = 7


class DenoiserStage:
    """Training of UNet and text encoder on encoded views."""

    stage = "denoiser"

    def __init__(self, model: LatentDiffusion, views: EncodedViews, recipe: Recipe) -> None:
        self.text_encoder = model.components["text_encoder"]
        self.module: nn.Module = nn.ModuleDict(
            {"unet": model.network, "text_encoder": self.text_encoder}
        )
        self.model, self.views, self.recipe = model, views, recipe
        self.fillers = common_words()
        assert isinstance(model.schedule, DiscreteSchedule)
        self.alphas_cumprod = torch.from_numpy(model.schedule.alphas_cumprod).float()
        self.tokenize = CaptionTokenizer(model)

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        device, weights = self.model.device, self.recipe.denoiser.loss
        rows = torch.randint(len(self.views.examples), (batch_size,), generator=rng)
        clean = self.views.latents[rows].float() * float(self.model.vae.config.scaling_factor)
        timesteps = torch.randint(len(self.alphas_cumprod), (batch_size,), generator=rng)
        noise = torch.randn(clean.shape, generator=rng)
        signal = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1.0 - signal).sqrt() * noise
        snr = (signal / (1.0 - signal)).flatten()
        examples = [self.views.examples[row] for row in rows]
        captions = [compose(e, self.recipe.captions, self.fillers, rng) for e in examples]
        tokenized = [self.tokenize(caption) for caption in captions]
        ids = torch.tensor([caption.ids for caption in tokenized], device=device)
        embeds = self.text_encoder(ids).last_hidden_state
        maps = StepMaps(largest_self_site(*clean.shape[-2:]))
        grounded = weights.grounding > 0
        probed = ProbedController(NoOpController(guided=False), maps)
        with attach(self.model.network, probed) if grounded else nullcontext():
            predicted = self.model.network(
                noisy.to(device), timesteps.to(device), encoder_hidden_states=embeds
            ).sample
        square = (predicted.float() - noise.to(device)).square().mean(dim=(1, 2, 3))
        scale = snr.clamp(max=weights.min_snr_gamma) / snr
        loss = (scale.to(device) * square).mean()
        parts = {"noise": float(square.detach().mean())}
        if grounded:
            visible = timesteps < weights.grounded_below
            masks = self.views.masks[rows].float() / 255.0 * visible.view(-1, 1, 1)
            spans = [caption.spans for caption in tokenized]
            outside = grounding_loss(maps, captions, spans, masks.to(device))
            loss = loss + weights.grounding * outside
            parts["astray"] = float(outside.detach())
        return loss, parts

    def picture(self) -> Image.Image:
        prompts = self.recipe.denoiser.prompts
        images = sample(self.model, prompts, seed=SAMPLE_SEED)
        tiles = [Tile(to_pil(image), text) for image, text in zip(images, prompts, strict=True)]
        return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])


@torch.no_grad()
def sample(model: LatentDiffusion, prompts: Sequence[str], *, seed: int) -> Tensor:
    """Draw a picture per prompt: [N, 3, H, W], float32 on the CPU, about [-1, 1].

    Picture k depends on its prompt, the seed and k only.
    """
    latents = sample_latents(model, prompts, starting_noise(model, len(prompts), seed=seed))
    return torch.cat([model.decode(rows).cpu() for rows in latents.split(TOGETHER)])


def starting_noise(model: LatentDiffusion, count: int, *, seed: int) -> Tensor:
    """Draw z_T of `count` pictures: [N, C, h, w] on the CPU."""
    shape = model.latents_shape
    return torch.stack(
        [torch.randn(shape, generator=step_generator(seed, row)) for row in range(count)]
    )


@torch.no_grad()
def sample_latents(
    model: LatentDiffusion,
    prompts: Sequence[str],
    noise: Tensor,
    num_steps: int = 30,
    guidance_scale: float = 4.0,
) -> Tensor:
    """Denoise z_T by DDIM under a prompt each: z_0 [N, C, h, w] on the model's device."""
    null, finished = model.embed([""]), []
    embeds = model.embed(prompts)
    for latents, rows in zip(noise.split(TOGETHER), embeds.split(TOGETHER), strict=True):
        latents = latents.to(model.device)
        for step in model.grid(num_steps):
            conditions = Conditions(null, rows)
            latents = sample_step(model, step, latents, conditions, guidance_scale).latents
        finished.append(latents)
    return torch.cat(finished)
