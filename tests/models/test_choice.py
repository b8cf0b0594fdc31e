"""What a person passes beside a model's name: files, options, mistakes, and several at once."""

from __future__ import annotations

import inspect
import json
import shutil
import threading
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import nulltext
from nulltext.errors import InversionFileError, ModelError, OptionError
from nulltext.models.checkpoint import quiet_libraries
from nulltext.models.load import BUNDLED_FOLDER
from nulltext.models.network_calls import UP, new_delta
from support.published import write_folder, write_single_file
from support.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stable Diffusion 1.5 in miniature, whose autoencoder's config leaves the scale out."""
    out = write_folder("sd15", tmp_path_factory.mktemp("published") / "sd15")
    assert "scaling_factor" not in json.loads((out / "vae" / "config.json").read_text())
    return out


def lora(folder, out, size=0.1):
    """A LoRA for one layer of the miniature, in kohya's names."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    files = sorted((folder / "unet").glob("*.safetensors"))
    weight = next(w for f in files for n, w in load_file(f).items() if n == f"{name}.weight")
    torch.manual_seed(0)
    stem = f"lora_unet_{name.replace('.', '_')}"
    factors = {"lora_down": torch.randn(2, weight.shape[1]), "lora_up": torch.randn(len(weight), 2)}
    save_file({f"{stem}.{k}.weight": size * v for k, v in factors.items()}, out)
    return out


@pytest.mark.parametrize("form", ["folder", "pipeline", "single file", "whole checkpoint"])
def test_the_models_own_autoencoder_changes_nothing(folder, tmp_path, form):
    whole = write_single_file("sd15", tmp_path / "whole.safetensors")
    alone = tmp_path / "vae.safetensors"
    prefix = "first_stage_model."
    own = {n: t for n, t in load_file(whole).items() if n.startswith(prefix)}
    save_file({name.removeprefix(prefix): t.contiguous() for name, t in own.items()}, alone)
    given = {
        "folder": folder / "vae",
        "pipeline": folder,
        "single file": alone,
        "whole checkpoint": whole,
    }
    model = nulltext.load(folder, vae=given[form])
    assert model.fingerprint == nulltext.load(folder).fingerprint
    assert [one["kind"] for one in model.adapters] == ["vae"]


def test_a_single_file_without_its_autoencoder_takes_another(folder, tmp_path):
    whole = load_file(write_single_file("sd15", tmp_path / "whole.safetensors"))
    path = tmp_path / "without.safetensors"
    save_file({n: t for n, t in whole.items() if not n.startswith("first_stage_model.")}, path)
    with pytest.raises(ModelError, match="has no autoencoder; pass one with --vae"):
        nulltext.load(path, config=str(folder))
    model = nulltext.load(path, config=str(folder), vae=folder / "vae")
    assert model.fingerprint == nulltext.load(folder).fingerprint


def test_a_single_file_says_of_itself_that_it_predicts_velocity(folder, tmp_path):
    whole = load_file(write_single_file("sd15", tmp_path / "whole.safetensors"))
    path = tmp_path / "v.safetensors"
    save_file(whole | {"v_pred": torch.zeros(1)}, path)
    model = nulltext.load(path, config=str(folder))
    assert model.schedule.prediction == "v_prediction"
    assert "v-prediction, as it says itself" in model.notes[0]


def test_a_configuration_that_does_not_fit_is_what_is_said(folder, tmp_path):
    path = write_single_file("sd15", tmp_path / "whole.safetensors")
    with pytest.raises(ModelError, match=r"not fit the configuration sd15.*another --config"):
        nulltext.load(path)
    with pytest.raises(ModelError, match=r"no second text encoder.*--config than sdxl"):
        nulltext.load(path, config="sdxl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora": "nope.safetensors"}, "The LoRA 'nope.safetensors' does not exist"),
        ({"embedding": ["nope.safetensors:x"]}, "The embedding 'nope.safetensors' does not exist"),
        ({"vae": "nope.safetensors"}, "The autoencoder 'nope.safetensors' does not exist"),
    ],
)
def test_files_that_are_added_are_looked_at_before_a_model_is_fetched(options, words):
    with pytest.raises(ModelError, match=words):
        nulltext.load("nobody/nothing", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora": [("a.safetensors", 0.8)]}, "lora is .* write 'style.safetensors:0.8'"),
        ({"lora": [""]}, "expected a file"),
        ({"lora": 3}, "lora is 3"),
        ({"embedding": None}, "embedding is None"),
        ({"vae": ""}, "vae is"),
        ({"dtype": "flaot16"}, "The dtype is 'flaot16'"),
        ({"dtype": torch.int8}, "choose one of float32"),
        ({"config": "sd15"}, "--config is for a single file"),
    ],
)
def test_mistaken_arguments_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        nulltext.load("flowers", **options)


def test_one_file_may_stand_for_a_list_and_a_dtype_of_torch_for_its_name(folder, tmp_path):
    path = lora(folder, tmp_path / "style.safetensors")
    one = nulltext.load(folder, lora=path, dtype=torch.bfloat16)
    assert one.unet.dtype == torch.bfloat16
    assert one.fingerprint == nulltext.load(folder, lora=[str(path)]).fingerprint


def test_a_pipeline_in_hand_takes_none_of_it():
    pipe = tiny_pipeline("sd1")
    for given in ({"dtype": "float16"}, {"device": "cpu"}, {"lora": "x.safetensors"}):
        with pytest.raises(OptionError, match="A pipeline in hand has weights, device"):
            nulltext.load(pipe, **given)
    for thing in (None, 3, nulltext.load(pipe)):
        with pytest.raises(ModelError, match="is no diffusers pipeline"):
            nulltext.load(thing)
    with pytest.raises(ModelError, match=r"or to nulltext\.load a name"):
        nulltext.from_pipe("flowers")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "a\0b"])
def test_names_that_no_file_can_have_are_models_that_are_not_there(name):
    with pytest.raises(ModelError):
        nulltext.load(name)
    with pytest.raises(ModelError):
        nulltext.load("flowers", lora=name)
    with pytest.raises(ModelError):
        nulltext.load("flowers", vae=name)


def test_a_lora_that_changed_under_its_name_is_said(folder, tmp_path, photo):
    path = lora(folder, tmp_path / "style.safetensors")
    kept = nulltext.invert(
        nulltext.load(folder, lora=path), photo, "a cat", method="ddim", num_steps=2
    )
    lora(folder, path, size=0.2)
    with pytest.raises(InversionFileError, match=r"lora style\.safetensors \(1\.0\) a file has"):
        nulltext.replay(nulltext.load(folder, lora=path), kept)
    with pytest.raises(InversionFileError, match=r"was made with lora style.*\(now: none\)"):
        nulltext.replay(nulltext.load(folder), kept)


def test_a_batch_goes_on_under_another_spelling_of_a_loras_path(here, run, folder, tmp_path):
    lora(folder, here / "style.safetensors")
    job = {"image": "cat.png", "source": "a cat", "target": "a dog", "method": "ddim", "steps": 2}
    (here / "jobs.jsonl").write_text(json.dumps(job))
    line = ("batch", "jobs.jsonl", "-o", "out", "--model", folder, "--lora")
    assert run(*line, "style.safetensors")[0] == 0
    assert run(*line, "./style.safetensors")[0] == 0
    code, _, err = run(*line, "style.safetensors:0.5")
    assert (code, "with other settings" in err) == (2, True)
    assert run(*line, "nope.safetensors", "--dry-run")[0] == 2


def test_a_model_keeps_its_guidance_scale_and_words_under_a_lora(tmp_path):
    """They are kept for its own weights, which are under the LoRA."""
    plain = nulltext.load("flowers")
    path = lora(BUNDLED_FOLDER / "flowers", tmp_path / "style.safetensors")
    model = nulltext.load("flowers", lora=path)
    assert model.fingerprint != plain.fingerprint
    assert (model.guidance_scale, model.known_words) == (plain.guidance_scale, plain.known_words)


def test_the_doctor_holds_no_adapters_against_a_known_figure(run, tmp_path):
    path = lora(BUNDLED_FOLDER / "flowers", tmp_path / "style.safetensors")
    code, out, _ = run("doctor", "--lora", path, "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert "With adapters, no known figure is compared." in found["notes"]


def test_a_batch_says_what_a_single_file_is_read_as(here, run, folder, tmp_path):
    path = write_single_file("sd15", tmp_path / "whole.safetensors")
    job = {"image": "cat.png", "source": "a cat", "target": "a dog", "method": "ddim", "steps": 2}
    (here / "jobs.jsonl").write_text(json.dumps(job))
    line = ("batch", "jobs.jsonl", "-o", "out", "--model", path, "--config", folder)
    code, _, err = run(*line)
    assert code == 0, err
    assert "is read with the configuration" in err


def test_help_says_how_to_name_a_revision(run):
    _, out, _ = run("invert", "--help")
    assert "[@revision]" in "".join(out.split())


def test_a_models_files_are_read_and_given_back(folder, tmp_path):
    """Nothing of a folder stays open, so that it can be replaced."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = nulltext.load(copy)
    shutil.rmtree(copy)
    assert torch.isfinite(model.embed(["a cat"])).all()


