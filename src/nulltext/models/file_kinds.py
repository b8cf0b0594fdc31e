"""What a safetensors file holds, by its header alone: tensor names, shapes and metadata.

No tensor is read, and nothing is opened but the JSON header, whose length is looked at first. Kinds
are known by the names that published files have: those of the original training code ("ldm"), of
diffusers and of the common trainers. A kind is known to nulltext as an option's file ("a LoRA"
belongs to --lora), or only by name, to say what it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nulltext.errors import ModelError, reason_of
from nulltext.models.foreign_files import PASS, check_readable, explain_bytes, shown
from nulltext.models.strangers import TASKS, WORKS
from nulltext.storage.inversion_file import LENGTH_BYTES, METADATA_KEY
from nulltext.storage.untrusted import MEGABYTE, parse_json

MAX_HEADER_BYTES = 8 * MEGABYTE
"""SDXL's checkpoint has a header of 0.4 MiB."""

FileKind = Literal[
    "checkpoint", "no-vae", "unet-only", "inpainting", "instruction", "depth", "upscaler",
    "sdxl-refiner", "lora", "embedding", "vae", "inversion", "controlnet", "t2i-adapter",
    "ip-adapter", "motion", "sd3", "flux", "other-model", "text-encoder", "language-model",
    "unknown",
]  # fmt: skip

Option = Literal["--model", "--lora", "--embedding", "--vae", "--inversion"]

OPTION_OF: Mapping[str, Option] = {
    "checkpoint": "--model",
    "no-vae": "--model",
    "lora": "--lora",
    "embedding": "--embedding",
    "vae": "--vae",
    "inversion": "--inversion",
}
"""Which option takes a file, by its kind."""

EXPECTED: Mapping[Option, tuple[str, str]] = {
    "--model": ("a whole checkpoint", WORKS),
    "--lora": ("a LoRA", "pass the .safetensors file of a LoRA"),
    "--embedding": ("a learnt embedding", "pass the .safetensors file of a learnt embedding"),
    "--vae": ("an autoencoder", "pass the .safetensors file of an autoencoder"),
    "--inversion": ("a saved inversion", "make one with `nulltext invert`"),
}
"""What each option takes, and what to do without one."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file declares."""

    shapes: Mapping[str, Sequence[int]]
    """Of the tensors, by name."""
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Sign:
    """How a kind of file is known, and what it is called."""

    kind: FileKind
    what: str
    mark: str
    """A pattern that is found in a tensor's name."""


MODEL = r"^(?:model\.diffusion_model\.|diffusion_model\.|transformer\.|net\.)?"

