"""Which pipelines are which family, what a family is made of, and who is refused by name.

The one place where the name of a diffusers pipeline becomes a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nulltext.errors import ModelError, OptionError, shorten
from nulltext.image.images import SDXL_BUCKETS
from nulltext.models.sdxl import StableDiffusionXLText
from nulltext.models.strangers import WORKS, explain_pipeline, ordinary_pipeline
from nulltext.models.text import ClipText, StableDiffusionText, TextConditioner

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

MAX_SIDE = 1024
"""Of the latents that a model may be made for: 8192 pixels in Stable Diffusion."""

Parts = Mapping[str, Any]
"""Modules and tokenizers by their names in a checkpoint's folder."""


@dataclass(frozen=True)
class Family:
    """Checkpoints of one layout."""

    pipelines: tuple[str, ...]
    """Names of the diffusers pipelines."""
    modules: Mapping[str, str]
    """Class of each component with weights."""
    tokenizers: tuple[str, ...]
    text: Callable[[Parts, Mapping[str, Any]], TextConditioner]
    """Makes the conditioner of the parts and the pipeline's config."""
    added: str | None = None
    """What its UNets take beside latents, timestep and token rows: their `addition_embed_type`."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Sides that it was trained at; see `LatentDiffusion`."""


def _stable_diffusion_text(parts: Parts, _: Mapping[str, Any]) -> TextConditioner:
    return StableDiffusionText(ClipText(parts["tokenizer"], parts["text_encoder"]))


def _sdxl_text(parts: Parts, config: Mapping[str, Any]) -> TextConditioner:
    return StableDiffusionXLText(
        ClipText(parts["tokenizer"], parts["text_encoder"]),
        ClipText(parts["tokenizer_2"], parts["text_encoder_2"]),
        zero_empty=bool(config.get("force_zeros_for_empty_prompt", True)),
    )


BACKBONE = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}

FAMILIES: list[Family] = [
    Family(
        pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        modules=BACKBONE,
        tokenizers=("tokenizer",),
        text=_stable_diffusion_text,
    ),
    Family(
        pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        modules={**BACKBONE, "text_encoder_2": "CLIPTextModelWithProjection"},
        tokenizers=("tokenizer", "tokenizer_2"),
        text=_sdxl_text,
        added="text_time",
        buckets=SDXL_BUCKETS,
    ),
]


def register_family(family: Family) -> Family:
    """Add a family for this process, before its models are loaded.

    Raises:
        OptionError: a pipeline of that name is in another family.
    """
    taken = {name for other in FAMILIES for name in other.pipelines} & {*family.pipelines}
    if taken:
        raise OptionError(f"The pipeline {min(taken)} is in a family; register another name.")
    FAMILIES.append(family)
    return family


LATENT_CHANNELS = 4

EXTRA_CHANNELS = {
    9: "an inpainting checkpoint's: latents, mask and masked photo",
    8: "an instruction-editing checkpoint's: latents and photo",
    7: "an upscaler's: latents and small photo",
    5: "a depth checkpoint's: latents and depth map",
}
"""What UNets of more than four input channels take, by their number."""


def family_of(
    kind: object,
    model: str,
    index: Mapping[str, Any],
    unet: Callable[[], Mapping[str, Any]] = dict,
) -> Family:
    """The family of a pipeline: by its class name, or where that is of none by its parts.

    Args:
        index: model_index.json, which names the classes of the parts.
        unet: reads the UNet's config, where that can be read.

    Raises:
        ModelError: it is of none; names what it is.
    """
    named = {name: family for family in FAMILIES for name in family.pipelines}
    if isinstance(kind, str) and kind in named:
        return named[kind]
    found = ordinary_pipeline(kind, index, lambda: unet().get("in_channels") == LATENT_CHANNELS)
    if found is None:
        raise ModelError(explain_pipeline(kind, model))
    return named[found]


def check_not_refiner(config: Mapping[str, Any], model: str) -> None:
    """Refuse SDXL's second stage.

    Raises:
        ModelError: the config asks for an aesthetics score, as only the refiner does.
    """
    if config.get("requires_aesthetics_score"):
        raise ModelError(
            f"The model '{model}' is the SDXL refiner, which only finishes what the base model "
            f"began; {WORKS}."
        )


