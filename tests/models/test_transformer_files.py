"""Single files of Stable Diffusion 3, 3.5 and FLUX: the folder's model under its authors' names."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from PIL import Image
from safetensors.torch import save_file

import nulltext
from nulltext.errors import ModelError, OptionError
from nulltext.models.original_names import OriginalWeights
from support.flow_files import transformer_state, whole_file
from support.single_files import under
from support.tiny_flow import KINDS, tiny_flow_pipeline

PROMPT = "a photo of a red cat"


def made(kind):
    """A pipeline whose first CLIP projects nothing, as published ones of Stable Diffusion 3."""
    pipe = tiny_flow_pipeline(kind)
    if hasattr(pipe.text_encoder, "text_projection"):
        torch.nn.init.eye_(pipe.text_encoder.text_projection.weight)
    return pipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("flow")
    for kind in KINDS:
        made(kind).save_pretrained(root / kind)
    return root


def saved(state, path):
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def split_in_proportion(monkeypatch):
    """diffusers' conversion of FLUX knows its width alone, 3072; let it take narrower ones."""
    split = torch.split

    def scaled(tensor, sizes, dim=0):
        share = len(tensor) / sum(sizes)
        return split(tensor, [round(size * share) for size in sizes], dim=dim)

    monkeypatch.setattr(torch, "split", scaled)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_names_mean_what_they_mean_to_diffusers(kind, prefix, monkeypatch):
    network = tiny_flow_pipeline(kind).transformer
    original = under(prefix, transformer_state(network))
    convert = convert_sd3_transformer_checkpoint_to_diffusers
    if kind.startswith("flux"):
        split_in_proportion(monkeypatch)
        convert = convert_flux_transformer_checkpoint_to_diffusers
    theirs, ours = convert(dict(original)), OriginalWeights.of(network, original, prefix)
    assert set(theirs) == set(ours) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_alone_takes_the_rest_of_the_folder(kind, layout, folders, tmp_path):
    pipe = made(kind)
    state = transformer_state(pipe.transformer)
    if layout == "diffusers":
        state = pipe.transformer.state_dict()
    path = saved(
        under("model.diffusion_model." * (layout == "prefixed"), state), tmp_path / "t.safetensors"
    )
    model = nulltext.load(path, config=str(folders / kind), device="cpu")
    folder = nulltext.load(folders / kind, device="cpu")
    assert model.fingerprint == folder.fingerprint
    assert torch.equal(model.embed([PROMPT]), folder.embed([PROMPT]))
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    level = model.grid(4)[1].noisier
    outputs = [m.predict(latents, level, m.embed([PROMPT])) for m in (model, folder)]
    assert torch.equal(*outputs)
    (note,) = model.notes
    assert note.startswith(f"Note: the transformer of '{path}' is read with the configuration in")


@pytest.mark.parametrize("kind", ["sd3", "sd35"])
def test_parts_in_the_file_are_not_the_folder_s(kind, folders, tmp_path):
    path = saved(whole_file(made(kind)), tmp_path / "whole.safetensors")
    other = tmp_path / "other"
    tiny_flow_pipeline(kind, seed=1).save_pretrained(other)
    model = nulltext.load(path, config=str(other), device="cpu")
    assert model.fingerprint == nulltext.load(folders / kind, device="cpu").fingerprint
    assert "transformer, autoencoder, text encoders of" in model.notes[0]
    without = saved(whole_file(made(kind), texts=False), tmp_path / "without.safetensors")
    mixed = nulltext.load(without, config=str(other), device="cpu")
    embeds = nulltext.load(other, device="cpu").embed([PROMPT])
    assert torch.equal(mixed.embed([PROMPT]), embeds)


def test_an_edit_through_the_command_line(folders, here, run):
    path = saved(transformer_state(made("flux-dev").transformer), here / "flux.safetensors")
    words = ("--source", "a cat", "--target", "a dog", "--method", "ddim", "--steps", "2")
    pictures = []
    for options in ((path, "--config", folders / "flux-dev"), (folders / "flux-dev",)):
        out = here / f"{len(pictures)}.png"
        code, _, err = run("edit", "cat.png", *words, "--model", *options, "-o", out)
        assert code == 0, err
        with Image.open(out) as image:
            pictures.append(image.tobytes())
    assert pictures[0] == pictures[1]


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def flux_file(tmp_path):
    return saved(transformer_state(made("flux-dev").transformer), tmp_path / "flux.safetensors")


