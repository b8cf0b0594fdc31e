"""LoRAs of Stable Diffusion 3, 3.5 and FLUX: every naming of keys, as diffusers merges them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import nulltext
from nulltext.errors import ModelError
from nulltext.models.lora import Lora, merge_loras
from support.flow_files import transformer_state
from support.tiny import tiny_pipeline
from support.tiny_flow import tiny_flow_pipeline

RANK, ALPHA, WEIGHT = 4, 6.0, 0.7
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # float32; two products of rank 4, added in another order
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "norm1.linear", "proj_mlp", "proj_out", "x_embedder"),
]


def modules_of(pipe):
    names = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    return {name: pipe.components[name] for name in names if pipe.components.get(name) is not None}


def saved(state, path, **metadata):
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, metadata=metadata)
    return path


def weights_of(pipe):
    return {
        f"{name}.{key.replace('.base_layer.', '.')}": value.clone()
        for name, module in modules_of(pipe).items()
        for key, value in module.state_dict().items()
        if ".lora_" not in key
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **TOLERANCE, msg=lambda m, k=key: k + m)


def drawn(kind):
    """peft's own LoRA of random numbers, of the transformer and the first text encoder."""
    pipe, generator = tiny_flow_pipeline(kind), torch.Generator().manual_seed(1)
    states = {}
    for name, layers in (("transformer", LAYERS), ("text_encoder", ["q_proj", "fc1"])):
        module = getattr(pipe, name)
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
        states |= {
            f"{name}.{key}": 0.3 * torch.randn(value.shape, generator=generator)
            for key, value in get_peft_model_state_dict(module).items()
        }
    return states


def as_peft(states):
    return states


def without_prefix(states):
    return {k.removeprefix("transformer."): v for k, v in states.items() if k[0:2] == "tr"}


def bare_peft(states):
    return {f"base_model.model.{k}": v for k, v in without_prefix(states).items()}


def one_trainer(states):
    """Underscored, with alphas."""
    prefixes = {"transformer": "lora_transformer", "text_encoder": "lora_te1_text_model"}
    found = {}
    for key, value in states.items():
        component, _, rest = key.partition(".")
        rest = rest.removeprefix("text_model.")
        path, _, factor = rest.rpartition(".lora_")
        name = f"{prefixes[component]}_{path.replace('.', '_')}"
        down = factor.startswith("A")
        found[f"{name}.lora_{'down' if down else 'up'}.weight"] = value
        found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


@pytest.mark.parametrize("write", [as_peft, without_prefix, bare_peft, one_trainer])
@pytest.mark.parametrize("kind", ["sd3", "sd35", "flux-dev"])
def test_names_of_diffusers_merge_to_what_diffusers_merges(kind, write, tmp_path):
    states = drawn(kind)
    path = saved(write(states), tmp_path / "a.safetensors")
    ours, theirs = tiny_flow_pipeline(kind), tiny_flow_pipeline(kind)
    plain = weights_of(ours)
    assert merge_loras(modules_of(ours), [Lora(path, WEIGHT)]) == []
    names = ["transformer"]
    kept = {k: v for k, v in states.items() if k.startswith("transformer.")}
    if write in (as_peft, one_trainer):
        names, kept = [*names, "text_encoder"], states
    theirs.load_lora_weights(kept)
    theirs.fuse_lora(components=names, lora_scale=WEIGHT)
    assert_same(weights_of(ours), weights_of(theirs))
    changed = [k for k, v in weights_of(ours).items() if not torch.equal(v, plain[k])]
    assert len(changed) == len(kept) / 2


# --- names of the authors' code -------------------------------------------------------------------


def original_loras(network):
    """Factors for every linear layer under its authors' name, and what they add."""
    generator = torch.Generator().manual_seed(2)
    factors, differences = {}, {}
    for name, weight in transformer_state(network).items():
        if name.endswith(".weight") and weight.ndim == 2 and "norm" not in name:
            down = torch.randn(RANK, weight.shape[1], generator=generator) / 8
            up = torch.randn(len(weight), RANK, generator=generator) / 8
            factors[name.removesuffix(".weight")] = (down, up)
            differences[name] = up @ down * (ALPHA / RANK) * WEIGHT
    return factors, differences


