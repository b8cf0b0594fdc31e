"""What a safetensors file is, by its header; files are written on the spot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    FluxTransformer2DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

from nulltext.errors import ModelError
from nulltext.models.tensor_files import MAX_HEADER_BYTES, explain_kind, kind_of_file
from nulltext.storage.inversion_file import write_inversion
from support.headers import SD1, UNET, VAE
from support.tiny import tiny_pipeline

SD2 = {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (24, 8)}
XL = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (9, 8),
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (8,),
}
REFINER = {"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (8,)}


MODELS = ("checkpoint", "no-vae", "sd3", "flux")


def channels(number):
    return {"model.diffusion_model.input_blocks.0.0.weight": (8, number, 3, 3)}


def named(*names):
    return dict.fromkeys(names, (4, 4, 1, 1))


BY_NAMES = {
    "checkpoint: SD 1": UNET | VAE | SD1,
    "checkpoint: SD 2": UNET | VAE | SD2,
    "checkpoint: SDXL": UNET | VAE | XL,
    "checkpoint: VAE by another prefix": UNET | SD1 | named("vae.decoder.conv_in.weight"),
    "no-vae: pruned": UNET | SD1,
    "unet-only: ldm": UNET,
    "unet-only: ldm with VAE": UNET | VAE,
    "unet-only: without prefix": named("input_blocks.0.0.weight", "output_blocks.0.0.weight"),
    "sdxl-refiner": UNET | VAE | REFINER,
    "inpainting": channels(9) | VAE | SD1,
    "instruction": channels(8) | VAE | SD1,
    "upscaler": channels(7) | VAE | SD2,
    "depth": channels(5) | VAE | SD2,
    "vae: ldm": named("encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.conv1.weight"),
    "vae: of a checkpoint": VAE,
    "lora: kohya": named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
    "lora: kohya, SDXL": named("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"),
    "lora: peft": named("base_model.model.unet.mid_block.attn.to_q.lora_A.weight"),
    "lora: diffusers": named("unet.up_blocks.1.attn1.processor.to_q_lora.down.weight"),
    "lora: LoHa": named("lora_unet_x.hada_w1_a"),
    "lora: LoKr": named("lycoris_x.lokr_w1"),
    "embedding: emb_params": {"emb_params": (2, 8)},
    "embedding: SDXL": {"clip_l": (2, 8), "clip_g": (2, 12)},
    "embedding: a word": {"<cat>": (8,)},
    "embedding: words": {"<s0>": (1, 8), "<s1>": (1, 8)},
    "controlnet: ldm": named("control_model.time_embed.0.weight"),
    "controlnet: lllite": named("lllite_unet_input_blocks_4_1.down.0.weight"),
    "t2i-adapter: original": named("body.0.block1.weight", "conv_in.weight"),
    "ip-adapter": named("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "ip-adapter: FaceID": named("ip_adapter.0.to_q_lora.down.weight", "image_proj.norm.weight"),
    "sd3": named("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"),
    "flux": named("double_blocks.0.img_attn.norm.key_norm.scale"),
    "flux: whole": named(
        "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",
    ),
    "other-model: Chroma": named(
        "distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.proj.weight"
    ),
    "other-model: HiDream": named("double_stream_blocks.1.block.adaLN_modulation.1.bias"),
    "other-model: AuraFlow": named("model.double_layers.0.attn.w2q.weight", "double_layers.0.a.b"),
    "other-model: Wan": named("model.diffusion_model.head.modulation"),
    "other-model: LTX": named("model.diffusion_model.patchify_proj.weight"),
    "other-model: Mochi": named("blocks.0.attn.qkv_x.weight"),
    "other-model: Lumina": named("cap_embedder.0.weight", "layers.0.adaLN_modulation.1.weight"),
    "other-model: Z-Image": named("cap_embedder.0.weight", "layers.0.adaLN_modulation.0.weight"),
    "other-model: Qwen-Image": named("transformer_blocks.0.img_mlp.net.0.proj.weight"),
    "other-model: video": UNET
    | named(
        "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight",
        "conditioner.embedders.0.open_clip.model.ln_final.weight",
    ),
    "other-model: consistency": UNET
    | VAE
    | SD1
    | named("model.diffusion_model.time_embed.cond_proj.weight"),
    "other-model: some transformer": named("transformer_blocks.0.attn.to_q.weight"),
    "other-model: some model": named("model.diffusion_model.blocks.0.weight"),
    "other-model: ESRGAN": named("conv_first.weight", "body.0.rdb1.conv1.weight"),
    "text-encoder: published": named("text_model.encoder.layers.0.self_attn.k_proj.weight"),
    "text-encoder: T5": named("encoder.block.0.layer.0.SelfAttention.q.weight"),
    "language-model": named("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"),
    "unknown": named("backbone.stage1.weight"),
    "unknown: one deep tensor": {"x": (2, 2, 2)},
}


@pytest.mark.parametrize("case", BY_NAMES)
def test_kinds_by_tensor_names(case, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {name: np.zeros(shape, np.float32) for name, shape in BY_NAMES[case].items()}
    save_file(tensors, path)
    kind, _, what = case.partition(": ")
    assert kind_of_file(path) == kind
    said = explain_kind(path)
    if kind in MODELS:  # --vae and --config may bring what is missing
        assert said is None
        assert "pass it as --model" in explain_kind(path, "--vae")
        return
    assert said is not None
    assert said.startswith(f"'{path}' is ")
    assert said.endswith(".")
    assert "\n" not in said
    if kind == "other-model" and what[0].isupper():
        assert what in said


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd1")


def made_by_libraries(pipe, folder):
    """Files that the libraries themselves write, with their kinds."""
    pipe.unet.save_pretrained(folder / "unet")
    pipe.vae.save_pretrained(folder / "vae")
    pipe.text_encoder.save_pretrained(folder / "text")
    ControlNetModel.from_unet(pipe.unet).save_pretrained(folder / "control")
    T2IAdapter(channels=[32, 32], num_res_blocks=1, downscale_factor=2).save_pretrained(
        folder / "t2i"
    )
    MotionAdapter(
        block_out_channels=(32, 32), motion_layers_per_block=1, motion_num_attention_heads=2
    ).save_pretrained(folder / "motion")
    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    joint = {"joint_attention_dim": 8, "pooled_projection_dim": 8}
    SD3Transformer2DModel(
        sample_size=8, caption_projection_dim=16, pos_embed_max_size=8, **small, **joint
    ).save_pretrained(folder / "sd3")
    FluxTransformer2DModel(
        in_channels=4, num_single_layers=1, axes_dims_rope=(2, 2, 4), **small, **joint
    ).save_pretrained(folder / "flux")
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)).save_pretrained(
        folder / "gpt"
    )
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    ).save_pretrained(folder / "clip")
    unet = UNet2DConditionModel.from_config(pipe.unet.config)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=layers)
    save_torch({"<cat>": torch.zeros(32)}, folder / "embeds.safetensors")
    write_inversion(folder / "saved.safetensors", {"trajectory": torch.zeros(2, 4, 2, 2)}, {})
    weights = "diffusion_pytorch_model.safetensors"
    return {
        f"unet/{weights}": "unet-only",
        f"vae/{weights}": "vae",
        "text/model.safetensors": "text-encoder",
        f"control/{weights}": "controlnet",
        f"t2i/{weights}": "t2i-adapter",
        f"motion/{weights}": "motion",
        f"sd3/{weights}": "sd3",
        f"flux/{weights}": "flux",
        "gpt/model.safetensors": "language-model",
        "clip/model.safetensors": "text-encoder",
        "lora/pytorch_lora_weights.safetensors": "lora",
        "embeds.safetensors": "embedding",
        "saved.safetensors": "inversion",
    }


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {folder / name: kind for name, kind in made_by_libraries(pipe, folder).items()}


def test_kinds_of_files_that_the_libraries_write(files):
    assert {path.relative_to(path.parents[1]): kind_of_file(path) for path in files} == {
        path.relative_to(path.parents[1]): kind for path, kind in files.items()
    }


TAKES = {"--lora": "lora", "--embedding": "embedding", "--vae": "vae", "--inversion": "inversion"}


@pytest.mark.parametrize("option", ["--model", *TAKES])
def test_each_option_takes_its_own_kind_and_names_the_option_of_any_other(option, files):
    for path, kind in files.items():
        said = explain_kind(path, option)
        if TAKES.get(option) == kind or (option == "--model" and kind in MODELS):
            assert said is None
            continue
        assert said is not None, path
        right = next((other for other, takes in TAKES.items() if takes == kind), None)
        assert right is None or f"pass it as {right} {path}" in said
    whole = path.parent / "whole.safetensors"
    save_file({n: np.zeros(s, np.float32) for n, s in (UNET | VAE | SD1).items()}, whole)
    said = explain_kind(whole, option)
    assert said is None if option == "--model" else f"pass it as --model {whole}." in said


@pytest.mark.parametrize("option", TAKES)
def test_adapters_of_unknown_layout_are_left_to_their_loaders(option, tmp_path):
    save_file({"what.is.this": np.zeros((2, 2, 2), np.float32)}, tmp_path / "a.safetensors")
    assert explain_kind(tmp_path / "a.safetensors", option) is None
    assert "what.is.this" in explain_kind(tmp_path / "a.safetensors")


def written(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        ({"a": ENTRY}, None, r"cut off.*71 bytes|cut off, as by a download that stopped: "),
        (b'{"a": {"dtype"', 1000, "cut off.*22 of 1,008 bytes"),
        (b'{"a": {"dtype"', None, "damaged safetensors header"),
        (b"{" + b" " * 20 + b"[}", None, "damaged safetensors header"),
        ({"a": {"dtype": "F32", "shape": [2]}}, None, "damaged safetensors header"),
        ({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, None, "damaged"),
        ({"a": [1]}, None, "damaged"),
        ({"__metadata__": [1]}, None, "damaged"),
        (b'{"a": 1, "a": 2}', None, "occurs twice"),
        (b'{"a": ' + b"[" * 100_000, None, "damaged"),
        (b"{" + b"\xff" * 20, None, "damaged"),
        (b"{}", MAX_HEADER_BYTES + 1, "no safetensors file"),
        (b"\x00\x01\x02", None, "no safetensors file"),
    ],
)
def test_damaged_and_forged_headers_are_refused_by_name(header, length, words, tmp_path):
    path = written(tmp_path / "a.safetensors", header, length=length)
    with pytest.raises(ModelError, match=words) as caught:
        kind_of_file(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700


def test_a_file_that_is_cut_off_says_how_much_is_there(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"emb_params": np.zeros((4, 8), np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-28])
    words = f"{len(whole) - 28:,} of {len(whole):,} bytes"
    with pytest.raises(ModelError, match=words):
        kind_of_file(path)
    path.write_bytes(whole)
    assert kind_of_file(path) == "embedding"


def test_an_sdxl_lora_written_by_diffusers_is_one(tmp_path):
    unet = tiny_pipeline("sdxl").unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    assert kind_of_file(tmp_path / "pytorch_lora_weights.safetensors") == "lora"
