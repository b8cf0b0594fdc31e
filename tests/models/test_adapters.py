"""LoRAs merged into a model: every naming of keys, as diffusers and peft compute it, or refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn import functional

from nulltext.errors import ModelError, OptionError
from nulltext.models.adapters import Adapters
from nulltext.models.embeddings import Embedding
from nulltext.models.lora import Lora, layer_names, lora_delta, merge_loras, parse_lora
from support.tiny import tiny_pipeline

RANK, ALPHA, WEIGHT = 3, 5, 0.7
UNET_LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "time_emb_proj", "conv_shortcut", "downsamplers.0.conv"),
    *("upsamplers.0.conv", "conv_in", "conv_out", "time_embedding.linear_1"),
]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # float32; two products of rank 3, added in another order


def modules_of(pipe):
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: pipe.components[name] for name in names if pipe.components.get(name) is not None}


def adapted(family, unet_layers=UNET_LAYERS, text=True):
    """A pipeline with peft's own LoRA of random numbers on it."""
    pipe = tiny_pipeline(family)
    generator = torch.Generator().manual_seed(1)
    for name, module in modules_of(pipe).items():
        if name != "unet" and not text:
            continue
        layers = unet_layers if name == "unet" else TEXT_LAYERS
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers)
        module.add_adapter(config)
        for key, parameter in module.named_parameters():
            if ".lora_" in key:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.3 * noise / parameter.shape[-1] ** 0.5
    return pipe


@cache
def difference(family):
    """What peft stores of `adapted`: tensors by component and key."""
    pipe = adapted(family)
    return {
        name: {k: v.detach() for k, v in get_peft_model_state_dict(module).items()}
        for name, module in modules_of(pipe).items()
    }


def peft_file(folder, family):
    """As diffusers' training scripts write it, the alphas in the metadata."""
    pipe = adapted(family)
    layers = {f"{name}_lora_layers": sd for name, sd in difference(family).items()}
    pipe.save_lora_weights(folder, **layers, **_collate_lora_metadata(modules_of(pipe)))
    return folder / "pytorch_lora_weights.safetensors"


def scaled(family):
    """For formats without an alpha: as if it were the rank."""
    return {
        name: {k: v * ALPHA / RANK if "lora_B" in k else v for k, v in state.items()}
        for name, state in difference(family).items()
    }


def diffusers_file(folder, family):
    """`lora.down` in the UNet, `lora_linear_layer.down` in the encoders."""
    content = {}
    for name, state in scaled(family).items():
        if name == "unet":
            renamed = {
                k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v
                for k, v in state.items()
            }
        else:
            renamed = convert_state_dict_to_diffusers(state)
        content |= {f"{name}.{key}": value for key, value in renamed.items()}
    return saved(content, folder / "diffusers.safetensors")


def kohya_state(family, prefix="lora_te_"):
    """Underscored module paths, with alphas."""
    flat = {f"{n}.{k}": v for n, state in difference(family).items() for k, v in state.items()}
    state = convert_state_dict_to_kohya(flat)
    state = {k: torch.tensor(ALPHA) if k.endswith("alpha") else v for k, v in state.items()}
    if family == "sdxl":
        return {k.replace("_te2_encoder", "_te2_text_model_encoder"): v for k, v in state.items()}
    return {k.replace("lora_te1_", f"{prefix}text_model_"): v for k, v in state.items()}


def kohya_file(folder, family):
    return saved(kohya_state(family), folder / "kohya.safetensors")


def bare_peft_folder(folder, family):
    """As PEFT itself saves a UNet's adapter, alone."""
    pipe = adapted(family, text=False)
    (folder / "peft").mkdir()
    state = {f"base_model.model.{k}": v for k, v in difference(family)["unet"].items()}
    saved(state, folder / "peft" / "adapter_model.safetensors")
    config = pipe.unet.peft_config["default"].to_dict()
    plain = {k: v for k, v in config.items() if isinstance(v, str | int | float | dict | list)}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(plain))
    return folder / "peft"


def saved(state, path, **metadata):
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, metadata=metadata)
    return path


