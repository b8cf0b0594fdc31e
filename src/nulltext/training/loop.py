"""One training loop for every stage: AdamW or Muon, clipped gradients, an average, checkpoints.

    theta_{k+1} = step(theta_k, clip(grad loss(theta_k; rng_k)), lr_k)
    ema_{k+1}   = d_k ema_k + (1 - d_k) theta_{k+1},       d_k = min(d, (1 + k) / (10 + k))
    lr_k        = lr * min((k + 1) / warmup, 1) * (floor + (1 - floor) cos^2(pi k / 2 K))

Everything that is random in step k is drawn from a generator seeded with (seed, k) alone, so a run
that is killed at any moment and resumed takes the same steps as one that was not: bit for bit on
one machine with one number of threads.
Sources: Loshchilov and Hutter 2019 (AdamW); Loshchilov and Hutter 2017 (cosine); Karras et al.
2024, sec. 3.1, on why the average must follow short runs closely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from nulltext.errors import NumericalError, OptionError, shorten
from nulltext.image.saving import save_image
from nulltext.storage.files import replace_file
from nulltext.training.optimizers import MOMENTS, OPTIMIZERS, build_optimizers

SEED_STRIDE = 1_000_003
"""Keeps the steps' generators apart for neighbouring seeds; a prime."""

AVERAGE = "ema."
"""What the names of averaged weights begin with in a checkpoint."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast one stage trains."""

    steps: int
    """Updates of the weights, K; 0 keeps what the stage begins with."""
    batch_size: int
    """Crops or latents that one update sees."""
    learning_rate: float
    """At its highest, after the warm-up."""
    optimizer: str = "adamw"
    """One of `OPTIMIZERS`: "muon" gives the matrices and kernels to Muon, the rest to AdamW."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises from nothing."""
    final_share: float = 0.02
    """Share of the learning rate that is left at the end of the cosine."""
    weight_decay: float = 0.01
    """Pull of matrices and kernels towards zero, per update and unit of learning rate."""
    ema_decay: float = 0.997
    """How slowly the average, which is what is exported, follows the weights."""
    clip_norm: float = 1.0
    """Longest gradient that is followed as it is."""
    checkpoint_every: int = 200
    """Updates between two checkpoints: what a kill can cost."""
    sample_every: int = 1000
    """Updates between two pictures of what the model can do."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise OptionError(f"steps is {self.steps}; choose 0 or more.")
        for name in ("batch_size", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; choose 1 or more.")
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(
                f"optimizer is {shorten(self.optimizer)!r}; choose {' or '.join(OPTIMIZERS)}."
            )


@dataclass(frozen=True)
class TrainInfo:
    """One update, for progress bars."""

    stage: str
    """Name of the stage."""
    step: int
    """Updates that are done."""
    total: int
    """Updates that the stage has."""
    seen: int
    """Crops or latents per update, for throughput."""
    parts: dict[str, float]
    """The loss and what it is made of."""


class Objective(Protocol):
    """What a stage minimises."""

    stage: str
    """Its name, and its checkpoint's."""
    module: nn.Module
    """All weights that are trained, on their device."""

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch drawn with `rng` (on the CPU), and the figures worth showing."""

    def picture(self) -> Image.Image:
        """What the weights that `module` holds now can do."""


def learning_rate(settings: LoopSettings, step: int) -> float:
    """The rate of update number `step`, from 0."""
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    fall = math.cos(0.5 * math.pi * step / settings.steps) ** 2
    return (
        settings.learning_rate * warm * (settings.final_share + (1 - settings.final_share) * fall)
    )


def step_generator(seed: int, step: int) -> torch.Generator:
    """The only source of chance in update number `step`."""
    return torch.Generator().manual_seed(seed * SEED_STRIDE + step)


class TrainingState:
    """Weights, their average and the optimiser's moments after some number of updates."""

    def __init__(self, module: nn.Module, settings: LoopSettings) -> None:
        self.module, self.settings, self.step = module, settings, 0
        self.weights = dict(module.named_parameters())
        self.ema = {name: w.detach().clone() for name, w in self.weights.items()}
        self.optimizers = build_optimizers(
            module, self.weights, settings.optimizer, weight_decay=settings.weight_decay
        )
        self.mover = {
            weight: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        }

    def update(self, loss: Tensor) -> float:
        """Follow the gradient of `loss` once; returns the gradient's length before clipping."""
        for weight in self.weights.values():
            weight.grad = None
        loss.backward()
        length = float(nn.utils.clip_grad_norm_(self.weights.values(), self.settings.clip_norm))
        if not math.isfinite(length):
            raise NumericalError(
                f"The gradient of update {self.step + 1} is not finite: resume from the last "
                "checkpoint with a lower learning rate, or without bfloat16."
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, self.step)
            optimizer.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.ema[name].lerp_(weight, 1.0 - decay)
        self.step += 1
        return length

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the module hold the average inside the block."""
        kept = {name: w.detach().clone() for name, w in self.weights.items()}
        self._assign(self.ema)
        try:
            yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def save(self, path: Path, identity: str) -> None:
        """Write everything that the next update depends on, whole or not at all."""
        tensors = {f"weights.{n}": w.detach() for n, w in self.weights.items()}
        tensors |= {f"{AVERAGE}{name}": value for name, value in self.ema.items()}
        for name, weight in self.weights.items():
            for key, value in self.mover[weight].state.get(weight, {}).items():
                if key in MOMENTS:
                    tensors[f"{key}.{name}"] = value
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata = {"step": str(self.step), "identity": identity}
        replace_file(path, safetensors.torch.save(tensors, metadata))

    def restore(self, path: Path, identity: str) -> None:
        """Continue where `save` was called.

        Raises:
            OptionError: the checkpoint is damaged, or was made with other settings.
        """
        tensors, metadata = read_checkpoint(path)
        if metadata.get("identity") != identity:
            raise OptionError(
                f"The checkpoint '{path}' was made with other settings or photos; train with "
                "those, or into another folder."
            )
        self.step = int(metadata["step"])
        self._assign({n: tensors[f"weights.{n}"] for n in self.weights})
        for name, value in self.ema.items():
            value.copy_(tensors[AVERAGE + name])
        for name, weight in self.weights.items():
            kept = {key: tensors.get(f"{key}.{name}") for key in MOMENTS}
            moments = {
                k: torch.zeros_like(weight).copy_(v) for k, v in kept.items() if v is not None
            }
            if "exp_avg" in moments:
                moments["step"] = torch.tensor(float(self.step), device=weight.device)
            if moments:
                self.mover[weight].state[weight] = moments


def read_checkpoint(
    path: Path, prefix: str | None = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint whose names begin with `prefix`, and its metadata.

    Args: prefix: None for the metadata alone, which takes no time.

    Raises:
        OptionError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [] if prefix is None else [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise OptionError(
            f"The checkpoint '{path}' cannot be read ({error}); delete it to begin anew."
        ) from error


def averaged_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """The exported weights of a checkpoint by name, and after how many updates it was written."""
    tensors, metadata = read_checkpoint(path, AVERAGE)
    return {n.removeprefix(AVERAGE): t for n, t in tensors.items()}, int(metadata.get("step", 0))


def check_recipe(path: Path, recipe: str) -> None:
    """Refuse a checkpoint that was made with other settings; the loop's own may differ.

    Raises:
        OptionError: so it was, or it is damaged.
    """
    identity = read_checkpoint(path, None)[1].get("identity", "{}")
    if json.loads(identity).get("recipe") != recipe:
        raise OptionError(
            f"The checkpoint '{path}' was made with other settings or photos than this recipe has; "
            "use the recipe that it was made with."
        )


def autocast_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products: "off", "bfloat16", or "auto" for what is fast on the device.

    A CPU without bfloat16 instructions emulates them, several times slower than float32.
    """
    if wanted == "off":
        return None
    fast = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if wanted == "bfloat16" or fast else None


