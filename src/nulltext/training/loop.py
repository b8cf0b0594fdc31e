"""One training loop for every stage: AdamW or Muon, clipped gradients, an average, checkpoints.

    theta_{k+1} = step(theta_k, clip(grad loss(theta_k; rng_k)), lr_k)
    ema_{k+1}   = d_k ema_k + (1 - d_k) theta_{k+1},       d_k = min(d, (1 + k) / (10 + k))
    lr_k        = lr * min((k + 1) / warmup, 1) * (floor + (1 - floor) cos^2(pi p / 2))
               or lr * min((k + 1) / warmup, 1) * min((1 - p) / cooldown, 1),             p = k / K

With a cool-down the rate is constant until it falls linearly at the end; a run with a limit of
minutes takes the clock's share for p where that is larger.
Everything that is random in step k is drawn from a generator seeded with (seed, k) alone, so a run
that is killed at any moment and resumed takes the same steps as one that was not: bit for bit on
one machine with one number of threads. Muon moves weights along orthogonal momentum, so that no
direction of a layer is left behind:

    M_k     = mu M_{k-1} + (1 - mu) G_k
    U_k     = NewtonSchulz5((1 - mu) G_k + mu M_k)          about U V^T of its U S V^T
    W_{k+1} = (1 - lr d) W_k - 0.2 lr sqrt(max(n, m)) U_k

for weights taken as n x m matrices: a convolution's kernel is one row per output channel. The last
factor makes an update as long as AdamW's usual one, so that both use one learning rate. torch's own
Muon takes matrices only and works in bfloat16; on them, the two agree (tested).
Sources: Loshchilov and Hutter 2019 (AdamW); Loshchilov and Hutter 2017 (cosine); Hägele et al.
2024 (cool-down); Karras et al.
2024, sec. 3.1, on why the average must follow short runs closely; Jordan et al. 2024 (Muon); Liu et
al. 2025 (Moonlight), sec. 2.2, for Muon's last factor.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from nulltext.errors import NumericalError, OptionError
from nulltext.image.saving import save_image
from nulltext.storage.files import replace_file
from nulltext.training.recipe import LoopSettings

SEED_STRIDE = 1_000_003
"""Keeps the steps' generators apart for neighbouring seeds; a prime."""
WEIGHTS, AVERAGE = "weights.", "ema."
"""Prefixes of the names of weights and of averaged weights in a checkpoint."""
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
ADAM_EPSILON = 1e-8
MOMENTUM = 0.95
"""mu."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that takes all singular values into about [0.7, 1.2] in five iterations."""
ITERATIONS = 5
ADAM_LENGTH = 0.2
"""Root mean square of AdamW's updates, per unit of learning rate, in practice."""
MIN_MUON_SIDE = 32
"""Matrices with a shorter side (colours in and out) have too few directions for Muon."""
TINY = 1e-7


@dataclass(frozen=True)
class TrainInfo:
    """Progress after one update."""

    stage: str
    step: int
    """Updates that are done."""
    total: int
    """Updates of the whole stage."""
    seen: int
    """Crops or latents per update, for throughput."""
    parts: dict[str, float]