SIGNS = (
    Sign("ip-adapter", "an IP-Adapter", r"^(image_proj|ip_adapter)\."),
    Sign("lora", "a LoRA", r"^lora_|[._]lora[._]|\.hada_w|\.lokr_w|\.oft_|\.dora_scale"),
    Sign(
        "controlnet",
        "a ControlNet",
        r"^control_model\.|controlnet_(cond|down|mid)|^lllite_|^input_hint_block|^control_(all|lay)",
    ),
    Sign("t2i-adapter", "a T2I-Adapter", r"^(adapter\.)?body\.\d+\.(resnets|block1|in_conv)"),
    Sign("other-model", "a video model", r"^model\.diffusion_model\..*\.time_(stack|mixer)"),
    Sign("motion", "AnimateDiff's motion modules", r"motion_modules|temporal_transformer"),
    Sign("other-model", "a consistency model", r"\.?time_embed(ding)?\.cond_proj\."),
    Sign("other-model", "unCLIP", r"^(embedder\.model\.visual|noise_augmentor)\."),
    Sign("other-model", "a GLIGEN checkpoint", r"position_net\."),
    Sign("other-model", "Playground 2.5", r"^edm_(mean|vp_sigma)"),
    Sign("sdxl-refiner", "the SDXL refiner", r"^conditioner\.embedders\.0\.model\."),
    Sign("checkpoint", "a checkpoint", r"^model\.diffusion_model\.input_blocks\."),
    Sign("sd3", "Stable Diffusion 3", MODEL + r"joint_blocks\."),
    Sign("other-model", "Chroma", MODEL + r"distilled_guidance_layer\."),
    Sign("other-model", "HunyuanVideo", MODEL + r"txt_in\.individual_token_refiner"),
    Sign("other-model", "HiDream", MODEL + r"double_stream_blocks\."),
    Sign("other-model", "AuraFlow", MODEL + r"(double_layers|joint_transformer_blocks)\."),
    Sign(
        "flux",
        "FLUX",
        MODEL + r"(double_blocks|single_transformer_blocks|single_stream|early_stream)",
    ),
    Sign("other-model", "Z-Image", MODEL + r"layers\.\d+\.adaLN_modulation\.0\."),
    Sign("other-model", "Lumina", MODEL + r"cap_embedder\."),
    Sign("other-model", "Wan", MODEL + r"(head\.modulation|vace_blocks\.)"),
    Sign("other-model", "LTX", MODEL + r"patchify_proj\."),
    Sign("other-model", "Mochi", MODEL + r"blocks\.\d+\.attn\.qkv_x\."),
    Sign("other-model", "Sana or PixArt", MODEL + r"blocks\.\d+\.cross_attn\.kv_linear\."),
    Sign(
        "other-model", "Qwen-Image", MODEL + r"(txt_in\.text_norm|transformer_blocks\.\d+\.img_m)"
    ),
    Sign("other-model", "Cosmos", r"^net\.(x_embedder|blocks)\."),
    Sign(
        "other-model",
        "Stable Cascade",
        MODEL + r"(clip_txt_mapper|down_blocks\.\d+\.\d+\.channelw)",
    ),
    Sign("other-model", "a diffusion transformer", MODEL + r"transformer_blocks\.\d+\."),
    Sign("other-model", "another kind of model", r"^model\.diffusion_model\."),
    Sign(
        "unet-only",
        "a UNet alone",
        r"^(unet\.)?time_embedding\.|^(diffusion_model\.)?input_blocks\.",
    ),
    Sign(
        "other-model",
        "a small autoencoder (TAESD)",
        r"^(encoder|decoder)\.(layers\.)?\d+\.(conv|weight)",
    ),
    Sign(
        "vae",
        "an autoencoder (VAE)",
        r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|down|up|mid)(_blocks?)?\.",
    ),
    Sign(
        "text-encoder",
        "a text encoder",
        r"text_model\.(encoder|embeddings)|transformer\.resblocks|^embeddings\.token_embedding\.",
    ),
    Sign("text-encoder", "a T5 text encoder", r"^encoder\.block\.\d+\.layer\."),
    Sign(
        "text-encoder", "an image encoder (CLIP)", r"vision_model\.|^embeddings\.patch_embedding\."
    ),
    Sign(
        "language-model",
        "a language model",
        r"^lm_head\.|layers\.\d+\.self_attn\.|^(transformer\.)?h\.\d+\.attn|attention\.self\.query",
    ),
    Sign(
        "other-model",
        "an enlarger of pictures (ESRGAN)",
        r"^conv_first\.|\.rdb\d|\.RDB\d|^model\.0\.w",
    ),
    Sign("embedding", "a learnt embedding", r"^(emb_params|clip_[lg])$"),
)
"""First found counts."""

CHANNELS: Mapping[int, tuple[FileKind, str]] = {
    9: ("inpainting", TASKS["Inpaint"]),
    8: ("instruction", TASKS["InstructPix2Pix"]),
    7: ("upscaler", TASKS["Upscale"]),
    5: ("depth", TASKS["Depth2Img"]),
}
"""What checkpoints are, by the channels that their UNets take."""


def kind_of_file(path: Path) -> FileKind:
    """The kind of a safetensors file.

    Raises:
        ModelError: it is none, a damaged one, or cannot be read; says what it is.
    """
    return sign_of(read_header(path)).kind


