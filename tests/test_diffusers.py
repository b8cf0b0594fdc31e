"""A saved inversion drives stock diffusers, as docs/diffusers.md tells people to do it."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

import nulltext
from nulltext.models.load import BUNDLED_FOLDER


def replay_in_stock_diffusers(pipe, inversion):
    """Null embeddings go into the pipeline's own loop, one per step."""
    nulls = inversion.null_embeds
    guidance = inversion.header.guidance_scale

    def next_null(pipe, step, timestep, kwargs):
        if step + 1 < inversion.num_steps:
            prompt = kwargs["prompt_embeds"][1:]
            kwargs["prompt_embeds"] = torch.cat([nulls[step + 1 : step + 2], prompt])
        return kwargs

    prompt_embeds, _ = pipe.encode_prompt(inversion.header.prompt, "cpu", 1, False)
    return pipe(
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=nulls[:1],
        latents=inversion.trajectory[-1:],
        num_inference_steps=inversion.num_steps,
        guidance_scale=guidance,
        callback_on_step_end=next_null,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        output_type="pt",
    ).images


def as_pipeline_output(image):
    return (image / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def quiet(monkeypatch):
    for pipe in (StableDiffusionPipeline,):
        monkeypatch.setattr(pipe, "progress_bar", _NoBar)


class _NoBar:
    def __init__(self, iterable=None, total=None):
        self.iterable = iterable

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self):
        return None


def test_stock_pipeline_lands_on_the_same_image(flowers, dahlia_inversion, quiet):
    stock = StableDiffusionPipeline.from_pretrained(
        BUNDLED_FOLDER / "flowers",
        dtype=torch.float32,
        safety_checker=None,
        low_cpu_mem_usage=False,
    )
    theirs = replay_in_stock_diffusers(stock, dahlia_inversion)
    ours = as_pipeline_output(nulltext.replay(flowers, dahlia_inversion).image)
    # float32; diffusers' scheduler coefficients are float32 products, ours float64
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=0)


def test_tiny_families_replay_alike_in_diffusers(tiny, photo, quiet):
    inversion = nulltext.invert(tiny, photo, "a photo of a cat", num_steps=5)
    theirs = replay_in_stock_diffusers(tiny.to_diffusers(), inversion)
    ours = as_pipeline_output(nulltext.replay(tiny, inversion).image)
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=0)


def test_embeddings_are_those_of_the_stock_pipeline(tiny, flowers):
    for model, prompt in ((tiny, "a photo of an orange, black-dotted cat"), (flowers, "a daisy")):
        pipe = model.to_diffusers()
        theirs, empty = pipe.encode_prompt(prompt, "cpu", 1, True)
        torch.testing.assert_close(model.embed([prompt]), theirs)
        torch.testing.assert_close(model.embed([""]), empty)


def test_to_diffusers_keeps_the_schedule(tiny):
    pipe = tiny.to_diffusers()
    again = nulltext.load(pipe)
    for timestep in (1, 500, 999, -1):
        assert again.schedule.alpha_cumprod(timestep) == pytest.approx(
            tiny.schedule.alpha_cumprod(timestep), rel=1e-9
        )
    assert again.schedule.timesteps(50) == tiny.schedule.timesteps(50)
    assert again.fingerprint == tiny.fingerprint
