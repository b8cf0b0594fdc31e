"""`NullTextPipeline`: nulltext's functions in the shape of a diffusers pipeline."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

import nulltext
from nulltext.errors import ModelError, OptionError
from nulltext.integrations import NullTextPipeline
from support.tiny import tiny_pipeline

FAMILIES = ["sd1", "sd2", "sdxl"]
PROMPT = "a photo of a cat"
TARGETS = ["a photo of a dog", "a photo of a red cat"]


@pytest.fixture(params=FAMILIES)
def stock(request):
    return tiny_pipeline(request.param)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pixels_are_those_of_invert_and_edit(stock, photo):
    pipe = quiet(NullTextPipeline.from_pipe(stock))
    made = pipe.invert(photo, PROMPT, num_inference_steps=3, guidance_scale=5.0)
    output = pipe(TARGETS)
    model = nulltext.load(stock)
    expected = nulltext.invert(model, photo, PROMPT, num_steps=3, guidance_scale=5.0)
    edit = nulltext.edit(model, expected, TARGETS)
    torch.testing.assert_close(made.null_embeds, expected.null_embeds, atol=0, rtol=0)
    torch.testing.assert_close(output.edit.images, edit.images, atol=0, rtol=0)
    assert [one.tobytes() for one in output.images] == [
        nulltext.to_pil(one).tobytes() for one in edit.images
    ]


def test_the_bundled_model_loads_by_name(photo, flowers):
    pipe = quiet(NullTextPipeline.from_pretrained("flowers"))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "method": "ddim"}
    made = pipe.invert(photo, "a red flower", **options)
    same = nulltext.invert(
        flowers, photo, "a red flower", num_steps=2, guidance_scale=3.0, method="ddim"
    )
    # float32; nulltext.load keeps the weights in another memory layout (channels last)
    torch.testing.assert_close(made.trajectory, same.trajectory, atol=1e-3, rtol=0)
    (image,) = pipe("a blue flower", made, return_dict=False)[0]
    edit = nulltext.edit(flowers, same, "a blue flower")
    expected = np.asarray(nulltext.to_pil(edit.images[0]), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - expected).max() <= 1
    assert made.header.fingerprint in flowers.fingerprints


def test_output_types_are_those_of_diffusers(stock, photo):
    pipe = quiet(NullTextPipeline.from_pipe(stock))
    pipe.invert(photo, PROMPT, num_inference_steps=2, method="ddim")
    images = {kind: pipe(TARGETS, output_type=kind).images for kind in ("np", "pt", "latent")}
    height, width = pipe.inversion.photo.shape[1:]
    assert images["np"].shape == (2, height, width, 3)
    assert images["pt"].shape == (2, 3, height, width)
    assert images["pt"].min() >= 0
    assert images["pt"].max() <= 1
    np.testing.assert_array_equal(images["np"], images["pt"].permute(0, 2, 3, 1).numpy())
    decoded = pipe.model.decode(images["latent"][:1])
    pixels = (decoded / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pixels, images["pt"][:1], atol=1e-6, rtol=0)  # float32
    with pytest.raises(OptionError, match="output_type is 'jpg'"):
        pipe(TARGETS, output_type="jpg")


def test_lists_of_photos_are_inverted_together(photo):
    pipe = quiet(NullTextPipeline.from_pipe(tiny_pipeline("sd1")))
    options = {"num_inference_steps": 2, "method": "ddim"}
    with pytest.raises(OptionError, match="call invert first"):
        pipe("a dog")
    made = pipe.invert([photo, photo.rotate(90)], ["a cat", "a dog"], **options)
    assert [one.header.prompt for one in made] == ["a cat", "a dog"]
    with pytest.raises(OptionError, match="1 photos and 2 prompts"):
        pipe.invert(photo, ["a cat", "a dog"], **options)
    assert len(pipe("a red cat", made[0]).images) == 1


def test_prompts_take_strength_and_guidance_and_specs_their_own(photo):
    pipe = quiet(NullTextPipeline.from_pipe(tiny_pipeline("sd1")))
    made = pipe.invert(photo, "a cat", num_inference_steps=2, method="ddim")
    spec = nulltext.EditSpec("a dog", cross_steps=0.1)
    output = pipe(["a dog", spec], guidance_scale=3.0, strength=0.3)
    strong = nulltext.EditSpec("a dog", guidance_scale=3.0).at_strength(0.3)
    edit = nulltext.edit(pipe.model, made, [strong, spec])
    torch.testing.assert_close(output.edit.images, edit.images, atol=0, rtol=0)


def test_prompts_take_a_negative_prompt(photo):
    pipe = quiet(NullTextPipeline.from_pipe(tiny_pipeline("sd1")))
    made = pipe.invert(photo, "a cat", num_inference_steps=2, method="ddim")
    output = pipe("a dog", negative_prompt="a red cat")
    edit = nulltext.edit(pipe.model, made, nulltext.EditSpec("a dog", negative="a red cat"))
    torch.testing.assert_close(output.edit.images, edit.images, atol=0, rtol=0)
    plain = pipe("a dog", negative_prompt="")
    assert not torch.equal(plain.edit.images, output.edit.images)


@pytest.mark.parametrize(
    "options", [{"negative_prompt": "a cat"}, {"guidance_scale": 3.0}, {"strength": 0.3}]
)
def test_options_of_prompts_are_refused_where_there_is_none(photo, options):
    pipe = quiet(NullTextPipeline.from_pipe(tiny_pipeline("sd1")))
    pipe.invert(photo, "a cat", num_inference_steps=1, method="ddim")
    with pytest.raises(OptionError, match=f"{next(iter(options))} is for plain prompts"):
        pipe([nulltext.EditSpec("a dog")], **options)


def test_a_generator_seeds_methods_that_draw_noise(photo):
    pipe = quiet(NullTextPipeline.from_pipe(tiny_pipeline("sd1")))
    options = {"num_inference_steps": 1, "method": nulltext.inversion.RandomPivot(inner_steps=1)}

    def trajectories(generator):
        return [
            pipe.invert(photo, "a cat", generator=generator, **options).trajectory for _ in range(2)
        ]

    first, second = trajectories(torch.Generator().manual_seed(7))
    again, _ = trajectories(torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_parts_are_shared_and_may_be_replaced(stock):
    pipe = NullTextPipeline.from_pipe(stock)
    assert pipe.unet is stock.unet
    assert pipe.vae is stock.vae
    assert pipe.model is pipe.model
    pipe.scheduler = DDIMScheduler.from_config(stock.scheduler.config, num_train_timesteps=500)
    assert pipe.model.schedule.train_steps == 500
    # precision stays as it is, also where parts differ
    stock.unet.to(torch.bfloat16)
    assert NullTextPipeline.from_pipe(stock).unet.dtype == torch.bfloat16
    assert stock.vae.dtype == torch.float32


def test_offload_and_half_precision_work_as_in_other_pipelines(photo):
    options = {"num_inference_steps": 2, "method": nulltext.inversion.NullText(inner_steps=1)}

    def edited(pipe):
        quiet(pipe).invert(photo, PROMPT, **options)
        return pipe(TARGETS, output_type="pt").images

    for kind in ("sd1", "sdxl"):
        plain = edited(NullTextPipeline.from_pipe(tiny_pipeline(kind)))
        offloaded = NullTextPipeline.from_pipe(tiny_pipeline(kind))
        offloaded.enable_model_cpu_offload(device="cpu")
        torch.testing.assert_close(edited(offloaded), plain, atol=0, rtol=0)
    half = NullTextPipeline.from_pipe(tiny_pipeline("sd1")).to(dtype=torch.bfloat16)
    assert half.model.unet.dtype == torch.bfloat16
    assert edited(half).isfinite().all()


def test_what_is_saved_is_an_ordinary_folder(stock, tmp_path, photo):
    pipe = quiet(NullTextPipeline.from_pipe(stock))
    pipe.save_pretrained(tmp_path)
    kind = type(stock).__name__
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == kind
    assert "image_encoder" in index
    opened = DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert type(opened) is type(stock)
    again = quiet(NullTextPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False))
    options = {"num_inference_steps": 2, "method": "ddim"}
    torch.testing.assert_close(
        again.invert(photo, PROMPT, **options).trajectory,
        pipe.invert(photo, PROMPT, **options).trajectory,
        atol=0,
        rtol=0,
    )
    assert nulltext.load(tmp_path).fingerprint == pipe.model.fingerprint


def test_pipeline_subclasses_are_taken_and_others_refused():
    class Own(StableDiffusionPipeline):
        pass

    stock = tiny_pipeline("sd1")
    own = Own(**stock.components, requires_safety_checker=False)
    assert NullTextPipeline.from_pipe(own).unet is stock.unet
    stock.unet.config.in_channels = 9
    with pytest.raises(ModelError):
        NullTextPipeline.from_pipe(stock)


def test_progress_is_shown_by_stage(photo, capsys):
    pipe = NullTextPipeline.from_pipe(tiny_pipeline("sd1"))
    pipe.invert(photo, "a cat", num_inference_steps=2, method="ddim")
    pipe("a dog")
    said = re.findall(r"(\w+): 100%", capsys.readouterr().err)
    assert {*said} == {"pivot", "replay", "edit"}
    quiet(pipe)("a dog")
    assert capsys.readouterr().err == ""
