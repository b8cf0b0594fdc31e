"""What is loaded into a pipeline works through it, and an inversion notices."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict

import nulltext
from nulltext.attention.processor import attach
from nulltext.errors import InversionFileError, ModelError
from support.tiny import tiny_pipeline

PROMPT = "a photo of a white cat"


def lora_folder(pipe, folder, seed=0):
    """A LoRA as people download it: written by diffusers, in its own format."""
    torch.manual_seed(seed)
    unet = copy.deepcopy(pipe.unet)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    type(pipe).save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


@pytest.fixture(params=["sd1", "sdxl"])
def pipe(request):
    return tiny_pipeline(request.param)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_wrapped_parts_are_used_without_the_wrapper(pipe, wrap):
    expected = nulltext.from_pipe(pipe)
    pipe.unet = wrap(pipe.unet)
    model = nulltext.from_pipe(pipe)
    assert model.unet is expected.unet
    assert model.fingerprint == expected.fingerprint


def test_what_is_wrapped_in_something_unknown_is_refused(pipe):
    pipe.unet = torch.nn.Sequential(pipe.unet)
    with pytest.raises(ModelError, match=r"The unet of the Stable.* is of class Sequential, which"):
        nulltext.from_pipe(pipe)


class WandaPipeline(StableDiffusionPipeline):
    """Somebody's own, whose name begins as that of a video model."""


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd1", WandaPipeline),
        ("sd1", diffusers.StableDiffusionPAGPipeline),
        ("sd1", diffusers.LEditsPPPipelineStableDiffusion),
        ("sd1", diffusers.StableDiffusionInpaintPipeline),
        ("sdxl", diffusers.StableDiffusionXLPAGPipeline),
        ("sdxl", diffusers.LEditsPPPipelineStableDiffusionXL),
    ],
)
def test_pipelines_of_ordinary_parts_are_models_in_hand_and_as_folders(tmp_path, family, kind):
    pipe = tiny_pipeline(family)
    taken = inspect.signature(kind).parameters
    parts = {name: value for name, value in pipe.components.items() if name in taken}
    other = kind(**parts, **({"requires_safety_checker": False} if family == "sd1" else {}))
    expected = nulltext.from_pipe(pipe)
    other.save_pretrained(tmp_path)
    for model in (nulltext.from_pipe(other), nulltext.load(tmp_path)):
        assert model.fingerprint == expected.fingerprint
        assert torch.equal(model.embed([PROMPT, ""]), expected.embed([PROMPT, ""]))


def test_a_pipeline_with_another_network_beside_its_parts_is_refused():
    pipe = tiny_pipeline("sd1")
    control = diffusers.ControlNetModel.from_unet(pipe.unet)
    parts = pipe.components | {"controlnet": control}
    controlled = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ModelError, match="ControlNet pipeline, whose UNet"):
        nulltext.from_pipe(controlled)


def test_both_ways_between_library_and_pipeline(pipe):
    model = nulltext.from_pipe(pipe)
    back = model.to_diffusers()
    assert type(back) is type(pipe)
    assert isinstance(back, StableDiffusionPipeline | StableDiffusionXLPipeline)
    assert back.unet is pipe.unet
    again = nulltext.from_pipe(back)
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.embed([PROMPT, ""]), model.embed([PROMPT, ""]))


def test_a_lora_works_and_an_inversion_is_bound_to_it(pipe, photo, tmp_path):
    model = nulltext.from_pipe(pipe)
    plain = model.fingerprint
    before = nulltext.invert(model, photo, PROMPT, method="ddim", num_steps=2)
    pipe.load_lora_weights(lora_folder(pipe, tmp_path))
    adapted = model.fingerprint
    assert adapted != plain
    with pytest.raises(InversionFileError, match="other weights"):
        nulltext.replay(model, before)
    method = nulltext.inversion.NullText(inner_steps=1)
    made = nulltext.invert(model, photo, PROMPT, method=method, num_steps=2)
    edit = nulltext.edit(model, made, "a photo of a black cat")
    assert torch.equal(edit.reconstruction, nulltext.replay(model, made).image)
    assert not torch.equal(made.trajectory, before.trajectory), "the LoRA does nothing"
    assert nulltext.from_pipe(pipe).fingerprint == adapted, "whenever it was loaded"
    pipe.disable_lora()
    assert model.fingerprint == plain
    assert nulltext.replay(model, before).image.isfinite().all()
    pipe.enable_lora()
    assert model.fingerprint == adapted
    pipe.set_adapters(pipe.get_active_adapters(), 0.5)
    assert model.fingerprint not in (plain, adapted)
    pipe.unload_lora_weights()
    assert model.fingerprint == plain


