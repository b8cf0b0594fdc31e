"""How alike pictures are, how Gaussian latents are, and how well a picture agrees with a prompt.

    PSNR = 10 log10(1 / mean (a - b)^2)           over [0, 1] RGB
    SSIM = mean of ((2 ma mb + c1) (2 sab + c2)) / ((ma^2 + mb^2 + c1) (sa + sb + c2))

SSIM by scikit-image, per channel, with the Gaussian window (sigma 1.5, 11 px) and constants of its
paper; in a region, the mean of its map there. A metric that is undefined for a pair of pictures is
`Undefined` with the reason, never a NaN, an infinity or a zero.

Agreement with the prompt of an edit: `ClipJudge` gives the CLIP score, 100 cos(image, target), and
needs CLIP's weights. `DiffusionJudge` takes the diffusion model itself as a classifier,

    error(C)  = mean over fixed t, eps of || eps - eps(z_t, t, C) ||^2,
                z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps
    agreement = 100 (error(source) - error(target)) / error(source)

per cent by which the target explains the picture better than the source does. It judges pictures of
the model by the model and is biased towards them; tables name the judge.
Source: Wang et al. 2004 (SSIM), sec. III; Zhang et al. 2018 (LPIPS); Hessel et al. 2021
(CLIPScore), eq. 1 without its factor; Li et al. 2023 (Your diffusion model is secretly a zero-shot
classifier), eq. 4 and sec. 3.2 (the same draws for every class).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from nulltext.errors import ExtraError, ModelError, reason_of, require
from nulltext.image.images import to_pil
from nulltext.models.checkpoint import first_line, plain_texts, quiet_libraries
from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Undefined:
    """A metric without a value."""

    reason: str


MetricValue: TypeAlias = float | Undefined

PairMetric: TypeAlias = Callable[[Tensor, Tensor], MetricValue]
"""A metric of two pictures [3, H, W] in [-1, 1]."""

GAUSSIAN_SIGMA = 1.5
WINDOW = 11
"""Side in pixels of SSIM's window at that sigma."""

DISC_RADIUS = math.sqrt(0.5 / math.pi)
"""Radius, in sides, of a disc that covers half of a square."""

EMPTY_REGION = Undefined("the region has no pixel")


def region_psnr(a: Tensor, b: Tensor, region: Tensor | None = None) -> MetricValue:
    """Compute the PSNR of two pictures over the pixels of a region, in decibels.

    Args: a, b: [3, H, W] in [-1, 1]. region: [H, W], bool; None is everywhere.
    """
    square = ((_unit(a) - _unit(b)) ** 2).mean(dim=0)
    mse = float((square if region is None else square[region]).mean())
    if math.isnan(mse):
        return EMPTY_REGION
    return Undefined("the pictures are equal") if mse == 0 else -10 * math.log10(mse)


def region_ssim(a: Tensor, b: Tensor, region: Tensor | None = None) -> MetricValue:
    """Compute the mean SSIM over a region, -1 to 1; arguments as in `region_psnr`."""
    values = ssim_map(a, b)
    if isinstance(values, Undefined):
        return values
    chosen = values if region is None else values[region.cpu()]
    return float(chosen.mean()) if chosen.numel() else EMPTY_REGION


def inner_ssim(a: Tensor, b: Tensor) -> MetricValue:
    """Compute the mean SSIM of [3, H, W] in [-1, 1] where the whole window lies in the picture."""
    values, border = ssim_map(a, b), WINDOW // 2
    if isinstance(values, Undefined):
        return values
    return float(values[border:-border, border:-border].mean())


def ssim_map(a: Tensor, b: Tensor) -> Tensor | Undefined:
    """Compute the SSIM around each pixel, mean over channels: [H, W], float64, on the CPU.

    Args: a, b: [3, H, W] in [-1, 1].

    Raises:
        ExtraError: scikit-image is not installed.
    """
    skimage = require("skimage.metrics", "study", "SSIM")
    if min(a.shape[1:]) < WINDOW:
        return Undefined(f"the pictures are smaller than {WINDOW} px")
    _, values = skimage.structural_similarity(
        _unit(a).permute(1, 2, 0).numpy(),
        _unit(b).permute(1, 2, 0).numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=GAUSSIAN_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return torch.from_numpy(values).mean(dim=2)


def load_lpips() -> PairMetric:
    """Load LPIPS (AlexNet, of the package lpips), or a metric that says why it is unavailable."""
    try:
        network = require("lpips", "study", "LPIPS").LPIPS(net="alex", verbose=False)
    except ExtraError:
        missing = Undefined("the package lpips is not installed")
    except (OSError, RuntimeError) as error:
        missing = Undefined(f"LPIPS's weights cannot be had ({reason_of(error)})")
    else:

        @torch.no_grad()
        def distance(a: Tensor, b: Tensor) -> MetricValue:
            return float(network(a.cpu()[None].clamp(-1, 1), b.cpu()[None].clamp(-1, 1)))

        return distance
    return lambda a, b: missing  # noqa: ARG005


def outside_disc(height: int, width: int) -> Tensor:
    """Mask what is outside a centred disc of half the area, where a subject usually is.

    Returns: [H, W], bool.
    """
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height - 0.5,
        (torch.arange(width) + 0.5) / width - 0.5,
        indexing="ij",
    )
    return x**2 + y**2 > DISC_RADIUS**2