class Objective(Protocol):
    """A stage's loss and the weights that it trains."""

    stage: str
    """Name of the stage and of its checkpoint."""
    module: nn.Module
    """All weights that are trained, on their device."""

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of a batch drawn with `rng` (on the CPU), and figures to show."""

    def picture(self) -> Image.Image:
        """Draw a sample picture with the weights that `module` has now."""


@runtime_checkable
class Scheduled(Protocol):
    """A stage whose loss changes in the course of training."""

    def follow(self, progress: float) -> None:
        """Take the share of the training that is done, in [0, 1]."""


class Muon(torch.optim.Optimizer):
    """Steps along orthogonal momentum, of float32 weights of two or more dimensions."""

    def __init__(self, params: Iterable[Tensor], *, weight_decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1.0 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
                length = ADAM_LENGTH * max(update.shape) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(weight.shape), alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near 1 (Newton-Schulz; Jordan et al. 2024).

    All iterations are symmetric polynomials of the gram matrix, so they are taken there, where
    kernels are small, and the matrix itself is multiplied only before and after.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + TINY)
    gram = wide @ wide.mT
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        factor = torch.addmm(b * gram, gram, gram, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    wide = product @ wide
    return wide.mT.contiguous() if matrix.shape[0] > matrix.shape[1] else wide


def build_optimizers(module: nn.Module, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Give wide matrices and kernels to Muon if it is chosen, everything else to AdamW.

    Embeddings are tables, not matrices: AdamW moves them. Vectors do not decay.
    """
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    muon, decayed, vectors = [], [], []
    for weight in module.parameters():
        if weight.ndim <= 1:
            vectors.append(weight)
        elif (
            settings.optimizer == "muon"
            and weight not in tables
            and min(weight.shape[0], weight[0].numel()) >= MIN_MUON_SIDE
        ):
            muon.append(weight)
        else:
            decayed.append(weight)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, eps=ADAM_EPSILON, fused=True)
    return [adamw, Muon(muon, weight_decay=settings.weight_decay)] if muon else [adamw]


def progress(settings: LoopSettings, step: int, seconds: float = 0.0) -> float:
    """Compute p, the share of a training that is done after so many updates, or so much time."""
    done = step / settings.steps
    return min(max(done, seconds / (60 * settings.minutes)) if settings.minutes else done, 1.0)


def learning_rate(settings: LoopSettings, step: int, seconds: float = 0.0) -> float:
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    done, floor = progress(settings, step, seconds), settings.final_share
    fall = floor + (1 - floor) * math.cos(0.5 * math.pi * done) ** 2
    if settings.cooldown:
        fall = min((1.0 - done) / settings.cooldown, 1.0)
    return settings.learning_rate * warm * fall


def step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * SEED_STRIDE + step)


class TrainingState:
    """Weights, their average and the optimisers' moments after some number of updates."""

    def __init__(self, module: nn.Module, settings: LoopSettings) -> None:
        self.module, self.settings, self.step, self.seconds = module, settings, 0, 0.0
        self.weights = dict(module.named_parameters())
        self.ema = {name: w.detach().clone() for name, w in self.weights.items()}
        self.optimizers = build_optimizers(module, settings)
        self.optimizer_of = {
            weight: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        }

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return progress(self.settings, self.step, self.seconds)

    def update(self, loss: Tensor) -> float:
        """Follow the gradient of `loss` once; return the gradient's length before clipping."""
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
                group["lr"] = learning_rate(self.settings, self.step, self.seconds)
            optimizer.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.ema[name].lerp_(weight, 1.0 - decay)
        self.step += 1
        return length

    @contextmanager
    def averaged(self) -> Iterator[None]:
        kept = {name: w.detach().clone() for name, w in self.weights.items()}
        self._assign(self.ema)
        try:
            yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def save(self, path: Path, identity: str) -> None:
        tensors = {WEIGHTS + name: w.detach() for name, w in self.weights.items()}
        tensors |= {AVERAGE + name: value for name, value in self.ema.items()}
        for name, weight in self.weights.items():
            state = self.optimizer_of[weight].state.get(weight, {})
            tensors |= {f"{key}.{name}": state[key] for key in MOMENTS if key in state}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata = {
            "step": str(self.step),
            "seconds": str(self.seconds),
            "identity": identity,
        }
        replace_file(path, safetensors.torch.save(tensors, metadata))

    def restore(self, path: Path, identity: str) -> None:
        """Continue where `save` was called.

        Raises:
            OptionError: the checkpoint is damaged, or was made with other settings.
        """
        saved = read_checkpoint(path)
        if saved.identity != identity:
            raise OptionError(
                f"The checkpoint '{path}' was made with other settings or photos; train with "
                "those, or into another folder."
            )
        self.step, self.seconds = saved.step, saved.seconds
        self._assign({name: saved.tensors[WEIGHTS + name] for name in self.weights})
        for name, value in self.ema.items():
            value.copy_(saved.tensors[AVERAGE + name])
        for name, weight in self.weights.items():
            keys = [key for key in MOMENTS if f"{key}.{name}" in saved.tensors]
            state = {k: torch.zeros_like(weight).copy_(saved.tensors[f"{k}.{name}"]) for k in keys}
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(self.step), device=weight.device)
            if state:
                self.optimizer_of[weight].state[weight] = state


