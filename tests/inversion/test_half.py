"""Half precision: gradients that would vanish arrive, nothing turns black, overflow is named."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import nulltext
from nulltext.diffusion.guidance import guide
from nulltext.errors import NumericalError
from nulltext.inversion.base import Problem
from nulltext.inversion.null_text import NullText
from nulltext.models import network_calls
from nulltext.models.network_calls import through_half
from support.tiny import tiny_pipeline

PROMPT = "a photo of a white daisy"


def cast(model, dtype):
    return replace(model, network=copy.deepcopy(model.network).to(dtype))


def hardly_attending(model, factor=3e-3):
    """A copy whose attention counts so little that float16 loses its gradient."""
    unet = copy.deepcopy(model.unet)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_out.0" in name:
                parameter *= factor
    return replace(model, network=unet)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slope_of_loss(model, null_embeds):
    """The gradient of null-text's loss at timestep 501."""
    target, latents = noise(1, 1, 4, 8, 8), noise(0, 1, 4, 8, 8)
    step = model.schedule.grid(50)[24]
    with torch.no_grad():
        output_prompt = model.predict(latents, step.noisier, model.embed([PROMPT]))
    output = guide(model.predict(latents, step.noisier, null_embeds), output_prompt, 7.5)
    loss = (step.denoise(latents, output) - target).square().mean()
    (slope,) = torch.autograd.grad(loss, null_embeds)
    return slope * model.token_rows


def gradient(model):
    return slope_of_loss(model, model.embed([""]).requires_grad_(True))


def off(a, b):
    return float((a - b).norm() / b.norm())


def unscaled(linear, rows, dtype):
    return linear(rows).float()


def test_a_gradient_that_underflows_in_float16_arrives(tiny, monkeypatch):
    model = hardly_attending(tiny)
    exact, scaled = gradient(model), gradient(cast(model, torch.float16))
    monkeypatch.setattr(network_calls, "through_half", unscaled)
    lost = gradient(cast(model, torch.float16))
    tokens = tiny.max_tokens
    # float16 has 11 bits, and rounding adds up over the layers
    assert off(scaled[:, :tokens], exact[:, :tokens]) < 0.02
    assert off(lost[:, :tokens], exact[:, :tokens]) > 0.2, "the test underflows nothing"


def test_null_text_in_float16_finds_the_embedding_that_float32_finds(tiny, monkeypatch):
    def found(model):
        start = model.embed([""])
        null_embeds = start.clone().requires_grad_(True)
        adam = torch.optim.Adam([null_embeds], lr=1e-2)
        for _ in range(3):
            null_embeds.grad = slope_of_loss(model, null_embeds)
            adam.step()
        return (null_embeds.detach() - start)[:, : model.max_tokens]

    model = hardly_attending(tiny)
    exact, scaled = found(model), found(cast(model, torch.float16))
    # Adam divides a gradient by its own size: where it is nearly 0 its sign is rounding's
    assert off(scaled, exact) < 0.1
    monkeypatch.setattr(network_calls, "through_half", unscaled)
    assert off(found(cast(model, torch.float16)), exact) > 0.4, "the test underflows nothing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fits_gain_in_half_precision(tiny_sdxl, dtype):
    model, losses = cast(tiny_sdxl, dtype), {}
    for inner in (0, 2):
        kept = []
        latents, grid = 0.3 * noise(3, 1, 4, 8, 8), model.schedule.grid(1)
        problem = Problem(latents, model.embed([PROMPT]), grid, 7.5, None)
        config = NullText(inner_steps=inner)
        solution = nulltext.diffusion.run(
            config.steps(model, problem), lambda info, kept=kept: kept.append(info.loss)
        )
        losses[inner] = next(loss for loss in kept if loss is not None)
        assert solution.null_embeds.dtype == solution.trajectory.dtype == torch.float32
        assert solution.null_embeds.isfinite().all()
    assert losses[2] < losses[0]


def test_scaling_is_invisible_outside_float16():
    rows = noise(0, 2, 3, 4)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert through_half(lambda x: x, rows, dtype) is rows


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e4])
def test_linear_maps_work_at_any_scale_and_back_off_when_they_overflow(size, gain):
    rows = noise(0, 3, 5, 7) * torch.tensor([1.0, 1e-4, 0.0]).view(3, 1, 1) * size
    tried = []

    def linear(x):
        result = x.half() * gain
        tried.append(bool(result.isfinite().all()))
        return result

    got = through_half(linear, rows, torch.float16)
    torch.testing.assert_close(got, rows * gain, rtol=2e-3, atol=size * gain * 1e-7)
    assert tried[-1]
    assert all(not good for good in tried[:-1])
    assert (len(tried) > 1) == (gain == 1e4)


