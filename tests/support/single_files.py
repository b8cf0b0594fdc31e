"""Single-file checkpoints: components under the names of the programs that trained them.

The UNet and the autoencoder have the names of latent-diffusion (CompVis, `openaimodel.py` and
`diffusionmodules/model.py`): the UNet's blocks are counted through all resolutions, the
autoencoder's attention is made of 1 x 1 convolutions, its decoder counts resolutions from the
finest. The text encoder of 1.x, and the first of XL, has the names of transformers; that of 2.x,
and the second of XL, those of OpenCLIP, which keeps query, key and value in one matrix.

Written from those layouts by hand, so that it is independent of the conversions in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPENCLIP_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def single_file(kind: str, parts: Mapping[str, State]) -> State:
    """All components of a checkpoint as the tensors of one file.

    Args:
        kind: "sd14", "sd15", "sd21", "sd21b" or "sdxl".
        parts: by their folders, under the names of the libraries' classes.
    """
    state = under("model.diffusion_model.", unet_state(parts["unet"]))
    state |= under("first_stage_model.", vae_state(parts["vae"]))
    first = parts["text_encoder"]
    if kind == "sdxl":
        second = openclip_state(parts["text_encoder_2"])
        state |= under("conditioner.embedders.0.transformer.", clip_state(first))
        return state | under("conditioner.embedders.1.model.", second)
    state |= training_state()
    if kind.startswith("sd2"):
        return state | under("cond_stage_model.model.", with_unused(openclip_state(first)))
    return state | under("cond_stage_model.transformer.", clip_state(first))


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def unet_state(state: State) -> State:
    """A UNet under its names in latent-diffusion."""
    blocks = unet_blocks(state)

    def name_of(name: str) -> str:
        start, end = divided(name, blocks)
        if not start:
            return replaced(name, UNET_NAMES)
        return blocks[start] + (replaced(end, UNET_RESNET) if ".resnets." in start else end)

    return {name_of(name): tensor for name, tensor in state.items()}


def unet_blocks(state: State) -> dict[str, str]:
    """How the names of modules in blocks begin: here, and in latent-diffusion."""
    levels = len({name.split(".")[1] for name in state if name.startswith("down_blocks.")})
    layers = sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.bias", n)) for n in state)
    blocks = {
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
    }
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first, last = level * (layers + 1), level * (layers + 1) + layers
        for layer in range(layers + 1):  # the decoder has one more than the encoder
            blocks[f"{down}.resnets.{layer}."] = f"input_blocks.{1 + first + layer}.0."
            blocks[f"{down}.attentions.{layer}."] = f"input_blocks.{1 + first + layer}.1."
            blocks[f"{up}.resnets.{layer}."] = f"output_blocks.{first + layer}.0."
            blocks[f"{up}.attentions.{layer}."] = f"output_blocks.{first + layer}.1."
        attended = any(name.startswith(f"{up}.attentions.") for name in state)
        blocks[f"{down}.downsamplers.0.conv."] = f"input_blocks.{1 + last}.0.op."
        blocks[f"{up}.upsamplers.0.conv."] = f"output_blocks.{last}.{1 + attended}.conv."
    return blocks


def vae_state(state: State) -> State:
    """An autoencoder under its names in latent-diffusion."""
    levels = len({n.split(".")[2] for n in state if n.startswith("encoder.down_blocks.")})
    blocks = {}
    for side in ("encoder", "decoder"):
        blocks[f"{side}.mid_block.resnets.0."] = f"{side}.mid.block_1."
        blocks[f"{side}.mid_block.attentions.0."] = f"{side}.mid.attn_1."
        blocks[f"{side}.mid_block.resnets.1."] = f"{side}.mid.block_2."
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        blocks[f"encoder.down_blocks.{level}.resnets."] = f"{down}.block."
        blocks[f"encoder.down_blocks.{level}.downsamplers.0."] = f"{down}.downsample."
        blocks[f"decoder.up_blocks.{level}.resnets."] = f"{up}.block."
        blocks[f"decoder.up_blocks.{level}.upsamplers.0."] = f"{up}.upsample."
    renamed = {}
    for name, tensor in state.items():
        start, end = divided(name, blocks)
        attention = ".attentions." in start
        end = replaced(end, VAE_ATTENTION if attention else VAE_NAMES)
        convolution = attention and tensor.ndim == 2
        renamed[blocks.get(start, "") + end] = tensor[:, :, None, None] if convolution else tensor
    return renamed


def divided(name: str, starts: Mapping[str, str]) -> tuple[str, str]:
    """A name as one of the beginnings, or none, and the rest."""
    start = next((start for start in starts if name.startswith(start)), "")
    return start, name.removeprefix(start)


def replaced(name: str, modules: Mapping[str, str]) -> str:
    """A name with its modules called otherwise."""
    path, _, kind = name.rpartition(".")
    for old, new in modules.items():
        path = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, path)
    return f"{path}.{kind}"


def clip_state(state: State) -> State:
    """A text encoder as transformers saved it, with the buffer that it had."""
    positions = state["text_model.embeddings.position_embedding.weight"]
    return state | {"text_model.embeddings.position_ids": torch.arange(len(positions))[None]}


def openclip_state(state: State) -> State:
    """A text encoder under its names in OpenCLIP."""
    renamed = {new: state[old] for old, new in OPENCLIP_NAMES.items()}
    width = renamed["positional_embedding"].shape[1]
    renamed["logit_scale"] = torch.tensor(4.6052)
    # x @ projection in OpenCLIP, a linear layer in transformers; 2.x has one that nothing uses
    projection = state.get("text_projection.weight", torch.eye(width))
    renamed["text_projection"] = projection.T.contiguous()
    for name, tensor in state.items():
        layer = LAYER.fullmatch(name)
        if layer is None:
            continue
        number, module, kind = layer.groups()
        start = f"transformer.resblocks.{number}."
        if module == QUERY_KEY_VALUE[0]:
            three = [state[name.replace(module, each)] for each in QUERY_KEY_VALUE]
            renamed[f"{start}attn.in_proj_{kind}"] = torch.cat(three)
        elif module not in QUERY_KEY_VALUE:
            renamed[f"{start}{OPENCLIP_LAYER[module]}.{kind}"] = tensor
    return renamed


def with_unused(state: State) -> State:
    """Add the last layer of OpenCLIP: uploads of 2.x have it, Stable Diffusion does not use it."""
    numbers = {int(name.split(".")[2]) for name in state if "resblocks" in name}
    last, unused = (f"transformer.resblocks.{max(numbers) + more}." for more in (0, 1))
    layer = {n.replace(last, unused): -t for n, t in state.items() if n.startswith(last)}
    return state | layer


def training_state() -> State:
    """Some of what training keeps beside the weights, and the uploads of 1.x and 2.x contain."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return {
        "betas": betas.float(),
        "alphas_cumprod": (1 - betas).cumprod(0).float(),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
    }