def checkpoint_path(folder: Path, stage: str) -> Path:
    """Where a stage's state is kept."""
    return folder / f"{stage}.checkpoint.safetensors"


def identity_of(settings: LoopSettings, seed: int, recipe: str) -> str:
    """What must be the same for a checkpoint to be continued."""
    return json.dumps({"loop": asdict(settings), "seed": seed, "recipe": recipe}, sort_keys=True)


def train(
    objective: Objective,
    settings: LoopSettings,
    folder: Path,
    *,
    seed: int,
    recipe: str,
    autocast: torch.dtype | None = None,
) -> Generator[TrainInfo, None, TrainingState]:
    """Train a stage to its end, from its checkpoint if there is one.

    Args:
        folder: for the checkpoint and the sample pictures. recipe: whatever else the checkpoint
            depends on, as text. autocast: dtype of the matrix products, None for float32.

    Raises:
        OptionError: the checkpoint does not belong to this run.
        NumericalError: a gradient became infinite or NaN.
    """
    state = TrainingState(objective.module, settings)
    path, identity = checkpoint_path(folder, objective.stage), identity_of(settings, seed, recipe)
    if path.exists():
        state.restore(path, identity)
    elif settings.steps == 0:
        state.save(path, identity)
    device = next(iter(state.weights.values())).device
    while state.step < settings.steps:
        rng = step_generator(seed, state.step)
        with nullcontext() if autocast is None else torch.autocast(device.type, autocast):
            loss, parts = objective.loss(rng, settings.batch_size)
        length = state.update(loss)
        done = state.step == settings.steps
        if done or state.step % settings.checkpoint_every == 0:
            state.save(path, identity)
        if done or state.step % settings.sample_every == 0:
            with state.averaged(), torch.no_grad():
                picture = objective.picture()
            save_image(picture, folder / f"{objective.stage}-{state.step:06d}.png")
        parts = {"loss": float(loss.detach()), "gradient": length, **parts}
        yield TrainInfo(objective.stage, state.step, settings.steps, settings.batch_size, parts)
    return state
