"""What a model suggests as guidance of its targets, and what edits make of it."""

import json
from dataclasses import replace

import pytest
import torch

import nulltext
from nulltext.errors import ModelError, OptionError
from nulltext.models.suggested_guidance import (
    FILE,
    MOST,
    read_guidance,
    suggested,
    write_guidance,
)
from nulltext.training.recipe import load_recipe
from tiny import tiny_pipeline

WHOLE = {"version": 1, "fingerprint": "f", "target": 2.5}


def test_targets_take_the_models_scale_and_never_more_than_the_inversions(tiny, photo):
    inversion = nulltext.invert(tiny, photo, "a cat", method="ddim", num_steps=3, guidance_scale=6)
    careful = replace(tiny, target_guidance=2.0)
    plain, own = nulltext.EditSpec("a dog"), nulltext.EditSpec("a dog", guidance_scale=4.0)
    for model, spec, scale in ((tiny, plain, 6.0), (careful, plain, 2.0), (careful, own, 4.0)):
        result = nulltext.edit(model, inversion, spec)
        same = nulltext.edit(tiny, inversion, replace(spec, guidance_scale=scale))
        torch.testing.assert_close(result.images, same.images, rtol=0, atol=1e-4)
        assert torch.equal(result.reconstruction, nulltext.replay(tiny, inversion).image)
    assert suggested(2.5, 1.0) == 1.0


def test_a_scale_far_from_the_inversions_shows(tiny, photo):
    inversion = nulltext.invert(tiny, photo, "a cat", method="ddim", num_steps=3, guidance_scale=6)
    gentle = nulltext.edit(replace(tiny, target_guidance=1.0), inversion, "a dog").images
    assert (gentle - nulltext.edit(tiny, inversion, "a dog").images).abs().max() > 0.01


def test_it_is_read_back_for_its_own_weights_only(tmp_path):
    assert read_guidance(tmp_path, "f") is None
    assert write_guidance(0.0, "f", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    write_guidance(3.0, "f", tmp_path)
    assert read_guidance(tmp_path, "f") == 3.0
    assert read_guidance(tmp_path, "e") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps(WHOLE | {"version": 2}),
        *(
            json.dumps(WHOLE | {"target": value})
            for value in (None, True, "3", [3], 0, -1, MOST + 1, float("nan"), float("inf"))
        ),
        json.dumps({"version": 1, "fingerprint": "f"}),
    ],
)
def test_a_damaged_suggestion_is_said_and_the_model_loads_without(text, tmp_path, caplog):
    tiny_pipeline("sd1").save_pretrained(tmp_path)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=r"guidance\.json' cannot be read \(.+\); get it again"):
        read_guidance(tmp_path, "f")
    assert nulltext.load(tmp_path).target_guidance is None
    assert "cannot be read" in caplog.text


def test_a_folder_brings_its_suggestion(tmp_path):
    pipe = tiny_pipeline("sd1")
    pipe.save_pretrained(tmp_path)
    write_guidance(3.5, nulltext.load(tmp_path).fingerprint, tmp_path)
    assert nulltext.load(tmp_path).target_guidance == 3.5
    assert nulltext.from_pipe(pipe).target_guidance is None


def test_a_recipe_bounds_it(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"name": "x", "target_guidance": MOST + 1}))
    with pytest.raises(OptionError, match="target_guidance is 101"):
        load_recipe(str(path))
