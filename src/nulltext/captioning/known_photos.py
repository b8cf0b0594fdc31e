"""Tell whether a photo is like those that a captioner was trained on.

    r = f / |f| - m,    d = |r - r D' D|,    known: d <= t

f is a photo's embedding, m the mean and D [K, features] the first K principal directions of such
embeddings of length 1 of training photos. d is what lies outside of those directions, the residual
of a projection; t is the distance within which nine of ten held-out photos lie. A captioner names
everything with the few words that it has, and its probabilities do not tell a cat from a rose:
docs/captioning.md has the figures of both.
Source: Wang, Li, Feng and Zhang 2022 (ViM), sec. 3: the residual score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from nulltext.errors import ModelError, reason_of
from nulltext.models.tensor_files import read_header

KNOWN_PHOTOS = "known_photos.safetensors"
"""Its file in a captioner's folder."""
MOST_DIRECTIONS = 64
KNOWN_SHARE = 0.9
"""Share of held-out photos that count as known."""


@dataclass(frozen=True)
class KnownPhotos:
    """Where the embeddings of training photos lie, at length 1."""

    mean: Tensor
    """[features], float32."""
    directions: Tensor
    """[K, features], float32, orthonormal up to float16."""
    farthest: float
    """Largest distance of a photo that is known."""

    @classmethod
    def of(cls, trained: Tensor, held_out: Tensor) -> KnownPhotos:
        """Find the directions of embeddings, and the farthest distance of most others.

        Args: trained: [N, features], N at least 2. held_out: [M, features].
        """
        trained = functional.normalize(trained.double(), dim=1)
        mean = trained.mean(0)
        count = min(MOST_DIRECTIONS, min(trained.shape) // 2)
        directions = torch.linalg.svd(trained - mean, full_matrices=False).Vh[:count]
        found = cls(mean.float(), directions.half().float().contiguous(), farthest=0.0)
        farthest = found.distances(held_out).quantile(KNOWN_SHARE)
        return cls(found.mean, found.directions, float(farthest))

    def distances(self, features: Tensor) -> Tensor:
        """Compute the distances [B] of embeddings [B, features]."""
        rest = functional.normalize(features.float().cpu(), dim=1) - self.mean
        return (rest - rest @ self.directions.T @ self.directions).norm(dim=1)

    def knows(self, features: Tensor) -> bool:
        """Tell whether the photo of an embedding [1, features] is like the training photos."""
        return bool(self.distances(features) <= self.farthest)

    def to_bytes(self) -> bytes:
        """Return the contents of its file."""
        return safetensors.torch.save(
            {
                "mean": self.mean,
                "directions": self.directions.half(),
                "farthest": torch.tensor([self.farthest]),
            }
        )

    @classmethod
    def load(cls, path: Path, features: int) -> KnownPhotos | None:
        """Load a file; None where there is none.

        Args: features: numbers of an embedding.

        Raises:
            ModelError: it is damaged, or of another captioner.
        """
        if not path.is_file():
            return None
        try:
            shapes = read_header(path).shapes
            count = shapes["directions"][0]
            wanted = {"mean": (features,), "directions": (count, features), "farthest": (1,)}
            if {name: tuple(shape) for name, shape in shapes.items()} != wanted:
                raise ValueError(f"its tensors have the shapes {shapes}")
            if count > MOST_DIRECTIONS:
                raise ValueError(f"it has {count:,} directions")
            tensors = {n: t.float() for n, t in safetensors.torch.load_file(path).items()}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("its numbers are not finite")
        except Exception as error:  # safetensors raises its own kind
            raise ModelError(
                f"'{path}' cannot be read ({reason_of(error)}); get it again, or delete it."
            ) from error
        return cls(tensors["mean"], tensors["directions"], float(tensors["farthest"]))
