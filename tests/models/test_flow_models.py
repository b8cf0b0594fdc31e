"""Stable Diffusion 3, 3.5 and FLUX: conditioned, sampled and loaded as the stock pipelines do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import nulltext
from nulltext.diffusion.loops import Conditions, sample_step
from nulltext.errors import InversionFileError, ModelError, OptionError, PromptError
from nulltext.jobs.settings import command_in
from nulltext.models.mmdit import packed, unpacked
from nulltext.words.alignment import attention_map
from support.tiny_flow import KINDS, tiny_flow_pipeline

PROMPT = "a photo of a red cat"
SIZE = (32, 48)


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    made = tiny_flow_pipeline(request.param)
    made.set_progress_bar_config(disable=True)
    return made


def stock(pipe, latents, prompt, *, steps, scale, true_cfg=False):
    """Latents that the stock pipeline ends in."""
    height, width = SIZE
    given = packed(latents) if hasattr(pipe, "_pack_latents") else latents
    more = {}
    if hasattr(pipe, "_pack_latents") and true_cfg:
        more = {"negative_prompt": "", "true_cfg_scale": scale}
        scale = 1.0
    made = pipe(
        prompt,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=given,
        output_type="latent",
        **more,
    ).images
    return unpacked(made, *latents.shape[-2:]) if made.ndim == 3 else made


def sampled(model, latents, prompt, *, steps, scale):
    conditions = Conditions(*model.embed(["", prompt]).chunk(2))
    for step in model.grid(steps, SIZE):
        latents = sample_step(model, step, latents, conditions, scale).latents
    return latents


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_sampling_is_the_stock_pipeline_s(pipe, scale):
    model = nulltext.load(pipe)
    if model.guidance == "none" and scale != 1.0:
        pytest.skip("distilled to work without guidance")
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    theirs = stock(pipe, latents, PROMPT, steps=5, scale=scale)
    ours = sampled(model, latents, PROMPT, steps=5, scale=scale)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["flux-dev", "flux-schnell"])
def test_true_guidance_is_the_stock_pipeline_s(kind):
    pipe = tiny_flow_pipeline(kind)
    model = nulltext.load(pipe, true_cfg=True)
    assert model.guidance == "branches"
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    theirs = stock(pipe, latents, PROMPT, steps=4, scale=3.0, true_cfg=True)
    ours = sampled(model, latents, PROMPT, steps=4, scale=3.0)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_a_folder_holds_the_same_model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    model, ours = nulltext.load(tmp_path, device="cpu"), nulltext.load(pipe)
    assert model.fingerprint == ours.fingerprint
    assert torch.equal(model.embed([PROMPT]), ours.embed([PROMPT]))
    half = nulltext.load(tmp_path, device="cpu", dtype="bfloat16")
    assert half.fingerprint == ours.fingerprint  # that of the files
    assert half.network.dtype == torch.bfloat16
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    step = model.grid(4)[1]
    outputs = [m.predict(latents, step.noisier, m.embed([PROMPT])) for m in (model, half)]
    assert outputs[1].dtype == torch.float32
    assert float((outputs[0] - outputs[1]).norm() / outputs[0].norm()) < 0.1


def test_the_photo_is_encoded_as_the_stock_pipelines_decode_it(pipe):
    model = nulltext.load(pipe)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    config = pipe.vae.config
    theirs = pipe.vae.encode(image).latent_dist.mode()
    ours = model.encode(image)
    torch.testing.assert_close(ours, (theirs - config.shift_factor) * config.scaling_factor)
    torch.testing.assert_close(model.decode(ours), pipe.vae.decode(theirs).sample)


def test_packing_is_undone():
    latents = torch.arange(2 * 16 * 4 * 6.0).view(2, 16, 4, 6)
    assert packed(latents).shape == (2, 6, 64)
    assert torch.equal(unpacked(packed(latents), 4, 6), latents)


def test_the_pipeline_is_given_back(pipe):
    again = nulltext.load(pipe).to_diffusers()
    assert type(again) is type(pipe)
    assert again.transformer is pipe.transformer
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    both = [stock(p, latents, PROMPT, steps=3, scale=1.0) for p in (pipe, again)]
    torch.testing.assert_close(both[0], both[1])


# --- words ----------------------------------------------------------------------------------------


def test_a_word_owns_tokens_of_every_encoder_that_has_rows():
    model = nulltext.load(tiny_flow_pipeline("sd35"))
    read = model.tokenize("a red hippopotamus")
    clip, t5 = read.streams
    assert read.length == clip.length + t5.length == model.max_tokens
    for word, first, second in zip(read.words, clip.words, t5.words, strict=True):
        assert word.tokens == (*first.tokens, *(clip.length + at for at in second.tokens))
    assert t5.begin == 0
    assert t5.words[0].tokens[0] == 0
    assert [t5.text[w.start : w.end] for w in t5.words] == ["a", "red", "hippopotamus"]


def test_without_t5_its_rows_belong_to_no_word():
    model = nulltext.load(tiny_flow_pipeline("sd3"))
    read = model.tokenize("a red cat")
    assert max(at for word in read.words for at in word.tokens) < read.streams[0].length
    rows = model.embed(["a red cat"])[0, read.streams[0].length : read.length]
    assert not rows.any()


@pytest.mark.parametrize("kind", ["sd3", "sd35", "flux-dev"])
def test_attention_is_carried_within_each_encoder(kind):
    model = nulltext.load(tiny_flow_pipeline(kind))
    source, target = model.tokenize("a red cat"), model.tokenize("a red dog")
    same = attention_map(source, source)
    assert torch.equal(same.mapping, torch.eye(source.length))
    assert same.gate.all()
    carried = attention_map(source, target)
    old, new = source.words[-1].tokens, target.words[-1].tokens
    for at in new:
        column = carried.mapping[:, at]
        assert float(column.sum()) > 0
        assert set(column.nonzero().flatten().tolist()) <= set(old)
    streams = source.streams or (source,)
    if len(streams) > 1:
        border = streams[0].length
        assert not carried.mapping[:border, border:].any()
        assert not carried.mapping[border:, :border].any()


# --- what is refused ------------------------------------------------------------------------------


def test_a_prompt_too_long_for_one_encoder_names_it():
    model = nulltext.load(tiny_flow_pipeline("flux-dev"))
    with pytest.raises(PromptError, match="CLIP reads at most 22"):
        model.tokenize("a cat " * 20)
    model = nulltext.load(tiny_flow_pipeline("sd35"))
    with pytest.raises(PromptError, match="CLIP reads at most 22"):
        model.tokenize("a cat " * 20)


def test_guidance_that_cannot_act_is_refused(photo):
    schnell = nulltext.load(tiny_flow_pipeline("flux-schnell"))
    assert schnell.guidance_scale == 1.0
    with pytest.raises(OptionError, match="without guidance"):
        nulltext.invert(schnell, photo, "a cat", num_steps=2, guidance_scale=3.0)
    inversion = nulltext.invert(schnell, photo, "a cat", num_steps=2)
    spec = nulltext.EditSpec("a dog", guidance_scale=2.0)
    with pytest.raises(OptionError, match="without guidance"):
        nulltext.edit(schnell, inversion, spec)
    dev = nulltext.load(tiny_flow_pipeline("flux-dev"))
    with pytest.raises(OptionError, match="no null branch; pass --true-cfg"):
        nulltext.invert(dev, photo, "a cat", num_steps=2, method="null-text")
    inversion = nulltext.invert(dev, photo, "a cat", num_steps=2)
    with pytest.raises(OptionError, match="negative prompt"):
        nulltext.edit(dev, inversion, nulltext.EditSpec("a dog", negative="red"))
    with pytest.raises(OptionError, match="--true-cfg"):
        nulltext.load(tiny_flow_pipeline("sd3"), true_cfg=True)


def test_an_inversion_of_another_family_is_refused(photo, tiny_sd1):
    sd3 = nulltext.load(tiny_flow_pipeline("sd3"))
    inversion = nulltext.invert(sd3, photo, "a cat", num_steps=2, method="ddim")
    with pytest.raises(InversionFileError, match="has other weights"):
        nulltext.replay(tiny_sd1, inversion)


def test_a_null_branch_of_ours_makes_another_model(photo, tmp_path):
    pipe = tiny_flow_pipeline("flux-dev")
    plain, guided = nulltext.load(pipe), nulltext.load(pipe, true_cfg=True)
    assert plain.fingerprint != guided.fingerprint
    made = nulltext.invert(guided, photo, "a cat", num_steps=2, method="null-text")
    with pytest.raises(InversionFileError, match="guidance true-cfg"):
        nulltext.replay(plain, made)
    made.save(tmp_path / "made.safetensors")
    assert nulltext.replay(guided, nulltext.Inversion.load(tmp_path / "made.safetensors"))
    job = {"image": "a.png", "source": "a cat", "target": "a dog"}
    settings = {"model": "flux", "adapters": made.header.adapters, "job": job}
    command = command_in(settings, "out.png")
    assert "--true-cfg" in command


def test_sides_beyond_the_places_that_are_known_are_refused(photo):
    sd3 = nulltext.load(tiny_flow_pipeline("sd3"))
    sizes = replace(sd3.sizes, most=24)
    with pytest.raises(OptionError, match="at most 24 px"):
        sizes.of(nulltext.CropBox(0, 0, 48, 48), (32, 32))
    assert sd3.sizes.most == 24 * 2 * 4
    with pytest.raises(OptionError, match="sides"):
        nulltext.invert(sd3, photo, "a cat", num_steps=2, size=(264, 264))


def test_a_scheduler_of_another_kind_is_refused_in_a_pipeline_in_hand():
    pipe = tiny_flow_pipeline("sd3")
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ModelError, match="DPMSolverMultistepScheduler"):
        nulltext.load(pipe)


def test_a_tokenizer_without_its_encoder_is_left_alone(tmp_path):
    pipe = tiny_flow_pipeline("sd35")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["text_encoder_3"] = [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "text_encoder_3" not in nulltext.load(tmp_path, device="cpu").components


def test_the_diffusers_pipeline_refuses_other_networks():
    with pytest.raises(ModelError, match="another network"):
        nulltext.integrations.NullTextPipeline.from_pipe(tiny_flow_pipeline("sd3"))


def test_sizes_are_multiples_of_a_token(photo):
    sd3 = nulltext.load(tiny_flow_pipeline("sd3"))
    with pytest.raises(OptionError, match="multiples of 8"):
        nulltext.invert(sd3, photo, "a cat", num_steps=2, size=(36, 36))


def test_parts_that_are_missing_or_of_another_model_are_named(tmp_path):
    pipe = tiny_flow_pipeline("flux-dev")
    pipe.save_pretrained(tmp_path / "flux")
    index = (tmp_path / "flux" / "model_index.json").read_text()
    without = json.loads(index) | {"text_encoder_2": [None, None]}
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(without))
    with pytest.raises(ModelError, match="has no text_encoder_2, expected T5EncoderModel"):
        nulltext.load(tmp_path / "flux")
    pipe = tiny_flow_pipeline("sd35")
    pipe.save_pretrained(tmp_path / "sd35")
    for weights in (tmp_path / "sd35" / "text_encoder_3").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match="text_encoder_3"):
        nulltext.load(tmp_path / "sd35")


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd35", "flux-dev"])
def test_offloading_and_low_memory_change_nothing(kind, photo):
    pipe = tiny_flow_pipeline(kind)
    pictures = []
    for options in ({}, {"offload": True}, {"memory": "low"}):
        model = nulltext.load(pipe, **options)
        inversion = nulltext.invert(model, photo, PROMPT, num_steps=2)
        pictures.append(nulltext.edit(model, inversion, "a photo of a red dog").images)
    torch.testing.assert_close(pictures[0], pictures[1])
    torch.testing.assert_close(pictures[0], pictures[2], atol=1e-4, rtol=1e-4)
