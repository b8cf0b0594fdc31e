"""Every family from photo to edit, and everything else refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

import pytest
import torch

import nulltext
from nulltext.editing.heatmaps import heat_map_steps
from nulltext.errors import ModelError, PromptError
from nulltext.inversion.null_text import NullText
from nulltext.inversion.replay import replay_steps
from nulltext.models.load import load
from nulltext.words.prompts import tokenize
from support.tiny import tiny_pipeline

PROMPT = "a photo of a white cat"


@dataclass(frozen=True)
class Shared(nulltext.LatentDiffusion):
    """A model that gives the same output at a noise level, whatever the latents."""

    said: dict = field(default_factory=dict)

    def predict(self, latents, level, prompt_embeds, rows=None):
        if level not in self.said:
            self.said[level] = super().predict(latents, level, prompt_embeds, rows)
        return self.said[level].expand_as(latents)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])  # v turns with the level: none is shared
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_in_float64_ddim_replay_is_exact_under_shared_noise_predictions(family, guidance, photo):
    model = nulltext.load(tiny_pipeline(family).to(torch.float64))
    shared = Shared(**{f.name: getattr(model, f.name) for f in fields(model)})
    inversion = nulltext.invert(
        shared, photo, PROMPT, method="ddim", num_steps=20, guidance_scale=guidance
    )
    assert inversion.trajectory.dtype == torch.float64
    assert len(shared.said) == 20
    back = nulltext.diffusion.run(replay_steps(shared, inversion))
    # float64: 20 steps there and 20 back, each affine with coefficients of at most about 15
    torch.testing.assert_close(back, inversion.trajectory[:1], atol=1e-12, rtol=0)
    assert float((inversion.trajectory[-1] - inversion.trajectory[0]).abs().max()) > 0.1
    edit = nulltext.edit(shared, inversion, "a photo of a black cat")
    torch.testing.assert_close(edit.reconstruction, model.decode(back), atol=1e-6, rtol=0)


def test_float64_inversions_are_saved_in_float64(photo, tmp_path):
    model = nulltext.load(tiny_pipeline("sdxl").to(torch.float64))
    made = nulltext.invert(model, photo, PROMPT, method=NullText(inner_steps=1), num_steps=2)
    made.save(tmp_path / "a.safetensors")
    loaded = nulltext.Inversion.load(tmp_path / "a.safetensors")
    assert {t.dtype for t in loaded.tensors().values()} == {torch.float64, torch.uint8}
    images = [nulltext.edit(model, one, "a photo of a dog").images for one in (made, loaded)]
    assert torch.equal(*images)


def test_an_sdxl_folder_from_photo_to_edit_through_a_file(tmp_path, photo):
    pipe = tiny_pipeline("sdxl")
    pipe.save_pretrained(tmp_path / "model")
    model = nulltext.load(tmp_path / "model")
    assert model.fingerprint == nulltext.from_pipe(pipe).fingerprint
    made = nulltext.invert(model, photo, PROMPT, method=NullText(inner_steps=2), num_steps=2)
    assert made.null_embeds.shape == (2, 25, 80)
    made.save(tmp_path / "cat.safetensors")
    loaded = nulltext.Inversion.load(tmp_path / "cat.safetensors")
    replay, again = (nulltext.replay(model, one) for one in (made, loaded))
    assert torch.equal(replay.image, again.image)
    edit = nulltext.edit(model, loaded, "a photo of a black dog")
    assert torch.equal(edit.reconstruction, replay.image)
    (maps,) = nulltext.diffusion.run(heat_map_steps(model, loaded))
    assert [word.word for word in maps.words] == PROMPT.split()


def test_the_size_that_sdxl_is_told_is_the_size_that_is_sampled(tiny_sdxl):
    told = []
    handle = tiny_sdxl.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    try:
        with torch.no_grad():
            embeds = tiny_sdxl.embed(["a cat", ""])
            tiny_sdxl.predict(torch.randn(2, 4, 6, 10), tiny_sdxl.schedule.level(500), embeds)
    finally:
        handle.remove()
    assert told[0].tolist() == [[24, 40, 0, 0, 24, 40]] * 2


def test_sdxl_pads_each_tokenizer_in_its_own_way(tiny_sdxl):
    text = tiny_sdxl.text
    tokenizers = [clip.tokenizer for clip in text.clips]
    first, second = (tokenize(one, "a cat", max_length=24).token_ids for one in tokenizers)
    end = text.tokenize("a cat").end_of_text
    assert first[: end + 1] == second[: end + 1]
    assert set(first[end + 1 :]) == {tokenizers[0].pad_token_id}
    assert set(second[end + 1 :]) == {tokenizers[1].pad_token_id}
    assert tokenizers[0].pad_token_id != tokenizers[1].pad_token_id
    # "!" is the second's padding, and still a word of the prompt
    assert [word.text for word in tiny_sdxl.tokenize("a cat!").words] == ["a", "cat", "!"]
    assert tiny_sdxl.embed(["a cat!"]).isfinite().all()


def test_the_empty_prompts_meaning_is_part_of_the_fingerprint():
    pipe = tiny_pipeline("sdxl")
    zeros = nulltext.from_pipe(pipe).fingerprint
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert nulltext.from_pipe(pipe).fingerprint != zeros


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("StableDiffusionXLInpaintPipeline", "inpainting"),
        ("StableDiffusionInstructPix2PixPipeline", "instruction"),
        ("StableDiffusionDepth2ImgPipeline", "depth map"),
        ("StableDiffusionUpscalePipeline", "upscaler"),
        ("StableDiffusionControlNetPipeline", "ControlNet"),
        ("StableDiffusion3ControlNetPipeline", "Stable Diffusion 3"),
        ("FluxKontextPipeline", "FLUX"),
        ("PixArtAlphaPipeline", "PixArt"),
        ("KandinskyV22Pipeline", "Kandinsky"),
        ("StableCascadeDecoderPipeline", "Stable Cascade"),
        ("LatentConsistencyModelPipeline", "consistency"),
        ("StableVideoDiffusionPipeline", "video"),
        ("IFPipeline", "DeepFloyd"),
        ("SomethingElsePipeline", "SomethingElsePipeline"),
        (None, "None"),
    ],
)
def test_other_kinds_of_model_are_refused_by_what_they_are(tmp_path, kind, what):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ModelError, match=what) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert str(kind) in message
    assert "Stable Diffusion 1, 2, XL (base), 3 or FLUX.1" in message
    assert "\n" not in message


def test_the_refiner_is_refused_by_name(tmp_path):
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="refiner"):
        load(tmp_path)


def rebuilt(pipe, **changes):
    """The pipeline with a UNet of another config."""
    config = dict(pipe.unet.config) | {"_use_default_values": []} | changes
    pipe.unet = type(pipe.unet).from_config(config)
    return pipe


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("sd1", {"in_channels": 9}, "9 channels .an inpainting"),
        ("sdxl", {"in_channels": 9}, "9 channels .an inpainting"),
        ("sd2", {"in_channels": 5}, "5 channels .a depth"),
        ("sd1", {"in_channels": 8}, "8 channels .an instruction"),
        ("sdxl", {"projection_class_embeddings_input_dim": 40 + 5 * 8}, "refiner"),
        ("sdxl", {"addition_embed_type": None}, "nothing beside the prompt, expected text_time"),
        ("sd1", {"time_cond_proj_dim": 16}, "consistency model"),
        ("sd1", {"cross_attention_dim": 40}, "different models"),
    ],
)
def test_unets_that_take_something_else_are_refused(family, changes, words):
    with pytest.raises(ModelError, match=words):
        nulltext.from_pipe(rebuilt(tiny_pipeline(family), **changes))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
    ],
)
def test_schedulers_of_other_kinds_of_model_are_refused(config):
    from nulltext.diffusion.schedule import DiscreteSchedule

    with pytest.raises(ModelError, match=config["_class_name"]):
        DiscreteSchedule.from_config(config)


def test_a_pipeline_with_a_part_missing_is_refused():
    pipe = tiny_pipeline("sdxl")
    pipe.text_encoder = None
    with pytest.raises(ModelError, match="no text_encoder"):
        nulltext.from_pipe(pipe)


def test_a_token_that_only_one_of_sdxls_tokenizers_knows_is_named():
    pipe = tiny_pipeline("sdxl")
    pipe.tokenizer.add_tokens(["<toy>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    model = nulltext.from_pipe(pipe)
    with pytest.raises(PromptError, match="two tokenizers"):
        model.embed(["a <toy>"])