def fused(family, weight=WEIGHT, text=True):
    """The weights as peft merges them, by component and name."""
    pipe = adapted(family, text=text)
    names = [name for name in modules_of(pipe) if text or name == "unet"]
    pipe.fuse_lora(components=names, lora_scale=weight)
    return {
        name: {
            key.replace(".base_layer.", "."): value
            for key, value in module.state_dict().items()
            if ".lora_" not in key
        }
        for name, module in modules_of(pipe).items()
    }


def assert_weights(pipe, expected):
    for name, module in modules_of(pipe).items():
        found = module.state_dict()
        assert found.keys() == expected[name].keys()
        for key, value in expected[name].items():
            torch.testing.assert_close(found[key], value, **TOLERANCE, msg=lambda m, k=key: k + m)


# --- what is merged -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("write", [peft_file, diffusers_file, kohya_file])
def test_every_format_merges_to_what_peft_merges(family, write, tmp_path):
    pipe = tiny_pipeline(family)
    notes = merge_loras(modules_of(pipe), [Lora(write(tmp_path, family), WEIGHT)])
    assert_weights(pipe, fused(family))
    assert notes == []


def test_a_folder_of_peft_has_its_alpha_in_the_config(tmp_path):
    pipe = tiny_pipeline("sd1")
    merge_loras(modules_of(pipe), [Lora(bare_peft_folder(tmp_path, "sd1"), WEIGHT)])
    assert_weights(pipe, fused("sd1", text=False))


def test_the_first_format_of_diffusers(tmp_path):
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    source = adapted("sd1", attention)
    state = {}
    for name, module in modules_of(source).items():
        for key, value in get_peft_model_state_dict(module).items():
            old = key.replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up")
            old = old.replace("to_out.0_lora", "to_out_lora").replace("attn1.", "attn1.processor.")
            old = old.replace("attn2.", "attn2.processor.")
            for new, short in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v")):
                old = old.replace(f"{new}_lora", f"{short}_lora")
            old = old.replace("out_proj_lora", "to_out_lora")
            old = old.replace("fc1_lora", "fc1.lora_linear_layer")
            old = old.replace("fc2_lora", "fc2.lora_linear_layer")
            state[f"{name}.{old}"] = value * (ALPHA / RANK if "lora_B" in key else 1)
    path = saved(state, tmp_path / "old.safetensors")
    pipe = tiny_pipeline("sd1")
    merge_loras(modules_of(pipe), [Lora(path)])
    source.fuse_lora(components=["unet", "text_encoder"])
    expected = {
        name: {
            k.replace(".base_layer.", "."): v
            for k, v in module.state_dict().items()
            if ".lora_" not in k
        }
        for name, module in modules_of(source).items()
    }
    assert_weights(pipe, expected)


@pytest.mark.parametrize(
    ("family", "write"), [("sd1", kohya_file), ("sd2", peft_file), ("sdxl", kohya_file)]
)
def test_pictures_are_those_of_diffusers_with_the_lora_loaded(family, write, tmp_path):
    path = write(tmp_path, family)
    ours, theirs, without = (tiny_pipeline(family) for _ in range(3))
    merge_loras(modules_of(ours), [Lora(path, WEIGHT)])
    theirs.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="style")
    theirs.set_adapters("style", WEIGHT)
    pictures = []
    for pipe in (ours, theirs, without):
        pipe.set_progress_bar_config(disable=True)
        start = torch.Generator().manual_seed(0)
        made = pipe("a cat", num_inference_steps=2, generator=start, output_type="pt")
        pictures.append(made.images)
    # float32: W x + up (down x) there, (W + up down) x here, through two steps of three networks
    torch.testing.assert_close(pictures[0], pictures[1], atol=2e-4, rtol=0)
    assert float((pictures[0] - pictures[2]).abs().max()) > 1e-2


