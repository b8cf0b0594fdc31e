"""A configuration that does not fit its weights is told by the inversions that it makes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

import nulltext
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.health.noise import note_on_configuration
from nulltext.inversion.ddim import DDIM
from support.copies import SCHEDULER, configured
from support.examples import DAHLIA_PROMPT, EXAMPLE


def inverted(model, **options):
    method = DDIM(**options)
    return nulltext.invert(
        model, EXAMPLE, DAHLIA_PROMPT, method=method, guidance_scale=1.0, num_steps=10
    )


@pytest.mark.parametrize(
    ("prediction", "deviation"), [("epsilon", None), ("v_prediction", 1.65), ("sample", 3.17)]
)
def test_a_wrong_prediction_type_shows_in_the_noise_that_an_inversion_ends_in(
    flowers, prediction, deviation
):
    model = replace(flowers, schedule=replace(flowers.schedule, prediction=prediction))
    said = note_on_configuration(model, inverted(model))
    if deviation is None:
        assert said is None
    else:
        found = float(re.search(r"a deviation of ([\d.]+)", said)[1])
        assert found == pytest.approx(deviation, abs=0.02)
        assert "': Its configuration looks wrong: the noise" in said
        assert f"so its prediction_type may not be {prediction}" in said


@pytest.mark.parametrize("steps", [10, 30])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_without_training_are_the_first_thing_said(tiny, steps, prediction):
    model = replace(tiny, schedule=replace(tiny.schedule, prediction=prediction))
    inversion = nulltext.invert(
        model, EXAMPLE, "a cat", method=DDIM(), guidance_scale=1.0, num_steps=steps
    )
    said = note_on_configuration(model, inversion)
    assert said.startswith(
        f"Note on the model '{tiny.name}': Its weights look untrained: the noise"
    )
    assert f"if they are trained, its prediction_type may not be {prediction}." in said


def test_nothing_is_said_of_few_steps_and_guided_inversions(flowers, inversion, tiny):
    assert note_on_configuration(tiny, inversion) is None  # random weights, four steps
    assert note_on_configuration(flowers, inverted(flowers, inversion_guidance=3.0)) is None


def test_inversions_and_edits_say_it_and_go_on(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configured(tmp_path / "wrong", SCHEDULER, prediction_type="v_prediction")
    code, out, err = run(
        *("invert", EXAMPLE, "--prompt", DAHLIA_PROMPT, "--model", "wrong", "--steps", 10),
        *("--method", "ddim", "-o", "kept.safetensors", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["file"] == "kept.safetensors"
    said = "Note on the model 'wrong': Its configuration looks wrong"
    assert err.count(said) == 1
    line = ("edit", "--inversion", "kept.safetensors", "--target", "a photo of a daisy")
    code, out, err = run(*line, "--model", "wrong", "-o", "daisy.png")
    assert code == 0, err
    assert err.count(said) == 1


def of_published_width(**config):
    """What the note reads of a model: Stable Diffusion 1.x by its text encoder's width."""
    text = SimpleNamespace(network="unet", modules=("text_encoder",))
    schedule = DiscreteSchedule.from_config(config)
    return SimpleNamespace(
        name="m", schedule=schedule, grid=schedule.grid, text=text, embeds_shape=(77, 768)
    )


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, False),
        ({"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}, True),
        ({}, True),
        (
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
            },
            False,
        ),
    ],
)
def test_the_betas_of_a_published_family_are_known(inversion, config, wrong):
    said = note_on_configuration(of_published_width(**config), inversion)
    assert (said is not None) == wrong
    if wrong:
        assert said.startswith("Note on the model 'm': The noise schedule is not the one of Stable")
        assert "; fine-tunes with rescaled betas have another one, a wrong" in said
        assert "looks wrong" not in said
