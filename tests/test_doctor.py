"""`nulltext doctor` tells a sound installation from a broken one; log lines say what happens."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest
import safetensors.torch
import torch

import nulltext
from captioners import captioner
from conftest import EXAMPLE
from nulltext import health
from nulltext.models import known_figure
from nulltext.models.known_figure import FILE, TOLERANCE, deviations, read_known, write_known
from nulltext.models.locate import BUNDLED_FOLDER, folder_of

BUNDLED = BUNDLED_FOLDER / "flowers"


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


def copy_of_the_model(folder):
    return shutil.copytree(BUNDLED, folder)


def shard_with(folder, name):
    """The file of weights that holds a tensor."""
    (index,) = folder.glob("*.safetensors.index.json")
    return folder / json.loads(index.read_text())["weight_map"][name]


def change(path, name, factor):
    """Multiply one tensor of a file of weights."""
    tensors = safetensors.torch.load_file(path)
    tensors[name] = tensors[name] * factor
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


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


def test_missing_libraries_are_named_with_what_brings_them(monkeypatch):
    present = health._installed
    lacking = {"scikit-image": None, "matplotlib": "3.0", "diffusers": "0.1"}
    monkeypatch.setattr(
        health, "_installed", lambda r: lacking[r.name] if r.name in lacking else present(r)
    )
    found = health.Health()
    health._look_at_versions(found)
    health._look_at_extras(found)
    assert found.versions["diffusers"] == "0.1"
    (problem,) = found.problems
    assert problem.startswith("diffusers>=")
    assert not found.extras["study"]["present"]
    assert set(found.extras["study"]["missing"]) == {"scikit-image", "matplotlib"}
    assert found.extras["study"]["install"] == "pip install 'nulltext[study]'"
    assert found.extras["coco"]["present"]
    assert "dev" not in found.extras


def test_a_place_for_temporary_files_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    found = health.Health()
    health._look_at_folders(found)
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
    assert [stage for stage, _ in steps] == ["pivot"] * 2 + ["correct"] * 2 + ["edit"] * 2
    assert steps[1][1].startswith("step 2 of 2, t = ")
    assert len(stages(err)) == 6 + 6
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
        "import logging, nulltext, nulltext.editing, nulltext.captioning.captioner; "
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
