"""An inversion that is broken off goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nulltext
from nulltext.diffusion.loops import run
from nulltext.errors import OutputError
from nulltext.inversion import partial as partials
from nulltext.inversion.ablations import RandomPivot, TextualPivot
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.invert import invert_steps
from nulltext.inversion.null_text import NullText
from nulltext.inversion.partial import METADATA_KEY, partial_of
from nulltext.storage.files import _own_prefix, clear_temporaries, replace_file
from support.examples import DAHLIA_PROMPT, EXAMPLE, small_disk
from support.processes import killed_when
from support.tiny import tiny_pipeline

STEPS = 4
METHODS = [
    NullText(inner_steps=2),
    FixedPoint(tolerance=0.0, most_evaluations=3),
    TextualPivot(inner_steps=2),
    RandomPivot(inner_steps=2),
]


@pytest.fixture(autouse=True)
def every_timestep(monkeypatch):
    """Write after each, however quick they are."""
    monkeypatch.setattr(partials, "WRITING_SHARE", float("inf"))


def steps_of(model, photo, method, **more):
    options = {"method": method, "num_steps": STEPS, "seed": 3, **more}
    return invert_steps(model, photo, "a cat", **options)


def broken_off(model, photo, method, path, *, after, **more):
    """Run until so many timesteps are done, and no further."""
    loop = steps_of(model, photo, method, partial=path, **more)
    for info in loop:
        if info.kept is not None and info.index == after:
            break
    loop.close()


def assert_same(one, other):
    """All tensors to the bit, and the header but for the time that was measured."""
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    headers = [asdict(replace(each.header, seconds=0.0)) for each in (one, other)]
    assert headers[0] == headers[1]


@pytest.mark.parametrize(
    ("method", "after"),
    [*((method, 2) for method in METHODS), (METHODS[1], 1), (METHODS[1], STEPS)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_going_on_ends_where_an_undisturbed_run_does(tiny_sd1, photo, tmp_path, method, after):
    path = tmp_path / "x.partial"
    whole = run(steps_of(tiny_sd1, photo, method))
    broken_off(tiny_sd1, photo, method, path, after=after)
    seen = []
    resumed = run(steps_of(tiny_sd1, photo, method, partial=path), seen.append)
    assert_same(resumed, whole)
    done = [info.index for info in seen if info.stage != "replay"]
    assert done == [*range(after + 1, STEPS + 1)]


def test_a_partial_file_holds_no_more_than_it_must(tiny_sd1, photo, tmp_path):
    path = tmp_path / "x.partial"
    broken_off(tiny_sd1, photo, METHODS[0], path, after=3)
    tensors = load_file(path)
    expected = {"pivots", "latents", "gradients", "fitted.0", "fitted.1", "fitted.2"}
    assert tensors.keys() == expected


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"guidance_scale": 5.0},
        {"num_steps": 6},
        {"method": NullText(inner_steps=3)},
        {"size": (24, 16)},
        {"crop": nulltext.CropBox(0, 0, 40, 40)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_belongs_to_another_inversion_is_not_used(tiny_sd1, photo, tmp_path, other):
    path = tmp_path / "x.partial"
    broken_off(tiny_sd1, photo, METHODS[0], path, after=3)
    options = {"method": METHODS[0]} | other
    seen = []
    resumed = run(steps_of(tiny_sd1, photo, partial=path, **options), seen.append)
    assert_same(resumed, run(steps_of(tiny_sd1, photo, **options)))
    assert seen[0].stage == "pivot"


def test_another_photo_prompt_or_model_is_another_inversion(tiny_sd1, photo, tmp_path):
    path = tmp_path / "x.partial"
    broken_off(tiny_sd1, photo, METHODS[0], path, after=3)
    weights = nulltext.load(tiny_pipeline("sd1", seed=1))
    for model, picture, prompt in (
        (weights, photo, "a cat"),
        (tiny_sd1, photo.rotate(180), "a cat"),
        (tiny_sd1, photo, "a dog"),
    ):
        options = {"method": METHODS[0], "num_steps": STEPS, "seed": 3, "partial": path}
        assert next(invert_steps(model, picture, prompt, **options)).stage == "pivot"


def corrupt_values(path):
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    tensors["latents"] = tensors["latents"] + 1
    save_file(tensors, path, metadata=metadata)


def lose_a_tensor(path):
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    del tensors["fitted.1"]
    save_file(tensors, path, metadata=metadata)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: save_file({"a": torch.zeros(1)}, path),
    "no JSON": lambda path: save_file({"a": torch.zeros(1)}, path, metadata={METADATA_KEY: "{"}),
    "no object": lambda path: save_file({"a": torch.zeros(1)}, path, metadata={METADATA_KEY: "3"}),
    "other values": corrupt_values,
    "a tensor less": lose_a_tensor,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_partial_file_is_not_used(tiny_sd1, photo, tmp_path, damage):
    path = tmp_path / "x.partial"
    broken_off(tiny_sd1, photo, METHODS[0], path, after=3)
    damage(path)
    assert next(steps_of(tiny_sd1, photo, METHODS[0], partial=path)).stage == "pivot"


def test_writing_takes_no_more_than_its_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(partials, "WRITING_SHARE", 0.1)
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(partials.time, "perf_counter", lambda: float(next(clock)))
    written = []
    monkeypatch.setattr(partials, "replace_file", lambda path, data: written.append(path))
    partial = partials.Partial(tmp_path / "x", ["f"], started=0.0)
    for _ in range(30):
        partial.write({"a": torch.zeros(1)}, 1)
    # Writing takes 2 ticks (its clock is read thrice), so nothing is written for 20 after it.
    assert len(written) == 2


def test_a_full_disk_is_one_sentence(tiny_sd1, photo, tmp_path):
    missing = tmp_path / "nowhere" / "x.partial"
    with pytest.raises(OutputError, match="does not exist"):
        run(steps_of(tiny_sd1, photo, METHODS[0], partial=missing))


def test_temporaries_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path):
    names = {}
    child = subprocess.Popen([sys.executable, "-c", ""])
    dead = child.pid
    child.wait()
    replace_file(tmp_path / "kept", b"x")
    names["dead"] = tmp_path / f"{_own_prefix()}{dead}-ab.tmp"
    names["living"] = tmp_path / f"{_own_prefix()}{os.getpid()}-ab.tmp"
    names["elsewhere"] = tmp_path / f".nulltext-00000000-{dead}-ab.tmp"
    for path in names.values():
        path.write_bytes(b"")
    clear_temporaries(tmp_path)
    assert {name for name, path in names.items() if path.exists()} == {"living", "elsewhere"}
    assert (tmp_path / "kept").exists()


# The command line ----------------------------------------------------------------------------

LINE = ("invert", str(EXAMPLE), "--prompt", DAHLIA_PROMPT, "--steps", "12")


@pytest.fixture
def run_here(run, monkeypatch, tmp_path):
    """`conftest.run` in a folder of the test's own: (exit code, standard error)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(*arguments)[::2]


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(run_here, tmp_path):
    final = tmp_path / "d.safetensors"
    killed_when(partial_of(final).exists, *LINE, "-o", final)
    assert not final.exists()
    assert partial_of(final).exists()
    code, err = run_here(*LINE, "-o", final)
    assert code == 0, err
    assert "Going on at timestep" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.safetensors"]
    code, err = run_here(*LINE, "-o", "whole.safetensors")
    assert code == 0, err
    assert "Going on" not in err
    assert_same(nulltext.Inversion.load(final), nulltext.Inversion.load("whole.safetensors"))


