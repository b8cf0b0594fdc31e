"""Less memory: equal results, fewer live bytes, an estimate that holds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import nulltext
from nulltext.attention.processor import attach
from nulltext.attention.store import AttentionStore, Recorder
from nulltext.cli import main as cli
from nulltext.editing.editors import PromptToPrompt
from nulltext.errors import OptionError
from nulltext.models.memory import (
    backward_numbers,
    decoding_need,
    free_memory,
    memory_need,
)
from nulltext.models.placement import PLANS
from support.tiny import tiny_pipeline

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from live_bytes import LiveBytes, rows_of, shared_bytes, without_weights

SOURCE = "a photo of a white daisy"


def low(model):
    return replace(model, memory=PLANS["low"])


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def differentiate(model):
    """One gradient in the null embeddings."""
    null_embeds = model.embed([""]).requires_grad_(True)
    with model.frozen():
        output = model.predict(
            noise(0, 1, *model.latents_shape), model.schedule.level(500), null_embeds
        )
        return torch.autograd.grad(output.square().sum(), null_embeds)[0]


def saved_bytes(model):
    """Bytes that one gradient's forward pass keeps, each storage counted once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.unet.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        differentiate(model)
    return sum(kept.values())


def test_gradients_are_the_same_bit_for_bit(tiny):
    torch.testing.assert_close(differentiate(low(tiny)), differentiate(tiny), atol=0, rtol=0)


@pytest.mark.parametrize(
    "method", [nulltext.inversion.NullText(inner_steps=1), nulltext.inversion.FixedPoint()]
)
def test_inversions_and_edits_are_the_same(tiny_sd1, photo, method):
    made = []
    for model in (tiny_sd1, low(tiny_sd1)):
        inversions = nulltext.invert_many(
            model,
            [photo, photo.rotate(90)],
            [SOURCE, "a cat"],
            method=method,
            num_steps=2,
        )
        edit = nulltext.edit(model, inversions[0], ["a photo of a red daisy", "a photo of a daisy"])
        made.append((inversions, edit))
    (plenty, edit), (few, again) = made
    for one, other in zip(plenty, few, strict=True):
        # float32: two photos side by side against one by one
        torch.testing.assert_close(one.trajectory, other.trajectory, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.null_embeds, other.null_embeds, atol=1e-3, rtol=0)
    torch.testing.assert_close(edit.images, again.images, atol=1e-3, rtol=0)
    assert edit.unet_evaluations == again.unet_evaluations


def test_fewer_bytes_live_and_the_estimate_holds(flowers):
    peaks, estimates = [], []
    for model in (flowers, low(flowers)):
        with LiveBytes() as live:
            differentiate(model)
        peaks.append(live.peak)
        size = flowers.resolution
        need = memory_need(model, photos=1, size=size, num_steps=1, differentiates=True)
        estimates.append(need)
        assert need.weights == sum(p.nbytes for p in modules_parameters(model))
        pixels = size[0] * size[1] // model.vae_stride**2
        assert 0.8 < kept_bytes(model, pixels) / live.peak < 1.3
    assert peaks[1] < 0.5 * peaks[0]
    assert saved_bytes(low(flowers)) < 0.4 * saved_bytes(flowers)
    assert estimates[1].activations <= estimates[0].activations


def modules_parameters(model):
    return [p for module in model.components.values() for p in module.parameters()]


def kept_bytes(model, pixels):
    return backward_numbers(model) * pixels * model.unet.dtype.itemsize


def test_the_estimate_grows_with_photos_and_size(flowers):
    def need(**changes):
        asked = {"photos": 1, "size": (128, 128), "num_steps": 20, "differentiates": True}
        return memory_need(flowers, **(asked | changes))

    assert need(photos=2).state == 2 * need().state
    assert need(size=(256, 256), photos=8).activations == 4 * need(photos=8).activations
    assert need(differentiates=False).activations <= need().activations


def test_offload_takes_visitors_out_of_what_stays(tiny):
    def need(model):
        return memory_need(model, photos=1, size=model.resolution, num_steps=2, differentiates=True)

    model = tiny
    whole, away = need(model), need(replace(model, offload=True))
    unet, vae = (sum(p.nbytes for p in part.parameters()) for part in (model.unet, model.vae))
    texts = whole.weights - unet - vae
    assert away.weights == unet
    assert away.activations >= decoding_need(model, model.resolution) + vae
    assert away.activations >= texts
    assert decoding_need(replace(model, offload=True), model.resolution) == (
        decoding_need(model, model.resolution) + vae
    )