def assert_merged(merged, before, differences):
    """What has been added, put under the authors' names, is what was to be added."""
    state = merged.state_dict()
    difference = copy.deepcopy(merged)
    difference.load_state_dict({k: state[k] - v for k, v in before.items()})
    for name, tensor in transformer_state(difference).items():
        expected = differences.get(name, torch.zeros_like(tensor))
        torch.testing.assert_close(tensor, expected, **TOLERANCE, msg=lambda m, n=name: n + m)


def kohya(factors):
    found = {}
    for name, (down, up) in factors.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        found |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        found[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return found


def comfy(factors):
    found = {}
    for name, (down, up) in factors.items():
        stem = f"diffusion_model.{name}"
        found |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        found[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return found


@pytest.mark.parametrize("write", [kohya, comfy])
@pytest.mark.parametrize("kind", ["sd3", "sd35", "flux-dev", "flux-schnell"])
def test_names_of_the_authors_add_rows_of_the_factors(kind, write, tmp_path):
    pipe = tiny_flow_pipeline(kind)
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    factors, differences = original_loras(pipe.transformer)
    path = saved(write(factors), tmp_path / "a.safetensors")
    assert merge_loras(modules_of(pipe), [Lora(path, WEIGHT)]) == []
    assert_merged(pipe.transformer, before, differences)


def test_loras_of_kohya_for_flux_are_those_that_diffusers_converts(tmp_path):
    """All but `linear1`, of which diffusers knows the published width alone."""
    pipe, theirs = tiny_flow_pipeline("flux-dev"), tiny_flow_pipeline("flux-dev")
    factors, _ = original_loras(pipe.transformer)
    factors = {n: f for n, f in factors.items() if "blocks" in n and "linear1" not in n}
    state = kohya(factors)
    path = saved(state, tmp_path / "kohya.safetensors")
    merge_loras(modules_of(pipe), [Lora(path, WEIGHT)])
    theirs.load_lora_weights(dict(state))
    theirs.fuse_lora(components=["transformer"], lora_scale=WEIGHT)
    assert_same(weights_of(pipe), weights_of(theirs))


def test_loras_of_xlabs_are_those_that_diffusers_converts(tmp_path):
    pipe, theirs = tiny_flow_pipeline("flux-dev"), tiny_flow_pipeline("flux-dev")
    width = 32
    shapes = {"qkv": (3 * width, width), "proj": (width, width)}
    single = {"qkv": (3 * width, width), "proj": (width, 5 * width)}
    state = {}
    for number in range(2):
        for name in ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2"):
            out, inputs = shapes[name.partition("_")[0]]
            stem = f"double_blocks.{number}.processor.{name}"
            state[f"{stem}.down.weight"] = torch.randn(RANK, inputs) / 8
            state[f"{stem}.up.weight"] = torch.randn(out, RANK) / 8
        for name, (out, inputs) in single.items():
            stem = f"single_blocks.{number}.processor.{name}_lora"
            state[f"{stem}.down.weight"] = torch.randn(RANK, inputs) / 8
            state[f"{stem}.up.weight"] = torch.randn(out, RANK) / 8
    path = saved(state, tmp_path / "xlabs.safetensors")
    plain = weights_of(pipe)
    assert merge_loras(modules_of(pipe), [Lora(path, WEIGHT)]) == []
    theirs.load_lora_weights(dict(state))
    theirs.fuse_lora(components=["transformer"], lora_scale=WEIGHT)
    assert_same(weights_of(pipe), weights_of(theirs))
    changed = [k for k, v in weights_of(pipe).items() if not torch.equal(v, plain[k])]
    assert len(changed) == 2 * (3 + 3 + 1 + 1) + 2 * (3 + 1)


def test_a_lora_is_loaded_beside_a_folder(tmp_path):
    pipe = tiny_flow_pipeline("flux-dev")
    pipe.save_pretrained(tmp_path / "flux")
    factors, _ = original_loras(pipe.transformer)
    path = saved(kohya(factors), tmp_path / "style.safetensors")
    model = nulltext.load(tmp_path / "flux", lora=f"{path}:{WEIGHT}", device="cpu")
    merge_loras(modules_of(pipe), [Lora(path, WEIGHT)])
    assert model.fingerprint == nulltext.load(pipe).fingerprint
    assert model.adapters[0]["name"] == "style.safetensors"


def test_a_transformer_keeps_the_precision_of_its_file(tmp_path):
    pipe = tiny_flow_pipeline("sd3").to(torch.bfloat16)
    whole = tiny_flow_pipeline("sd3")
    factors, _ = original_loras(pipe.transformer)
    path = saved(kohya(factors), tmp_path / "a.safetensors")
    merge_loras(modules_of(pipe), [Lora(path)])
    merge_loras(modules_of(whole), [Lora(path)])
    assert {weight.dtype for weight in pipe.transformer.parameters()} == {torch.bfloat16}
    for name, weight in whole.transformer.named_parameters():
        found = pipe.transformer.get_parameter(name).float()
        # rounded to 8 bits before and after
        torch.testing.assert_close(found, weight, atol=1e-2, rtol=1e-2)


# --- what is refused ------------------------------------------------------------------------------


def refused(pipe, path, *words):
    before = weights_of(pipe)
    with pytest.raises(ModelError) as caught:
        merge_loras(modules_of(pipe), [Lora(path)], model="mine")
    for word in words:
        assert word in str(caught.value)
    assert_same(weights_of(pipe), before)


def test_loras_of_other_families_are_named(tmp_path):
    factors, _ = original_loras(tiny_flow_pipeline("flux-dev").transformer)
    flux = saved(kohya(factors), tmp_path / "flux.safetensors")
    sd3 = tiny_flow_pipeline("sd3")
    refused(sd3, flux, "is for FLUX, and the model 'mine' is Stable Diffusion 3 (transformer width")
    factors, _ = original_loras(sd3.transformer)
    other = saved(kohya(factors), tmp_path / "sd3.safetensors")
    flux_pipe = tiny_flow_pipeline("flux-dev")
    refused(flux_pipe, other, "is for Stable Diffusion 3, and the model 'mine' is FLUX.1")
    unet = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {
        f"lora_unet_{unet}.lora_down.weight": torch.zeros(4, 768),
        f"lora_unet_{unet}.lora_up.weight": torch.zeros(9, 4),
    }
    sd1 = saved(state, tmp_path / "sd1.safetensors")
    refused(flux_pipe, sd1, "is for Stable Diffusion 1, and the model 'mine' is FLUX.1")
    unet = tiny_pipeline("sd1").unet
    with pytest.raises(ModelError, match="is for FLUX, and the model 'm' is a model of its own"):
        merge_loras({"unet": unet}, [Lora(flux)], model="m")


@pytest.mark.parametrize(
    ("width", "family"),
    [(3072, "FLUX"), (1536, "Stable Diffusion 3"), (2432, "Stable Diffusion 3")],
)
def test_widths_tell_transformers_apart(width, family, tmp_path):
    name = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{name}.lora_A.weight": torch.zeros(4, width)}
    state[f"{name}.lora_B.weight"] = torch.zeros(width, 4)
    path = saved(state, tmp_path / "a.safetensors")
    other = "sd3" if family == "FLUX" else "flux-dev"
    refused(tiny_flow_pipeline(other), path, f"is for {family}, and")
    same = "flux-dev" if family == "FLUX" else "sd3"
    refused(tiny_flow_pipeline(same), path, "does not fit: its factors", "do not make the weight")


def test_factors_of_joined_layers_that_do_not_fit_are_named(tmp_path):
    factors, _ = original_loras(tiny_flow_pipeline("flux-dev").transformer)
    down, up = factors["double_blocks.0.img_attn.qkv"]
    factors["double_blocks.0.img_attn.qkv"] = (down, up[:-2])
    path = saved(kohya(factors), tmp_path / "a.safetensors")
    refused(tiny_flow_pipeline("flux-dev"), path, "does not fit: its factors [4, 32] and [94, 4]")


def test_learnt_tokens_are_refused(tmp_path):
    tiny_flow_pipeline("sd3").save_pretrained(tmp_path / "sd3")
    state = {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}
    path = saved(state, tmp_path / "cat.safetensors")
    with pytest.raises(ModelError, match=r"takes no learnt tokens .* pass a LoRA"):
        nulltext.load(tmp_path / "sd3", embedding=path)