def test_fresh_starts_over_and_another_prompt_does_too(run_here, tmp_path, photo):
    tiny_pipeline("sd1").save_pretrained(tmp_path / "tiny")
    photo.save("cat.png")
    model = nulltext.load("tiny")
    partial = tmp_path / "cat.safetensors.partial"
    method = NullText(inner_steps=2)
    line = ("invert", "cat.png", "--model", "tiny", "--steps", STEPS, "--inner-steps", 2)
    line += ("--budget", "paper", "--seed", 3, "--prompt")
    for more, expected in ((("a cat",), True), (("a cat", "--fresh"), False), (("a dog",), False)):
        broken_off(model, "cat.png", method, partial, after=2)
        code, err = run_here(*line, *more)
        assert code == 0, err
        assert ("Going on at timestep 3 of 4" in err) == expected
        assert not partial.exists()


def test_a_full_disk_leaves_earlier_results_intact(run_here, tmp_path):
    """On a real file system of 200 kB, where that may be mounted."""
    with small_disk(tmp_path / "small", "200k") as small:
        earlier = small / "earlier.safetensors"
        earlier.write_bytes(b"e" * 150_000)
        code, err = run_here(*LINE, "-o", small / "d.safetensors")
        assert code == 2
        (sentence,) = [line for line in err.splitlines() if line.startswith("Error")]
        assert "No space left on device" in sentence
        assert earlier.read_bytes() == b"e" * 150_000
        assert [path.name for path in small.iterdir()] == ["earlier.safetensors"]
