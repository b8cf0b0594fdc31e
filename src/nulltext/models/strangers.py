"""What the pipelines of other kinds of model are, by the names of their classes.

A class name is looked up by its beginning, which says the architecture; what begins as Stable
Diffusion does is looked up by the part that says what its UNet takes beside latents and prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nulltext.errors import shorten

WORKS = "pass a Stable Diffusion 1.x, 2.x or XL base text-to-image checkpoint"

ANOTHER = "another kind of model"
ONLY_SAMPLES = "another way to sample Stable Diffusion"
VIDEO = "a video model"
AUDIO = "an audio model"
FLOW = "a transformer trained by flow matching"
PIXELS = "a model without prompts that samples in pixels"
TEXT = "a language model"

TASKS = {
    "Inpaint": "an inpainting checkpoint, whose UNet also takes a mask and the masked photo",
    "PaintByExample": "an inpainting checkpoint, whose UNet also takes a mask and an example",
    "InstructPix2Pix": "an instruction-editing checkpoint, whose UNet also takes the photo",
    "Depth2Img": "a depth checkpoint, whose UNet also takes a depth map",
    "LDM3D": "a model of pictures with depth maps, whose autoencoder has other channels",
    "Upscale": "an upscaler, whose UNet also takes the small photo",
    "ImageVariation": "an image-variation checkpoint, which takes a picture in place of a prompt",
    "ControlNet": "a ControlNet pipeline, whose UNet also takes a control picture",
    "Controlnet": "a ControlNet pipeline, whose UNet also takes a control picture",
    "Adapter": "a T2I-Adapter pipeline, whose UNet also takes a control picture",
    "GLIGEN": "a GLIGEN checkpoint, whose UNet also takes boxes",
    "UnCLIP": "unCLIP, which samples from image embeddings",
    "Video": VIDEO,
    "Audio": AUDIO,
    "Music": AUDIO,
    "Modular": "a modular pipeline, whose parts lie in other models",
    "PAG": ONLY_SAMPLES,
    "SAG": ONLY_SAMPLES,
    "Panorama": ONLY_SAMPLES,
    "AttendAndExcite": ONLY_SAMPLES,
    "DiffEdit": ONLY_SAMPLES,
    "Pix2PixZero": ONLY_SAMPLES,
    "ModelEditing": ONLY_SAMPLES,
    "Paradigms": ONLY_SAMPLES,
    "SemanticStable": ONLY_SAMPLES,
    "LEditsPP": ONLY_SAMPLES,
    "CycleDiffusion": ONLY_SAMPLES,
    "Safe": ONLY_SAMPLES,
}
"""What pipelines are whose beginning says nothing, by a part of their names."""

ARCHITECTURES = {
    "Flax": "weights for JAX, where nulltext reads safetensors for PyTorch",
    "Onnx": "a model exported to ONNX, which only runs and cannot be optimised through",
    "ORT": "a model exported to ONNX, which only runs and cannot be optimised through",
    "OV": "a model exported to OpenVINO, which only runs and cannot be optimised through",
    "Neuron": "a model compiled for Neuron chips",
    "StableDiffusionOnnx": "a model exported to ONNX, which only runs",
    "StableDiffusion3": "Stable Diffusion 3, a transformer trained by flow matching",
    "Flux": f"FLUX, {FLOW}",
    "Chroma": f"Chroma, {FLOW}",
    "Wan": f"Wan, {VIDEO}",
    "ZImage": f"Z-Image, {FLOW}",
    "QwenImage": f"Qwen-Image, {FLOW}",
    "HiDream": f"HiDream, {FLOW}",
    "Lumina": f"Lumina, {FLOW}",
    "LTX": f"LTX, {VIDEO}",
    "CogVideoX": f"CogVideoX, {VIDEO}",
    "CogView": "CogView, a transformer with another text encoder",
    "Mochi": f"Mochi, {VIDEO}",
    "PixArt": "PixArt, a transformer with a T5 text encoder",
    "Sana": f"Sana, {FLOW}",
    "SanaVideo": f"Sana, {VIDEO}",
    "SanaImageToVideo": f"Sana, {VIDEO}",
    "SanaWM": f"Sana, {VIDEO}",
    "HunyuanDiT": "Hunyuan-DiT, a transformer with two text encoders",
    "HunyuanImage": f"HunyuanImage, {FLOW}",
    "HunyuanVideo": f"HunyuanVideo, {VIDEO}",
    "HunyuanSkyreels": f"HunyuanVideo, {VIDEO}",
    "AuraFlow": f"AuraFlow, {FLOW}",
    "Kolors": "Kolors, a UNet with a language model as its text encoder",
    "AltDiffusion": "AltDiffusion, whose text encoder is XLM-RoBERTa in place of CLIP",
    "Kandinsky": "Kandinsky, which samples from image embeddings",
    "Kandinsky3": "Kandinsky 3, a UNet with a T5 text encoder",
    "Kandinsky5": f"Kandinsky 5, {FLOW}",
    "Kandinsky6": f"Kandinsky 6, {VIDEO}",
    "StableCascade": "Stable Cascade, which samples in stages from image embeddings",
    "Wuerstchen": "Würstchen, which samples in stages from image embeddings",
    "UnCLIP": "unCLIP, which samples from image embeddings",
    "StableUnCLIP": "unCLIP, which samples from image embeddings",
    "UniDiffuser": "UniDiffuser, a transformer over pictures and texts",
    "VersatileDiffusion": "Versatile Diffusion, whose UNet also takes image embeddings",
    "BlipDiffusion": "BLIP-Diffusion, which samples from a picture of the subject",
    "VQDiffusion": "VQ-Diffusion, which samples discrete tokens",
    "Amused": "aMUSEd, which samples discrete tokens",
    "LatentConsistency": "a consistency model, distilled to a few steps without guidance",
    "ConsistencyModel": PIXELS,
    "TextToVideoZero": ONLY_SAMPLES,
    "AnimateDiff": f"AnimateDiff, {VIDEO}",
    "StableVideo": f"Stable Video Diffusion, {VIDEO}",
    "Allegro": f"Allegro, {VIDEO}",
    "AnyFlow": f"AnyFlow, {VIDEO}",
    "ChronoEdit": f"ChronoEdit, {VIDEO}",
    "ConsisID": f"ConsisID, {VIDEO}",
    "Cosmos": f"Cosmos, {VIDEO}",
    "EasyAnimate": f"EasyAnimate, {VIDEO}",
    "Echo": f"Echo, {VIDEO}",
    "Helios": f"Helios, {VIDEO}",
    "I2VGenXL": f"I2VGen-XL, {VIDEO}",
    "Latte": f"Latte, {VIDEO}",
    "LucyEdit": f"Lucy Edit, {VIDEO}",
    "MiniMaxH3": f"MiniMax-H3, {VIDEO}",
    "MotifVideo": f"Motif-Video, {VIDEO}",
    "PIA": f"PIA, {VIDEO}",
    "SkyReels": f"SkyReels, {VIDEO}",
    "Anima": "Anima, a transformer with another text encoder",
    "Bria": "Bria, a transformer with another text encoder",
    "DreamLite": "DreamLite, a small UNet with another text encoder",
    "ErnieImage": "ERNIE-Image, a transformer with another text encoder",
    "GlmImage": "GLM-Image, a transformer with another text encoder",
    "Ideogram": "Ideogram, a transformer with another text encoder",
    "JoyImage": "JoyImage, a transformer with another text encoder",
    "Krea": "Krea, a transformer with another text encoder",
    "LongCatImage": "LongCat-Image, a transformer with another text encoder",
    "NucleusMoE": "Nucleus, a transformer with another text encoder",
    "OmniGen": "OmniGen, a transformer that reads texts and pictures",
    "OvisImage": "Ovis-Image, a transformer with another text encoder",
    "PRX": "PRX, a transformer with another text encoder",
    "VisualCloze": "VisualCloze, a transformer that reads grids of pictures",
    "IF": "DeepFloyd IF, which samples in pixels",
    "LDMTextToImage": "Latent Diffusion, whose text encoder is BERT in place of CLIP",
    "LDMSuperResolution": "an upscaler, whose UNet also takes the small photo",
    "LDM": "a latent diffusion model without prompts",
    "DiT": "DiT, a transformer that takes classes in place of prompts",
    "Marigold": "Marigold, which predicts depth or normals of a photo",
    "ShapE": "Shap-E, which makes 3-D shapes",
    "RFD4": "a model of molecules",
    "DiffusionGemma": TEXT,
    "LLaDA": TEXT,
    "DDIM": PIXELS,
    "DDPM": PIXELS,
    "PNDM": PIXELS,
    "ScoreSde": PIXELS,
    "KarrasVe": PIXELS,
    "RePaint": PIXELS,
    "AceStep": f"ACE-Step, {AUDIO}",
    "DanceDiffusion": f"Dance Diffusion, {AUDIO}",
    "SpectrogramDiffusion": f"Spectrogram Diffusion, {AUDIO}",
    "StableAudio": f"Stable Audio, {AUDIO}",
    "MiniMaxMusic": f"MiniMax Music, {AUDIO}",
}
"""What pipelines are, by the beginnings of their names."""

TRAINED_OTHERWISE = (TASKS["GLIGEN"], ARCHITECTURES["LatentConsistency"])
"""Kinds that the classes and channels of their parts do not tell from Stable Diffusion."""

ORDINARY = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
"""Classes of Stable Diffusion's parts."""


