"""PIE-Bench's eight metrics of one edit, on 8-bit pictures.

With K = 1 where the mask leaves the picture alone, x the photo and y the edit in [0, 1] RGB,

    MSE   = mean over ALL pixels of (K x - K y)^2          PSNR = -10 log10 MSE
    SSIM  = SSIM(K x, K y)                                  LPIPS = LPIPS(K x, K y)
    structure = structure distance(x, y)
    CLIP  = 100 max(0, cos(picture, prompt))    of (x, source), (y, target), ((1 - K) y, target)

Masked pixels are black in both and count as equal, as in the published evaluation: an edit with a
large mask scores better for it, so these figures compare with the published ones and not with a
mean over the kept pixels alone. A metric whose network is missing is `Undefined`, never a number.

Structure distance, from the keys K of DINO's last self-attention, all heads side by side,
[tokens, D]; tables give 1000 d:

    S_ij = K_i . K_j / (|K_i| |K_j|)        d = mean over i, j of (S_ij(x) - S_ij(y))^2

Its pictures are scaled to 224 px (bilinear) and standardised with ImageNet's mean and deviation,
but from 0 to 255, not from 0 to 1, as in the published evaluation, whose scale depends on it.

LPIPS on SqueezeNet 1.1, written out because its packages need torchvision:

    d = sum over layers l of mean over pixels of  w_l . (f_l(x) - f_l(y))^2

f_l: a layer's features, scaled to length 1 at each pixel; w_l >= 0 learnt. Weights come from one
safetensors file with the names of the package `lpips` (docs/pie.md has the line that writes it).

Source: Ju et al. 2024 (Direct Inversion), sec. 5.2, and its published evaluation; Tumanyan et al.
2022 (Splicing ViT features), eq. 2 and 4; Zhang et al. 2018 (LPIPS), eq. 1, version 0.1; Iandola
et al. 2016 (SqueezeNet).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import safetensors
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, interpolate, normalize

from nulltext.errors import ModelError
from nulltext.evaluation.metrics import (
    ClipJudge,
    MetricValue,
    Undefined,
    inner_ssim,
    load_pretrained,
)
from nulltext.image.images import from_uint8, to_uint8
from nulltext.models.checkpoint import first_line

CLIP_SOURCE = "openai/clip-vit-large-patch14"
DINO_SOURCE = "facebook/dino-vitb8"
DINO_SIDE = 224
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in 0 to 1."""
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, of RGB in [-1, 1]."""
TINY = 1e-10
"""Added to a length before dividing by it."""

NONE = "none"
"""Option value that leaves out a network's metrics."""

COVERED = Undefined("the mask covers the whole picture")
UNMARKED = Undefined("the mask marks nothing")

Network = TypeVar("Network")


@dataclass(frozen=True)
class Networks:
    """The networks of the metrics, or why they are missing."""

    dino: StructureDistance | Undefined
    lpips: SqueezeLpips | Undefined
    clip: ClipJudge | Undefined

    @property
    def names(self) -> dict[str, str]:
        return {k: "missing" if isinstance(v, Undefined) else v.name for k, v in vars(self).items()}

    @property
    def missing(self) -> dict[str, str]:
        return {k: v.reason for k, v in vars(self).items() if isinstance(v, Undefined)}


def load_networks(
    dino: str | None, clip: str | None, lpips: Path | None, device: torch.device
) -> Networks:
    """Load the networks that are asked for or present.

    Args:
        dino, clip: a folder or a hub id that must be there; "none" to do without; None for the
            published network if the hub's cache has it: nothing is downloaded unasked.
        lpips: a safetensors file; None to do without.

    Raises:
        ModelError: one that was asked for by name cannot be loaded.
    """
    return Networks(
        dino=_load_optional(StructureDistance.load, dino, DINO_SOURCE, device, option="--dino"),
        lpips=Undefined("no LPIPS weights were given; pass --lpips FILE")
        if lpips is None
        else SqueezeLpips.load(lpips, device),
        clip=_load_optional(ClipJudge.load, clip, CLIP_SOURCE, device, option="--clip"),
    )