def test_several_loras_add_up_and_may_be_negative(tmp_path):
    path = kohya_file(tmp_path, "sd1")
    pipe = tiny_pipeline("sd1")
    merge_loras(modules_of(pipe), [Lora(path, 1.5), Lora(path, 1.5 * WEIGHT - 1.5)])
    assert_weights(pipe, fused("sd1", 1.5 * WEIGHT))
    merge_loras(modules_of(pipe), [Lora(path, -1.5 * WEIGHT)])
    plain = {name: module.state_dict() for name, module in modules_of(tiny_pipeline("sd1")).items()}
    assert_weights(pipe, plain)


def test_tensors_of_the_model_are_never_written_to(tmp_path):
    pipe = tiny_pipeline("sd1").to(torch.float16)
    before = {n: dict(m.named_parameters()) for n, m in modules_of(pipe).items()}
    copies = {n: {k: p.clone() for k, p in ps.items()} for n, ps in before.items()}
    merge_loras(modules_of(pipe), [Lora(kohya_file(tmp_path, "sd1"))])
    for name, parameters in before.items():
        for key, parameter in parameters.items():
            assert torch.equal(parameter, copies[name][key])
    unet = dict(pipe.unet.named_parameters())
    touched = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert unet[touched].dtype == torch.float32, "the loader casts, once"
    assert unet["down_blocks.0.resnets.0.norm1.weight"].dtype == torch.float16
    kept = before["unet"]["down_blocks.0.resnets.0.norm1.weight"]
    assert unet["down_blocks.0.resnets.0.norm1.weight"] is kept


def test_in_float64_a_merge_is_taken_off_again(tmp_path):
    path = kohya_file(tmp_path, "sd1")
    pipe = tiny_pipeline("sd1").to(torch.float64)
    plain = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    merge_loras(modules_of(pipe), [Lora(path, 2.0), Lora(path, -2.0)])
    for key, value in pipe.unet.state_dict().items():
        torch.testing.assert_close(value, plain[key], atol=1e-14, rtol=0)


def test_the_tucker_core_is_three_convolutions_in_a_row():
    draw = torch.Generator().manual_seed(0)
    down, mid, up, x = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((4, 6, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1), (1, 6, 7, 7))
    )
    weight = torch.zeros(8, 6, 3, 3, dtype=torch.float64)
    made = functional.conv2d(x, lora_delta(weight, down, up, mid=mid, scale=0.5), padding=1)
    low = functional.conv2d(functional.conv2d(x, down), mid, padding=1)
    torch.testing.assert_close(made, 0.5 * functional.conv2d(low, up), atol=1e-12, rtol=0)


def test_a_tucker_core_is_read_from_a_file(tmp_path):
    pipe = tiny_pipeline("sd1")
    conv = pipe.unet.down_blocks[0].resnets[0].conv1
    old = conv.weight.detach().clone()
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, mid, up = torch.randn(2, 32, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(32, 2, 1, 1)
    state = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_mid.weight": mid,
        f"{name}.lora_up.weight": up,
    }
    merge_loras(modules_of(pipe), [Lora(saved(state, tmp_path / "a.safetensors"))])
    expected = old + lora_delta(old, down, up, mid=mid)
    torch.testing.assert_close(conv.weight, expected, atol=1e-6, rtol=0)


# --- names of the original code -------------------------------------------------------------------

LDM_NAMES = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_emb_layers_1": "down_blocks.0.resnets.1.time_emb_proj",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_8_1_transformer_blocks_1_attn2_to_k": (
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k"
    ),
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_attn1_to_out_0": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_0_1_transformer_blocks_0_ff_net_0_proj": (
        "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks_8_0_in_layers_2": "up_blocks.2.resnets.2.conv1",
}
"""As kohya's scripts name layers of SDXL, and as diffusers does; the numbers are SDXL's."""


@cache
def sdxl_layout():
    """A pipeline with SDXL's blocks, whose numbers in the original code are published."""
    pipe = tiny_pipeline("sdxl")
    torch.manual_seed(0)
    config = dict(pipe.unet.config) | {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 2),
        "attention_head_dim": (2, 4, 4),
    }
    parts = pipe.components | {"unet": type(pipe.unet).from_config(config)}
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


