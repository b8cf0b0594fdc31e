"""A saved inversion drives stock diffusers, as docs/diffusers.md tells people to do it."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import nulltext
from nulltext.models.load import BUNDLED_FOLDER
from support.examples import DAHLIA_PROMPT, EXAMPLE
from support.tiny import tiny_pipeline

FEW = nulltext.inversion.NullText(inner_steps=2)


def replay_exactly_in_stock_diffusers(pipe, inversion):
    """The default method: no guidance, and a correction at the end of each step."""

    def correct(pipe, step, timestep, kwargs):
        kwargs["latents"] = kwargs["latents"] + inversion.corrections[step]
        return kwargs

    height, width = inversion.photo.shape[1:]
    return pipe(
        prompt=inversion.header.prompt,
        height=height,
        width=width,
        latents=inversion.trajectory[-1:],
        num_inference_steps=inversion.num_steps,
        guidance_scale=1.0,
        callback_on_step_end=correct,
        callback_on_step_end_tensor_inputs=["latents"],
        output_type="pt",
    ).images


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


def replay_in_stock_sdxl(pipe, model, inversion):
    """As above; the pooled null embedding is fixed, so that it is given once."""
    nulls, pooled = model.text.rows.unpack(inversion.null_embeds)

    def next_null(pipe, step, timestep, kwargs):
        if step + 1 < inversion.num_steps:
            prompt = kwargs["prompt_embeds"][1:]
            kwargs["prompt_embeds"] = torch.cat([nulls[step + 1 : step + 2], prompt])
        return kwargs

    height, width = inversion.photo.shape[1:]
    return pipe(
        inversion.header.prompt,
        height=height,
        width=width,
        negative_prompt_embeds=nulls[:1],
        negative_pooled_prompt_embeds=pooled[:1],
        latents=inversion.trajectory[-1:],
        num_inference_steps=inversion.num_steps,
        guidance_scale=inversion.header.guidance_scale,
        callback_on_step_end=next_null,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        output_type="pt",
    ).images


def as_pipeline_output(image):
    return (image / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def quiet(monkeypatch):
    for pipe in (StableDiffusionPipeline, StableDiffusionXLPipeline):
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
    fitted = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method=FEW, num_steps=5)
    for replay_in, inversion in (
        (replay_exactly_in_stock_diffusers, dahlia_inversion),
        (replay_in_stock_diffusers, fitted),
    ):
        theirs = replay_in(stock, inversion)
        ours = as_pipeline_output(nulltext.replay(flowers, inversion).image)
        # float32; diffusers' scheduler coefficients are float32 products, ours float64
        torch.testing.assert_close(theirs, ours, atol=4e-3, rtol=0)


@pytest.mark.parametrize("family", ["tiny_sd1", "tiny_sd2"])
def test_tiny_families_replay_alike_in_diffusers(request, family, photo, quiet):
    tiny = request.getfixturevalue(family)
    inversion = nulltext.invert(tiny, photo, "a photo of a cat", method=FEW, num_steps=5)
    theirs = replay_in_stock_diffusers(tiny.to_diffusers(), inversion)
    ours = as_pipeline_output(nulltext.replay(tiny, inversion).image)
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=0)


@pytest.mark.parametrize("size", [None, (48, 24)])
def test_sdxl_replays_alike_in_diffusers(tiny_sdxl, photo, quiet, size):
    """Both encoders, the pooled embeddings and the size conditioning mean what they mean there."""
    for method in (FEW, None):
        inversion = nulltext.invert(
            tiny_sdxl, photo, "a photo of a cat", method=method, num_steps=5, size=size
        )
        pipe = tiny_sdxl.to_diffusers()
        if method is None:
            theirs = replay_exactly_in_stock_diffusers(pipe, inversion)
        else:
            theirs = replay_in_stock_sdxl(pipe, tiny_sdxl, inversion)
        ours = as_pipeline_output(nulltext.replay(tiny_sdxl, inversion).image)
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=0)


PROMPT = "a photo of an orange, black-dotted cat!"


@pytest.mark.parametrize("family", ["tiny_sd1", "tiny_sd2", "flowers"])
def test_embeddings_are_those_of_the_stock_pipeline(request, family):
    model = request.getfixturevalue(family)
    prompt = "a daisy" if family == "flowers" else PROMPT
    theirs, empty = model.to_diffusers().encode_prompt(prompt, "cpu", 1, True)
    torch.testing.assert_close(model.embed([prompt]), theirs)
    torch.testing.assert_close(model.embed([""]), empty)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_embeddings_are_those_of_the_stock_pipeline(zeros):
    pipe = tiny_pipeline("sdxl")
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    model = nulltext.load(pipe)
    theirs = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=True)
    for prompt, sequence, pooled in ((PROMPT, theirs[0], theirs[2]), ("", theirs[1], theirs[3])):
        ours = model.text.rows.unpack(model.embed([prompt]))
        torch.testing.assert_close(ours[0], sequence)
        torch.testing.assert_close(ours[1], pooled)
    assert bool(model.embed([""]).any()) != zeros
    assert model.embeds_shape == (25, 80)
    # a batch is its prompts one by one, the empty one among them
    both = model.embed([PROMPT, ""])
    torch.testing.assert_close(both, torch.cat([model.embed([PROMPT]), model.embed([""])]))


def test_to_diffusers_keeps_the_schedule(tiny):
    pipe = tiny.to_diffusers()
    again = nulltext.load(pipe)
    for timestep in (1, 500, 999, -1):
        own, expected = again.schedule.level(timestep), tiny.schedule.level(timestep)
        assert own.alpha == pytest.approx(expected.alpha, rel=1e-9)
        assert own.fed == expected.fed
    assert again.schedule.timesteps(50) == tiny.schedule.timesteps(50)
    assert again.fingerprint == tiny.fingerprint