def explain_pipeline(class_name: object, model: str) -> str:
    """Say in one sentence what a pipeline is that nulltext cannot edit with, and what to do.

    Args:
        class_name: `_class_name` of model_index.json.
    """
    name = _plain(class_name)
    return (
        f"The model '{model}' is of class {shorten(name)} ({_what(name)}), which nulltext cannot "
        f"edit with; {WORKS}."
    )


def ordinary_pipeline(
    class_name: object, index: Mapping[str, Any], takes_latents: Callable[[], bool]
) -> str | None:
    """The pipeline of Stable Diffusion whose parts a pipeline of another name has; None where its
    parts are others, or were trained for something else.

    Args:
        class_name: `_class_name` of model_index.json.
        index: model_index.json, which names the classes of the parts.
        takes_latents: whether the UNet takes latents alone; asked where the name says otherwise.
    """
    what = _what(_plain(class_name))
    ordinary = None if what in TRAINED_OTHERWISE else _ordinary(index)
    if ordinary is None or what in (ONLY_SAMPLES, ANOTHER):
        return ordinary
    return ordinary if takes_latents() else None


def _plain(class_name: object) -> str:
    """The name, without the file of code that some pipelines name before it."""
    return str(class_name[-1]) if isinstance(class_name, list) and class_name else str(class_name)


def _what(name: str) -> str:
    begins = sorted((begin for begin in ARCHITECTURES if name.startswith(begin)), key=len)
    if begins:
        return ARCHITECTURES[begins[-1]]
    holds = sorted((part for part in TASKS if part in name), key=len)
    return TASKS[holds[-1]] if holds else ANOTHER


def _ordinary(index: Mapping[str, Any]) -> str | None:
    """The pipeline whose parts an index names, with nothing of another kind beside them."""
    made = {
        name: entry[1]
        for name, entry in index.items()
        if not name.startswith("_")  # `_class_name` may be such a list, too
        and (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str))
    }
    wanted, pipeline = dict(ORDINARY), "StableDiffusionPipeline"
    if "text_encoder_2" in made:
        pipeline = "StableDiffusionXLPipeline"
        wanted |= {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
    same = all(made.get(name) == kind for name, kind in wanted.items())
    beside = {"scheduler", "inverse_scheduler", "safety_checker", "feature_extractor"}
    beside |= {"image_encoder"}
    return pipeline if same and not made.keys() - wanted.keys() - beside else None