def test_threads_that_load_leave_each_other_and_all_others_alone(folder):
    """Torch's hooks on parameters are the process's; what is used instead is the thread's."""
    errors, made, over = [], [], threading.Event()

    def load():
        try:
            for _ in range(4):
                assert nulltext.load(folder).unet.device.type == "cpu"
        except BaseException as error:
            errors.append(error)

    def build():
        while not over.is_set():
            layer = torch.nn.Linear(4, 4)
            made.append((layer.weight.device.type, layer.weight.requires_grad))

    level = transformers.utils.logging.get_verbosity()
    loading = [threading.Thread(target=load) for _ in range(2)]
    building = threading.Thread(target=build)
    for thread in [*loading, building]:
        thread.start()
    for thread in loading:
        thread.join()
    over.set()
    building.join()
    assert not errors
    assert set(made) == {("cpu", True)}
    assert transformers.utils.logging.get_verbosity() == level


def test_the_libraries_speak_again_when_the_last_block_of_several_is_left():
    before = transformers.utils.logging.get_verbosity()
    first, second = quiet_libraries(), quiet_libraries()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert transformers.utils.logging.get_verbosity() > before
    second.__exit__(None, None, None)
    assert transformers.utils.logging.get_verbosity() == before


def test_a_difference_of_weights_acts_in_its_own_thread_alone(tiny_sd1):
    delta = new_delta(tiny_sd1.unet, 2, torch.Generator().manual_seed(0))
    delta = {n: torch.ones_like(t) if n.endswith(UP) else t for n, t in delta.items()}
    tuned = replace(tiny_sd1, weight_delta=delta)
    latents, embeds = torch.randn(1, 4, 8, 8), tiny_sd1.embed(["a cat"])

    def predicted(model):
        with torch.no_grad():
            return model.predict(latents, model.schedule.level(500), embeds)

    plain, wrong, inside = predicted(tiny_sd1), [], threading.Event()

    def meanwhile(*_):
        if not inside.is_set():
            inside.set()
            other = threading.Thread(
                target=lambda: wrong.append(not torch.equal(predicted(tiny_sd1), plain))
            )
            other.start()
            other.join()

    handle = tiny_sd1.unet.conv_in.register_forward_hook(meanwhile)
    try:
        assert not torch.equal(predicted(tuned), plain)
    finally:
        handle.remove()
    assert wrong == [False]


def test_every_option_of_a_choice_is_an_argument_of_load():
    from nulltext.models.choice import ModelChoice

    arguments = set(inspect.signature(nulltext.load).parameters)
    options = {"memory" if name == "low_memory" else name for name in ModelChoice.__match_args__}
    assert options <= arguments