def test_half_text_encoders_and_a_half_autoencoder_are_counted_as_they_are():
    pipe = tiny_pipeline("sd1")
    model = nulltext.load(pipe)
    options = {"photos": 1, "size": model.resolution, "num_steps": 2, "differentiates": False}
    full, vae = memory_need(model, **options).weights, list(model.vae.parameters())
    decoding = decoding_need(model, model.resolution)
    pipe.text_encoder.half()
    text = sum(p.nbytes for p in pipe.text_encoder.parameters())
    assert memory_need(model, **options).weights == full - text
    pipe.vae.half()  # it works in float32, beside what is stored
    copied = sum(4 * p.numel() for p in vae)
    assert decoding_need(model, model.resolution) == decoding + copied
    pipe.vae.register_to_config(force_upcast=False)
    assert decoding_need(model, model.resolution) == decoding / 2


def test_a_large_picture_needs_what_a_tile_needs(tiny_sd1, monkeypatch):
    from nulltext.models import placement

    height, width = tiny_sd1.resolution
    own = decoding_need(tiny_sd1, (height, width))
    assert decoding_need(tiny_sd1, (4 * height, 4 * width)) == 16 * own
    monkeypatch.setattr(placement, "WHOLE_BYTES", own)
    assert decoding_need(tiny_sd1, (4 * height, 4 * width)) == own


def test_a_decoding_lives_in_the_bytes_that_are_said(flowers):
    latents = torch.zeros(1, *flowers.latents_shape)
    with LiveBytes() as live:
        flowers.decode(latents)
    assert 0.9 < decoding_need(flowers, flowers.resolution) / live.peak < 1.3


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_a_source_lends_the_bytes_that_are_said(tiny, size):
    prompts = [tiny.tokenize(text) for text in (SOURCE, "a photo of a red daisy")]
    plan = PromptToPrompt(cross_steps=1.0, self_steps=1.0).plan(tiny, prompts, 2, size)
    loan = AttentionStore([plan], 0)
    with torch.no_grad(), attach(tiny.unet, Recorder(loan, guided=True)):
        tiny.predict(noise(0, 2, 4, *size), tiny.schedule.level(500), tiny.embed(["", SOURCE]))
    said = shared_bytes(tiny.unet, size, tiny.max_tokens, plan.self_pixels)
    assert said.maps == sum(kept.nbytes for kept in loan.maps.values())
    assert said.states == sum(kept.untyped_storage().nbytes() for kept in loan.queries.values())


def test_the_table_of_a_checkpoints_configs_needs_no_weights(tmp_path, tiny):
    tiny.to_diffusers().save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    rows = dict(rows_of(without_weights(tmp_path, torch.float32)))
    for name, part in tiny.components.items():
        expected = sum(p.nbytes for p in part.parameters()) / 1e9
        assert rows[f"weights, {name}"] == pytest.approx(expected)
    assert rows["inversion in all, --offload"] < rows["inversion in all"]


def test_the_unet_is_left_as_it_was_found():
    model = low(nulltext.load(tiny_pipeline("sd1")))
    with model.frozen():
        assert model.unet.is_gradient_checkpointing
    assert not model.unet.is_gradient_checkpointing
    with pytest.raises(ZeroDivisionError), model.frozen():
        raise ZeroDivisionError
    assert not model.unet.is_gradient_checkpointing
    model.unet.enable_gradient_checkpointing()
    with model.frozen():
        pass
    assert model.unet.is_gradient_checkpointing


def test_the_plan_is_chosen_at_loading_and_unknown_ones_are_refused():
    assert nulltext.load(tiny_pipeline("sd1"), memory="low").memory == PLANS["low"]
    with pytest.raises(OptionError, match="no memory plan 'tiny'"):
        nulltext.load(tiny_pipeline("sd1"), memory="tiny")


def test_the_processor_says_what_is_free():
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0
    assert free_memory(torch.device("meta")) is None


def test_the_command_line_warns_before_a_run_that_will_not_fit(
    tmp_path, photo, monkeypatch, capsys
):
    from nulltext.cli import work

    monkeypatch.chdir(tmp_path)
    tiny_pipeline("sd1").save_pretrained("tiny")
    photo.save("cat.png")
    monkeypatch.setattr(work, "free_memory", lambda device: 1000)
    words = {(): "pass --low-memory, a smaller --size or", ("--low-memory",): "pass a smaller"}
    for extra, said in words.items():
        arguments = ["invert", "cat.png", "--prompt", "a cat", "--steps", "1", "--model", "tiny"]
        monkeypatch.setattr(sys, "argv", ["nulltext", *arguments, *extra])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        err = capsys.readouterr().err
        assert "GB beside the model's weights, and cpu has 0.0 GB free; " + said in err
        assert (tmp_path / "cat.safetensors").is_file()