def _load_optional(
    load: Callable[..., Network], asked: str | None, usual: str, device: torch.device, option: str
) -> Network | Undefined:
    if asked == NONE:
        return Undefined(f"left out ({option} {NONE})")
    if asked is not None:
        return load(asked, device)
    absent = Undefined(f"{usual} is not on this machine; pass {option} {usual} to download it")
    if not isinstance(try_to_load_from_cache(usual, "config.json"), str):
        return absent
    try:
        return load(usual, device, local_only=True)
    except ModelError:
        return absent


def pie_metrics(
    photo: Tensor, edited: Tensor, mask: Tensor, source: str, target: str, networks: Networks
) -> dict[str, MetricValue]:
    """Compute the eight metrics of an edit, by name.

    Args:
        photo, edited: [3, H, W] in [-1, 1].
        mask: [512, 512] as decoded, border not yet set.
    """
    inside = resized(with_border(mask), (photo.shape[1], photo.shape[2]))
    x, y = (from_uint8(to_uint8(image))[0] for image in (photo, edited))
    values: dict[str, MetricValue] = {
        "structure_distance": _distance(networks.dino, x, y),
        "psnr_unedited": COVERED,
        "lpips_unedited": COVERED,
        "mse_unedited": COVERED,
        "ssim_unedited": COVERED,
        "clip_source": _clip_score(networks.clip, x, source),
        "clip_target": _clip_score(networks.clip, y, target),
        "clip_target_edited": UNMARKED,
    }
    if mask.any():
        values["clip_target_edited"] = _clip_score(networks.clip, blackened(y, inside), target)
    if not inside.all():
        a, b = blackened(x, ~inside), blackened(y, ~inside)
        mse = float(((a.double() - b.double()) / 2).square().mean())
        values |= {
            "psnr_unedited": -10 * math.log10(mse) if mse else Undefined("equal outside the mask"),
            "lpips_unedited": _distance(networks.lpips, a, b),
            "mse_unedited": mse,
            "ssim_unedited": inner_ssim(a, b),
        }
    return values