class Checkpoint(NamedTuple):
    """Contents of a checkpoint's file."""

    tensors: dict[str, Tensor]
    step: int
    seconds: float
    """Time that its updates took."""
    identity: str
    """Loop's settings, seed and recipe that it was made with, as JSON."""

    @property
    def recipe(self) -> str:
        """Text of what it depends on beside loop and seed."""
        return str(json.loads(self.identity).get("recipe"))


def read_checkpoint(path: Path, prefix: str | None = "") -> Checkpoint:
    """Read a checkpoint's tensors with this prefix of their names; None reads none, in no time.

    Raises:
        OptionError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [n for n in file.keys() if prefix is not None and n.startswith(prefix)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise OptionError(
            f"The checkpoint '{path}' cannot be read ({error}); delete it to begin anew."
        ) from error
    step, seconds = int(metadata.get("step", 0)), float(metadata.get("seconds", 0.0))
    return Checkpoint(tensors, step, seconds, metadata.get("identity", "{}"))


def averaged_weights(path: Path) -> dict[str, Tensor]:
    tensors = read_checkpoint(path, AVERAGE).tensors
    return {name.removeprefix(AVERAGE): tensor for name, tensor in tensors.items()}


def load_average(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Fill a module with the averaged weights of a checkpoint whose names begin with `prefix`.

    Raises:
        OptionError: the checkpoint was made with another module.
    """
    weights = averaged_weights(path)
    weights = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    own = {name: weight.shape for name, weight in module.named_parameters()}
    if own != {name: weight.shape for name, weight in weights.items()}:
        raise OptionError(
            f"The checkpoint '{path}' was made with other settings; train with those, or into "
            "another folder."
        )
    module.load_state_dict(weights, strict=False)  # buffers stay


def updates_done(path: Path) -> int:
    return read_checkpoint(path, None).step if path.is_file() else 0


def checkpoint_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.checkpoint.safetensors"


def autocast_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """Choose the dtype of matrix products: for "off", "bfloat16", or "auto" where it is fast.

    A CPU without bfloat16 instructions emulates them, several times slower than float32.
    """
    if wanted == "off":
        return None
    fast = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if wanted == "bfloat16" or fast else None


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
        folder: of the checkpoint and the sample pictures. recipe: whatever else the checkpoint
            depends on, as text. autocast: dtype of the matrix products, None for float32.

    Raises:
        OptionError: the checkpoint does not belong to this run.
        NumericalError: a gradient became infinite or NaN.
    """
    objective.module.requires_grad_(True)
    state = TrainingState(objective.module, settings)
    path = checkpoint_path(folder, objective.stage)
    needed = {"loop": asdict(settings), "seed": seed, "recipe": recipe}
    identity = json.dumps(needed, sort_keys=True)
    if path.exists():
        state.restore(path, identity)
    elif settings.steps == 0:
        state.save(path, identity)
    device = next(iter(state.weights.values())).device
    while state.step < settings.steps and state.progress < 1.0:
        started = time.monotonic()
        if isinstance(objective, Scheduled):
            objective.follow(state.progress)
        rng = step_generator(seed, state.step)
        with nullcontext() if autocast is None else torch.autocast(device.type, autocast):
            loss, parts = objective.loss(rng, settings.batch_size)
        length = state.update(loss)
        state.seconds += time.monotonic() - started
        done = state.progress == 1.0
        if done or state.step % settings.checkpoint_every == 0:
            state.save(path, identity)
        if done or state.step % settings.sample_every == 0:
            with state.averaged(), torch.no_grad():
                picture = objective.picture()
            save_image(picture, folder / f"{objective.stage}-{state.step:06d}.png")
        parts = {"loss": float(loss.detach()), "gradient": length, **parts}
        yield TrainInfo(objective.stage, state.step, settings.steps, settings.batch_size, parts)
    return state
