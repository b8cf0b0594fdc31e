"""Saved inversions: the round trip, and every file that is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nulltext
from nulltext.errors import InversionFileError, OutputError
from nulltext.storage.inversion_file import FORMAT_VERSION


@pytest.fixture(scope="module")
def inversion(tiny_sd1, photo):
    return nulltext.invert(tiny_sd1, photo, "a cat, naïve 猫", num_steps=2)


@pytest.fixture
def path(inversion, tmp_path):
    inversion.save(tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def rewrite(path, *, drop=(), header=None, metadata=None, **tensors):
    """Write the file again with something changed."""
    with safe_open(path, framework="pt") as stream:
        old = json.loads(stream.metadata()["nulltext"])
    content = {k: v for k, v in load_file(path).items() if k not in drop} | tensors
    new = {k: v for k, v in (old | (header or {})).items() if v is not ...}
    save_file(content, path, metadata=metadata or {"nulltext": json.dumps(new)})


def test_what_is_saved_is_what_is_loaded(inversion, path):
    loaded = nulltext.Inversion.load(path)
    assert loaded.header == inversion.header
    assert loaded.tensors().keys() == inversion.tensors().keys()
    for name, tensor in inversion.tensors().items():
        assert torch.equal(tensor, loaded.tensors()[name]), name
        assert tensor.dtype == loaded.tensors()[name].dtype


def test_a_loaded_inversion_replays_and_edits_bit_for_bit(tiny_sd1, inversion, path):
    loaded = nulltext.Inversion.load(path)
    replays = [nulltext.replay(tiny_sd1, one).image for one in (inversion, loaded)]
    edits = [nulltext.edit(tiny_sd1, one, "a dog").images for one in (inversion, loaded)]
    assert torch.equal(*replays)
    assert torch.equal(*edits)


def test_inverting_twice_gives_the_same(tiny_sd1, photo, inversion):
    again = nulltext.invert(tiny_sd1, photo, inversion.header.prompt, num_steps=2)
    assert torch.equal(again.trajectory, inversion.trajectory)
    assert torch.equal(again.null_embeds, inversion.null_embeds)
    assert replace(again.header, seconds=0.0) == replace(inversion.header, seconds=0.0)


def test_the_file_is_plain_safetensors_with_a_json_header(inversion, path):
    assert set(load_file(path)) == {
        "trajectory",
        "photo",
        "null_embeds",
        "prompt_embeds",
        "corrections",
    }
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["nulltext"])
    assert header == {"version": FORMAT_VERSION, **asdict(inversion.header)}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InversionFileError, match=r"gone\.safetensors.*does not exist"):
        nulltext.Inversion.load(tmp_path / "gone.safetensors")
    with pytest.raises(InversionFileError, match="not a regular file"):
        nulltext.Inversion.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, -1])
def test_truncated_files_are_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InversionFileError, match=r"cat\.safetensors"):
        nulltext.Inversion.load(path)


def test_foreign_files_are_refused(path, tmp_path):
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InversionFileError, match="damaged"):
        nulltext.Inversion.load(tmp_path / "text.safetensors")
    with pytest.raises(InversionFileError, match="not one of nulltext's"):
        nulltext.Inversion.load(tmp_path / "other.safetensors")
    rewrite(path, metadata={"nulltext": "[1, 2]"})
    with pytest.raises(InversionFileError, match="damaged"):
        nulltext.Inversion.load(path)
    rewrite_metadata = {"nulltext": "[" * 100_000}
    save_file(load_file(path), path, metadata=rewrite_metadata)
    with pytest.raises(InversionFileError, match="damaged"):
        nulltext.Inversion.load(path)


def test_newer_versions_are_refused(path):
    rewrite(path, header={"version": FORMAT_VERSION + 1})
    with pytest.raises(InversionFileError, match="upgrade nulltext"):
        nulltext.Inversion.load(path)


@pytest.mark.parametrize("version", ["1", None, 1.5, True, -1, 0])
def test_versions_that_are_none_are_refused(path, version):
    rewrite(path, header={"version": version})
    with pytest.raises(InversionFileError):
        nulltext.Inversion.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"drop": ["trajectory"]},
        {"drop": ["photo"]},
        {"extra": torch.zeros(1)},
        {"trajectory": torch.zeros(5, 4, 8, 8)},
        {"trajectory": torch.zeros(3, 4, 8)},
        {"trajectory": torch.zeros(3, 4, 8, 8, dtype=torch.int32)},
        {"trajectory": torch.full((3, 4, 8, 8), float("nan"))},
        {"null_embeds": torch.zeros(7, 24, 32)},
        {"null_embeds": torch.full((2, 24, 32), float("inf"))},
        {"corrections": torch.zeros(3, 4, 8, 8)},
        {"photo": torch.zeros(3, 32, 32)},
        {"photo": torch.zeros(4, 32, 32, dtype=torch.uint8)},
        {"header": {"prompt": ...}},
        {"header": {"prompt": 5}},
        {"header": {"levels": "abc"}},
        {"header": {"levels": []}},
        {"header": {"levels": [{"fed": 501}, {"fed": "1"}]}},
        {"header": {"levels": [{"fed": 501, "alpha": float("inf")}, {"fed": 1}]}},
        {"header": {"levels": [{"fed": 501, "gamma": 0.5}, {"fed": 1}]}},
        {"header": {"levels": [{"fed": 501}, {"fed": 5001}]}},
        {"header": {"levels": [{"fed": 1}, {"fed": 501}]}},
        {"header": {"levels": ..., "timesteps": [1, "2"]}},
        {"header": {"guidance_scale": "7.5"}},
        {"header": {"guidance_scale": float("nan")}},
        {"header": {"crop": [0, 0]}},
        {"header": {"image_size": [10, -1]}},
        {"header": {"method_config": []}},
        {"header": {"seed": 1.5}},
        {"header": {"unet_evaluations": True}},
        {"header": {"adapters": {"kind": "lora"}}},
        {"header": {"adapters": ["style"]}},
        {"header": {"adapters": [{"kind": "lora", "weight": float("inf")}]}},
        {"header": {"adapters": [{"kind": "lora", "weight": [1]}]}},
    ],
    ids=lambda change: "-".join(str(k) for k in change),
)
def test_contents_that_do_not_fit_are_refused(path, change):
    rewrite(path, **change)
    with pytest.raises(InversionFileError):
        nulltext.Inversion.load(path)


def test_whole_numbers_may_stand_for_real_ones(path):
    rewrite(path, header={"guidance_scale": 7, "psnr_bound": 25})
    assert nulltext.Inversion.load(path).header.guidance_scale == 7.0


def test_adapters_are_kept_and_older_files_have_none(inversion, path):
    assert inversion.header.adapters == []
    adapters = [
        {"kind": "lora", "name": "style.safetensors", "sha256": "0123456789", "weight": 0.5},
        {"kind": "embedding", "name": "cat.safetensors", "sha256": "9876543210", "token": "<cat>"},
    ]
    replace(inversion, header=replace(inversion.header, adapters=adapters)).save(path)
    assert nulltext.Inversion.load(path).header.adapters == adapters
    rewrite(path, header={"adapters": ...})
    assert nulltext.Inversion.load(path).header.adapters == []


def test_saving_where_nothing_can_be_saved_leaves_nothing(inversion, tmp_path):
    with pytest.raises(OutputError):
        inversion.save(tmp_path / "no" / "such" / "folder.safetensors")
    with pytest.raises(OutputError):
        inversion.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_latents_of_another_architecture_are_refused(flowers, tiny_sd1, inversion):
    forged = replace(inversion.header, fingerprint=flowers.fingerprint)
    with pytest.raises(InversionFileError, match="does not fit"):
        nulltext.replay(flowers, replace(inversion, header=forged))


@pytest.mark.parametrize("change", [{"fed": 700}, {"alpha": 0.5}])
def test_levels_of_another_schedule_are_refused(tiny_sd1, inversion, change):
    first, *others = inversion.header.levels
    forged = replace(inversion.header, levels=[replace(first, **change), *others])
    with pytest.raises(InversionFileError, match="schedule"):
        nulltext.replay(tiny_sd1, replace(inversion, header=forged))