def test_merged_loras_and_other_loras_have_fingerprints_of_their_own(pipe, tmp_path):
    seen = {nulltext.from_pipe(pipe).fingerprint}
    for seed in (1, 2):
        pipe.load_lora_weights(lora_folder(pipe, tmp_path / str(seed), seed))
        seen.add(nulltext.from_pipe(pipe).fingerprint)
        pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "1")
    model = nulltext.from_pipe(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    seen.add(model.fingerprint)
    assert len(seen) == 4
    assert nulltext.from_pipe(pipe).fingerprint == model.fingerprint


def test_of_several_loras_only_those_count_that_are_awake(tmp_path):
    pipe = tiny_pipeline("sd1")
    first, second = (lora_folder(pipe, tmp_path / str(seed), seed) for seed in (1, 2))
    pipe.load_lora_weights(second, adapter_name="x_10")
    alone = nulltext.from_pipe(pipe).fingerprint
    pipe.load_lora_weights(first, adapter_name="x_1")
    seen = {alone}
    for awake in (["x_1"], ["x_1", "x_10"]):
        pipe.set_adapters(awake)
        seen.add(nulltext.from_pipe(pipe).fingerprint)
    assert len(seen) == 3
    pipe.set_adapters(["x_10"])
    assert nulltext.from_pipe(pipe).fingerprint == alone


@torch.no_grad()
def test_attention_is_read_with_the_lora_in_it(pipe, tmp_path):
    class Identity:
        """Gives every layer its own probabilities back."""

        guided = False

        def action(self, site):
            return "edit"

        def edit(self, own, site, heads):
            return own

        def borrow(self, layer, site):
            return layer.hidden_states

    pipe.load_lora_weights(lora_folder(pipe, tmp_path))
    model = nulltext.from_pipe(pipe)
    latents, embeds = torch.randn(1, 4, 8, 8), model.embed([PROMPT])
    plain = model.predict(latents, model.schedule.level(500), embeds)
    with attach(model.unet, Identity()):
        controlled = model.predict(latents, model.schedule.level(500), embeds)
    # float32: explicit softmax against the fused kernel
    torch.testing.assert_close(controlled, plain, atol=1e-5, rtol=1e-4)


def load_token(pipe, vectors):
    """Teach a token as people load it, into each of the pipeline's text encoders."""
    torch.manual_seed(7)
    for suffix in ("", "_2"):
        encoder = getattr(pipe, f"text_encoder{suffix}", None)
        if encoder is not None:
            width = encoder.config.hidden_size
            pipe.load_textual_inversion(
                {"<toy>": torch.randn(vectors, width).squeeze(0)},
                token="<toy>",
                text_encoder=encoder,
                tokenizer=getattr(pipe, f"tokenizer{suffix}"),
            )


def test_a_learnt_token_is_one_word_and_steers_the_edit(pipe, photo):
    model = nulltext.from_pipe(pipe)
    plain = model.fingerprint
    load_token(pipe, 1)
    assert model.fingerprint != plain
    word = model.tokenize("a photo of a <toy>").words[-1]
    assert (word.text, word.tokens) == ("<toy>", (5,))
    theirs = pipe.encode_prompt(
        "a photo of a <toy>",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )[0]
    ours = model.embed(["a photo of a <toy>"])[:, : model.max_tokens]
    torch.testing.assert_close(ours, theirs)
    made = nulltext.invert(model, photo, "a photo of a cat", method="ddim", num_steps=2)
    edits = nulltext.edit(model, made, ["a photo of a <toy>", "a photo of a dog"])
    assert not torch.equal(*edits.images)