def test_what_is_not_finite_at_any_scale_comes_out_so():
    rows = torch.tensor([[1.0, float("nan")]])
    assert not through_half(lambda x: x.half(), rows, torch.float16).isfinite().all()
    calls = []

    def broken(x):
        calls.append(1)
        return x.half() * float("inf")

    assert not through_half(broken, torch.ones(1, 2), torch.float16).isfinite().all()
    assert len(calls) < 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_pipeline_runs_from_end_to_end(photo, dtype):
    for family in ("sd2", "sdxl"):
        model = nulltext.load(tiny_pipeline(family).to(dtype))
        inversion = nulltext.invert(model, photo, "a white cat", num_steps=2)
        edit = nulltext.edit(model, inversion, "a white dog")
        for image in (edit.images, edit.reconstruction):
            assert image.dtype == torch.float32
            assert image.isfinite().all()
            assert float(image.std()) > 0.01, "black"
        assert inversion.trajectory.dtype == torch.float32
        assert model.unet.dtype == model.vae.dtype == dtype, "restored"


def overflowing(dtype, force_upcast):
    """A pipeline whose autoencoder leaves float16 and not float32."""
    pipe = tiny_pipeline("sdxl")
    with torch.no_grad():  # the weights themselves stay below 65504
        pipe.vae.decoder.conv_in.weight *= 3e4
        pipe.vae.encoder.conv_in.weight *= 1.2e5
    pipe.vae.register_to_config(force_upcast=force_upcast)
    exact = nulltext.load(copy.deepcopy(pipe))
    return nulltext.load(pipe.to(dtype)), exact


def test_an_autoencoder_that_overflows_works_in_float32_and_is_given_back():
    model, exact = overflowing(torch.float16, True)
    before = copy.deepcopy(model.vae.state_dict())
    images = 2 * torch.rand(1, 3, 32, 32) - 1
    latents = model.encode(images)
    torch.testing.assert_close(latents, exact.encode(images), atol=2e-3, rtol=2e-2)
    torch.testing.assert_close(model.decode(latents), exact.decode(latents), atol=2e-2, rtol=0)
    after = model.vae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}


def test_an_autoencoder_that_overflows_unasked_is_named():
    model, _ = overflowing(torch.float16, False)
    with pytest.raises(NumericalError, match=r"autoencoder's encoding.*float32"):
        model.encode(torch.rand(1, 3, 32, 32))
    with pytest.raises(NumericalError, match=r"autoencoder's picture.*float32"):
        model.decode(torch.rand(1, 4, 8, 8))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_text_encoders_give_float32_embeddings(family, dtype):
    pipe = tiny_pipeline(family)
    model = nulltext.load(pipe)
    exact = model.embed([PROMPT, ""])
    for encoder in model.text.modules.values():
        encoder.to(dtype)
    embeds = model.embed([PROMPT, ""])
    assert embeds.dtype == torch.float32
    # two layers after a layer norm, whose outputs are about 1: some roundings of 2^-11 or 2^-8
    torch.testing.assert_close(embeds, exact, atol=16 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize(
    "method", ["ddim", "direct", "fixed-point", "null-text", "negative-prompt"]
)
def test_a_unet_that_overflows_is_named_with_the_timestep(tiny_sd1, photo, method):
    broken = cast(tiny_sd1, torch.float16)
    with torch.no_grad():
        broken.unet.conv_in.weight *= 1e7
    with pytest.raises(NumericalError, match=r"timestep \d+; .*pass --dtype float32"):
        nulltext.invert(broken, photo, "a cat", method=method, num_steps=2)


def test_a_text_encoder_that_overflows_is_named():
    pipe = tiny_pipeline("sdxl")
    with torch.no_grad():
        pipe.text_encoder_2.text_model.embeddings.token_embedding.weight *= 1e7
    model = nulltext.load(pipe.to(torch.float16))
    with pytest.raises(NumericalError, match="text encoder"):
        model.embed(["a cat"])


def test_a_gradient_that_is_not_finite_is_named(tiny_sd1):
    class Steep:
        def __getattr__(self, name):
            return getattr(tiny_sd1, name)

        def predict(self, latents, level, embeds, rows=None):
            output = tiny_sd1.predict(latents, level, embeds, rows)
            return output + (0 * embeds).sum().sqrt()  # 0, of infinite slope

    grid = tiny_sd1.schedule.grid(2)
    problem = Problem(noise(0, 1, 4, 8, 8), tiny_sd1.embed([PROMPT]), grid, 7.5, None)
    with pytest.raises(NumericalError, match=r"gradient in the embedding.*timestep 501"):
        nulltext.diffusion.run(NullText().steps(Steep(), problem))
