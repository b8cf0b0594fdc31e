"""`nulltext doctor` tells a sound installation from a broken one; log lines say what happens."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import nulltext
from nulltext.health.checkup import CHECKUP_PARTS, TRIAL_PARTS
from nulltext.health.noise import LEVELS, noise_errors
from nulltext.health.report import Health, describe_installation, without_private
from nulltext.models import known_figure
from nulltext.models.known_figure import FILE, TOLERANCE, deviations, read_known, write_known
from nulltext.models.load import folder_of
from support.captioners import captioner
from support.copies import (
    BUNDLED,
    SCHEDULER,
    VAE,
    change,
    configured,
    copy_of_the_model,
    shard_with,
)
from support.examples import DAHLIA_PROMPT, EXAMPLE
from support.tiny import tiny_pipeline


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """`conftest.run`, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def quiet_again():
    """Take the command line's log handler off after the test."""
    yield
    logger = logging.getLogger("nulltext")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


# The known figure


def test_the_bundled_model_reproduces_its_figure(flowers):
    """After new weights: python benchmarks/known_figure.py src/nulltext/models/bundled/flowers."""
    known = read_known(BUNDLED)
    assert known["fingerprint"] == flowers.fingerprint
    found = deviations(flowers, known)
    assert found.keys() == {"text", "encode", "unet", "decode"}
    assert max(found.values()) < TOLERANCE / 10  # rounding of another machine or thread count