def test_sdxl_loras_of_kohya_number_blocks_as_the_original_code(tmp_path):
    pipe = sdxl_layout()
    state = {}
    for ldm, path in LDM_NAMES.items():
        weight = pipe.unet.get_submodule(path).weight
        down = torch.randn(2, *weight.shape[1:]) / 10
        up = torch.randn(len(weight), 2, *([1] * (weight.ndim - 2)))
        state[f"lora_unet_{ldm}.lora_down.weight"] = down
        state[f"lora_unet_{ldm}.lora_up.weight"] = up
        state[f"lora_unet_{ldm}.alpha"] = torch.tensor(1.0)
    path = saved(state, tmp_path / "ldm.safetensors")
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": 10,
        "encoder_hidden_states": torch.randn(1, 5, 80),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 40), "time_ids": torch.ones(1, 6)},
    }
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    with torch.no_grad():
        theirs = pipe.unet(**inputs).sample
        pipe.unload_lora_weights()
        plain = pipe.unet(**inputs).sample
        notes = merge_loras({"unet": pipe.unet}, [Lora(path)])
        ours = pipe.unet(**inputs).sample
    assert notes == []
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert float((ours - plain).abs().max()) > 1e-2


def test_names_of_the_original_code_may_have_dots(tmp_path):
    pipe = tiny_pipeline("sdxl")
    name = "diffusion_model.output_blocks.0.1.transformer_blocks.1.attn2.to_out.0"
    layer = pipe.unet.up_blocks[0].attentions[0].transformer_blocks[1].attn2.to_out[0]
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    state = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    expected = layer.weight + up @ down
    merge_loras(modules_of(pipe), [Lora(saved(state, tmp_path / "a.safetensors"))])
    torch.testing.assert_close(layer.weight, expected, **TOLERANCE)


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_names_of_the_original_code_are_those_that_diffusers_converts(layout):
    """All layers of a UNet, against diffusers' conversion of whole checkpoints."""
    unet = sdxl_layout().unet if layout == "sdxl" else tiny_pipeline("sd1").unet
    config = dict(unet.config) | {"class_embed_type": None, "num_class_embeds": None}
    table = layer_names("unet", unet)
    blocks = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
    words = [
        *(*blocks, "transformer_blocks", "in_layers", "out_layers", "emb_layers"),
        *("skip_connection", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
    ]
    ldm = {}
    for name, path in table.items():
        if name.startswith(tuple(f"{block}_" for block in blocks)):
            dotted = name
            for word in words:
                dotted = dotted.replace(word, word.replace("_", "\0"))
            dotted = dotted.replace("_", ".").replace("\0", "_")
            if not dotted.endswith("to_out"):
                for kind in ("weight", "bias"):
                    ldm[f"model.diffusion_model.{dotted}.{kind}"] = f"{path}.{kind}"
    converted = convert_ldm_unet_checkpoint(ldm, config)
    expected = {f"{path}.{kind}" for path in table.values() for kind in ("weight", "bias")}
    assert {k: v for k, v in converted.items() if v is not None} == {k: k for k in expected}


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:-1.5", "style.safetensors", -1.5),
        (r"C:\loras\style.safetensors", r"C:\loras\style.safetensors", 1.0),
        (r"C:\loras\style.safetensors:2", r"C:\loras\style.safetensors", 2.0),
        ("a:b/c:d.safetensors", "a:b/c:d.safetensors", 1.0),
        ("a:b/c:d.safetensors:.5", "a:b/c:d.safetensors", 0.5),
    ],
)
def test_a_weight_follows_the_file(text, path, weight):
    assert parse_lora(text) == (type(parse_lora(text).path)(path), weight)


def test_a_weight_may_follow_a_folder(tmp_path):
    assert parse_lora(f"{tmp_path}:0.25") == (tmp_path, 0.25)
    odd = tmp_path / "x.safetensors:0.5"
    odd.touch()
    assert parse_lora(str(odd)) == (odd, 1.0), "a file of that very name"


@pytest.mark.parametrize("weight", ["nan", "inf", "strong", ""])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(OptionError, match=r"expected a finite number; write --lora s\.safetens"):
        parse_lora(f"s.safetensors:{weight}")


