"""Where parts compute: on a second device, away from it, in pieces, and through others' hooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import nulltext
from nulltext.errors import ModelError
from nulltext.models import placement
from nulltext.models.placement import at_work, default_dtype, execution_device, note_on_precision
from support.tiny import tiny_pipeline

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
SCRIPT = Path(__file__).parents[1] / "support" / "device_scenarios.py"


@pytest.fixture(scope="session")
def scenarios(tmp_path_factory):
    """What `device_scenarios` found, in a process of its own; once for all workers of a run."""
    together = "PYTEST_XDIST_WORKER" in os.environ
    root = tmp_path_factory.getbasetemp()
    kept = (root.parent if together else root) / "second-device.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            done = subprocess.run(
                [sys.executable, SCRIPT],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            kept.write_text(done.stdout)
    return json.loads(kept.read_text().splitlines()[-1])


def found(scenarios, name):
    result = scenarios[name]
    assert "error" not in result, result["error"] + "\n" + result["where"]
    return result


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_second_device_gives_the_pictures_of_the_first(scenarios, family):
    result = found(scenarios, f"whole {family}")
    off = result["off"]
    assert off.pop("edits") < 0.02  # null-text's gradients differ in their last bits
    assert max(off.values()) < 5e-3
    # an inversion, an edit, a replay, heat maps: numbers read back make a device wait
    assert result["reads"] < 400


@pytest.mark.parametrize(
    "name", ["direct", "negative-prompt", "textual-pivot", "model-tuning", "textual"]
)
def test_every_kind_of_method_runs_there(scenarios, name):
    assert found(scenarios, f"method {name}")["finite"]


@pytest.mark.parametrize("method", ["null-text", "fixed-point"])
def test_float16_runs_there(scenarios, method):
    assert found(scenarios, f"half {method}")["finite"]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_offloaded_parts_are_there_for_their_work_alone(scenarios, family):
    result = found(scenarios, f"offload {family}")
    assert result["equal"], "to the bit"
    assert result["untouched"], "the weights themselves stay on the CPU"
    assert result["fingerprint"]
    # UNet, autoencoder, text encoder: which of them are on the device while one of them works
    assert result["seen"] == {
        "unet": [[True, False, False]],
        "vae": [[True, True, False]],
        "text": [[True, False, True]],
    }


def test_a_pipeline_that_offloads_itself_goes_on_doing_so(scenarios):
    result = found(scenarios, "hooks sd1")
    assert result["away"]
    assert max(result["off"].values()) < 0.02


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("mixed", "on the CPU among tensors of the device"),
        ("float64", "float64 on the device"),
        ("generator", "a generator of the CPU"),
        ("kernel", "no such kernel"),
    ],
)
def test_the_second_device_refuses_what_hardware_would(scenarios, fault, said):
    assert said in scenarios[f"planted {fault}"]["error"]


def test_the_precision_follows_the_device():
    assert default_dtype(CPU) == default_dtype(MPS) == torch.float32
    assert default_dtype(CUDA) == torch.float16


def test_half_precision_on_a_processor_is_said_to_be_slow():
    for dtype in (torch.float16, torch.bfloat16):
        assert "--dtype float32" in note_on_precision(CPU, dtype)
        assert note_on_precision(CUDA, dtype) is None
    assert note_on_precision(CPU, torch.float32) is None


def test_products_are_let_go_to_tensorfloat_on_cuda_alone_and_once():
    before = torch.get_float32_matmul_precision()
    try:
        for device, set_to, then in (
            (CPU, "highest", "highest"),
            (MPS, "highest", "highest"),
            (CUDA, "highest", "high"),
            (CUDA, "medium", "medium"),
        ):
            torch.set_float32_matmul_precision(set_to)
            placement.allow_tf32(device)
            assert torch.get_float32_matmul_precision() == then
    finally:
        torch.set_float32_matmul_precision(before)


def channels_last(model):
    for module in (model.unet, model.vae):
        placement.use_channels_last(module, CUDA)
    return model


def test_channels_last_changes_no_fingerprint_and_no_result(tmp_path, photo):
    plain = nulltext.load(tiny_pipeline("sd1"))
    turned = channels_last(nulltext.load(tiny_pipeline("sd1")))
    assert turned.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert turned.fingerprint == plain.fingerprint
    one, other = (
        nulltext.invert(model, photo, "a cat", method="direct", num_steps=2)
        for model in (plain, turned)
    )
    # float32, sums in another order
    torch.testing.assert_close(one.trajectory, other.trajectory, atol=1e-5, rtol=1e-5)
    other.save(tmp_path / "cat.safetensors")
    again = nulltext.Inversion.load(tmp_path / "cat.safetensors")
    assert torch.equal(again.corrections, other.corrections)
    torch.testing.assert_close(
        nulltext.edit(plain, one, "a dog").images,
        nulltext.edit(turned, other, "a dog").images,
        atol=1e-3,
        rtol=0,
    )


def test_weights_that_stand_in_are_gone_afterwards(tiny_sd1):
    vae = tiny_sd1.vae
    before = dict(vae.named_parameters())
    seen = []

    def fail():
        with at_work(vae, CPU, torch.float64):
            seen.append(vae.dtype)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [torch.float64]
    assert all(parameter is before[name] for name, parameter in vae.named_parameters())
    with at_work(vae, CPU, torch.float32):  # as it is: nothing is copied
        assert all(parameter is before[name] for name, parameter in vae.named_parameters())


def images(rows, height, width):
    draw = torch.Generator().manual_seed(0)
    return 2 * torch.rand(rows, 3, height, width, generator=draw) - 1


def limited(monkeypatch, model, pixels):
    """Work on pictures of so many pixels whole, and on no larger ones."""
    monkeypatch.setattr(placement, "WHOLE_BYTES", placement.picture_bytes(model.vae, pixels, 4))


def test_a_picture_up_to_the_limit_is_worked_on_whole(tiny_sd1, monkeypatch):
    height, width = tiny_sd1.resolution
    picture = images(1, height, width)
    alone, latents = tiny_sd1.encode(picture), tiny_sd1.encode(images(2, height, width))
    pictures = tiny_sd1.decode(latents)
    monkeypatch.setattr(placement, "WHOLE_BYTES", 1)
    # one picture at the model's own resolution stays whole, whatever the limit
    assert torch.equal(tiny_sd1.encode(picture), alone)
    one_by_one = tiny_sd1.decode(latents)
    torch.testing.assert_close(one_by_one, pictures, atol=1e-6, rtol=1e-5)
    assert torch.equal(one_by_one, torch.cat([tiny_sd1.decode(row) for row in latents.split(1)]))


def test_a_large_picture_goes_in_tiles_that_hardly_show(flowers, monkeypatch):
    side = flowers.resolution[0]
    photo = torch.nn.functional.interpolate(images(1, 8, 8), (2 * side, 2 * side), mode="bicubic")
    whole_latents = flowers.encode(photo)
    whole = flowers.decode(whole_latents)
    limited(monkeypatch, flowers, side * side)
    seen = []
    handle = flowers.vae.decoder.register_forward_hook(lambda *call: seen.append(call[2].shape))
    try:
        latents, tiled = flowers.encode(photo), flowers.decode(whole_latents)
    finally:
        handle.remove()
    assert len(seen) > 1
    assert max(shape[-1] for shape in seen) <= side
    assert tiled.shape == whole.shape
    assert latents.shape == whole_latents.shape
    assert float((tiled - whole).abs().mean()) < 0.05
    assert not torch.equal(tiled, whole)
    assert not flowers.vae.use_tiling
    assert not flowers.vae.use_slicing


def test_the_autoencoder_is_given_back_as_it_was(tiny_sd1, monkeypatch):
    limited(monkeypatch, tiny_sd1, 1)
    names = ("use_tiling", "use_slicing", "tile_sample_min_size", "tile_latent_min_size")
    before = [getattr(tiny_sd1.vae, name) for name in names]
    tiny_sd1.encode(images(2, 64, 96))
    assert [getattr(tiny_sd1.vae, name) for name in names] == before
    with pytest.raises(RuntimeError):
        tiny_sd1.decode(torch.zeros(1, 3, 32, 32))  # a channel too few
    assert [getattr(tiny_sd1.vae, name) for name in names] == before


def test_sequential_offload_is_refused_with_a_way_out():
    pipe = tiny_pipeline("sd1")
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ModelError, match=r"unet .* no weights in memory.*offload=True"):
        nulltext.load(pipe)
    assert execution_device(pipe.unet) == torch.device("cpu", 0)


def test_quantised_weights_are_refused_with_a_way_out():
    pipe = tiny_pipeline("sd1")
    layer = pipe.unet.time_embedding.linear_1
    packed = torch.nn.Parameter(layer.weight.data.to(torch.uint8), requires_grad=False)
    layer.weight = packed
    with pytest.raises(ModelError, match=r"unet .* quantised.*float16"):
        nulltext.load(pipe)


def test_a_model_that_is_on_the_cpu_loses_nothing_by_offload(tiny_sd1, photo):
    away = replace(tiny_sd1, offload=True)
    assert torch.equal(away.embed(["a cat"]), tiny_sd1.embed(["a cat"]))
    picture = images(1, *tiny_sd1.resolution)
    assert torch.equal(away.encode(picture), tiny_sd1.encode(picture))