def test_the_figure_stands_for_what_the_components_compute(flowers):
    """The formulae of the module, with loops of Python's own."""
    import math

    figures = known_figure.figures(flowers)
    channels, height, width = flowers.latents_shape
    z = [
        math.sqrt(2) * math.sin(0.9 * n + 0.3 * math.sin(0.37 * n))
        for n in range(channels * height * width)
    ]
    latents = torch.tensor(z).view(1, channels, height, width)
    assert latents.var() == pytest.approx(1, abs=0.05)
    with torch.no_grad():
        picture = flowers.decode(latents).flatten()
    assert figures["decode"][0] == pytest.approx(picture[0].item(), rel=1e-4)
    assert figures["decode"][-1] == pytest.approx(picture[-1].item(), rel=1e-4)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_scaled_tensor_shows_in_the_figure_of_its_component(flowers, component):
    shown_in = {"unet": {"unet"}, "vae": {"encode", "decode"}, "text_encoder": {"text", "unet"}}
    parameters = [p for p in flowers.components[component].parameters() if p.dim() > 1]
    parameter = parameters[len(parameters) // 2]
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.mul_(1.5)
        found = deviations(flowers, read_known(BUNDLED))
    finally:
        with torch.no_grad():
            parameter.copy_(before)
    off = {name for name, distance in found.items() if distance > TOLERANCE}
    assert off
    assert off <= shown_in[component]


def test_a_figure_is_written_and_read_back(tiny_sd1, tmp_path):
    assert read_known(tmp_path) is None
    write_known(tiny_sd1, tmp_path)
    assert max(deviations(tiny_sd1, read_known(tmp_path)).values()) < 1e-6
    damaged = json.loads((tmp_path / FILE).read_text())
    del damaged["figures"]["unet"]
    (tmp_path / FILE).write_text(json.dumps(damaged))
    assert deviations(tiny_sd1, read_known(tmp_path))["unet"] == float("inf")
    for text in ("", "[]", "[" * 99_999, '{"version": 2}', '{"version": 1, "fingerprint": "a"}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(nulltext.UserError, match="get it again"):
            read_known(tmp_path)


# The doctor


def test_a_sound_installation(run):
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0, err + out
    assert found["healthy"]
    assert found["problems"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["nulltext"] == nulltext.__version__
    assert found["devices"][0]["threads"] == torch.get_num_threads()
    assert 0 < found["devices"][0]["free_bytes"] < found["devices"][0]["memory_bytes"]
    assert found["model"]["reproduces"] is True
    assert found["model"]["fingerprint"] == read_known(BUNDLED)["fingerprint"]
    assert found["extras"]["study"]["present"]
    assert found["folders"]["temporary"]["writable"]
    assert [(part["name"], part["outcome"]) for part in found["parts"]] == [
        (name, "ok") for name in TRIAL_PARTS
    ]
    assert all(part["seconds"] > 0 for part in found["parts"])


def test_a_model_with_one_changed_tensor_is_found(run, tmp_path):
    broken = copy_of_the_model(tmp_path / "broken")
    change(shard_with(broken / "unet", "conv_in.weight"), "conv_in.weight", 1.5)
    code, out, _ = run("doctor", "--model", "broken")
    assert code == 1
    assert "does NOT reproduce" in out
    assert re.search(r"Problem: The weights of the model 'broken' \(\w{8}\) are not those", out)
    assert "Problems: 2." in out
    code, out, _ = run("doctor", "--model", "broken", "--json")
    assert code == 1
    found = json.loads(out)
    assert not found["healthy"]
    assert found["model"]["deviations"]["unet"] > TOLERANCE
    assert found["model"]["deviations"]["text"] < TOLERANCE


def test_a_truncated_model_is_found(run, tmp_path):
    broken = copy_of_the_model(tmp_path / "broken")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    code, out, _ = run("doctor", "--model", "broken", "--json")
    assert code == 1
    (problem,) = json.loads(out)["problems"]
    assert "vae" in problem


def test_a_model_of_ones_own_may_have_no_figure(run, tmp_path):
    own = copy_of_the_model(tmp_path / "own")
    (own / FILE).unlink()
    code, out, _ = run("doctor", "--model", "own")
    assert code == 0
    assert "no known figure" in out
    assert "All is well." in out


def test_a_device_that_there_is_not_is_the_users_mistake(run):
    code, out, err = run("doctor", "--device", "cuda:99")
    assert (code, out) == (2, "")
    assert "cuda:99" in err


def outcomes(found):
    return {part["name"]: part["outcome"] for part in found["parts"]}


def test_the_part_that_fails_is_named_and_what_needs_it_is_skipped(run, tmp_path):
    """Not-a-number in one tensor of the decoder, as in a damaged download."""
    broken = copy_of_the_model(tmp_path / "broken")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    change(weights, "decoder.conv_out.weight", float("nan"))
    code, out, err = run("doctor", "--model", "broken", "--json")
    assert (code, "Traceback" in err) == (1, False)
    found = json.loads(out)
    assert outcomes(found) == dict.fromkeys(TRIAL_PARTS, "ok") | {
        "autoencoder decode": "failed",
        "edit in two steps": "skipped",
    }
    (said,) = [p for p in found["problems"] if "The part" in p]
    assert said.startswith("The part 'autoencoder decode' of the model 'broken' fails on cpu")
    assert "produced NaN or infinity" in said


def test_a_unet_that_leaves_half_precision_is_found_there_alone(run, tmp_path):
    """A convolution of 1e6, which the next normalisation takes back, exceeds float16's 65504."""
    broken = copy_of_the_model(tmp_path / "broken")
    name = "mid_block.resnets.0.conv1.weight"
    change(shard_with(broken / "unet", name), name, 1e6)
    (broken / FILE).unlink()
    assert run("doctor", "--model", "broken", "--dtype", "float32")[0] == 0
    code, out, _ = run("doctor", "--model", "broken", "--dtype", "float16", "--json")
    found = json.loads(out)
    assert code == 1
    assert outcomes(found)["network"] == "failed"
    (said,) = found["problems"]
    assert re.search(r"'network' .* fails on cpu in float16: .* produced NaN or infinity", said)


def test_a_report_measures_what_the_library_measures(run, flowers):
    code, out, err = run("doctor", "--report", "report.json", "--steps", 2, "--json")
    assert code == 0, err + out
    found = json.loads(out)
    assert json.loads(Path("report.json").read_text()) == found
    assert found["healthy"]
    assert found["model"]["name"] == "flowers"
    assert found["model"]["config"]["vae"]["latent_channels"] == 16
    assert outcomes(found) == dict.fromkeys(CHECKUP_PARTS, "ok")
    figures = {part["name"]: part["figures"] for part in found["parts"]}
    plain = nulltext.invert(
        *(flowers, EXAMPLE, DAHLIA_PROMPT), method="ddim", num_steps=2, guidance_scale=1.0
    )
    close = {"rel": 1e-3}  # four digits are kept
    header = plain.header
    bound = figures["autoencoder decode"]["psnr_bound"]
    assert bound == pytest.approx(header.psnr_bound, **close)
    reached = figures["DDIM at w = 1"]
    assert reached["psnr_reconstruction"] == pytest.approx(header.psnr_reconstruction, **close)
    assert reached["unet_evaluations"] == plain.header.unet_evaluations == 2 + 2
    latents = plain.trajectory[0]
    assert figures["autoencoder encode"]["latents_std"] == pytest.approx(
        latents.std().item(), **close
    )
    assert {one["figure"] for one in found["compared"]} >= {"psnr_bound", "noise_over_guess"}
    assert all(one["holds"] and one["source"] for one in found["compared"])


def test_noise_errors_are_those_of_the_formula(flowers):
    latents = flowers.encode(torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128))
    prompt = flowers.embed([DAHLIA_PROMPT])
    errors = noise_errors(flowers, latents, prompt)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for index, level in enumerate(LEVELS):
        noisy = level**0.5 * latents + (1 - level) ** 0.5 * noise
        with torch.no_grad():
            eps = flowers.predict_noise(noisy, flowers.schedule.nearest_level(level), prompt)
        mse = torch.nn.functional.mse_loss(eps, noise).item()
        assert errors.noise_mse[index] == pytest.approx(mse, rel=1e-4)
        velocity = level**0.5 * noise - (1 - level) ** 0.5 * latents
        off = torch.nn.functional.mse_loss(eps, velocity) / velocity.square().mean()
        assert errors.by_prediction["v_prediction"][index] == pytest.approx(off.item(), rel=1e-4)
        slope = (noise * noisy).sum() / noisy.square().sum()
        guess = (noise - slope * noisy).square().sum() / noise.square().sum()
        assert errors.guess[index] == pytest.approx(guess.item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        (SCHEDULER, {"prediction_type": "v_prediction"}, "but the network's output is epsilon"),
        (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "The noise schedule seems wrong"),
        (VAE, {"scaling_factor": 6.0}, "latents_std is 8.24, expected at most 2"),
    ],
)
def test_a_wrong_config_is_told_by_what_it_does(run, tmp_path, part, values, said):
    configured(tmp_path / "wrong", part, **values)
    code, out, _ = run("doctor", "--model", "wrong", "--report", "r.json", "--steps", 1, "--json")
    assert code == 1
    assert any(said in problem for problem in json.loads(out)["problems"])


def test_a_text_encoder_that_reads_all_words_alike_is_found(run, tmp_path):
    deaf = copy_of_the_model(tmp_path / "deaf")
    (weights,) = (deaf / "text_encoder").glob("*.safetensors")
    (name,) = [n for n in safetensors.torch.load_file(weights) if "token_embedding" in n]
    change(weights, name, 0.0)
    code, out, _ = run("doctor", "--model", "deaf", "--json")
    assert code == 1
    problems = json.loads(out)["problems"]
    assert any("does not tell the words apart" in problem for problem in problems)
    assert any("does not hear its text" in problem for problem in problems)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_random_weights_are_called_out_in_every_family(run, tmp_path, family):
    tiny_pipeline(family).save_pretrained(tmp_path / "random")
    code, out, _ = run("doctor", "--model", "random", "--report", "r.md", "--steps", 2)
    assert code == 1
    assert "the network predicts noise no better than without one" in out
    assert "the autoencoder does not fit these weights" in out
    assert "does NOT" not in out
    text = Path("r.md").read_text()
    assert text.startswith("# nulltext check-up of random\n")
    assert json.loads(text.split("```json")[1].split("```")[0])["model"]["name"] == "random"


def test_a_report_names_no_person_and_no_place(run, tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada-lovelace"
    broken = home / "secret project" / "mine"
    broken.parent.mkdir(parents=True)
    tiny_pipeline("sd1").save_pretrained(broken)
    (broken / FILE).write_text("[]")  # a problem whose sentence has the whole path
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "ada-lovelace")
    monkeypatch.setattr("platform.node", lambda: "analytical-engine")
    for report in ("r.json", "r.md"):
        run("doctor", "--model", broken, "--report", report, "--steps", 1, "--quiet")
        text = Path(report).read_text()
        assert "'check.json' cannot be read" in text
        assert "of the model 'mine'" in text or '"name": "mine"' in text
        for private in ("ada-lovelace", "secret project", str(tmp_path), "analytical-engine"):
            assert private not in text


def test_sentences_lose_paths_names_and_tokens(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr("platform.node", lambda: "engine")
    for said, kept in {
        "'/home/ada/m/unet' is damaged": "'unet' is damaged",
        "cannot open ~/models/x.bin, or C:\\Users\\ada\\m.bin": "cannot open x.bin, or m.bin",
        "ada on engine with hf_abcDEF123": "USER on HOST with TOKEN",
        "get 'stabilityai/sdxl-vae' again": "get 'stabilityai/sdxl-vae' again",
        "see https://host.org/a/b?token=1 now": "see https://host.org/a/b now",
        "24.7 +/- 3.9 dB, in scheduler/config.json": "24.7 +/- 3.9 dB, in scheduler/config.json",
    }.items():
        assert without_private(said) == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", 3], "--steps is for --report"),
        (["--report", "r.json", "--steps", 0], "The number of steps is 0"),
        (["--report", "nowhere/r.json"], "does not exist"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
    ],
)
def test_bad_input_is_refused_before_any_work(run, arguments, said):
    code, out, err = run("doctor", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert not list(Path().iterdir())


def test_numbers_that_json_has_not_become_null():
    found = Health(model={"deviations": {"unet": float("inf")}, "name": "m"})
    assert found.as_json()["model"] == {"deviations": {"unet": None}, "name": "m"}


def test_missing_libraries_are_named_with_what_brings_them(monkeypatch):
    present = importlib.metadata.version
    old = {"matplotlib": "3.0", "diffusers": "0.1"}

    def version(name):
        if name == "scikit-image":
            raise importlib.metadata.PackageNotFoundError(name)
        return old.get(name) or present(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = describe_installation()
    assert found.versions["diffusers"] == "0.1"
    (problem,) = found.problems
    assert problem.startswith("diffusers>=")
    assert not found.extras["study"]["present"]
    assert set(found.extras["study"]["missing"]) == {"scikit-image", "matplotlib"}
    assert found.extras["study"]["install"] == "pip install 'nulltext[study]'"
    assert found.extras["coco"]["present"]
    assert not {"dev", "test", "benchmark"} & found.extras.keys()


def test_a_place_for_temporary_files_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    found = describe_installation()
    assert not found.folders["temporary"]["writable"]
    assert "TMPDIR" in found.problems[0]


def test_bundled_names_folders_and_hub_ids_have_their_folders(tmp_path):
    assert folder_of("flowers") == BUNDLED
    assert folder_of(BUNDLED) == BUNDLED
    assert folder_of("somebody/some-model") is None


# The log


def stages(err):
    lines = re.findall(r"^[\d-]+ [\d:,]+ (\w+) nulltext\.([\w.]+): (\w+): (.*)$", err, re.MULTILINE)
    return [(level, stage, said) for level, _, stage, said in lines]


EDIT = (
    *("edit", EXAMPLE, "--source", "a photo of an orange flower", "--method", "direct"),
    *("--target", "a photo of a red flower", "--steps", 2, "-o", "red.png", "--json"),
)


def test_every_stage_says_what_it_did_and_how_long_it_took(run, quiet_again):
    code, out, err = run("--log-level", "info", *EDIT)
    assert code == 0, err
    found = stages(err)
    assert {level for level, _, _ in found} == {"INFO"}
    assert [stage for _, stage, _ in found] == [
        *("load", "encode", "invert", "edit", "decode", "write")
    ]
    assert all(re.search(r", \d+\.\d\d s$", said) for _, _, said in found)
    said = {stage: text for _, stage, text in found}
    assert said["encode"].startswith("128 x 128 px")
    assert said["invert"].startswith("direct, 2 steps, 6 UNet evaluations, ")
    assert said["edit"].startswith("targets: 1, 2 steps, 8 UNet evaluations")
    assert said["write"].startswith("red.png, ")
    assert json.loads(out)["outputs"] == ["red.png"]


def test_debug_says_every_step_and_silence_is_the_default(run, quiet_again):
    run("--log-level", "debug", "--version")  # one handler, however often this is asked for
    code, _, err = run("--log-level", "debug", *EDIT)
    assert code == 0
    steps = [(stage, said) for level, stage, said in stages(err) if level == "DEBUG"]
    sampled = [*(["pivot"] * 2 + ["correct"] * 2 + ["region"] + ["edit"] * 2)]
    assert [stage for stage, _ in steps[: len(sampled)]] == sampled
    assert steps[1][1].startswith("step 2 of 2, t = ")
    placed = list(dict.fromkeys(stage for stage, _ in steps[len(sampled) :]))
    assert placed == ["outline", "composite", "compare", "encode", "write"]
    assert steps[-1][1] == "step 1 of 1"  # where the model does not run, there is no t
    assert len(stages(err)) == 6 + len(steps)
    code, _, err = run("--log-level", "warning", *EDIT)
    assert (code, stages(err)) == (0, [])
    assert run("--log-level", "loud", "doctor")[0] == 2


def test_captions_and_replays_are_logged_too(caplog, tiny_sd1, photo):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=2)
    caplog.set_level(logging.INFO, logger="nulltext")
    captioner().caption(EXAMPLE)
    nulltext.replay(tiny_sd1, inversion)
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    assert said == ["caption", "replay", "decode"]


def test_the_library_installs_no_handler():
    script = (
        "import logging, nulltext, nulltext.editing.loop, nulltext.captioning.captioner; "
        "names = [n for n in logging.root.manager.loggerDict if n.split('.')[0] == 'nulltext']; "
        "loggers = [logging.getLogger(n) for n in names]; assert len(loggers) > 4, names; "
        "print(sum(len(l.handlers) for l in loggers), {l.level for l in loggers})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.split("\n")[0] == "0 {0}"
