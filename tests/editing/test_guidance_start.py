"""Guidance that starts later: plain sampling at w = 1 before, the source untouched, 0 as ever."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import nulltext
from nulltext.errors import OptionError
from nulltext.jobs.edits import base_edit
from nulltext.jobs.job_files import Job, parse_job

STEPS = 4


@pytest.fixture
def inversion(tiny_sd1, photo):
    return nulltext.invert(tiny_sd1, photo, "a cat", num_steps=STEPS)


def test_the_ends_are_full_guidance_and_none(tiny_sd1, inversion):
    def picture(**options):
        # nothing is taken from the source, so that only guidance counts
        spec = nulltext.EditSpec("a dog", cross_steps=0.0, self_steps=0.0, **options)
        return nulltext.edit(tiny_sd1, inversion, spec)

    plain, never = picture(), picture(guidance_start=1.0)
    assert torch.equal(picture(guidance_start=0.0).images, plain.images)
    assert torch.equal(never.images, picture(guidance_scale=1.0).images)
    assert not torch.equal(never.images, plain.images)
    assert torch.equal(never.reconstruction, plain.reconstruction)
    assert never.unet_evaluations == 2 * STEPS  # source and target, no null branch
    assert plain.unet_evaluations == 3 * STEPS


@pytest.mark.parametrize(("start", "unguided"), [(0.25, 1), (0.5, 2), (0.6, 2), (0.75, 3)])
def test_it_is_a_loop_at_w_1_and_then_at_w(tiny_sd1, inversion, start, unguided):
    """Against a loop over both branches' outputs, written here."""
    spec = nulltext.EditSpec("a dog", cross_steps=0.0, self_steps=0.0, guidance_start=start)
    found = nulltext.edit(tiny_sd1, inversion, spec)
    w = inversion.header.guidance_scale
    prompt, latents = tiny_sd1.embed(["a dog"]), inversion.trajectory[-1:]
    null = inversion.null_embeds[:1]
    with torch.no_grad():
        for index, step in enumerate(tiny_sd1.schedule.grid(STEPS)):
            output = tiny_sd1.predict(latents, step.noisier, prompt)
            if index >= unguided:
                output_null = tiny_sd1.predict(latents, step.noisier, null)
                output = (1 - w) * output_null + w * output
            latents = step.denoise(latents, output)
    # float32, batches of other sizes and another order of the sum, over 4 steps
    assert torch.allclose(found.latents, latents, atol=1e-3)
    assert found.unet_evaluations == 3 * STEPS - unguided


def test_targets_of_one_batch_start_each_for_itself(tiny_sd1, inversion):
    starts = (0.0, 0.5, 1.0)
    specs = [nulltext.EditSpec("a dog", guidance_start=start) for start in starts]
    together = nulltext.edit(tiny_sd1, inversion, specs).images
    for spec, image in zip(specs, together, strict=True):
        [alone] = nulltext.edit(tiny_sd1, inversion, spec).images
        # a batch of another size: float32 sums in another order
        assert torch.allclose(image, alone, atol=1e-3)


def test_a_chain_and_a_strength_keep_it():
    spec = nulltext.EditSpec("a dog", guidance_start=0.2)
    assert spec.then("a cow").guidance_start == spec.at_strength(0.7).guidance_start == 0.2


@pytest.mark.parametrize("start", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(start):
    with pytest.raises(OptionError, match=r"start of the guidance is .* from 0 to 1"):
        nulltext.EditSpec("a dog", guidance_start=start)


def test_a_negative_prompt_needs_guidance():
    with pytest.raises(OptionError, match=r"steers nothing where guidance starts after the last"):
        nulltext.EditSpec("a dog", negative="a cow", guidance_start=1.0)


def test_the_command_line_takes_and_records_it(here, model, run, saved):
    edit = ("edit", "--inversion", saved, "--model", model, "--target", "a dog", "-o", "out.png")
    code, _, err = run(*edit, "--guidance-start", 1.5)
    assert code == 2
    assert "--guidance-start is 1.5; choose a number from 0 to 1" in err
    sweep = ("--sweep", "grid.png", "--over", "guidance-start=0,0.5")
    code, _, err = run(*edit, "--guidance-start", 0.5, *sweep)
    assert code == 0, err
    with Image.open("out.png") as picture:
        assert json.loads(picture.text["nulltext"])["guidance_start"] == 0.5


def test_jobs_have_it(tmp_path):
    line = {"image": "a.png", "source": "a cat", "target": "a dog", "guidance_start": 0.2}
    job = parse_job(json.dumps(line).encode(), 1, tmp_path)
    assert isinstance(job, Job)
    assert base_edit(job.edit_options()).guidance_start == 0.2
