"""Counting live tensor bytes: what a computation holds at its fullest, to the byte.

Every storage that an operation returns is counted until it is freed, backward passes included.
Unlike a process's resident memory the count is the same in every run; what kernels borrow inside
one operation is not in it.

    python benchmarks/live_bytes.py --measure

measures what the default inversion of the example photo holds at its fullest, beside one pass of
the UNet and one null-text gradient, weights left out (bundled model, float32).

    python benchmarks/live_bytes.py --config FOLDER [--dtype float16]

prints by arithmetic alone (`nulltext.models.memory`, modules without weights) what a checkpoint of
these configs needs on a device at its own resolution, part by part, with and without offload.
"""

from __future__ import annotations

import argparse
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nulltext
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.diffusion.loops import run
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.health.checkup import SOURCE
from nulltext.inversion.base import Problem
from nulltext.inversion.budgets import BUDGETS
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.memory import (
    STATE_BYTES,
    MemoryNeed,
    decoding_need,
    level_of,
    memory_need,
    pass_need,
    weight_bytes,
)
from nulltext.models.pipelines import family_of
from nulltext.models.placement import PLANS

PHOTO = Path(__file__).parents[1] / "examples" / "dahlia.jpg"
GIGABYTE, MEGABYTE = 1e9, 1e6
STEPS = 50
LONGEST_PROMPT = 77


class LiveBytes(TorchDispatchMode):
    """Use as a context manager; then `peak` is the most bytes that lived at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and storage.data_ptr() not in given:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def without_weights(folder: Path, dtype: torch.dtype) -> LatentDiffusion:
    """A checkpoint's architecture on the meta device: UNet and text encoders in `dtype`, the
    autoencoder in float32, as `nulltext.load` has them."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    family = family_of(index["_class_name"], str(folder), index)
    parts: dict[str, Any] = {}
    for name, kind in family.modules.items():
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            if name.startswith("text"):
                made = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            else:
                made = getattr(diffusers, kind).from_config(config)
        wanted = torch.float32 if name == "vae" else dtype
        parts[name] = torch.nn.Module.to(made, wanted)  # diffusers' own warns
    for name in family.tokenizers:
        parts[name] = SimpleNamespace(model_max_length=LONGEST_PROMPT)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return LatentDiffusion(
        name=folder.name,
        network=parts["unet"],
        vae=parts["vae"],
        text=family.text(parts, index),
        schedule=DiscreteSchedule.from_config(json.loads(scheduler.read_text(encoding="utf-8"))),
        loaded_fingerprints=(),
        loaded_digests=(),
    )


@dataclass(frozen=True)
class SharedAttention:
    """What a row keeps for the rows that Prompt-to-Prompt edits from it, in one step, in bytes."""

    maps: int
    """Cross-attention's probabilities, float32."""
    states: int
    """Hidden states that self-attention's queries and keys are made of."""


