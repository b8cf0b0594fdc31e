"""Every pipeline of diffusers that is not ours is said to be what it is."""

from __future__ import annotations

import json

import diffusers
import pytest

from nulltext.errors import ModelError
from nulltext.models.foreign import explain
from nulltext.models.pipelines import ANOTHER, FAMILIES, explain_pipeline, family_of

OURS = {name for family in FAMILIES for name in family.pipelines}
PIPELINES = sorted(
    name
    for name in dir(diffusers)
    if ("Pipeline" in name and not name.startswith("Auto"))
    and not any(word in name for word in ("Output", "Blocks", "Quantization"))
    and name not in OURS
)


def part(library, kind):
    return [library, kind]


SD = {
    "scheduler": part("diffusers", "PNDMScheduler"),
    "unet": part("diffusers", "UNet2DConditionModel"),
    "vae": part("diffusers", "AutoencoderKL"),
    "text_encoder": part("transformers", "CLIPTextModel"),
    "tokenizer": part("transformers", "CLIPTokenizer"),
    "safety_checker": [None, None],
}
XL = SD | {
    "text_encoder_2": part("transformers", "CLIPTextModelWithProjection"),
    "tokenizer_2": part("transformers", "CLIPTokenizer"),
}
SD3 = XL | {
    "scheduler": part("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "transformer": part("diffusers", "SD3Transformer2DModel"),
    "text_encoder": part("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": part("transformers", "T5EncoderModel"),
    "tokenizer_3": part("transformers", "T5TokenizerFast"),
}
del SD3["unet"]
FLUX = SD3 | {
    "transformer": part("diffusers", "FluxTransformer2DModel"),
    "text_encoder": part("transformers", "CLIPTextModel"),
    "text_encoder_2": part("transformers", "T5EncoderModel"),
    "tokenizer_2": part("transformers", "T5TokenizerFast"),
}
del FLUX["text_encoder_3"], FLUX["tokenizer_3"]


def test_there_are_hundreds_of_other_pipelines_and_all_but_the_base_class_are_known():
    assert len(PIPELINES) > 250
    unknown = [name for name in PIPELINES if ANOTHER in explain_pipeline(name, "m")]
    assert unknown == ["DiffusionPipeline"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_other_pipeline_is_refused_in_one_sentence(name):
    with pytest.raises(ModelError) as caught:
        family_of(name, "some/model", {})
    said = str(caught.value)
    assert said.startswith(f"The model 'some/model' is of class {name} (")
    assert said.endswith(
        "pass a text-to-image checkpoint of Stable Diffusion 1, 2, XL (base), 3 or FLUX.1."
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WanPipeline", "Wan, a video model"),
        ("ZImagePipeline", "Z-Image, a transformer"),
        ("QwenImageEditPipeline", "Qwen-Image, a transformer"),
        ("HiDreamImagePipeline", "HiDream, a transformer"),
        ("Lumina2Pipeline", "Lumina, a transformer"),
        ("ChromaPipeline", "Chroma, a transformer"),
        ("LTXPipeline", "LTX, a video model"),
        ("CogVideoXPipeline", "CogVideoX, a video model"),
        ("MochiPipeline", "Mochi, a video model"),
        ("StableDiffusion3ControlNetPipeline", "Stable Diffusion 3"),
        ("StableDiffusion3ControlNetInpaintingPipeline", "Stable Diffusion 3 with a ControlNet"),
        ("FluxControlNetPipeline", "FLUX.1 with a ControlNet"),
        ("FluxControlPipeline", "FLUX.1 Canny or Depth"),
        ("FluxFillPipeline", "FLUX.1 Fill"),
        ("FluxKontextInpaintPipeline", "FLUX.1 Kontext"),
        ("FluxPriorReduxPipeline", "FLUX.1 Redux"),
        ("Flux2KleinPipeline", "FLUX.2"),
        ("FlaxStableDiffusionPipeline", "weights for JAX"),
        ("OnnxStableDiffusionPipeline", "exported to ONNX"),
        ("OVStableDiffusionPipeline", "exported to OpenVINO"),
        ("ORTStableDiffusionXLPipeline", "exported to ONNX"),
        ("SanaVideoPipeline", "video"),
        ("SanaPipeline", "flow matching"),
        ("IFInpaintingPipeline", "DeepFloyd"),
        ("StableDiffusionXLPAGInpaintPipeline", "inpainting"),
        ("StableDiffusionPAGPipeline", "another way to sample Stable Diffusion"),
        ("StableUnCLIPPipeline", "unCLIP"),
        ("AudioLDM2Pipeline", "audio"),
    ],
)
def test_known_ones_are_named(name, words):
    assert words in explain_pipeline(name, "m")


OWN = ["pipeline", "MyOwnPipeline"]
FOUR, NINE = {"in_channels": 4}, {"in_channels": 9}


@pytest.mark.parametrize(
    ("kind", "index", "unet", "ordinary"),
    [
        ("StableDiffusionPAGPipeline", SD, {}, "StableDiffusionPipeline"),
        ("StableDiffusionXLPAGPipeline", XL, {}, "StableDiffusionXLPipeline"),
        ("LEditsPPPipelineStableDiffusion", SD, {}, "StableDiffusionPipeline"),
        ("StableDiffusionLongPromptWeightingPipeline", SD, {}, "StableDiffusionPipeline"),
        (OWN, SD | {"_class_name": OWN}, {}, "StableDiffusionPipeline"),
        ("WandaPipeline", SD, FOUR, "StableDiffusionPipeline"),
        ("StableDiffusionInpaintPipeline", SD, FOUR, "StableDiffusionPipeline"),
        ("StableDiffusionXLInpaintPipeline", XL, FOUR, "StableDiffusionXLPipeline"),
        ("StableDiffusion3PAGPipeline", SD3, {}, "StableDiffusion3Pipeline"),
        ("StableDiffusion3InpaintPipeline", SD3, {}, "StableDiffusion3Pipeline"),
        ("FluxInpaintPipeline", FLUX, {}, "FluxPipeline"),
        (OWN, FLUX | {"_class_name": OWN}, {}, "FluxPipeline"),
    ],
)
def test_ordinary_parts_are_of_their_family_under_any_name(kind, index, unet, ordinary):
    assert ordinary in family_of(kind, "m", index, lambda: unet).pipelines


@pytest.mark.parametrize(
    ("kind", "index", "unet"),
    [
        ("StableDiffusionInpaintPipeline", SD, NINE),
        ("StableDiffusionInpaintPipeline", SD, {}),
        ("StableDiffusionInstructPix2PixPipeline", SD, {"in_channels": 8}),
        ("StableDiffusionControlNetPipeline", SD | {"controlnet": ["diffusers", "C"]}, FOUR),
        ("StableDiffusionGLIGENPipeline", SD, FOUR),
        ("LatentConsistencyModelPipeline", SD, FOUR),
        ("FluxKontextPipeline", FLUX, {}),
        ("FluxFillPipeline", FLUX, {}),
        ("StableDiffusion3ControlNetPipeline", SD3 | {"controlnet": ["diffusers", "C"]}, {}),
        (OWN, FLUX | {"controlnet": ["diffusers", "C"]}, {}),
        (OWN, SD3 | {"transformer": ["diffusers", "QwenImageTransformer2DModel"]}, {}),
        ("StableDiffusionPAGPipeline", {}, FOUR),
        ("MyOwnPipeline", SD | {"adapter": part("diffusers", "T2IAdapter")}, FOUR),
        ("MyOwnPipeline", SD | {"text_encoder": part("transformers", "T5EncoderModel")}, FOUR),
        (None, {"unet": 3, "vae": [None], "text_encoder": "CLIPTextModel"}, FOUR),
    ],
)
def test_what_has_other_parts_or_another_task_is_refused(kind, index, unet):
    with pytest.raises(ModelError, match="which nulltext cannot edit with"):
        family_of(kind, "m", index, lambda: unet)


def test_a_folder_is_explained_by_its_index(tmp_path):
    index = tmp_path / "model_index.json"
    for kind, said in {
        "StableDiffusionPAGPipeline": None,
        "StableDiffusionInpaintPipeline": "an inpainting checkpoint",
        "WanPipeline": "Wan, a video model",
        "StableDiffusionPipeline": None,
    }.items():
        index.write_text(json.dumps({"_class_name": kind} | SD))
        found = explain(str(tmp_path))
        assert found is None if said is None else said in found