def test_adapters_are_described_without_folders(tmp_path):
    lora = kohya_file(tmp_path, "sd1")
    learnt = saved({"emb_params": torch.zeros(1, 32)}, tmp_path / "cat.safetensors")
    vae = tmp_path / "vae"
    tiny_pipeline("sd1").vae.save_pretrained(vae)
    sums = [
        hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        for path in (lora, learnt, vae / "diffusion_pytorch_model.safetensors")
    ]
    found = Adapters(
        [Lora(lora, 0.5)], [Embedding(learnt), Embedding(learnt, "<x>")], vae
    ).described()
    assert json.loads(json.dumps(found)) == [
        {"kind": "lora", "name": "kohya.safetensors", "sha256": sums[0], "weight": 0.5},
        {"kind": "embedding", "name": "cat.safetensors", "sha256": sums[1], "token": "cat"},
        {"kind": "embedding", "name": "cat.safetensors", "sha256": sums[1], "token": "<x>"},
        {"kind": "vae", "name": "vae", "sha256": sums[2]},
    ]


# --- notes ----------------------------------------------------------------------------------------


def test_tensors_that_match_no_layer_are_counted(tmp_path):
    state = kohya_state("sd1") | {"lora_unet_no_such_layer.alpha": torch.tensor(1.0)}
    path = saved(state, tmp_path / "a.safetensors")
    pipe = tiny_pipeline("sd1")
    (note,) = merge_loras(modules_of(pipe), [Lora(path)], model="mine")
    assert f"1 of the {len(state)} tensors" in note
    assert "lora_unet_no_such_layer.alpha" in note
    assert_weights(pipe, fused("sd1", 1.0))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "sks style"}, "'sks style'"),
        ({"ss_tag_frequency": json.dumps({"10_x": {"sks": 20, "cat": 3}})}, "'sks'"),
        ({"ss_tag_frequency": json.dumps({"a": {"x\x1b[31m": 2}})}, "'x [31m'"),
    ],
)
def test_trigger_words_are_said(tmp_path, metadata, words):
    path = saved(kohya_state("sd1"), tmp_path / "a.safetensors", **metadata)
    (note,) = merge_loras(modules_of(tiny_pipeline("sd1")), [Lora(path)])
    assert note.endswith(f"was trained with the words {words}.")


@pytest.mark.parametrize("said", ["not json", "[]", '{"a": 5}', '{"a": {"b": "many"}}', "[" * 999])
def test_damaged_metadata_says_nothing(tmp_path, said):
    path = saved(kohya_state("sd1"), tmp_path / "a.safetensors", ss_tag_frequency=said)
    assert merge_loras(modules_of(tiny_pipeline("sd1")), [Lora(path)]) == []


@pytest.mark.parametrize(
    "name", ["lcm-lora-sdv1-5", "Hyper-SD15-8steps-lora", "sdxl_lightning_4step"]
)
def test_distilled_loras_are_noted(tmp_path, name):
    path = saved(kohya_state("sd1"), tmp_path / f"{name}.safetensors")
    (note,) = merge_loras(modules_of(tiny_pipeline("sd1")), [Lora(path)])
    assert "few steps without guidance" in note


def test_a_lora_in_dotted_ldm_names_is_no_full_difference(tmp_path):
    """`diffusion_model` begins as `.diff`, the key of full differences, does."""
    state = {"base_model.model.diffusion_model.x.lora_A.weight": torch.zeros(2, 32)}
    path = saved(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError) as caught:
        merge_loras(modules_of(tiny_pipeline("sd1")), [Lora(path)])
    assert "full differences" not in str(caught.value)


def test_a_style_may_be_called_hyper(tmp_path):
    path = saved(kohya_state("sd1"), tmp_path / "hyper_realism.safetensors")
    assert merge_loras(modules_of(tiny_pipeline("sd1")), [Lora(path)]) == []


