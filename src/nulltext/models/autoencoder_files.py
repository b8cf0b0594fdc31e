"""An autoencoder in place of a model's own: a folder of diffusers, or a single file.

A single file says by its tensors how wide and how deep it is; what they cannot say (the scale of
the latents, above all) is the model's own, as the UNet was trained on it. Names of the original
code (LDM) become diffusers', and so do the old names of its attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.errors import ModelError, reason_of, shorten
from nulltext.models.adapter_files import AdapterFile, check_kind, opened, shown
from nulltext.models.weight_files import check_config, check_weights
from nulltext.models.weights import modern_attention_name
from nulltext.storage.files import expand_user, path_exists
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
CONFIG = "config.json"
CLASS = "AutoencoderKL"
PREFIXES = ("first_stage_model.", "vae.")
"""What precedes an autoencoder's tensors in a whole checkpoint's file."""
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
LDM_KEY = re.compile(r"(?:encoder\.down|decoder\.up)\.\d+\.block\.")

INSTEAD = "pass an AutoencoderKL of the model's own family"
OTHER_CLASSES = {
    "AutoencoderTiny": "a TAESD, whose latents are only near those of the model",
    "AsymmetricAutoencoderKL": "an asymmetric autoencoder, made for inpainting",
    "ConsistencyDecoderVAE": "a consistency decoder, which samples",
    "VQModel": "a VQ autoencoder, with a codebook",
}
OTHER_KEYS = {
    r"(?:decoder\.)?condition_encoder": "AsymmetricAutoencoderKL",
    r"(?:taesd_)?(?:encoder|decoder)\.layers\.\d|\d+\.(?:weight|conv\.)|taesd_": "AutoencoderTiny",
    r"quantize\.embedding": "VQModel",
}
CHANNELS = {
    3: "an autoencoder with 3 latent channels (KL-f4 or VQ-f4)",
    16: "a Stable Diffusion 3 or FLUX autoencoder, with 16 latent channels",
    32: "a FLUX.2 or DC autoencoder, with 32 latent channels",
}


def autoencoder_files(path: Path) -> tuple[Path | None, Path]:
    """The config and the weights that a path means; no config of a single file.

    Args:
        path: a file, a folder of an autoencoder, or a folder of a pipeline.

    Raises:
        ModelError: the folder has no weights as safetensors, or no config.
    """
    path = expand_user(path)
    if not path_exists(path) or not path.is_dir():
        return None, path
    folders = [folder for folder in (path, path / "vae") if (folder / CONFIG).is_file()]
    for folder in folders:
        for name in WEIGHTS:
            if (folder / name).is_file():
                return folder / CONFIG, folder / name
    raise ModelError(
        f"The folder '{path}' has no autoencoder ({CONFIG} with {WEIGHTS[0]}); pass a folder "
        "written by save_pretrained(), or a .safetensors file."
    )


def load_vae(path: Path, own: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An autoencoder's config and tensors by diffusers' names, as they are stored, on disk still.

    Args:
        own: config of the autoencoder that the model has, which this one is to replace.

    Raises:
        ModelError: a file is missing, damaged, no autoencoder, or one whose latents are of another
            kind than the model's.
    """
    config_file, weights = autoencoder_files(path)
    config = None if config_file is None else _config_of(config_file, own)
    with opened(weights, "autoencoder") as file:
        check_kind(file, "--vae")
        _check_keys(file)
        state = _state(file)
        if config is None:
            config = _config_from(file, state, own)
        _check_latents(file, config, own)
        state = _renamed(state, config)
    _check_complete(weights, config, state)
    return config, state


def _config_of(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's config, completed by the scale of the model's own.

    Raises:
        ModelError: it is damaged, or of another class.
    """
    try:
        config = parse_json(read_text(path, MEGABYTE))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        check_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The autoencoder's '{path}' cannot be read ({reason_of(error)}); get it again."
        ) from error
    kind = config.get("_class_name", CLASS)
    if kind != CLASS:
        raise _refused(
            path.parent, OTHER_CLASSES.get(str(kind), f"of the class {shown(str(kind))}")
        )
    if config.get("scaling_factor") is None:
        config["scaling_factor"] = own["scaling_factor"]
    return config


def _check_keys(file: AdapterFile) -> None:
    for pattern, kind in OTHER_KEYS.items():
        if any(re.match(pattern, name) for name in _names(file).values()):
            raise _refused(file.path, OTHER_CLASSES[kind])


def _names(file: AdapterFile) -> dict[str, str]:
    """Tensors that may be the autoencoder's, by their names in the file, without their prefix."""
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in file.shapes)), "")
    return {name: name.removeprefix(prefix) for name in file.shapes if name.startswith(prefix)}


