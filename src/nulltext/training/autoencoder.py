"""The autoencoder's stage: pixels to a small grid of latents and back.

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

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from nulltext.image.images import psnr, to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.training.collection import as_floats

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHOWN = 8
"""Photos in the sample pictures."""

FAMILIAR_SCALE = 0.75
"""Share of crops from photos at the model's resolution; the others are larger and softer."""


@dataclass(frozen=True)
class AutoencoderLoss:
    """What the autoencoder is punished for."""

    gradient: float = 0.5
    """a: errors of the differences between neighbouring pixels."""
    square: float = 5.0
    """b: squared errors."""
    coarse: float = 0.5
    """c: errors at half the resolution."""
    kl: float = 1e-4
    """k: distance of the latents from a standard normal."""
    keep: float = 0.0
    """p: change of the latents of the model that training began with (--init); 0 lets them go."""

    def __call__(self, image: Tensor, decoded: Tensor, kl: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its mean square, from images [B, 3, H, W] in [-1, 1] and their mean KL."""
        error = decoded.float() - image
        square = error.square().mean()
        steep = sum(
            (torch.diff(decoded.float(), dim=d) - torch.diff(image, dim=d)).abs().mean()
            for d in (-1, -2)
        )
        coarse = functional.avg_pool2d(error, 2).abs().mean()
        loss = error.abs().mean() + self.gradient * steep + self.square * square
        return loss + self.coarse * coarse + self.kl * kl, square


class AutoencoderStage:
    """Trains an `AutoencoderKL` on random crops."""

    stage = "autoencoder"

    def __init__(
        self,
        vae: AutoencoderKL,
        pixels: Tensor,
        held_out: Tensor,
        *,
        resolution: int,
        crop: int,
        loss: AutoencoderLoss,
        origin: AutoencoderKL | None = None,
    ) -> None:
        """Args: pixels, held_out: [N, 3, S, S], uint8, for training and for the sample pictures.

        origin: whose latents are kept; None to let them go.
        """
        vae.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.module: nn.Module = self.trained(vae)
        self.vae, self.pixels, self.crop, self.weigh = vae, pixels, crop, loss
        self.device = vae.device
        self.origin = None if origin is None else origin.to(self.device)
        self.resolution = resolution
        self.small = shrink(pixels, resolution)
        self.shown = as_floats(shrink(held_out[:SHOWN], resolution)).to(self.device)

    def trained(self, vae: AutoencoderKL) -> nn.Module:
        """The part of the autoencoder that is trained."""
        return vae

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of `batch_size` crops, most of them at the scale that the model will see."""
        image = self.crops(rng, batch_size).to(self.device)
        posterior = self.vae.encode(image).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(image)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().float().sum() / posterior.mean.numel()
        loss, square = self.weigh(image, decoded, kl)
        parts = {"psnr": decibels(square), "kl": float(kl.detach())}
        if self.origin is not None:
            with torch.no_grad():
                kept = self.origin.encode(image).latent_dist.mean
            change = (posterior.mean[:, : kept.shape[1]] - kept).float().square().mean()
            loss = loss + self.weigh.keep * change
            parts["change"] = float(change.detach())
        return loss, parts

    def picture(self) -> Image.Image:
        """Held-out photos above their round trips."""
        decoded = self.vae.decode(self.vae.encode(self.shown).latent_dist.mode()).sample.float()
        return tile_grid(
            [
                [Tile(to_pil(row[None]), "photo") for row in self.shown.cpu()],
                [
                    Tile(to_pil(row[None]), f"{psnr(row[None], photo[None]):.2f} dB")
                    for row, photo in zip(decoded.cpu(), self.shown.cpu(), strict=True)
                ],
            ]
        )

    def crops(self, rng: torch.Generator, count: int) -> Tensor:
        """Random crops [count, 3, crop, crop] in [-1, 1], mirrored at random."""
        rows = []
        for _ in range(count):
            source = self.small if _chance(rng) < FAMILIAR_SCALE else self.pixels
            index = _below(len(source), rng)
            top, left = (_below(n - self.crop + 1, rng) for n in source.shape[-2:])
            row = source[index, :, top : top + self.crop, left : left + self.crop]
            rows.append(row.flip(-1) if _chance(rng) < 0.5 else row)
        return as_floats(torch.stack(rows)).contiguous(memory_format=torch.channels_last)


class DecoderStage(AutoencoderStage):
    """Trains the decoder alone, from the latents that the denoiser learns to make."""

    stage = "decoder"

    def trained(self, vae: AutoencoderKL) -> nn.Module:
        """What comes after the latents."""
        return nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of `batch_size` crops, decoded from the posterior's mode."""
        image = self.crops(rng, batch_size).to(self.device)
        with torch.no_grad():
            latents = self.vae.encode(image).latent_dist.mode()
        decoded = self.vae.decode(latents).sample
        loss, square = self.weigh(image, decoded, image.new_zeros(()))
        return loss, {"psnr": decibels(square)}


def shrink(pixels: Tensor, side: int) -> Tensor:
    """Photos [N, 3, S, S], uint8, at another size."""
    if pixels.shape[-1] == side:
        return pixels
    resized = [
        functional.interpolate(
            part.float(), (side, side), mode="bicubic", antialias=True, align_corners=False
        )
        for part in pixels.split(256)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in resized])


def decibels(square: Tensor) -> float:
    """PSNR of a mean squared error over [-1, 1]."""
    return float(10 * torch.log10(4.0 / square.detach()))


def _below(limit: int, rng: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=rng))


def _chance(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