@pytest.mark.parametrize("config", [None, "sd15", "nowhere"])
def test_without_a_folder_it_says_which_to_pass(config, flux_file):
    with pytest.raises(OptionError, match=r"of FLUX\.1, .* pass --config FOLDER") as caught:
        nulltext.load(flux_file, config=config)
    assert str(caught.value).endswith("." if config is None else f"and '{config}' is none.")


def test_a_folder_of_another_family_is_named(flux_file, folders):
    with pytest.raises(ModelError, match="of class StableDiffusion3Pipeline; pass with --config a"):
        nulltext.load(flux_file, config=str(folders / "sd3"))


def test_a_folder_of_another_model_is_named(flux_file, folders, tmp_path):
    with pytest.raises(ModelError, match=r"weights beyond it \(guidance_in"):
        nulltext.load(flux_file, config=str(folders / "flux-schnell"))
    schnell = transformer_state(made("flux-schnell").transformer)
    path = saved(schnell, tmp_path / "schnell.safetensors")
    with pytest.raises(ModelError, match=r"it lacks 4 weights \(time_text_embed.guidance"):
        nulltext.load(path, config=str(folders / "flux-dev"))
    older = saved(transformer_state(made("sd3").transformer), tmp_path / "sd3.safetensors")
    with pytest.raises(ModelError, match="pass with --config a folder of this very model"):
        nulltext.load(older, config=str(folders / "sd35"))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {n: t.to(torch.float8_e4m3fn) for n, t in s.items() if t.ndim > 1},
        lambda s: s | {n: t.to(torch.int8) for n, t in s.items() if t.ndim > 1},
        lambda s: s | {"scaled_fp8": torch.ones(2)},
        lambda s: s | {"double_blocks.0.img_mlp.0.scale_weight": torch.ones(1)},
    ],
)
def test_quantised_weights_are_refused(change, folders, tmp_path):
    state = change(transformer_state(made("flux-dev").transformer))
    path = saved(state, tmp_path / "fp8.safetensors")
    with pytest.raises(ModelError, match=r"holds quantised weights .* in float16 or bfloat16"):
        nulltext.load(path, config=str(folders / "flux-dev"))


def test_transformers_that_take_more_than_latents_are_named(tmp_path):
    state = transformer_state(made("flux-dev").transformer)
    state["img_in.weight"] = torch.zeros(len(state["img_in.weight"]), 384)
    with pytest.raises(ModelError, match=r"FLUX\.1 Fill, Canny or Depth"):
        nulltext.load(saved(state, tmp_path / "fill.safetensors"))


def test_an_autoencoder_of_one_file_takes_the_model_s_scale(folders, tmp_path):
    pipe = made("flux-dev")
    for tensor in pipe.vae.parameters():
        tensor.data += 0.01
    state = {n.removeprefix("first_stage_model."): t for n, t in whole_file(pipe).items()}
    names = [name for name in state if name.startswith(("encoder.", "decoder."))]
    path = saved({name: state[name] for name in names}, tmp_path / "ae.safetensors")
    model = nulltext.load(folders / "flux-dev", vae=path, device="cpu")
    assert model.vae.config.shift_factor == pipe.vae.config.shift_factor
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(model.encode(image), nulltext.load(pipe).encode(image))
    with pytest.raises(ModelError, match=r"scaled by 1\.5305, where the model's are by 0\.3611"):
        nulltext.load(folders / "flux-dev", vae=folders / "sd3", device="cpu")
    shifted = tmp_path / "shifted"
    shutil.copytree(folders / "flux-dev" / "vae", shifted)
    config = json.loads((shifted / "config.json").read_text())
    (shifted / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5}))
    with pytest.raises(ModelError, match=r"shifted by 0\.5, where the model's are by 0\.1159"):
        nulltext.load(folders / "flux-dev", vae=shifted, device="cpu")
