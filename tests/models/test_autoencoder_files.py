"""Autoencoders in place of a model's own: read from every layout, or refused by name."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from nulltext.errors import ModelError
from nulltext.models.adapters import load_vae
from support.tiny import tiny_pipeline

OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


@cache
def autoencoder(**changes):
    """Of the published depth: four blocks of two layers, narrow."""
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **{"latent_channels": 4, "scaling_factor": 0.18215, "sample_size": 64} | changes,
    )


OWN = autoencoder().config


def ldm_names(state):
    """Names of the original code, as in published .safetensors files of autoencoders."""
    renamed = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        parts = rest.split(".")
        new = name
        if parts[0] in ("down_blocks", "up_blocks"):
            number = int(parts[1]) if parts[0] == "down_blocks" else 3 - int(parts[1])
            side, what = parts[0].removesuffix("_blocks"), parts[2]
            tail = ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
            if what == "resnets":
                new = f"{head}.{side}.{number}.block.{parts[3]}.{tail}"
            else:
                new = f"{head}.{side}.{number}.{what.removesuffix('rs')}.conv.{parts[-1]}"
        elif parts[0] == "mid_block" and parts[1] == "resnets":
            new = f"{head}.mid.block_{int(parts[2]) + 1}.{'.'.join(parts[3:])}"
        elif parts[0] == "mid_block":
            layer = ".".join(parts[3:-1])
            short = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
            new = f"{head}.mid.attn_1.{short.get(layer, 'proj_out')}.{parts[-1]}"
            if value.ndim == 2:
                value = value[:, :, None, None]
        elif parts[0] == "conv_norm_out":
            new = f"{head}.norm_out.{parts[1]}"
        renamed[new] = value.contiguous()
    return renamed


def written(tmp_path, state, name="vae.safetensors"):
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, tmp_path / name)
    return tmp_path / name


def assert_same(loaded, expected):
    """Check that the loaded autoencoder makes the same pictures in float32; return its config."""
    made = loaded.float()
    photo = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (vae.encode(photo).latent_dist.mean for vae in (made, expected))
        assert torch.equal(ours, theirs)
        assert torch.equal(made.decode(ours).sample, expected.decode(theirs).sample)
    return made.config


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_single_files_of_the_original_code(tmp_path, prefix):
    state = {prefix + name: value for name, value in ldm_names(autoencoder().state_dict()).items()}
    if prefix == "first_stage_model.":
        state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
        state["cond_stage_model.transformer.text_model.encoder.layers.0.x"] = torch.zeros(1)
        state["first_stage_model.loss.logvar"] = torch.zeros(1)
    config = assert_same(load_vae(written(tmp_path, state), OWN), autoencoder())
    assert config["scaling_factor"] == 0.18215
    assert config["sample_size"] == 64


@pytest.mark.parametrize("scale", [0.18215, 0.13025])
def test_a_single_file_has_the_scale_of_the_models_own(tmp_path, scale):
    path = written(tmp_path, autoencoder().state_dict())
    own = dict(OWN) | {"scaling_factor": scale, "block_out_channels": (8, 8, 8, 8)}
    config = assert_same(load_vae(path, own), autoencoder())
    assert config["scaling_factor"] == scale
    assert config["block_out_channels"] == [32, 32, 64, 64]


def test_without_quantising_convolutions(tmp_path):
    plain = autoencoder(use_quant_conv=False, use_post_quant_conv=False)
    assert_same(load_vae(written(tmp_path, plain.state_dict()), OWN), plain)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("inside", ["", "vae"])
def test_folders(tmp_path, variant, inside):
    autoencoder().save_pretrained(tmp_path / inside, variant=variant)
    assert_same(load_vae(tmp_path, OWN), autoencoder())


def test_a_pipelines_folder_is_one_of_its_autoencoder(tmp_path):
    pipe = tiny_pipeline("sd1")
    pipe.save_pretrained(tmp_path)
    assert_same(load_vae(tmp_path, pipe.vae.config), pipe.vae)


def test_old_names_of_attention_and_a_config_without_scale(tmp_path):
    state = {}
    for name, value in autoencoder().state_dict().items():
        for new, old in OLD.items():
            name = name.replace(new, old)
        state[name] = value
    (tmp_path / "x").mkdir()
    written(tmp_path / "x", state, "diffusion_pytorch_model.safetensors")
    config = {k: v for k, v in OWN.items() if k not in ("scaling_factor", "_use_default_values")}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    config = assert_same(load_vae(tmp_path / "x", OWN), autoencoder())
    assert config["scaling_factor"] == 0.18215


def test_half_stays_half(tmp_path):
    path = written(tmp_path, {k: v.half() for k, v in autoencoder().state_dict().items()})
    assert {v.dtype for v in load_vae(path, OWN).parameters()} == {torch.float16}


# --- what is refused ------------------------------------------------------------------------------


def refused(path, *words, own=OWN):
    with pytest.raises(ModelError) as caught:
        load_vae(path, own)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_autoencoders_of_other_models_are_refused(tmp_path):
    flux = autoencoder(latent_channels=16, scaling_factor=0.3611)
    path = written(tmp_path, ldm_names(flux.state_dict()))
    refused(path, "a Stable Diffusion 3 or FLUX autoencoder, with 16 latent channels", "takes 4")
    flux.save_pretrained(tmp_path / "flux")
    refused(tmp_path / "flux", "16 latent channels")
    shallow = written(tmp_path, tiny_pipeline("sd1").vae.state_dict())
    refused(shallow, "shrinks photos 4-fold", "the model's does 8-fold")
    autoencoder(scaling_factor=0.13025).save_pretrained(tmp_path / "xl")
    refused(tmp_path / "xl", "scaled by 0.13025", "are by 0.18215", "another family")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("encoder.layers.0.weight", "TAESD"),
        ("decoder.layers.1.conv.0.weight", "TAESD"),
        ("1.weight", "TAESD"),
        ("text_model.encoder.layers.0.weight", "a text encoder"),
        ("decoder.condition_encoder.layers.0.weight", "an asymmetric autoencoder"),
        ("quantize.embedding.weight", "a VQ autoencoder"),
    ],
)
def test_other_kinds_are_refused_by_their_keys(tmp_path, key, what):
    refused(written(tmp_path, {key: torch.zeros(2, 2, 3), "x.y": torch.zeros(1)}), what)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("AutoencoderTiny", "a TAESD"),
        ("AsymmetricAutoencoderKL", "an asymmetric autoencoder"),
        ("AutoencoderKLWan", "of the class AutoencoderKLWan"),
    ],
)
def test_other_classes_are_refused(tmp_path, name, what):
    autoencoder().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": name}))
    refused(tmp_path, what)


def test_incomplete_and_forged_autoencoders_are_refused(tmp_path):
    state = autoencoder().state_dict()
    few = {k: v for k, v in state.items() if k != "decoder.conv_out.bias"}
    refused(written(tmp_path, few), "lacks 1 weights", "decoder.conv_out.bias")
    wide = state | {"quant_conv.bias": torch.zeros(9)}
    refused(written(tmp_path, wide), "its weight quant_conv.bias is [9], expected [8]")
    refused(written(tmp_path, {k: v for k, v in state.items() if "decoder" in k}), "no whole")
    refused(written(tmp_path, {"a": torch.zeros(2, 3, 4)}), "no whole autoencoder")
    autoencoder().save_pretrained(tmp_path / "forged")
    file = tmp_path / "forged" / "config.json"
    config = json.loads(file.read_text())
    for change in ({"block_out_channels": [1 << 20] * 4}, {"layers_per_block": 1 << 20}):
        file.write_text(json.dumps(config | change))
        refused(tmp_path / "forged", "its config describes")
    for text in ("{", "[]", json.dumps(config | {"scaling_factor": "much"})):
        file.write_text(text)
        refused(tmp_path / "forged")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_x.lora_down.weight", "pass it as --lora"),
        ("emb_params", "pass it as --embedding"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, key, what):
    refused(written(tmp_path, {key: torch.zeros(1, 4)}), what)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    refused(tmp_path, "has no autoencoder")
    refused(tmp_path / "vae.pt", "could run code")
    refused(tmp_path / "gone.safetensors", "does not exist")
    (tmp_path / "cut.safetensors").write_bytes(b"{}")
    refused(tmp_path / "cut.safetensors", "truncated or damaged")