def _state(file: AdapterFile) -> dict[str, Tensor]:
    """The autoencoder's tensors, without what precedes their names."""
    return {
        short: file.tensor(name) for name, short in _names(file).items() if short.startswith(PARTS)
    }


def _config_from(
    file: AdapterFile, state: Mapping[str, Tensor], own: Mapping[str, Any]
) -> dict[str, Any]:
    """A config by the shapes of a single file's tensors; the rest is the model's own.

    Raises:
        ModelError: there is no encoder and decoder of Stable Diffusion's kind.
    """
    ldm = any(LDM_KEY.match(name) for name in state)
    block = r"encoder\.down\.(\d+)\.block" if ldm else r"encoder\.down_blocks\.(\d+)\.resnets"
    found = re.compile(block + r"\.(\d+)\.conv1\.weight")
    matches = [match for match in map(found.fullmatch, state) if match]
    widths = {int(m[1]): len(state[m[0]]) for m in matches if m[2] == "0"}
    needed = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    complete = all(name in state and state[name].ndim == 4 for name in needed)
    if not complete or sorted(widths) != list(range(len(widths))) or not widths:
        raise ModelError(
            f"'{file.path}' holds no whole autoencoder ({len(state)} tensors of an encoder and a "
            f"decoder); {INSTEAD}."
        )
    depth = 1 + max(int(match[2]) for match in matches)
    known = {name: value for name, value in own.items() if not name.startswith("_")}
    return {
        **known,
        "_class_name": CLASS,
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["encoder.conv_in.weight"].shape[1],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [widths[i] for i in range(len(widths))],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": depth,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
    }


def _check_latents(file: AdapterFile, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse an autoencoder whose latents the model's UNet was not trained on."""
    channels = config.get("latent_channels", own["latent_channels"])
    if channels != own["latent_channels"]:
        what = CHANNELS.get(channels) if isinstance(channels, int) else None
        what = what or f"an autoencoder with {shown(str(channels))} latent channels"
        raise _refused(file.path, f"{what}, where the model's UNet takes {own['latent_channels']}")
    depth, here = (len(each.get("block_out_channels", ())) for each in (config, own))
    if depth != here:
        raise _refused(
            file.path,
            f"an autoencoder that shrinks photos {2 ** (depth - 1)}-fold (such as KL-f4 does "
            f"4-fold), where the model's does {2 ** (here - 1)}-fold"
            if 0 < depth < 8
            else f"an autoencoder of {depth} blocks, where the model's has {here}",
        )
    scale, expected = config["scaling_factor"], own["scaling_factor"]
    if not isinstance(scale, int | float) or abs(scale - expected) > 1e-6:
        raise _refused(
            file.path,
            f"an autoencoder whose latents are scaled by {shown(str(scale))}, where the model's "
            f"are by {expected:g}: it belongs to another family",
        )


def _renamed(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names as the library has them now, and attention's pointwise convolutions as matrices."""
    if any(LDM_KEY.match(name) for name in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        state = convert_ldm_vae_checkpoint(state, dict(config))
    renamed = {}
    for name, tensor in state.items():
        square = ".attentions." in name and name.endswith(".weight") and tensor.ndim > 2
        renamed[modern_attention_name(name)] = tensor.flatten(1) if square else tensor
    return renamed


def _check_complete(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse an autoencoder that lacks weights of its config, or has them in other shapes.

    Raises:
        ModelError: so it is, or the config makes no autoencoder of a size that the file holds.
    """
    from diffusers import AutoencoderKL

    def make() -> Any:
        return AutoencoderKL.from_config(dict(config))

    try:
        module = check_weights(make, config, [path])
        expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    except Exception as error:  # a config may fail anywhere in the libraries
        raise ModelError(
            f"The autoencoder '{path}' cannot be used: {shorten(reason_of(error))}; get it again."
        ) from error
    wrong = [name for name, shape in expected.items() if _shape(state, name) != shape]
    if wrong:
        raise ModelError(
            f"The autoencoder '{path}' lacks {len(wrong)} weights, or has them in other shapes "
            f"({wrong[0]}); get it again."
        )


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(f"'{path}' is {what}; {INSTEAD}.")
