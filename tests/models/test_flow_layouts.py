"""Stable Diffusion 3 and FLUX as repositories hold them: variants, shards, tokenizers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import FluxControlNetModel, QwenImageTransformer2DModel

import nulltext
from nulltext.errors import ModelError
from nulltext.models.foreign import explain
from nulltext.models.pipelines import family_of
from nulltext.models.variants import files_of, needed_files
from support.tiny_flow import KINDS, tiny_flow_pipeline

PROMPT = "a photo of a red cat"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    for kind in KINDS:
        pipe = tiny_flow_pipeline(kind)
        pipe.save_pretrained(root / kind / "plain")
        pipe.save_pretrained(root / kind / "shards", max_shard_size="100KB")
        pipe.to(torch.float16)
        pipe.save_pretrained(root / kind / "fp16", variant="fp16")
        pipe.save_pretrained(root / kind / "fp16 shards", variant="fp16", max_shard_size="50KB")
        shutil.copytree(root / kind / "plain", root / kind / "both")
        shutil.copytree(root / kind / "fp16", root / kind / "both", dirs_exist_ok=True)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_holds_the_same_numbers(kind, folders):
    plain = nulltext.load(folders / kind / "plain", device="cpu")
    assert nulltext.load(folders / kind / "shards", device="cpu").fingerprint == plain.fingerprint
    half = nulltext.load(folders / kind / "fp16", device="cpu")
    assert half.fingerprint != plain.fingerprint
    for layout, variant in (("fp16", "fp16"), ("fp16 shards", "fp16"), ("fp16 shards", None)):
        again = nulltext.load(folders / kind / layout, variant=variant, device="cpu")
        assert again.fingerprint == half.fingerprint
    assert len(list((folders / kind / "fp16 shards/transformer").glob("*-of-*"))) > 2
    both = folders / kind / "both"
    assert nulltext.load(both, variant="fp16", device="cpu").fingerprint == half.fingerprint
    assert nulltext.load(both, device="cpu").fingerprint == plain.fingerprint
    torch.testing.assert_close(half.embed([PROMPT]), plain.embed([PROMPT]), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["sd35", "flux-dev"])
def test_of_a_repository_only_what_is_read_is_needed(kind, folders):
    folder = folders / kind / "both"
    index = json.loads((folder / "model_index.json").read_text())
    family = family_of(index["_class_name"], "m", index)
    (folder / "extra.safetensors").write_bytes(b"another file")
    names = files_of(folder)
    last = family.tokenizers[-1]
    names += [f"{last}/spiece.model"]
    needed = needed_files(names, family.modules, family.tokenizers, "m", "fp16")
    assert f"{last}/tokenizer.json" in needed
    assert f"{last}/spiece.model" not in needed
    weights = [name for name in needed if name.endswith(".safetensors")]
    assert weights
    assert all(".fp16" in name for name in weights)
    names.remove(f"{last}/tokenizer.json")
    with pytest.raises(ModelError, match=rf"The {last} of the model 'm' .* spiece\.model alone"):
        needed_files(names, family.modules, family.tokenizers, "m")


def test_a_folder_with_spiece_model_alone_says_what_to_do(folders, tmp_path):
    copy = shutil.copytree(folders / "flux-dev" / "plain", tmp_path / "flux")
    (copy / "tokenizer_2" / "tokenizer.json").rename(copy / "tokenizer_2" / "spiece.model")
    with pytest.raises(ModelError, match=r"tokenizer_2 .* get a copy with tokenizer\.json"):
        nulltext.load(copy, device="cpu")


# --- what else there is ---------------------------------------------------------------------------


def test_parts_of_a_pipeline_name_the_pipeline(folders):
    pipeline = folders / "flux-dev" / "plain"
    for part in ("transformer", "text_encoder_2", "transformer/config.json"):
        said = explain(str(pipeline / part))
        assert "one part of a pipeline" in said
        assert str(pipeline) in said
    assert explain(str(pipeline)) is None


def test_what_is_missing_of_a_pipeline_is_named(folders, tmp_path):
    copy = shutil.copytree(folders / "sd3" / "plain", tmp_path / "sd3")
    (copy / "model_index.json").unlink()
    assert "has parts of a pipeline (scheduler, text_encoder, transformer, vae), but no" in explain(
        str(copy)
    )
    copy = shutil.copytree(folders / "sd3" / "plain", tmp_path / "bin")
    for weights in (copy / "transformer").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".gguf"))
    assert "a quantised model (GGUF)" in explain(str(copy))


def test_single_models_are_named(tmp_path):
    tiny_flow_pipeline("sd3").transformer.save_pretrained(tmp_path / "sd3")
    network = tiny_flow_pipeline("flux-dev").transformer
    network.save_pretrained(tmp_path / "flux")
    FluxControlNetModel.from_transformer(
        network, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    ).save_pretrained(tmp_path / "control")
    QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6)
    ).save_pretrained(tmp_path / "qwen")
    weights = "diffusion_pytorch_model.safetensors"
    assert "a transformer of Stable Diffusion 3 alone" in explain(str(tmp_path / "sd3"))
    assert "a transformer of FLUX.1 alone" in explain(str(tmp_path / "flux"))
    assert "a ControlNet of FLUX.1" in explain(str(tmp_path / "control"))
    assert "is a ControlNet" in explain(str(tmp_path / "control" / weights))
    assert "QwenImageTransformer2DModel alone" in explain(str(tmp_path / "qwen"))
    assert "is Qwen-Image" in explain(str(tmp_path / "qwen" / weights))


@pytest.mark.parametrize("kind", ["sd35", "flux-dev"])
@pytest.mark.usefixtures("here")
def test_the_doctor_examines_them(kind, folders, run):
    options = ("doctor", "--model", folders / kind / "plain")
    code, out, err = run(*options, "--report", "r.md", "--steps", 4)
    assert code == 1  # the weights are random
    said = out + err
    title = "FLUX.1" if kind == "flux-dev" else "Stable Diffusion 3"
    assert f"{title}'s layout, float32 on cpu" in said
    assert " failed" not in said
    assert "skipped" not in said
    assert "UNet" not in said.replace("unet_evaluations", "")
    assert "weights are random" in said