def shared_bytes(
    unet: Any, size: tuple[int, int], tokens: int, self_pixels: int
) -> SharedAttention:
    """Bound what one row keeps for others.

    Args:
        size: (h, w) of the latents. tokens: L. self_pixels: most pixels of a site at which
            self-attention is injected.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    maps = states = 0
    levels = len(unet.down_blocks)
    for name, module in unet.named_modules():
        if not isinstance(module, Transformer2DModel):
            continue
        pixels = math.prod(-(-side // 2 ** level_of(name, levels)) for side in size)
        for block in module.transformer_blocks:
            maps += block.attn2.heads * pixels * tokens * STATE_BYTES
            if pixels <= self_pixels:
                states += pixels * block.attn1.query_dim * unet.dtype.itemsize
    return SharedAttention(maps, states)


def rows_of(model: LatentDiffusion) -> list[tuple[str, float]]:
    """What there is to say of a model at its own resolution: (what, gigabytes)."""
    size, (_, height, width) = model.resolution, model.latents_shape
    low, away = replace(model, memory=PLANS["low"]), replace(model, offload=True)
    thrifty = replace(away, memory=PLANS["low"])

    def need(which: LatentDiffusion, *, differentiates: bool) -> MemoryNeed:
        return memory_need(
            which, photos=1, size=size, num_steps=STEPS, differentiates=differentiates
        )

    def in_all(which: LatentDiffusion, *, differentiates: bool) -> float:
        found = need(which, differentiates=differentiates)
        return found.weights + found.beside_weights

    def unet_pass(which: LatentDiffusion, *, differentiates: bool) -> float:
        return pass_need(which, size, photos=1, differentiates=differentiates)

    shared = shared_bytes(
        model.unet, (height, width), model.max_tokens, largest_self_site(height, width)
    )
    figures = [
        *((f"weights, {name}", weight_bytes(part)) for name, part in model.components.items()),
        ("pass without gradient", unet_pass(model, differentiates=False)),
        ("pass with gradient", unet_pass(model, differentiates=True)),
        ("pass with gradient, --low-memory", unet_pass(low, differentiates=True)),
        ("edit: cross-attention maps of a row", shared.maps),
        ("edit: self-attention's states of a row", shared.states),
        ("autoencoder, one picture", decoding_need(model, size)),
        ("inversion in all", in_all(model, differentiates=False)),
        ("inversion in all, --offload", in_all(away, differentiates=False)),
        ("null-text in all", in_all(model, differentiates=True)),
        ("null-text in all, --low-memory", in_all(low, differentiates=True)),
        ("null-text in all, --offload", in_all(away, differentiates=True)),
        ("null-text in all, --offload --low-memory", in_all(thrifty, differentiates=True)),
    ]
    return [(what, number / GIGABYTE) for what, number in figures]


def measured_rows() -> list[tuple[str, float]]:
    """What lives at the fullest moment of some computations by the bundled model: (what, MB)."""
    model = nulltext.load(device="cpu")
    embeds, latents = model.embed([SOURCE]), torch.zeros(1, *model.latents_shape)
    level = model.schedule.grid(2)[0].noisier

    def one_pass() -> None:
        with torch.no_grad():
            model.predict(latents, level, embeds)

    def gradient(of: LatentDiffusion) -> None:
        null_embeds = of.embed([""]).requires_grad_(True)
        with of.frozen():
            output = of.predict(latents, level, null_embeds)
            torch.autograd.grad(output.square().sum(), null_embeds)

    def inversion(name: str) -> Callable[[], object]:
        budget = BUDGETS[name]
        photo = nulltext.invert(model, PHOTO, SOURCE, method="ddim", num_steps=1)
        problem = Problem(
            latents=photo.trajectory[:1],
            prompt_embeds=embeds,
            grid=model.schedule.grid(budget.num_steps),
            guidance_scale=model.guidance_scale,
            generator=torch.Generator(),
        )
        return lambda: run(budget.method.steps(model, problem))

    computations: dict[str, Callable[[], object]] = {
        "one pass of the UNet": one_pass,
        "one null-text gradient": partial(gradient, model),
        "one null-text gradient, --low-memory": partial(
            gradient, replace(model, memory=PLANS["low"])
        ),
        **{f"inversion, {name}": inversion(name) for name in ("fast", "balanced")},
    }
    found = []
    for what, compute in computations.items():
        with LiveBytes() as live:
            compute()
        found.append((what, live.peak / MEGABYTE))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--measure", action="store_true", help="live bytes of the bundled model")
    what.add_argument("--config", type=Path, help="a folder of published configs")
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    if options.measure:
        print("| computation | most live MB |\n|---|--:|")
        for said, number in measured_rows():
            print(f"| {said} | {number:.2f} |")
        return
    model = without_weights(options.config, getattr(torch, options.dtype))
    height, width = model.resolution
    print(f"{model.name}, {width} x {height} px, {options.dtype}, autoencoder in float32")
    print("| what | GB |\n|---|--:|")
    for said, number in rows_of(model):
        print(f"| {said} | {number:.2f} |")


if __name__ == "__main__":
    main()
