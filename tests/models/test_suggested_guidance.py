"""What a model suggests as its guidance scale, and what inversions and edits make of it."""

import json
from dataclasses import replace

import pytest
import torch

import nulltext
from nulltext.constants import GUIDANCE_SCALE
from nulltext.errors import ModelError, OptionError
from nulltext.models.load import folder_of
from nulltext.models.side_files import (
    GUIDANCE_FILE,
    MOST,
    read_guidance,
    write_guidance,
)
from nulltext.training.recipe import load_recipe
from support.tiny import tiny_pipeline

WHOLE = {"version": 1, "fingerprint": "f", "scale": 2.5}


def test_inversions_and_their_edits_take_the_models_scale(tiny, photo):
    careful = replace(tiny, guidance_scale=2.0)
    how = {"method": "ddim", "num_steps": 3}
    for model, given, scale in ((tiny, None, 7.5), (careful, None, 2.0), (careful, 4.0, 4.0)):
        made = nulltext.invert(model, photo, "a cat", guidance_scale=given, **how)
        same = nulltext.invert(tiny, photo, "a cat", guidance_scale=scale, **how)
        assert made.header.guidance_scale == scale
        result = nulltext.edit(model, made, "a dog")
        expected = nulltext.edit(tiny, same, "a dog")
        torch.testing.assert_close(result.images, expected.images, rtol=0, atol=1e-4)


def test_a_suggested_scale_shows(tiny, photo):
    gentle, usual = (
        nulltext.edit(
            model, nulltext.invert(model, photo, "a cat", method="ddim", num_steps=3), "a dog"
        ).images
        for model in (replace(tiny, guidance_scale=1.0), tiny)
    )
    assert (gentle - usual).abs().max() > 0.01


def test_it_is_read_back_for_its_own_weights_only(tmp_path):
    assert read_guidance(tmp_path, ("f",)) is None
    assert write_guidance(0.0, "f", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    write_guidance(3.0, "f", tmp_path)
    assert read_guidance(tmp_path, ("f",)) == 3.0
    assert read_guidance(tmp_path, ("e",)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps(WHOLE | {"version": 2}),
        *(
            json.dumps(WHOLE | {"scale": value})
            for value in (None, True, "3", [3], 0, 0.5, 1, -1, MOST + 1, float("nan"), float("inf"))
        ),
        json.dumps({"version": 1, "fingerprint": "f"}),
    ],
)
def test_a_damaged_suggestion_is_said_and_the_model_loads_without(text, tmp_path, caplog):
    tiny_pipeline("sd1").save_pretrained(tmp_path)
    (tmp_path / GUIDANCE_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"guidance\.json' cannot be read \(.+\); get it again"):
        read_guidance(tmp_path, ("f",))
    assert nulltext.load(tmp_path).guidance_scale == GUIDANCE_SCALE
    assert "cannot be read" in caplog.text


def test_a_folder_brings_its_suggestion(tmp_path):
    pipe = tiny_pipeline("sd1")
    pipe.save_pretrained(tmp_path)
    write_guidance(3.5, nulltext.load(tmp_path).fingerprint, tmp_path)
    assert nulltext.load(tmp_path).guidance_scale == 3.5
    assert nulltext.from_pipe(pipe).guidance_scale == GUIDANCE_SCALE


@pytest.mark.parametrize("scale", [0.5, 1.0, MOST + 1])
def test_a_recipe_bounds_it(scale, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"name": "x", "guidance_scale": scale}))
    with pytest.raises(OptionError, match=f"guidance_scale is {scale}; choose"):
        load_recipe(str(path))


def test_the_bundled_model_suggests_what_its_recipe_says(flowers):
    """After new weights, `nulltext train --stage export` writes it anew."""
    folder = folder_of("flowers")
    assert folder is not None
    recipe = load_recipe(str(folder / "recipe.json"))
    assert flowers.guidance_scale == recipe.guidance_scale == 3, "the helps of --guidance say 3"
    assert load_recipe("flowers-grown").guidance_scale == recipe.guidance_scale
