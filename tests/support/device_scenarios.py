"""What is tried on a second device, in a process of its own: prints one JSON object.

python device_scenarios.py NAME …      the scenarios of these names, else all
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

import nulltext
from nulltext.attention.blend import LocalBlend
from nulltext.editing.heatmaps import heat_map_steps
from nulltext.inversion.registry import method_named, with_options
from support.second_device import DEVICE, METER, NAME, PretendTensor
from support.tiny import tiny_pipeline

SOURCE, TARGET = "a white cat on a sofa", "a white dog on a sofa"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def edits() -> list[nulltext.EditSpec]:
    """Everything that an edit can ask of attention and of latents."""
    mask = torch.zeros(32, 32)
    mask[8:, :] = 1
    first = nulltext.EditSpec(TARGET, blend=LocalBlend(("cat", "dog")), mask=mask, pull=0.1)
    return [
        first,
        nulltext.EditSpec("a red cat on a sofa", weights={"red": 2.0}),
        nulltext.EditSpec("a black dog on a sofa", parent=first),
        nulltext.EditSpec(
            TARGET, editor=nulltext.MasaCtrl(start=0.0, start_layer=0.0, foreground=("cat", "dog"))
        ),
    ]


def sampled(model: nulltext.LatentDiffusion, method: Any = "null-text") -> dict[str, Any]:
    """Inverts, replays, edits and looks; all tensors that came of it."""
    inversion = nulltext.invert(model, PHOTO, SOURCE, method=method, num_steps=2)
    edit = nulltext.edit(model, inversion, edits())
    heat = nulltext.diffusion.run(heat_map_steps(model, inversion))
    return {
        "trajectory": inversion.trajectory,
        "replay": nulltext.replay(model, inversion).image,
        "edits": edit.images,
        "masks": edit.masks,
        "heat": torch.stack([word.heat for word in heat[0].words]),
    }


def whole(family: str) -> dict[str, Any]:
    """The same on both devices."""
    pipe = tiny_pipeline(family)
    here = sampled(nulltext.load(pipe))
    there = nulltext.load(pipe.to(DEVICE))
    METER.reads = 0
    result = sampled(there)
    assert there.device == DEVICE
    off = {name: float((here[name] - result[name]).abs().max()) for name in here}
    return {"off": off, "reads": METER.reads}


def method(name: str) -> dict[str, Any]:
    """One inversion method."""
    model = nulltext.load(tiny_pipeline("sd1").to(DEVICE))
    made = nulltext.invert(model, PHOTO, SOURCE, method=name, num_steps=2)
    return {"finite": bool(made.trajectory.isfinite().all())}


def half(name: str) -> dict[str, Any]:
    """float16, with the gradients that it takes care of."""
    pipe = tiny_pipeline("sd1")
    pipe.unet.half()
    model = nulltext.load(pipe.to(DEVICE))
    result = sampled(model, short_fit() if name == "null-text" else name)
    return {"finite": all(bool(tensor.isfinite().all()) for tensor in result.values())}


def short_fit() -> Any:
    """Null-text inversion with one gradient a step: where parts are, more do not tell."""
    return with_options(method_named("null-text"), inner_steps=1)


def offload(family: str) -> dict[str, Any]:
    """Text encoders and autoencoder come to the device for their work alone."""
    pipe = tiny_pipeline(family)
    pipe.unet.to(DEVICE)
    away = replace(nulltext.load(pipe), offload=True)
    resting = [*away.vae.parameters(), *away.text.modules["text_encoder"].parameters()]
    seen: dict[str, set[tuple[bool, ...]]] = {"vae": set(), "text": set(), "unet": set()}

    def look(name: str) -> Callable[..., None]:
        parts = (away.unet, away.vae, away.text.modules["text_encoder"])

        def see(*_: Any) -> None:
            seen[name].add(tuple(isinstance(next(p.parameters()), PretendTensor) for p in parts))

        return see

    away.vae.encoder.register_forward_pre_hook(look("vae"))
    away.vae.decoder.register_forward_pre_hook(look("vae"))
    away.text.modules["text_encoder"].register_forward_pre_hook(look("text"))
    away.unet.register_forward_pre_hook(look("unet"))
    result = sampled(away, short_fit())
    places = {name: sorted(found) for name, found in seen.items()}
    now = [*away.vae.parameters(), *away.text.modules["text_encoder"].parameters()]
    same = all(one is other for one, other in zip(resting, now, strict=True))
    full = nulltext.load(pipe.to(DEVICE))
    expected = sampled(full, short_fit())
    return {
        "equal": all(torch.equal(result[name], expected[name]) for name in result),
        "untouched": same and not any(isinstance(p, PretendTensor) for p in resting),
        "seen": places,
        "fingerprint": away.fingerprint == full.fingerprint,
    }


def hooks(family: str) -> dict[str, Any]:
    """A pipeline that takes its parts to the device itself, one after the other."""
    pipe = tiny_pipeline(family)
    here = sampled(nulltext.load(pipe), short_fit())
    pipe.enable_model_cpu_offload(device=NAME)
    model = nulltext.load(pipe)
    there = sampled(model, short_fit())
    assert model.device == DEVICE
    off = {name: float((here[name] - there[name]).abs().max()) for name in here}
    encoder = next(model.text.modules["text_encoder"].parameters())
    return {"off": off, "away": not isinstance(encoder, PretendTensor)}


def planted(fault: str) -> dict[str, Any]:
    """What the device refuses is refused: the scenarios can fail."""
    model = nulltext.load(tiny_pipeline("sd1").to(DEVICE))
    latents = torch.zeros(1, 4, 8, 8, device=DEVICE)
    if fault == "mixed":
        model.predict(latents, model.schedule.level(1), model.embed([""]).cpu())
    elif fault == "float64":
        latents * torch.ones(8, dtype=torch.float64).to(DEVICE)
    elif fault == "generator":
        torch.randn(3, generator=torch.Generator(), device=DEVICE)
    elif fault == "kernel":
        torch.frexp(latents)
    return {}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"whole {family}": (lambda f=family: whole(f)) for family in ("sd1", "sd2", "sdxl")},
    **{f"offload {family}": (lambda f=family: offload(f)) for family in ("sd1", "sdxl")},
    "hooks sd1": lambda: hooks("sd1"),
    **{f"half {s}": (lambda s=s: half(s)) for s in ("null-text", "fixed-point")},
    **{
        f"method {name}": (lambda n=name: method(n))
        for name in ("direct", "negative-prompt", "textual-pivot", "model-tuning", "textual")
    },
    **{
        f"planted {fault}": (lambda f=fault: planted(f))
        for fault in ("mixed", "float64", "generator", "kernel")
    },
}


def main(names: list[str]) -> None:
    """Run scenarios; a failure is a text under "error"."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in names or SCENARIOS:
        try:
            found[name] = SCENARIOS[name]()
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-8:])
            found[name] = {"error": f"{type(error).__name__}: {error}", "where": where}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