def check_config(family: Family, config: Mapping[str, Any], model: str) -> None:
    """Refuse what a pipeline's index says that cannot work.

    Args:
        config: model_index.json.

    Raises:
        ModelError: it is a refiner, or a component is of another class than its family's.
    """
    check_not_refiner(config, model)
    classes: dict[str, tuple[str, ...]] = {name: (kind,) for name, kind in family.modules.items()}
    classes |= dict.fromkeys(family.tokenizers, TOKENIZERS)
    for name, allowed in classes.items():
        entry = config.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in allowed:
            what = f"The {name} of the model '{model}' is of class {shorten(str(found))}"
            if found is None:
                what = f"The model '{model}' has no {name}"
            raise ModelError(f"{what}, expected {allowed[0]}; {WORKS}.")


def check_architecture(family: Family, parts: Parts, text: TextConditioner, model: str) -> None:
    """Refuse what would run but could not be right.

    Raises:
        ModelError: the UNet takes more than latents and prompt, or the parts do not fit together.
    """
    unet, vae = parts["unet"].config, parts["vae"].config
    _check_latents(unet, vae, model)
    _check_conditioning(family, unet, text, model)
    for tokenizer, encoder in zip(family.tokenizers, text.modules, strict=True):
        known = parts[encoder].get_input_embeddings().num_embeddings
        if len(parts[tokenizer]) > known:
            raise ModelError(
                f"The {tokenizer} of the model '{model}' has {len(parts[tokenizer])} tokens, its "
                f"{encoder} knows {known}; the parts belong to different models."
            )


def _check_latents(unet: Any, vae: Any, model: str) -> None:
    sides = unet.sample_size if isinstance(unet.sample_size, list | tuple) else [unet.sample_size]
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise ModelError(
            f"The UNet of the model '{model}' has a sample_size of "
            f"{shorten(repr(unet.sample_size))}, expected latents of 1 to {MAX_SIDE} a side; "
            "get the model again."
        )
    if unet.in_channels != vae.latent_channels:
        what = EXTRA_CHANNELS.get(unet.in_channels, "those of another kind of model")
        raise ModelError(
            f"The UNet of the model '{model}' takes {unet.in_channels} channels ({what}) where its "
            f"autoencoder has {vae.latent_channels}; {WORKS}."
        )
    if getattr(vae, "latents_mean", None) is not None:
        raise ModelError(
            f"The autoencoder of the model '{model}' normalises its latents by mean and deviation "
            f"(latents_mean), as no Stable Diffusion does; {WORKS}."
        )


def _check_conditioning(family: Family, unet: Any, text: TextConditioner, model: str) -> None:
    if unet.time_cond_proj_dim is not None:
        raise ModelError(
            f"The model '{model}' is a consistency model (its UNet takes the guidance scale as an "
            f"input), whose guidance cannot be split into two branches; {WORKS}."
        )
    extras = (unet.addition_embed_type, unet.class_embed_type, unet.encoder_hid_dim_type)
    if extras != (family.added, None, None):
        raise ModelError(
            f"The UNet of the model '{model}' takes {_named(extras)} beside the prompt, expected "
            f"{family.added or 'nothing'} in a {family.pipelines[0]}; {WORKS}."
        )
    _, width = text.embeds_shape
    if unet.cross_attention_dim != width:
        raise ModelError(
            f"The text encoders of the model '{model}' have width {width}, its UNet expects "
            f"{unet.cross_attention_dim}; the parts belong to different models."
        )
    made, wanted = text.added_numbers(unet), unet.projection_class_embeddings_input_dim
    if made != wanted:
        raise ModelError(
            f"The UNet of the model '{model}' expects {wanted} numbers of pooled text and size, "
            f"and there are {made}: its size conditioning is another (as the SDXL refiner's); "
            f"{WORKS}."
        )


def _named(extras: tuple[object, ...]) -> str:
    return ", ".join(str(extra) for extra in extras if extra) or "nothing"