def noise_statistics(noise: Tensor) -> dict[str, MetricValue]:
    """Measure how Gaussian the end of an inversion is: z_T [C, h, w] against N(0, I).

    Mean and variance over all values; autocorrelation of neighbours (right and below, within a
    channel); log-likelihood in nats per value, log N(z; 0, 1) = -(z^2 + log 2 pi) / 2, which is
    -1.419 for noise.
    """
    z = noise.double()
    mean, variance = float(z.mean()), float(z.var(unbiased=False))
    centred = z - mean
    right, below = centred[:, :, 1:] * centred[:, :, :-1], centred[:, 1:] * centred[:, :-1]
    covariance = float(torch.cat([right.flatten(), below.flatten()]).mean())
    return {
        "noise_mean": mean,
        "noise_variance": variance,
        "noise_autocorrelation": (
            covariance / variance if variance > 0 else Undefined("the noise is constant")
        ),
        "noise_log_likelihood": -0.5 * (float(z.square().mean()) + math.log(2 * math.pi)),
    }


def _unit(image: Tensor) -> Tensor:
    """Scale [3, H, W] in [-1, 1] to [0, 1], float64 on the CPU."""
    return (image.detach().double().cpu().clamp(-1, 1) + 1) / 2


FRACTIONS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Fixed timesteps, as fractions of the training steps: where prompts matter most."""
DRAWS = 2
"""Noises per timestep."""


@dataclass(frozen=True)
class Agreement:
    """How well a picture agrees with the prompt of an edit."""

    score: float
    """Higher agrees better with the target; the unit depends on the judge."""
    prefers_target: bool


def load_judge(clip: str | None, model: LatentDiffusion, seed: int) -> Judge:
    """Load CLIP from a folder or a hub id; without one, use the model, with noise from the seed."""
    return DiffusionJudge(model, seed) if clip is None else ClipJudge.load(clip, model.device)


@dataclass(frozen=True)
class DiffusionJudge:
    """The diffusion model as a classifier of its own pictures."""

    name: ClassVar[str] = "diffusion classifier (the model itself), %"
    unet_evaluations: ClassVar[int] = 2 * DRAWS * len(FRACTIONS)  # two prompts at every draw

    model: LatentDiffusion
    seed: int = 0

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        model, draw = self.model, torch.Generator().manual_seed(self.seed)
        latents, embeds = model.encode(image[None]), model.embed([source, target])
        errors = torch.zeros(2, dtype=torch.float64)
        for fraction in FRACTIONS:
            level = model.schedule.level_at(fraction)
            for _ in range(DRAWS):
                noise = torch.randn(latents.shape, generator=draw).to(latents)
                noisy = level.add_noise(latents, noise)
                guess = model.predict_noise(noisy.expand(2, -1, -1, -1), level, embeds)
                errors += (noise - guess).square().flatten(1).mean(dim=1).double().cpu()
        wrong, right = errors.tolist()
        return Agreement(score=100 * (wrong - right) / wrong, prefers_target=right < wrong)


@dataclass(frozen=True)
class ClipJudge:
    """CLIP score."""

    unet_evaluations: ClassVar[int] = 0

    clip: Any
    """transformers' CLIPModel."""
    processor: Any
    name: str
    """In tables and settings."""

    @classmethod
    def load(cls, source: str, device: torch.device, *, local_only: bool = False) -> ClipJudge:
        """Load CLIP from a folder or a hub id, which `local_only` looks up in the cache alone.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        clip = load_pretrained(
            CLIPModel, source, device, option="--clip", local_files_only=local_only
        )
        try:
            with quiet_libraries(), plain_texts(Path(source)) as texts:
                processor = CLIPProcessor.from_pretrained(
                    texts.as_posix(), local_files_only=local_only
                )
        except Exception as error:  # the library raises many kinds; the reason is in the text
            raise ModelError(
                f"The processor of '{source}' cannot be loaded ({first_line(error)}); pass --clip "
                "a folder with transformers' CLIPModel and its processor, or leave --clip out."
            ) from error
        return cls(clip, processor, f"CLIP score ({Path(source).name})")

    @torch.no_grad()
    def judge(self, image: Tensor, source: str, target: str) -> Agreement:
        wrong, right = self.cosines(image, [source, target]).tolist()
        return Agreement(score=100 * right, prefers_target=right > wrong)

    @torch.no_grad()
    def cosines(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the cosines of a picture [3, H, W] in [-1, 1] with n prompts: [n], float64."""
        inputs = self.processor(
            text=list(prompts),
            images=to_pil(image),
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.clip.device)
        output = self.clip(**inputs)
        cosines: Tensor = (output.image_embeds @ output.text_embeds.T)[0]
        return cosines.double().cpu()


Judge: TypeAlias = DiffusionJudge | ClipJudge


def load_pretrained(
    network_class: Any, source: str, device: torch.device, *, option: str, **options: Any
) -> Any:
    """Load a network of a transformers class, frozen, on the device, in float32.

    Args:
        source: a folder, or a hub id.
        option: what the command line calls it, for messages.
        options: of the class's `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, is not in safetensors, or lacks a weight.
    """
    name = network_class.__name__
    wanted: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
        **options,
    }
    try:
        with quiet_libraries():
            if Path(source).is_dir():
                with plain_texts(Path(source)) as texts:
                    wanted["config"] = network_class.config_class.from_pretrained(str(texts))
            network, info = network_class.from_pretrained(source, **wanted)
    except Exception as error:  # the library raises many kinds; the reason is in the text
        raise ModelError(
            f"'{source}' cannot be loaded as {name} ({first_line(error)}); pass {option} a "
            f"folder with transformers' {name} in safetensors."
        ) from error
    lacking = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    if lacking:
        raise ModelError(
            f"'{source}' is no {name}: it lacks {len(lacking)} weights "
            f"({min(lacking)}, …); pass {option} a folder that has them."
        )
    return network.to(device).eval().requires_grad_(False)
