"""Inversions, replays and edits equal what they were when the golden tensors were recorded."""

from __future__ import annotations

import pytest
import torch

import nulltext
from support.golden import FOLDER, golden_model, golden_tensors, recorded


@pytest.mark.parametrize("name", ["flowers", "sd1", "sd2", "sdxl"])
def test_methods_and_edits_give_the_golden_tensors(name):
    found, expected = golden_tensors(name), recorded(name)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        # float64; between versions of torch, sums are taken in other orders
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("version", [1, 2])
def test_inversions_of_older_formats_load_and_replay(version):
    model = golden_model("sd1")
    inversion = nulltext.Inversion.load(FOLDER / f"format-{version}.safetensors")
    assert inversion.num_steps == 4
    replay = nulltext.replay(model, inversion)
    assert replay.psnr == pytest.approx(inversion.header.psnr_reconstruction, abs=1e-3)
    edited = nulltext.edit(model, inversion, "a red dog on a sofa")
    assert torch.equal(edited.reconstruction, replay.image)