# --- what is refused ------------------------------------------------------------------------------

Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def refused(pipe, path, *words, model="mine"):
    before = {n: dict(m.named_parameters()) for n, m in modules_of(pipe).items()}
    with pytest.raises(ModelError) as caught:
        merge_loras(modules_of(pipe), [Lora(path)], model=model)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message
    for name, module in modules_of(pipe).items():
        assert all(p is before[name][k] for k, p in module.named_parameters()), "nothing is merged"


@pytest.mark.parametrize(
    ("key", "method"),
    [
        (f"lora_unet_{Q}.dora_scale", "a DoRA"),
        (f"unet.{Q}.lora_magnitude_vector", "a DoRA"),
        (f"lora_unet_{Q}.hada_w1_a", "a LoHa"),
        (f"lora_unet_{Q}.lokr_w1", "a LoKr"),
        (f"lora_unet_{Q}.oft_blocks", "an OFT"),
        (f"base_model.model.{Q}.boft_R", "a BOFT"),
        (f"lora_unet_{Q}.on_input", "an IA3"),
        (f"lora_unet_{Q}.diff", "full differences"),
        (f"lora_unet_{Q}.diff_b", "with biases"),
        (f"unet.{Q}.lora_B.bias", "a LoRA with biases"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, key, method):
    state = kohya_state("sd1") | {key: torch.zeros(2, 2)}
    path = saved(state, tmp_path / "a.safetensors")
    refused(tiny_pipeline("sd1"), path, method, key, "pass a plain LoRA")


@pytest.mark.parametrize(("width", "family"), [(768, "1"), (1024, "2"), (2048, "XL")])
def test_loras_of_another_family_are_refused_by_their_width(tmp_path, width, family):
    state = {
        f"{K}.lora_down.weight": torch.zeros(4, width),
        f"{K}.lora_up.weight": torch.ones(9, 4),
    }
    path = saved(state, tmp_path / "a.safetensors")
    refused(
        tiny_pipeline("sd2"), path, f"is for Stable Diffusion {family}", "prompt width 32", "'mine'"
    )


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "Wan"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "Stable Diffusion XL"),
    ],
)
def test_loras_of_other_models_are_refused_by_their_keys(tmp_path, key, model):
    path = saved({key: torch.zeros(4, 9)}, tmp_path / "a.safetensors")
    refused(tiny_pipeline("sd1"), path, f"is for {model}", "pass a LoRA that was trained")


@pytest.mark.parametrize(
    ("metadata", "model"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "Stable Diffusion 1"),
        ({"ss_base_model_version": "sd_v2_v"}, "Stable Diffusion 2"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "FLUX"),
    ],
)
def test_metadata_names_the_model_where_keys_do_not(tmp_path, metadata, model):
    state = {f"{K.replace('attn2', 'attn1')}.lora_down.weight": torch.zeros(4, 9)}
    path = saved(state, tmp_path / "a.safetensors", **metadata)
    refused(tiny_pipeline("sd1"), path, f"is for {model}")


def test_a_lora_of_sdxl_is_refused_by_sd1_and_the_other_way(tmp_path):
    for made, used in (("sdxl", "sd1"), ("sd1", "sdxl")):
        refused(tiny_pipeline(used), kohya_file(tmp_path, made), "pass a LoRA that was trained")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({f"lora_unet_{Q}.lora_down.weight": (4, 32)}, "lacks its up"),
        ({f"lora_unet_{Q}.lora_up.weight": (32, 4)}, "lacks its down"),
        (
            {f"lora_unet_{Q}.lora_down.weight": (4, 32), f"lora_unet_{Q}.lora_up.weight": (32, 5)},
            "do not make the weight [32, 32] of unet.down_blocks.0",
        ),
        (
            {f"lora_unet_{Q}.lora_down.weight": (4,), f"lora_unet_{Q}.lora_up.weight": ()},
            "do not make the weight",
        ),
        (
            {f"lora_unet_{Q}.lora_down.weight": (0, 32), f"lora_unet_{Q}.lora_up.weight": (32, 0)},
            "do not make the weight",
        ),
        ({"nonsense": (2,), "more": (3,)}, "not a LoRA"),
    ],
)
def test_damaged_loras_are_refused(tmp_path, state, words):
    path = saved({k: torch.zeros(s) for k, s in state.items()}, tmp_path / "a.safetensors")
    refused(tiny_pipeline("sd1"), path, words)


