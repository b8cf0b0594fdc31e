"""Every stated cost is the number of rows that passed the UNet, as its own hooks count them."""

from __future__ import annotations

import json

import pytest
import torch

import nulltext
from nulltext.editing.editors import EDITORS
from nulltext.evaluation.plan import VARIANTS
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.replay import exact_source_step, source_step
from nulltext.models import network_calls
from support.counting import unet_passes
from support.methods import GENERAL_EDITORS, GENERAL_METHODS
from support.tiny import tiny_pipeline

PROMPT = "a photo of a white cat"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("name", GENERAL_METHODS)
def test_an_inversion_costs_what_its_unet_is_asked_for(request, photo, name, family):
    model, variant = request.getfixturevalue(f"tiny_{family}"), VARIANTS[name]
    with unet_passes() as seen:
        made = nulltext.invert(model, photo, PROMPT, method=variant.method(2), num_steps=3)
    assert made.header.unet_evaluations == seen.total
    assert made.header.iterations == len(seen.backward)
    planned, steps = variant.evaluations(3, 2), 6 if variant.optimises else 0
    assert len(seen.backward) == steps
    if name == "fixed-point":  # as many as the tolerance takes
        assert 3 + 1 <= seen.total <= 3 * FixedPoint().most_evaluations + 1
    else:
        assert seen.total == planned, "what progress bars are told beforehand"


@pytest.mark.parametrize(
    "name", ["ddim", "direct", "fixed-point", "negative-prompt", "textual", "model-tuning"]
)
def test_an_unguided_inversion_costs_what_its_unet_is_asked_for(tiny_sd1, photo, name):
    method = VARIANTS[name].method(1)
    with unet_passes() as seen:
        made = nulltext.invert(
            tiny_sd1, photo, PROMPT, method=method, num_steps=2, guidance_scale=1.0
        )
    assert made.header.unet_evaluations == seen.total
    assert set(seen.forward) == {1}


@pytest.mark.parametrize("name", ["null-text", "random-pivot", "textual-pivot"])
def test_photos_side_by_side_cost_what_their_unet_is_asked_for(tiny_sd1, photo, name):
    photos = [photo, photo.rotate(180), photo.resize((16, 16)).resize((48, 48))]
    # a tolerance that photos reach after different numbers of steps
    options = {"inner_steps": 2, "loss_tolerance": 1.5e-2}
    method = nulltext.inversion.registry.with_options(VARIANTS[name].method(2), **options)
    with unet_passes() as seen:
        made = nulltext.invert_many(tiny_sd1, photos, [PROMPT] * 3, method=method, num_steps=3)
    assert sum(one.header.unet_evaluations for one in made) == seen.total
    assert max(seen.backward) > 1
    for one in made:  # two to start a timestep, and the pivot's unless there is none
        own = one.header.unet_evaluations - 3 * (2 if name == "random-pivot" else 3)
        assert own >= 2 * one.header.iterations > 0


def test_each_photo_of_a_batch_has_its_own_cost(tiny_sd1, photo):
    settled = nulltext.inversion.NullText(loss_tolerance=1e9)
    method = nulltext.inversion.NullText(
        inner_steps=2, loss_tolerance=0.0, loss_tolerance_slope=0.0
    )
    for each, cost in ((settled, 3 * 3), (method, 3 * (3 + 2 * 2))):
        made = nulltext.invert_many(tiny_sd1, [photo] * 3, [PROMPT] * 3, method=each, num_steps=3)
        assert [one.header.unet_evaluations for one in made] == [cost] * 3


def test_photos_one_by_one_and_runs_at_once_keep_their_costs_apart(tiny_sd1, photo):
    made = nulltext.invert_many(tiny_sd1, [photo] * 2, [PROMPT] * 2, method="ddim", num_steps=3)
    assert [one.header.unet_evaluations for one in made] == [3 * 3] * 2
    first, second = (
        nulltext.inversion.invert_steps(tiny_sd1, photo, PROMPT, method="ddim", num_steps=steps)
        for steps in (2, 4)
    )
    costs = []
    waiting = [first, second]
    while waiting:  # a step of each in turn
        steps = waiting.pop(0)
        try:
            next(steps)
        except StopIteration as stop:
            costs.append(stop.value.header.unet_evaluations)
        else:
            waiting.append(steps)
    assert costs == [3 * 2, 3 * 4]


def test_passes_repeated_in_half_precision_count_again(photo, monkeypatch):
    monkeypatch.setattr(network_calls, "START", 15)
    model = nulltext.load(tiny_pipeline("sd1").to(torch.float16))
    with torch.no_grad():  # gradients leave float16 at the first scale
        model.unet.conv_out.weight *= 10
    method = nulltext.inversion.NullText(inner_steps=1, loss_tolerance=0.0)
    with unet_passes() as seen:
        made = nulltext.invert(model, photo, PROMPT, method=method, num_steps=2)
    assert made.header.unet_evaluations == seen.total
    assert len(seen.backward) > made.header.iterations


@pytest.mark.parametrize("branch", [source_step, exact_source_step])
@pytest.mark.parametrize("name", GENERAL_EDITORS)
def test_an_edit_costs_what_its_unet_is_asked_for(tiny, photo, name, branch):
    inversion = nulltext.invert(tiny, photo, PROMPT, method="ddim", num_steps=3)
    editor = EDITORS[name]()
    first = nulltext.EditSpec("a photo of a red cat", editor=editor)
    free = nulltext.EditSpec("a photo of a dog", editor=editor, guidance_scale=1.0)
    specs = [*nulltext.chain(first, "a photo of a red dog"), free]
    with unet_passes() as seen:
        edit = nulltext.edit(tiny, inversion, specs, source_branch=branch)
    assert edit.unet_evaluations == seen.total
    assert not seen.backward


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "ddim"),
        ("--method", "textual-pivot-shared", "--inner-steps", 2),
        ("--budget", "fast", "--sweep", "sweep.png", "--weight", "red=2"),
    ],
)
def test_edit_says_what_its_unet_is_asked_for(here, model, run, options):
    with unet_passes() as seen:
        code, out, err = run(
            *("edit", "cat.png", "--source", "a white cat", "--target", "a red cat"),
            *("--model", model, "--steps", 3, "-o", "o.png", "--json", *options),
        )
    assert code == 0, err
    assert json.loads(out)["unet_evaluations"] == seen.total > 0


@pytest.mark.parametrize("method", ["negative-prompt", "null-text"])
def test_invert_says_what_its_unet_is_asked_for(here, model, run, photo, method):
    photo.rotate(180).save("second.png")
    (here / "made").mkdir()
    with unet_passes() as seen:
        code, out, err = run(
            *("invert", "cat.png", "second.png", "--prompt", "a white cat", "--model", model),
            *("--steps", 3, "-o", "made", "--method", method),
        )
    assert code == 0, err
    assert f" with {seen.total} UNet evaluations" in out + err
