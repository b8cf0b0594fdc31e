"""What is asked for is done, or said to do nothing; what is said is short, plain and true."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nulltext
from nulltext.cli.train import commit_of
from nulltext.errors import OptionError
from nulltext.image import strip
from nulltext.inversion.registry import METHODS, method_named, with_options
from support.methods import GENERAL_METHODS

EDIT = ("edit", "cat.png", "--source", "a cat", "--target", "a dog")
INVERT = ("invert", "cat.png", "--prompt", "a cat", "--steps", 2)


def short(name):
    """A method with no more to do than it must."""
    method = method_named(name)
    return with_options(method, inner_steps=1) if hasattr(method, "inner_steps") else method


@pytest.mark.parametrize("name", GENERAL_METHODS)
def test_the_seed_matters_to_the_methods_that_say_so(tiny_sd1, photo, name):
    made = [
        nulltext.invert(tiny_sd1, photo, "a cat", method=short(name), num_steps=2, seed=seed)
        for seed in (0, 1)
    ]
    first, second = (inversion.tensors() for inversion in made)
    differs = any(not torch.equal(first[key], second[key]) for key in first)
    assert differs == METHODS[name]().draws


@pytest.mark.parametrize("verb", [EDIT, INVERT])
def test_a_seed_that_changes_nothing_is_said(here, model, run, verb):
    for method, said in (("ddim", True), ("random-pivot", False)):
        options = ("--method", method, "--model", model, "-o", f"{method}.png")
        if verb is INVERT:
            options = (*options[:-1], f"{method}.safetensors")
        if method == "random-pivot":
            options += ("--inner-steps", 1)
        if verb is EDIT:
            options += ("--steps", 2)
        for seed in ((), ("--seed", 3)):
            code, _, err = run(*verb, *options, *seed)
            assert code == 0, err
            assert ("--seed changed nothing" in err) == (said and bool(seed))


@pytest.mark.parametrize("branch", ["replay", "exact"])
def test_the_strip_names_what_its_reconstruction_follows(here, model, run, monkeypatch, branch):
    captions = []
    wrapped = strip._wrapped

    def listening(text, *rest):
        captions.append(text)
        return wrapped(text, *rest)

    monkeypatch.setattr(strip, "_wrapped", listening)
    options = ("--method", "ddim", "--steps", 2, "--model", model, "--source-branch", branch)
    code, _, err = run(*EDIT, *options, "--strip", "strip.png", "-o", "o.png")
    assert code == 0, err
    (caption,) = [text for text in captions if text.startswith("reconstruction")]
    assert ("(ddim)" in caption) == (branch == "replay")
    assert ("(exact trajectory)" in caption) == (branch == "exact")


def test_a_difference_of_weights_is_counted_and_not_listed(here, model, run):
    options = ("--method", "model-tuning", "--inner-steps", 1, "--model", model, "-o")
    assert run(*INVERT, *options, "tuned.safetensors")[0] == 0
    code, out, err = run("inspect", "tuned.safetensors")
    assert code == 0, err
    assert len(out.splitlines()) < 30
    assert max(map(len, out.splitlines())) < 200
    factors = nulltext.Inversion.load("tuned.safetensors").weight_delta
    assert f"weight_delta {len(factors)} factors" in out
    assert f"{'Gradients':<28}2\n" in out
    listed = json.loads(run("inspect", "tuned.safetensors", "--json")[1])
    assert sum(name.startswith("weight_delta.") for name in listed["tensors"]) == len(factors)
    assert listed["iterations"] == 2


def test_a_strangers_words_do_not_steer_the_terminal(saved, run):
    inversion = nulltext.Inversion.load(saved)
    hostile = "a cat\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e 猫"
    replace(inversion, header=replace(inversion.header, prompt=hostile)).save(saved)
    code, out, err = run("inspect", saved)
    assert code == 0, err
    assert r"a cat\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e 猫" in out
    code, _, err = run("edit", "--inversion", saved, "--target", "a dog", "--source", "a cow")
    assert code == 2
    assert not set("\x1b\x07\r\x9b\u202e") & set(out + err)


def test_model_tuning_in_float16_is_refused_before_work(tiny_sd1, photo):
    half = replace(tiny_sd1, network=copy.deepcopy(tiny_sd1.network).half())
    with pytest.raises(OptionError, match="vanish in float16"):
        nulltext.invert(half, photo, "a cat", method="model-tuning", num_steps=2)


TRAP = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "{name}":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from nulltext.cli.entry import main
sys.argv = ["nulltext", "--version"]
main()
"""


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_ctrl_c_while_the_command_is_imported_is_quiet(name):
    done = subprocess.run(
        [sys.executable, "-c", TRAP.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_a_commit_is_named_where_it_is_nulltexts_own(tmp_path):
    def git(*arguments):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    own = tmp_path / "src" / "nulltext" / "cli" / "train.py"
    installed = tmp_path / ".venv" / "lib" / "python" / "nulltext" / "cli" / "train.py"
    nested = tmp_path / "vendor" / "src" / "nulltext" / "cli" / "train.py"
    for path in (own, installed, nested):
        path.parent.mkdir(parents=True)
        path.touch()
    assert commit_of(own) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert commit_of(own) == git("rev-parse", "--short=12", "HEAD")
    assert commit_of(installed) is None
    assert commit_of(nested) is None


def test_the_console_script_is_the_quiet_one():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'nulltext = "nulltext.cli.entry:main"' in text
