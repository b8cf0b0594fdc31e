"""The stages of the autoencoder: pixels to a small grid of latents and back.

    L = |x - x'| + a |grad x - grad x'| + b (x - x')^2 + c |P2 x - P2 x'| + k KL(q(z | x), N(0, I))
        + p (m - m_0)^2

all means over pixels (KL and the last term over latent numbers), with x' = D(z), z ~ q(z | x), and
P2 the mean over 2 x 2 pixels. The gradient term keeps edges and texture, the square keeps the PSNR,
the coarse term keeps colours; a discriminator would look sharper and be further from the photo.
Where the autoencoder grows out of another one, the last term keeps the means m of its first
channels at what they were there, m_0, so that a UNet that knows those needs to learn only the rest.
It trains on crops, since everything that it does is local.
Sources: Rombach et al. 2022, sec. 3.1; Mathieu et al. 2016, sec. 3.3 (gradient difference loss).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.image.images import psnr, to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.training.dataset import as_floats, below, chance, shrink
from nulltext.training.recipe import AutoencoderLoss, Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHOWN = 8
"""Photos in the sample pictures."""
OWN_SCALE = 0.75
"""Share of crops from photos at the model's resolution; the others are larger and softer."""


class AutoencoderStage:
    """Training of encoder and decoder on random crops."""

    stage = "autoencoder"

    def __init__(
        self,
        vae: AutoencoderKL,
        pixels: Tensor,
        held_out: Tensor,
        recipe: Recipe,
        *,
        origin: AutoencoderKL | None = None,
    ) -> None:
        """Args: pixels, held_out: [N, 3, S, S], uint8. origin: whose latents are kept, if any."""
        vae.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.module: nn.Module = self.trained_part(vae)
        self.vae, self.recipe = vae, recipe.autoencoder
        self.origin = None if origin is None else origin.to(vae.device)
        self.pixels, self.small_pixels = pixels, shrink(pixels, recipe.resolution)
        self.shown = as_floats(shrink(held_out[:SHOWN], recipe.resolution)).to(vae.device)

    def trained_part(self, vae: AutoencoderKL) -> nn.Module:
        return vae

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        image = self.crops(rng, batch_size)
        posterior = self.vae.encode(image).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(image)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().float().sum() / posterior.mean.numel()
        loss = pixel_loss(image, decoded, self.recipe.loss) + self.recipe.loss.kl * kl
        parts = {"psnr": psnr(decoded.detach().cpu(), image.cpu()), "kl": float(kl.detach())}
        if self.origin is not None:
            with torch.no_grad():
                kept = self.origin.encode(image).latent_dist.mean
            change = (posterior.mean[:, : kept.shape[1]] - kept).float().square().mean()
            loss = loss + self.recipe.loss.keep * change
            parts["change"] = float(change.detach())
        return loss, parts

    def picture(self) -> Image.Image:
        decoded = self.vae.decode(self.vae.encode(self.shown).latent_dist.mode()).sample.float()
        pairs = list(zip(self.shown.cpu().split(1), decoded.cpu().split(1), strict=True))
        return tile_grid(
            [
                [Tile(to_pil(photo), "photo") for photo, _ in pairs],
                [Tile(to_pil(copy), f"{psnr(copy, photo):.2f} dB") for photo, copy in pairs],
            ]
        )

    def crops(self, rng: torch.Generator, count: int) -> Tensor:
        """Draw crops [count, 3, crop, crop] in [-1, 1], mirrored at random."""
        rows, side = [], self.recipe.crop
        for _ in range(count):
            source = self.small_pixels if chance(OWN_SCALE, rng) else self.pixels
            index = below(len(source), rng)
            top, left = (below(n - side + 1, rng) for n in source.shape[-2:])
            row = source[index, :, top : top + side, left : left + side]
            rows.append(row.flip(-1) if chance(0.5, rng) else row)
        images = as_floats(torch.stack(rows)).contiguous(memory_format=torch.channels_last)
        return images.to(self.vae.device)


class DecoderStage(AutoencoderStage):
    """Training of the decoder alone, on the latents that the denoiser learns to make."""

    stage = "decoder"

    def trained_part(self, vae: AutoencoderKL) -> nn.Module:
        return nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        image = self.crops(rng, batch_size)
        with torch.no_grad():
            latents = self.vae.encode(image).latent_dist.mode()
        decoded = self.vae.decode(latents).sample
        loss = pixel_loss(image, decoded, self.recipe.loss)
        return loss, {"psnr": psnr(decoded.detach().cpu(), image.cpu())}


def pixel_loss(image: Tensor, decoded: Tensor, weights: AutoencoderLoss) -> Tensor:
    """Compute the terms of L that compare images [B, 3, H, W] in [-1, 1]."""
    error = decoded.float() - image
    square = error.square().mean()
    gradient = sum(
        (torch.diff(decoded.float(), dim=d) - torch.diff(image, dim=d)).abs().mean()
        for d in (-1, -2)
    )
    coarse = functional.avg_pool2d(error, 2).abs().mean()
    absolute = error.abs().mean()
    loss = absolute + weights.gradient * gradient + weights.square * square
    return loss + weights.coarse * coarse
