"""What a person may switch on in a pipeline before it is given to the library."""

from __future__ import annotations

import pytest
import torch

import nulltext
from nulltext.editing.editors import EDITORS
from nulltext.errors import InversionFileError
from support.methods import GENERAL_EDITORS
from support.tiny import tiny_pipeline

PROMPT, TARGET = "a photo of a white cat", "a photo of a black cat"


def sampled(model, photo):
    """An inversion with a gradient, its replay, and an edit by every editor."""
    method = nulltext.inversion.NullText(inner_steps=1)
    made = nulltext.invert(model, photo, PROMPT, method=method, num_steps=2)
    specs = [nulltext.EditSpec(TARGET, editor=EDITORS[name]()) for name in GENERAL_EDITORS]
    edits = [nulltext.edit(model, made, spec) for spec in specs]
    replayed = nulltext.replay(model, made).image
    for edit in edits:
        assert torch.equal(edit.reconstruction, replayed)
        assert not torch.equal(edit.images, replayed)
    return made, torch.cat([edit.images for edit in edits])


@pytest.fixture(scope="module")
def plain(photo):
    models = {kind: nulltext.load(tiny_pipeline(kind)) for kind in ("sd1", "sdxl")}
    return {kind: (*sampled(model, photo), model) for kind, model in models.items()}


def in_channels_last(pipe):
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)


def in_slices_and_tiles(pipe):
    pipe.enable_attention_slicing(1)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def compiled(pipe):
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))


MODES = {
    "compiled": compiled,
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "channels last": in_channels_last,
    "slices and tiles": in_slices_and_tiles,
}


@pytest.mark.parametrize(
    ("mode", "kind"), [*((mode, "sd1") for mode in MODES), ("fused projections", "sdxl")]
)
def test_a_mode_that_is_only_faster_or_smaller_gives_the_same_pictures(photo, plain, mode, kind):
    pipe = tiny_pipeline(kind)
    MODES[mode](pipe)
    model = nulltext.load(pipe)
    made, pictures = sampled(model, photo)
    expected, expected_pictures, before = plain[kind]
    # float32, other summation orders; gradients and guidance enlarge rounding
    torch.testing.assert_close(made.trajectory, expected.trajectory, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(pictures, expected_pictures, atol=1e-2, rtol=1e-2)
    assert made.header.unet_evaluations == expected.header.unet_evaluations
    assert model.fingerprint == before.fingerprint


def test_freeu_acts_and_holds_for_source_and_targets_alike(photo, plain):
    pipe = tiny_pipeline("sd1")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    model, (_, expected, before) = nulltext.load(pipe), plain["sd1"]
    made, pictures = sampled(model, photo)
    assert (pictures - expected).abs().max() > 0.01
    assert model.fingerprint != before.fingerprint
    pipe.disable_freeu()
    assert model.fingerprint == before.fingerprint
    with pytest.raises(InversionFileError, match="other weights"):
        nulltext.replay(model, made)