def test_the_same_layer_twice_is_refused(tmp_path):
    state = kohya_state("sd1") | {f"unet.{Q}.lora.down.weight": torch.zeros(4, 32)}
    refused(tiny_pipeline("sd1"), saved(state, tmp_path / "a.safetensors"), "it has two of")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    state = {
        f"lora_unet_{Q}.lora_down.weight": torch.full((4, 32), float("nan")),
        f"lora_unet_{Q}.lora_up.weight": torch.zeros(32, 4),
    }
    refused(tiny_pipeline("sd1"), saved(state, tmp_path / "a.safetensors"), "NaN or infinity")


@pytest.mark.parametrize(
    ("key", "shape", "what"),
    [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            (4, 4),
            "a UNet without its text encoders",
        ),
        ("first_stage_model.encoder.conv_in.weight", (4, 4), "pass it as --vae"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", (4, 4), "pass it as --vae"),
        ("emb_params", (1, 32), "pass it as --embedding"),
        ("clip_l", (1, 32), "pass it as --embedding"),
        ("controlnet_cond_embedding.conv_in.weight", (4, 4), "a ControlNet"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, key, shape, what):
    path = saved({key: torch.zeros(shape)}, tmp_path / "a.safetensors")
    refused(tiny_pipeline("sd1"), path, "not a LoRA", what)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    pipe = tiny_pipeline("sd1")
    refused(pipe, tmp_path / "gone.safetensors", "does not exist")
    refused(pipe, tmp_path / "a.ckpt", "could run code", "pass a .safetensors file")
    refused(pipe, tmp_path, "has no pytorch_lora_weights.safetensors")
    long = saved({"x" * 501: torch.zeros(1)}, tmp_path / "long.safetensors")
    refused(pipe, long, "more than 500 characters")
    whole = kohya_file(tmp_path, "sd1").read_bytes()
    for keep in (0, 7, 100, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:keep])
        refused(pipe, tmp_path / "cut.safetensors", "truncated or damaged")


@pytest.mark.parametrize(
    "said", ["no json", "[" * 99, '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": NaN}']
)
def test_damaged_alphas_are_refused(tmp_path, said):
    state = {f"unet.{k}": v for k, v in difference("sd1")["unet"].items()}
    path = saved(state, tmp_path / "a.safetensors", lora_adapter_metadata=said)
    refused(tiny_pipeline("sd1"), path, "is damaged")


# --- without peft ---------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["peft"] = sys.modules["accelerate"] = None
sys.path.insert(0, {tests!r})
from support.tiny import tiny_pipeline
from nulltext.models.adapters import Adapters
from nulltext.models.adapters import load_vae
from nulltext.models.embeddings import add_embeddings, parse_embedding
from nulltext.models.lora import merge_loras, parse_lora
from safetensors.torch import save_file
import torch
pipe = tiny_pipeline("sd1")
modules = {{"unet": pipe.unet, "text_encoder": pipe.text_encoder}}
notes = merge_loras(modules, [parse_lora({lora!r})])
save_file({{"emb_params": torch.ones(2, 32)}}, {learnt!r})
learnt = add_embeddings([pipe.tokenizer], [pipe.text_encoder], [parse_embedding({learnt!r})])
pipe.vae.save_pretrained({vae!r})
state = load_vae(parse_lora({vae!r}).path, pipe.vae.config).state_dict()
print(notes, len(learnt), len(state), len(Adapters([parse_lora({lora!r})]).described()))
"""


def test_nothing_needs_peft_or_accelerate(tmp_path):
    script = WITHOUT.format(
        tests=str(Path(__file__).parents[1]),
        lora=f"{kohya_file(tmp_path, 'sd1')}:0.5",
        learnt=str(tmp_path / "my-cat.safetensors"),
        vae=str(tmp_path / "vae"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = len(tiny_pipeline("sd1").vae.state_dict())
    assert done.stdout.strip() == f"[] 1 {weights} 1"
