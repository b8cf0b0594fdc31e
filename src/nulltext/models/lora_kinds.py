"""What a LoRA file is: a method that can be merged or not, for which models, and what it says.

Models are told apart by the widths of their layers, and where no width decides by what the trainer
wrote into the file's metadata, which may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from nulltext.errors import ModelError
from nulltext.models.adapter_files import AdapterFile, shown
from nulltext.models.lora_names import split_key

PLAIN = (
    "merge it into a checkpoint with the tool that made it and pass that with --model, or pass a "
    "plain LoRA"
)
OTHER_METHODS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "boft_": "a BOFT",
    "oft_": "an OFT",
    "on_input": "an IA3",
    ".diff_b": "a set of full differences with biases",
    ".diff": "a set of full differences",
    ".w_norm": "a LyCORIS with norms",
    ".b_norm": "a LyCORIS with norms",
    ".a1.weight": "a GLoRA",
    "lora_embedding_": "a LoRA with embeddings",
}
"""Other methods than LoRA, by a part of a key."""
BIAS = re.compile(r"lora[._](?:linear_layer\.)?(?:up|down|A|B)(?:\.[\w-]+)?\.bias$")

WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "Stable Diffusion XL",
}
"""Families by the width of their prompts, which cross-attention reads."""
CROSS = re.compile(r"attn2[._](?:processor\.)?to_[kv]$")

OTHER_MODELS = {
    "single_transformer_blocks": "FLUX",
    "double_blocks": "FLUX or a transformer like it",
    "joint_blocks": "Stable Diffusion 3",
    "add_q_proj": "Stable Diffusion 3 or FLUX",
    "lora_prior_": "Stable Cascade",
    "diffusion_model.blocks.": "Wan, a video model",
    "cross_attn": "Wan, a video model",
    "temporal_": "a video model",
    "motion_modules": "AnimateDiff, a video model",
    "transformer_blocks_0_attn_": "a diffusion transformer",
    "transformer.": "a diffusion transformer",
    "lora_transformer_": "a diffusion transformer",
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
}
"""Models by a part of a key that only theirs have, the surest first."""
UNET_KEY = re.compile(r"(?:down|up)_blocks[._]\d|mid_block|(?:input|output)_blocks_\d|middle_block")

BASES = {
    r"stable-diffusion-xl|sdxl": "Stable Diffusion XL",
    r"stable-diffusion-v?3|sd_?3": "Stable Diffusion 3",
    r"stable-diffusion-v2|sd_?v?2": "Stable Diffusion 2",
    r"stable-diffusion-v1|sd_?v?1": "Stable Diffusion 1",
    r"flux": "FLUX",
    r"wan": "Wan, a video model",
    r"hunyuan|qwen|lumina|chroma|pixart|sana|auraflow": "a diffusion transformer",
}
"""Models by how their names begin in the metadata of a LoRA."""
SAID_BASE = ("modelspec.architecture", "ss_base_model_version")

DISTILLED = re.compile(
    r"(?:^|[^a-z])(lcm|lightning|hyper-?sd\w*|turbo|dmd2?|tcd|pcm|flash-?sd\w*)(?:[^a-z]|$)",
    re.IGNORECASE,
)
"""Parts of the names of LoRAs that distil a model to a few steps."""
MAX_TITLE = 200
MAX_TRIGGERS = 3


def check_method(file: AdapterFile) -> None:
    """Refuse what is no plain low-rank difference of weights.

    Raises:
        ModelError: the keys are of another method; names it.
    """
    for name in file.shapes:
        method = next((what for part, what in OTHER_METHODS.items() if _has(name, part)), None)
        if BIAS.search(name):
            method = "a LoRA with biases"
        if method is not None:
            raise ModelError(
                f"The LoRA '{file.path.name}' is {method} ({shown(name)}), which nulltext cannot "
                f"merge; {PLAIN}."
            )


def _has(name: str, part: str) -> bool:
    """Whether a key has a part; full differences are told by the key's end (`diffusion_model`)."""
    return name.endswith(part) if part.startswith(".diff") else part in name


def meant_for(file: AdapterFile) -> str | None:
    """The models that a LoRA was trained on, as far as it tells."""
    for name, shape in file.shapes.items():
        stem, role = split_key(name) or ("", "")
        if role == "down" and CROSS.search(stem) and len(shape) > 1 and shape[1] in WIDTHS:
            return WIDTHS[shape[1]]
    unet = any(UNET_KEY.search(name) for name in file.shapes)
    for part, model in OTHER_MODELS.items():
        clear = model == "Stable Diffusion XL" or "video" in model
        if (clear or not unet) and any(part in name for name in file.shapes):
            return model
    for key in SAID_BASE:
        said = file.metadata.get(key, "").lower()
        for pattern, model in BASES.items():
            if re.match(pattern, said):
                return model
    return None


def model_is(modules: Mapping[str, nn.Module]) -> str:
    """What a model is, by its UNet: "Stable Diffusion 1 (prompt width 768)"."""
    config: Any = modules["unet"].config
    width = config.cross_attention_dim
    named = WIDTHS.get(width) if isinstance(width, int) else None
    return f"{named or 'a model of its own kind'} (prompt width {width})"


def notes_on(file: AdapterFile) -> Iterator[str]:
    """What a LoRA's name and metadata tell the one who uses it."""
    name = file.path.name
    titles = (name, file.path.parent.name, file.metadata.get("modelspec.title", "")[:MAX_TITLE])
    match = next(filter(None, map(DISTILLED.search, titles)), None)
    if match:
        yield (
            f"Note: by its name ({match[1]}), the LoRA '{name}' distils a model to a few steps "
            "without guidance; inversions, which take many steps with guidance, come out worse "
            "with it."
        )
    words = _trigger_words(file)
    if words:
        yield f"Note: the LoRA '{name}' was trained with the words {', '.join(map(repr, words))}."


def _trigger_words(file: AdapterFile) -> list[str]:
    """What a prompt should say for a LoRA to act: its own phrase, or its most frequent tags."""
    phrase = file.metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return [shown(phrase)]
    try:
        folders = file.json("ss_tag_frequency")
    except ValueError:
        return []
    counts: dict[str, float] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int | float) and math.isfinite(count) and tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    most = sorted(counts, key=lambda tag: -counts[tag])[:MAX_TRIGGERS]
    return [shown(tag, 40) for tag in most if 2 * counts[tag] > counts[most[0]]]
