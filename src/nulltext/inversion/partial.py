"""What is kept of an inversion on its way, so that a killed one goes on instead of starting over.

After a timestep, all that the timesteps to come depend on (`StepInfo.kept`) is written to one
safetensors file beside the final one, under a name of its own: `NAME.safetensors.partial`. It is
replaced as a whole, so there is always one that is whole, and it says what it is part of: photo,
crop, prompt, weights, method with its options, grid, guidance, seed and version of nulltext. Going
on from it gives the tensors that an undisturbed run gives, bit for bit.

A file that belongs to something else, or is damaged, is never used; the next timestep replaces it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nulltext.diffusion.loops import StepInfo
from nulltext.models.fingerprint import spellings
from nulltext.models.network_calls import Passes
from nulltext.storage.files import output_error, replace_file

SUFFIX = ".partial"
"""Added to the name of the inversion that it will be."""

METADATA_KEY = "nulltext-partial"

WRITING_SHARE = 0.05
"""Part of the time that may go into writing: where a timestep is quicker than that, some are left
out."""

Result = TypeVar("Result")


def partial_of(path: Path) -> Path:
    """The partial file of an inversion that will be saved at `path`."""
    return path.with_name(path.name + SUFFIX)


def remove_partial(path: Path) -> None:
    """Remove the partial file of an inversion that is saved at `path` now.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        partial_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(partial_of(path), error) from error


def digests_of(identity: object, fingerprints: Sequence[str]) -> list[str]:
    """Names for it, one with each fingerprint of its model: SHA-256 of its JSON, in hexadecimal."""
    texts = [json.dumps(same, sort_keys=True) for same in spellings(identity, fingerprints)]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


@dataclass
class Partial:
    """The partial file of an inversion."""

    path: Path | None
    """None: nothing is kept."""
    digests: Sequence[str]
    """Of what is being inverted, as `digests_of` has them; the first is written."""
    seconds_before: float = 0.0
    """That earlier runs took."""
    evaluations_before: int = 0
    """UNet evaluations that earlier runs took."""
    started: float = field(default_factory=time.perf_counter)
    last: float = -float("inf")
    """When the file was last written."""
    cost: float = 0.0
    """Seconds that this took."""

    def read(self, device: torch.device) -> dict[str, Tensor] | None:
        """What an earlier run of the same inversion kept; None if there is nothing to go on from.

        Each tensor gets memory of its own: kernels may round differently where alignment differs.
        """
        from safetensors import SafetensorError, safe_open

        if self.path is None:
            return None
        try:
            with safe_open(self.path, framework="pt") as stream:
                said = json.loads((stream.metadata() or {})[METADATA_KEY])
                if said["digest"] not in self.digests:
                    return None
                found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
                seconds, evaluations = float(said["seconds"]), int(said["unet_evaluations"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if said.get("content") != _checksum(found):
            return None
        self.seconds_before, self.evaluations_before = seconds, evaluations
        return {name: tensor.to(device, copy=True) for name, tensor in found.items()}

    @property
    def seconds(self) -> float:
        """Spent until now, by all runs."""
        return self.seconds_before + time.perf_counter() - self.started

    def write(self, kept: Mapping[str, Tensor], evaluations: int) -> None:
        """Replace the file, unless that would take more than its share of the time.

        Args: evaluations: UNet evaluations of this run.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        begun = time.perf_counter()
        if self.path is None or begun - self.last < self.cost / WRITING_SHARE:
            return
        content = {name: kept[name].detach().cpu().clone().contiguous() for name in kept}
        said = {
            "digest": self.digests[0],
            "content": _checksum(content),
            "seconds": self.seconds,
            "unet_evaluations": self.evaluations_before + evaluations,
        }
        replace_file(self.path, save(content, metadata={METADATA_KEY: json.dumps(said)}))
        self.last = time.perf_counter()
        self.cost = self.last - begun


def keeping(
    steps: Generator[StepInfo, None, Result], partial: Partial, passes: Passes
) -> Generator[StepInfo, None, Result]:
    """The same steps, each kept before it is reported; `passes` counts those of the run."""
    while True:
        try:
            info = next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        if info.kept is not None:
            partial.write(info.kept, passes.total)
        yield info


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}:".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
