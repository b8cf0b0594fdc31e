"""The published loop against ours at the size of Stable Diffusion 1.5, with random weights.

What is timed does not depend on the weights, as the number of iterations is fixed (50 x 10, no
early stop), so nothing has to be downloaded: the UNet is SD 1.5's architecture (860 M weights,
512 px). The published loop runs in float32 with explicit attention; ours in bfloat16 with fused
attention, frozen weights, and one forward less per timestep, at batch 1 and 8.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nulltext.inversion.base import Problem
from nulltext.inversion.null_text import NullText
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.placement import arrange
from nulltext.prompts import TokenizedPrompt
from nulltext.record import run
from nulltext.schedule import Schedule
from reference_loop import ReferenceLoop, with_naive_attention

GIBIBYTE = 2**30
SD15_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    channels: tuple[int, ...]
    layers: int
    latent_side: int
    tokens: int
    width: int
    steps: int
    inner_steps: int
    batch: int


FULL = Size((320, 640, 1280, 1280), 2, 64, 77, 768, 50, 10, 8)
"""SD 1.5: 860 M weights, 512 px, the paper's 50 x 10."""

REDUCED = Size((32, 64, 64, 64), 1, 16, 77, 32, 3, 2, 4)
"""The same path, small enough for a CPU."""


@dataclass(frozen=True)
class NoiseText:
    """A text conditioner without a text encoder: embeddings are noise of unit variance."""

    max_tokens: int
    width: int
    device: str
    settings: str = ""

    @property
    def tokenizer(self) -> Any:
        """There is none."""
        raise NotImplementedError

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """There are none."""
        return {}

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(L, D)."""
        return self.max_tokens, self.width

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """There are no words."""
        raise NotImplementedError

    def embed(self, prompt: str) -> Tensor:  # noqa: ARG002
        """[1, L, D], always the same."""
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(1, self.max_tokens, self.width, generator=draw)
        return noise.to(self.device)

    def unet_inputs(self, embeds: Tensor, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        """As Stable Diffusion 1.5's."""
        return {"encoder_hidden_states": embeds}

    def added_numbers(self, unet: Any) -> int | None:  # noqa: ARG002
        """None."""
        return None

    def pipeline(self, unet: Any, vae: Any, scheduler: Any) -> Any:
        """There is none."""
        raise NotImplementedError


def random_model(size: Size, device: str, dtype: torch.dtype) -> LatentDiffusion:
    """SD 1.5's UNet at some size, always with the same weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=size.latent_side,
            block_out_channels=size.channels,
            layers_per_block=size.layers,
            cross_attention_dim=size.width,
            attention_head_dim=8,
        )
    return LatentDiffusion(
        name="random",
        unet=unet.to(dtype=dtype).eval().requires_grad_(False),
        vae=AutoencoderKL(),  # not used: the photos are latents
        text=NoiseText(size.tokens, size.width, device),
        schedule=Schedule.from_config(SD15_SCHEDULE),
        loaded_fingerprint="",
        loaded_digest="",
    )


def problems(model: LatentDiffusion, size: Size, count: int) -> list[Problem]:
    """Photos made of noise."""
    draw = torch.Generator().manual_seed(1)
    shape = (1, 4, size.latent_side, size.latent_side)
    return [
        Problem(
            latents=torch.randn(shape, generator=draw).to(model.device),
            prompt_embeds=model.embed([""]) + 0.1,
            num_steps=size.steps,
            guidance_scale=7.5,
            generator=draw,
        )
        for _ in range(count)
    ]


def compare(*, reduced: bool, device: str | None) -> None:
    """Run the published loop, then ours at batch 1 and 8, and print a table."""
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if target == "cpu" and not reduced:
        raise SystemExit("This size needs a GPU; pass --reduced to try the script on the CPU.")
    size = REDUCED if reduced else FULL
    what = "reduced size, times mean nothing" if reduced else "Stable Diffusion 1.5's size"
    print(
        f"{what}, {target}, {size.steps} x {size.inner_steps} iterations, torch {torch.__version__}"
    )
    print("| loop | batch | seconds per photo | evaluations per photo | peak GiB | ratio |")
    print("|---|--:|--:|--:|--:|--:|")
    base = _reference(size, target)
    ours = random_model(size, target, torch.bfloat16 if target != "cpu" else torch.float32)
    arrange(ours.unet, torch.device(target))
    method = NullText(inner_steps=size.inner_steps, loss_tolerance=-1.0, loss_tolerance_slope=0.0)
    for count in (1, size.batch):
        photos = problems(ours, size, count)
        started = _start(target)
        solutions = run(method.batch_steps(ours, photos))
        _row("ours", count, started, target, solutions[0].unet_evaluations, base)


def _reference(size: Size, target: str) -> float:
    """Seconds of the published loop; its model is gone afterwards."""
    model = with_naive_attention(random_model(size, target, torch.float32))
    (problem,) = problems(model, size, 1)
    method = ReferenceLoop(inner_steps=size.inner_steps, tolerance=-1.0)
    started = _start(target)
    solution = run(method.steps(model, problem))
    return _row("reference", 1, started, target, solution.unet_evaluations, None)


def _start(target: str) -> float:
    if target.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _row(
    name: str, count: int, started: float, target: str, evaluations: int, base: float | None
) -> float:
    """Print one line; returns the seconds per photo."""
    memory = "-"
    if target.startswith("cuda"):
        torch.cuda.synchronize()
        memory = f"{torch.cuda.max_memory_allocated() / GIBIBYTE:.1f}"
    seconds = (time.perf_counter() - started) / count
    ratio = (base or seconds) / seconds
    print(
        f"| {name} | {count} | {seconds:.2f} | {evaluations} | {memory} | {ratio:.1f} |", flush=True
    )
    return seconds