def explain_kind(path: Path, option: Option = "--model") -> str | None:
    """Say in one sentence why a file cannot be what an option takes; None where it may be.

    What is not known by its tensors is refused as a model only: adapters come in many layouts.

    Raises:
        ModelError: see `kind_of_file`.
    """
    header = read_header(path)
    sign = sign_of(header)
    right = OPTION_OF.get(sign.kind)
    if right == option or (sign.kind == "unknown" and option != "--model"):
        return None
    expected, advice = EXPECTED[option]
    what = sign.what
    if sign.kind == "unknown":
        names = ", ".join(shown(name) for name in sorted(header.shapes)[:2]) or "no tensors"
        what = f"a safetensors file of an unknown kind ({names})"
    if right is not None:
        beside = "" if right == "--model" else ", beside the --model that it was made for"
        advice = f"pass it as {right} {shlex.quote(str(path))}{beside}"
    return f"'{path}' is {what}, not {expected}; {advice}."


def sign_of(header: Header) -> Sign:
    """What a file's tensors say that it is."""
    if METADATA_KEY in header.metadata:
        return Sign("inversion", "a saved inversion", "")
    names = "\n".join(header.shapes)
    for sign in SIGNS:
        if re.search(sign.mark, names, re.MULTILINE):
            return _checkpoint(header, names) if sign.kind == "checkpoint" else sign
    few = 0 < len(header.shapes) <= MOST_EMBEDDINGS and "." not in "".join(header.shapes)
    if few and all(1 <= len(shape) <= FLAT for shape in header.shapes.values()):
        return Sign("embedding", "a learnt embedding", "")
    return Sign("unknown", "a file of an unknown kind", "")


MOST_EMBEDDINGS, FLAT = 16, 2
"""Learnt words in one file, and dimensions of their tensors."""


def _checkpoint(header: Header, names: str) -> Sign:
    """Which of those checkpoints it is that lie in one file in the original layout."""
    first = header.shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    if len(first) > 1 and first[1] in CHANNELS:
        kind, what = CHANNELS[first[1]]
        return Sign(kind, what, "")
    if not re.search(r"^(cond_stage_model|conditioner\.embedders)\.", names, re.MULTILINE):
        return Sign("unet-only", "a UNet without its text encoders", "")
    if not re.search(r"^(first_stage_model|vae)\.", names, re.MULTILINE):
        return Sign("no-vae", "a checkpoint without its autoencoder (VAE)", "")
    return Sign("checkpoint", "a whole checkpoint", "")


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        ModelError: it is no such file, or cut off, damaged, or not to be read; says which.
    """
    check_readable(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(LENGTH_BYTES + 1)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if start[LENGTH_BYTES:] != b"{" or not 0 < length <= MAX_HEADER_BYTES:
            raise ModelError(explain_bytes(path) or _unknown(path))
        text = start[LENGTH_BYTES:] + stream.read(length - 1)
    if len(text) < length:
        raise _cut_off(path, size, LENGTH_BYTES + length)
    try:
        content = parse_json(text.decode("utf-8"))
        metadata = content.pop("__metadata__", {})
        shapes = {name: [int(side) for side in entry["shape"]] for name, entry in content.items()}
        ends = [int(entry["data_offsets"][1]) for entry in content.values()]
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no JSON object")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"'{path}' has a damaged safetensors header ({reason_of(error)}); get it again."
        ) from error
    whole = LENGTH_BYTES + length + max(ends, default=0)
    if size < whole:
        raise _cut_off(path, size, whole)
    return Header(shapes, metadata)


def _unknown(path: Path) -> str:
    if path.suffix == ".safetensors":
        return f"'{path}' is no safetensors file, but for its name; get it again."
    return f"'{path}' is a file of an unknown kind; {PASS}."


def _cut_off(path: Path, size: int, whole: int) -> ModelError:
    return ModelError(
        f"'{path}' is cut off, as by a download that stopped: {size:,} of {whole:,} bytes are "
        "there; get it again."
    )
