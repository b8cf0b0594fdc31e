"""Direct and negative-prompt inversion, and the strength that edits take."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import nulltext
from nulltext.errors import OptionError
from nulltext.inversion.replay import Replaying, source_step


@pytest.mark.parametrize("guidance", [1.0, 4.0, 7.5])
def test_direct_inversion_replays_the_pivot_at_any_guidance(tiny, photo, guidance):
    inversion = nulltext.invert(
        tiny, photo, "a cat", method="direct", num_steps=4, guidance_scale=guidance
    )
    replay = nulltext.replay(tiny, inversion)
    # float32: each correction cancels its own step's miss, rounding apart
    torch.testing.assert_close(
        replay.image, tiny.decode(inversion.trajectory[:1]), atol=1e-4, rtol=0
    )
    assert replay.psnr == pytest.approx(inversion.header.psnr_reconstruction, abs=1e-3)
    assert inversion.null_embeds is None


def test_direct_corrections_are_what_the_guided_step_misses_by(tiny, photo):
    inversion = nulltext.invert(tiny, photo, "a cat", method="direct", num_steps=4)
    plain = nulltext.invert(tiny, photo, "a cat", method="ddim", num_steps=4)
    torch.testing.assert_close(inversion.trajectory, plain.trajectory)
    replaying = Replaying.of(tiny, plain)
    for index in range(4):
        row = 4 - index
        stepped = source_step(replaying, plain.trajectory[row][None], index).latents
        expected = plain.trajectory[row - 1] - stepped[0]
        torch.testing.assert_close(inversion.corrections[index], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("guidance", [2.0, 7.5])
def test_negative_prompt_inversion_replays_as_without_guidance(tiny, photo, guidance):
    inversion = nulltext.invert(
        tiny, photo, "a cat", method="negative-prompt", num_steps=4, guidance_scale=guidance
    )
    free = nulltext.invert(tiny, photo, "a cat", method="ddim", num_steps=4, guidance_scale=1.0)
    # eps + w (eps - eps), with eps from two rows of a batch: rounding times w
    torch.testing.assert_close(
        nulltext.replay(tiny, inversion).image,
        nulltext.replay(tiny, free).image,
        atol=1e-3,
        rtol=0,
    )
    assert torch.equal(inversion.null_embeds, tiny.embed(["a cat"]))


@pytest.mark.parametrize("method", ["direct", "negative-prompt"])
def test_they_are_saved_and_edit(tiny_sd1, photo, method, tmp_path):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method=method, num_steps=3)
    inversion.save(tmp_path / "i.safetensors")
    again = nulltext.Inversion.load(tmp_path / "i.safetensors")
    edit = nulltext.edit(tiny_sd1, again, ["a dog"])
    assert torch.equal(edit.reconstruction, nulltext.replay(tiny_sd1, inversion).image)


def test_strength_is_monotone_in_all_its_parts():
    steps = [nulltext.editing.at_strength(i / 20) for i in range(21)]
    for weaker, stronger in pairwise(steps):
        assert stronger.cross_steps <= weaker.cross_steps
        assert stronger.self_steps <= weaker.self_steps
        assert stronger.pull <= weaker.pull
    assert steps[0].pull == math.inf
    halves = [math.exp(-steps[2 * i].pull) / math.exp(-steps[i].pull) for i in range(1, 6)]
    assert halves == pytest.approx(halves[:1] * 5)  # what is left is a power of the strength
    default = nulltext.EditSpec("a dog")
    assert steps[10] == nulltext.editing.Steering(
        default.editor.cross_steps, default.editor.self_steps, 0.0
    )
    assert steps[20] == nulltext.editing.Steering(0.0, 0.0, 0.0)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match="from 0 to 1"):
            nulltext.editing.at_strength(wrong)


def test_a_stronger_edit_goes_further_on_the_bundled_model(flowers, dahlia_inversion):
    red = dahlia_inversion.header.prompt.replace("orange", "red")
    strengths = (0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 1.0)
    specs = [nulltext.EditSpec(red, **vars(nulltext.editing.at_strength(s))) for s in strengths]
    edit = nulltext.edit(flowers, dahlia_inversion, specs)
    away = [float((row - edit.reconstruction[0]).abs().mean()) for row in edit.images]
    assert away[0] < 1e-5
    assert away == sorted(away)
