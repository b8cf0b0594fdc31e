"""What the parts of a model and a whole edit yield on a device, beside the CPU in float32.

    NULLTEXT_TEST_DEVICE=cuda python -m pytest -m device

Without the variable the device is the CPU, in half precision alone.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import nulltext
from support.examples import DEVICE

pytestmark = pytest.mark.device

FAMILIES = ["sd1", "sd2", "sdxl"]
TOLERANCE = {"float32": 5e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative; float32 on a GPU may multiply in TF32, whose last place is 5e-4."""

GUIDED = 7.5
"""Guidance multiplies the rounding of a prediction by w."""


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request):
    if DEVICE == "cpu" and request.param == "float32":
        pytest.skip("the CPU in float32 is what is compared with")
    return request.param


@pytest.fixture
def there(request, family, dtype):
    """(the model on the CPU, a copy on the device in a precision)."""
    model = request.getfixturevalue(f"tiny_{family}")
    moved = copy.deepcopy(model)
    for name, module in moved.components.items():
        module.to(DEVICE, getattr(torch, dtype) if name == "unet" else torch.float32)
    return model, replace(moved, loaded_fingerprints=(), loaded_digests=())


def distance(found, expected):
    found, expected = found.float().cpu(), expected.float()
    assert found.isfinite().all()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_computes_what_it_does_on_the_cpu(there, dtype, photo):
    model, moved = there
    assert moved.device.type == torch.device(DEVICE).type
    off = {}
    prompts = ["a cat", "a dog"]
    embeds, own_embeds = model.embed(prompts), moved.embed(prompts)
    off["text"] = distance(own_embeds, embeds)
    image = torch.rand(1, 3, *model.resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents, own_latents = model.encode(image), moved.encode(image)
    off["encode"] = distance(own_latents, latents)
    off["decode"] = distance(moved.decode(own_latents), model.decode(latents))
    both, own_both = latents.repeat(2, 1, 1, 1), own_latents.repeat(2, 1, 1, 1)
    with torch.no_grad():
        noise = model.predict(both, model.schedule.level(500), embeds)
        off["unet"] = distance(
            moved.predict(own_both, moved.schedule.level(500), own_embeds), noise
        )
    off["gradient"] = distance(*(gradient(*one) for one in ((moved, own_both), (model, both))))
    exact = {"text", "encode", "decode"}  # these stay float32
    for name, value in off.items():
        assert value < TOLERANCE["float32" if name in exact else dtype], off


def gradient(model, latents):
    embeds = model.embed(["a cat", "a dog"]).requires_grad_(True)
    with model.frozen():
        loss = model.predict(latents, model.schedule.level(500), embeds).square().mean()
        (found,) = torch.autograd.grad(loss, embeds)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inversion_and_its_edit_arrive_where_they_do_on_the_cpu(there, dtype, photo):
    model, moved = there
    made = [
        nulltext.invert(one, photo, "a cat on a sofa", method="ddim", num_steps=3)
        for one in (model, moved)
    ]
    assert distance(made[1].trajectory, made[0].trajectory) < TOLERANCE[dtype]
    edits = [
        nulltext.edit(one, inversion, "a dog on a sofa")
        for one, inversion in zip((model, moved), made, strict=True)
    ]
    for name in ("images", "reconstruction"):
        own, expected = getattr(edits[1], name), getattr(edits[0], name)
        assert distance(own, expected) < GUIDED * TOLERANCE[dtype]


@pytest.mark.parametrize("family", FAMILIES)
def test_null_text_inversion_replays_to_what_it_says(there, photo):
    _, moved = there
    made = nulltext.invert(moved, photo, "a cat on a sofa", num_steps=3, guidance_scale=3.0)
    assert made.null_embeds.device.type == "cpu"
    assert made.null_embeds.isfinite().all()
    replayed = nulltext.replay(moved, made)
    assert replayed.psnr == pytest.approx(made.header.psnr_reconstruction, abs=0.05)  # dB