def with_border(mask: Tensor) -> Tensor:
    """Add the outermost pixels of a mask [H, W] to the edit, as published."""
    framed = mask.clone()
    framed[0] = framed[-1] = True
    framed[:, 0] = framed[:, -1] = True
    return framed


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask [512, 512] to (height, width), bool.

    A pixel belongs to the edit if any part of it does, so that the outside has no edited part.
    """
    return adaptive_max_pool2d(mask[None, None].float(), size)[0, 0] > 0


def blackened(image: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, image, torch.full_like(image, -1))


def _distance(
    network: StructureDistance | SqueezeLpips | Undefined, a: Tensor, b: Tensor
) -> MetricValue:
    return network if isinstance(network, Undefined) else float(network(a, b))


def _clip_score(clip: ClipJudge | Undefined, image: Tensor, prompt: str) -> MetricValue:
    if isinstance(clip, Undefined):
        return clip
    return max(0.0, 100 * float(clip.cosines(image, [prompt])[0]))


@dataclass(frozen=True)
class StructureDistance:
    """Structure distance by DINO ViT-B/8, or another ViT."""

    vit: Any
    """transformers' ViTModel."""
    name: str
    """In settings."""

    @classmethod
    def load(
        cls, source: str, device: torch.device, *, local_only: bool = False
    ) -> StructureDistance:
        """Load a ViT from a folder or a hub id, which `local_only` looks up in the cache alone.

        Raises:
            ModelError: it cannot be loaded, or has another layout.
        """
        from transformers import ViTModel

        options = {"add_pooling_layer": False, "local_files_only": local_only}
        vit = load_pretrained(ViTModel, source, device, option="--dino", **options)
        if DINO_SIDE % int(vit.config.patch_size):
            raise ModelError(
                f"'{source}' has patches of {vit.config.patch_size} px, which do not tile "
                f"{DINO_SIDE} px; pass --dino {DINO_SOURCE}."
            )
        return cls(vit, f"DINO ({Path(source).name})")

    def __call__(self, a: Tensor, b: Tensor, /) -> float:
        """Compute d of two pictures [3, H, W] in [-1, 1], at least 0."""
        return float((self.similarity(a) - self.similarity(b)).square().mean())

    @torch.no_grad()
    def similarity(self, image: Tensor) -> Tensor:
        """Compute S of a picture: [tokens, tokens], the class token first, float64."""
        device, size = self.vit.device, (DINO_SIDE, DINO_SIDE)
        levels = to_uint8(image)[None].float().to(device)
        small = interpolate(levels, size, mode="bilinear", align_corners=False)
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        deviation = torch.tensor(IMAGENET_DEVIATION, device=device).view(3, 1, 1)
        captured: list[Tensor] = []
        last = self.vit.layers[-1].attention.k_proj
        hook = last.register_forward_hook(lambda _module, _input, keys: captured.append(keys[0]))
        try:
            self.vit(pixel_values=(small - mean) / deviation, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        keys = normalize(captured[0].double().cpu(), dim=1)
        return keys @ keys.T


class Fire(nn.Module):
    """SqueezeNet's block: squeeze channels, then expand them by two convolutions."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, 2 expanded, h, w]."""
        squeezed = self.squeeze(features).relu()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu()


class SqueezeLpips(nn.Module):
    """LPIPS on SqueezeNet 1.1; parameters have the names of the package `lpips`."""

    name: ClassVar[str] = "LPIPS (SqueezeNet)"

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        slices: list[dict[str, nn.Module]] = [
            {"0": nn.Conv2d(3, 64, 3, stride=2), "1": nn.ReLU()},
            {"2": pool, "3": Fire(64, 16, 64), "4": Fire(128, 16, 64)},
            {"5": pool, "6": Fire(128, 32, 128), "7": Fire(256, 32, 128)},
            {"8": pool, "9": Fire(256, 48, 192)},
            {"10": Fire(384, 48, 192)},
            {"11": Fire(384, 64, 256)},
            {"12": Fire(512, 64, 256)},
        ]
        self.net = nn.Sequential(
            OrderedDict(
                (f"slice{number}", nn.Sequential(OrderedDict(layers)))
                for number, layers in enumerate(slices, start=1)
            )
        )
        for index, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
            dropout = nn.Identity()  # which the package has in training alone
            weigh = nn.Sequential(dropout, nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{index}", nn.Sequential(OrderedDict(model=weigh)))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> SqueezeLpips:
        """Read a safetensors file of weights.

        Raises:
            ModelError: it is missing, unreadable, or lacks a weight.
        """
        with torch.device("meta"):
            network = cls()
        shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                found = {
                    n: tuple(file.get_slice(n).get_shape()) for n in shapes.keys() & file.keys()
                }
                wrong = [name for name, shape in shapes.items() if found.get(name) != shape]
                if wrong:
                    raise ModelError(
                        f"'{path}' holds no LPIPS on SqueezeNet: {len(wrong)} weights are missing "
                        f"or of another shape ({wrong[0]}, …); see docs/pie.md for how to write it."
                    )
                weights = {name: file.get_tensor(name).float().to(device) for name in shapes}
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"'{path}' cannot be read as LPIPS weights ({first_line(error)}); pass --lpips a "
                "safetensors file (docs/pie.md says how to write it)."
            ) from error
        network.load_state_dict(weights, assign=True)
        return network.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> float:
        """Compute d of two pictures [3, H, W] in [-1, 1], at least 0."""
        total = 0.0
        for index, (f, g) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (_unit_length(f) - _unit_length(g)).square()
            total += float(self.get_submodule(f"lin{index}")(difference).mean())
        return total

    def _features(self, image: Tensor) -> Iterator[Tensor]:
        """Compute the features [1, C, h, w] after each slice."""
        device = next(self.parameters()).device
        shift = torch.tensor(LPIPS_SHIFT, device=device).view(3, 1, 1)
        scale = torch.tensor(LPIPS_SCALE, device=device).view(3, 1, 1)
        features = ((image.to(device).clamp(-1, 1) - shift) / scale)[None]
        for layers in self.net:
            features = layers(features)
            yield features


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + TINY)
