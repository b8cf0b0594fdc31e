"""Editing: the source never drifts, targets do not see each other, words do what they should."""

from __future__ import annotations

import pytest
import torch

import nulltext
from nulltext.errors import InversionFileError, OptionError, PromptError
from support.examples import DAHLIA_PROMPT, EXAMPLE

RED = DAHLIA_PROMPT.replace("orange", "red")
DAISY = "a photo of a white daisy with a dark background"
LONGER = "a photo of an orange flower on a green background with a dark leaf"


@pytest.mark.parametrize("method", ["ddim", "null-text"])
@pytest.mark.parametrize("targets", [["a cat"], ["a cat", "a blue photo of a cat", "sofa"]])
def test_the_source_branch_is_the_replay_bit_for_bit(tiny, photo, method, targets):
    inversion = nulltext.invert(tiny, photo, "a photo of a cat", method=method, num_steps=3)
    alone = nulltext.replay(tiny, inversion)
    beside = nulltext.edit(tiny, inversion, targets)
    assert torch.equal(beside.reconstruction, alone.image)
    assert beside.psnr_reconstruction == alone.psnr


def test_the_source_branch_is_the_replay_on_the_bundled_model(flowers, dahlia_inversion):
    alone = nulltext.replay(flowers, dahlia_inversion)
    beside = nulltext.edit(flowers, dahlia_inversion, [RED, DAISY, LONGER])
    assert torch.equal(beside.reconstruction, alone.image)


def test_an_edit_that_changes_nothing_is_the_replay(flowers):
    exact = nulltext.inversion.FixedPoint(tolerance=1e-5, most_evaluations=20)
    inversion = nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, method=exact, num_steps=10)
    same = nulltext.EditSpec(
        DAHLIA_PROMPT, cross_steps=1.0, self_steps=1.0, weights={"orange": 1.0 + 1e-7}
    )
    edit = nulltext.edit(flowers, inversion, same)
    # explicit attention beside fused attention, float32, ten guided steps
    torch.testing.assert_close(edit.images, edit.reconstruction, atol=2e-3, rtol=0)


def test_targets_do_not_see_each_other(flowers, dahlia_inversion):
    specs = [RED, DAISY, LONGER, "a flower", "a photo of a tulip with a dark background"]
    together = nulltext.edit(flowers, dahlia_inversion, specs)
    for index, spec in enumerate(specs):
        alone = nulltext.edit(flowers, dahlia_inversion, spec)
        # batches of other sizes take other matrix kernels: float32 rounding over ten guided steps
        torch.testing.assert_close(together.images[index], alone.images[0], atol=2e-3, rtol=0)


def test_changing_the_colour_word_changes_the_colour_and_keeps_the_rest(flowers, dahlia_inversion):
    edit = nulltext.edit(flowers, dahlia_inversion, RED)
    before, after = edit.reconstruction[0], edit.images[0]
    side = before.shape[-1]
    flower = (slice(None), slice(side // 4, side // 2), slice(side // 4, side // 2))

    def orange_to_red(image):  # red minus green: about 0.35 for orange petals, more for red
        red, green, _ = image[flower].clamp(-1, 1).mean(dim=(1, 2))
        return float(red - green)

    assert orange_to_red(after) > orange_to_red(before) + 0.2
    top = (slice(None), slice(0, side // 8), slice(None))
    assert (after[top] - before[top]).abs().mean() < (after[flower] - before[flower]).abs().mean()


def test_injection_keeps_more_of_the_photo_than_no_injection(flowers, dahlia_inversion):
    strengths = [(0.0, 0.0), (1.0, 1.0)]
    specs = [nulltext.EditSpec(RED, cross_steps=c, self_steps=s) for c, s in strengths]
    edit = nulltext.edit(flowers, dahlia_inversion, specs)
    free, held = ((image - edit.reconstruction[0]).abs().mean() for image in edit.images)
    assert held < free


def test_reweighting_moves_the_picture_the_further_the_heavier(flowers, dahlia_inversion):
    yellow = DAHLIA_PROMPT.replace("orange", "yellow")
    factors = (1.0, 1.5, 3.0, 0.5, -2.0)
    strongly = nulltext.EditSpec(yellow, guidance_scale=10.0)
    plain = nulltext.edit(flowers, dahlia_inversion, strongly).images[0]
    specs = [nulltext.EditSpec(yellow, weights={"yellow": f}, guidance_scale=10.0) for f in factors]
    edit = nulltext.edit(flowers, dahlia_inversion, specs)
    one, more, most, less, against = ((row - plain).abs().mean() for row in edit.images)
    assert one < 1e-4  # float32: a factor of one is no factor, also in another batch
    assert 0.005 < more < most
    assert 0.005 < less < against


def test_an_inversion_at_guidance_one_is_edited_by_the_prompt_branch_alone(tiny, photo):
    inversion = nulltext.invert(
        tiny, photo, "a cat", method="ddim", num_steps=3, guidance_scale=1.0
    )
    edit = nulltext.edit(tiny, inversion, ["a dog", "a white cat"])
    assert torch.equal(edit.reconstruction, nulltext.replay(tiny, inversion).image)
    assert edit.unet_evaluations == 3 * 3
    assert (edit.images - edit.reconstruction).abs().max() > 1e-3


def test_what_is_no_inversion_is_refused(tiny_sd1):
    for use in (nulltext.replay, lambda m, i: nulltext.edit(m, i, "a dog")):
        with pytest.raises(InversionFileError, match=r"A str is no inversion; .*Inversion\.load"):
            use(tiny_sd1, "cat.safetensors")


def test_another_model_is_refused(tiny_sd1, tiny_sd2, photo):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=2)
    for use in (nulltext.replay, lambda m, i: nulltext.edit(m, i, "a dog")):
        with pytest.raises(InversionFileError, match="other weights"):
            use(tiny_sd2, inversion)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"target": "a cat"}, PromptError),
        ({"target": "  "}, PromptError),
        ({"target": "a dog", "weights": {"tabby": 2.0}}, PromptError),
        ({"target": "a dog " * 40}, PromptError),
        ({"target": "a dog and a cat", "alignment": "replace"}, PromptError),
        ({"target": "a dog", "weights": {"dog": float("nan")}}, OptionError),
    ],
)
def test_edits_that_mean_nothing_are_refused(tiny_sd1, photo, spec, error):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=1)
    with pytest.raises(error):
        nulltext.edit(tiny_sd1, inversion, nulltext.EditSpec(**spec))


def test_fractions_outside_0_to_1_are_refused():
    with pytest.raises(OptionError, match="cross_steps"):
        nulltext.EditSpec("a dog", cross_steps=1.5)
    with pytest.raises(OptionError, match="self_steps"):
        nulltext.EditSpec("a dog", self_steps=-0.1)


def test_no_targets_at_all_are_refused(tiny_sd1, photo):
    inversion = nulltext.invert(tiny_sd1, photo, "a cat", method="ddim", num_steps=1)
    with pytest.raises(OptionError, match="at least one target"):
        nulltext.edit(tiny_sd1, inversion, [])
