"""LPIPS on SqueezeNet 1.1, written out, so that torchvision is not needed.

    d = sum over layers l of mean over pixels of  w_l . (f_l(a) - f_l(b))^2

f_l: a layer's features, scaled to length 1 at each pixel; w_l >= 0 learnt. Weights come from one
safetensors file with the names of the package `lpips` (docs/pie.md has the line that writes it).
Source: Zhang et al. 2018 (LPIPS), eq. 1, version 0.1; Iandola et al. 2016 (SqueezeNet).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from nulltext.errors import ModelError
from nulltext.models.checkpoint import first_line

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, of RGB in [-1, 1]."""

TINY = 1e-10
"""Added to a length before dividing by it."""

SLICES: tuple[tuple[str, ...], ...] = (
    ("net.slice1.0",),
    ("pool", "net.slice2.3", "net.slice2.4"),
    ("pool", "net.slice3.6", "net.slice3.7"),
    ("pool", "net.slice4.9"),
    ("net.slice5.10",),
    ("net.slice6.11",),
    ("net.slice7.12",),
)
"""SqueezeNet's modules between the layers that are compared: its first convolution, then fires."""

FIRE = ("squeeze", "expand1x1", "expand3x3")

CHANNELS: dict[str, tuple[int, int, int]] = {
    "net.slice2.3": (64, 16, 64),
    "net.slice2.4": (128, 16, 64),
    "net.slice3.6": (128, 32, 128),
    "net.slice3.7": (256, 32, 128),
    "net.slice4.9": (256, 48, 192),
    "net.slice5.10": (384, 48, 192),
    "net.slice6.11": (384, 64, 256),
    "net.slice7.12": (512, 64, 256),
}
"""A fire's channels: in, squeezed, and of each of the two that it expands to."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that the file must hold."""
    wanted: dict[str, tuple[int, ...]] = {
        "net.slice1.0.weight": (64, 3, 3, 3),
        "net.slice1.0.bias": (64,),
    }
    for fire, (given, squeezed, expanded) in CHANNELS.items():
        kernels = ((squeezed, given, 1, 1), (expanded, squeezed, 1, 1), (expanded, squeezed, 3, 3))
        for part, kernel in zip(FIRE, kernels, strict=True):
            wanted[f"{fire}.{part}.weight"], wanted[f"{fire}.{part}.bias"] = kernel, kernel[:1]
    compared = (64, *(2 * CHANNELS[names[-1]][2] for names in SLICES[1:]))
    for index, channels in enumerate(compared):
        wanted[f"lin{index}.model.1.weight"] = (1, channels, 1, 1)
    return wanted


class SqueezeLpips:
    """LPIPS with its weights; `SqueezeLpips.load(file)` makes one."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Args: weights: float32, by the names and of the shapes that `shapes` lists."""
        self.weights = weights

    @property
    def name(self) -> str:
        """What the settings call it."""
        return "LPIPS (SqueezeNet)"

    @classmethod
    def load(cls, path: Path, device: torch.device) -> SqueezeLpips:
        """Read a file of weights.

        Raises:
            ModelError: it is missing, no safetensors, or lacks a weight.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                present = set(file.keys())
                sized = {n: tuple(file.get_slice(n).get_shape()) for n in shapes() if n in present}
                wrong = [name for name, shape in shapes().items() if sized.get(name) != shape]
                if wrong:
                    raise ModelError(
                        f"'{path}' holds no LPIPS on SqueezeNet: {len(wrong)} weights are missing "
                        f"or of another shape ({wrong[0]}, …); see docs/pie.md for how to write it."
                    )
                weights = {name: file.get_tensor(name).float().to(device) for name in sized}
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"'{path}' cannot be read as LPIPS weights ({first_line(error)}); pass --lpips a "
                "safetensors file (docs/pie.md says how to write it)."
            ) from error
        return cls(weights)

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """d of two pictures [3, H, W] in [-1, 1], at least 0."""
        total = 0.0
        for index, (f, g) in enumerate(zip(self._layers(a), self._layers(b), strict=True)):
            difference = (_unit_length(f) - _unit_length(g)).square()
            total += float(conv2d(difference, self.weights[f"lin{index}.model.1.weight"]).mean())
        return total

    def _layers(self, image: Tensor) -> Iterator[Tensor]:
        """Features [1, C, h, w] after each slice."""
        first = self.weights["net.slice1.0.weight"]
        shift, scale = (torch.tensor(x).view(3, 1, 1).to(first) for x in (SHIFT, SCALE))
        features = ((image.to(first).clamp(-1, 1) - shift) / scale)[None]
        for names in SLICES:
            for name in names:
                features = self._apply(name, features)
            yield features

    def _apply(self, name: str, features: Tensor) -> Tensor:
        if name == "pool":
            return max_pool2d(features, 3, stride=2, ceil_mode=True)
        if name not in CHANNELS:
            return relu(self._conv(name, features, stride=2))
        squeezed = relu(self._conv(f"{name}.squeeze", features))
        narrow = relu(self._conv(f"{name}.expand1x1", squeezed))
        wide = relu(self._conv(f"{name}.expand3x3", squeezed, padding=1))
        return torch.cat([narrow, wide], dim=1)

    def _conv(self, name: str, features: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return conv2d(features, weight, bias, stride=stride, padding=padding)


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + TINY)
