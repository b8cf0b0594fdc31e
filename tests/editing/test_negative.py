"""Negative prompts move targets, never the source, and are refused where they steer nothing."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import nulltext
from nulltext.errors import OptionError
from nulltext.jobs.job_files import Job, parse_job
from nulltext.jobs.options import EditOptions, arguments_of


@pytest.fixture
def inversion(tiny_sd1, photo):
    return nulltext.invert(tiny_sd1, photo, "a cat", method="direct", num_steps=3)


def test_a_negative_prompt_moves_its_target_alone(tiny_sd1, inversion):
    specs = [
        nulltext.EditSpec("a dog"),
        nulltext.EditSpec("a dog", negative="a red cat"),
        nulltext.EditSpec("a dog", negative=""),
    ]
    plain = nulltext.edit(tiny_sd1, inversion, "a dog")
    together = nulltext.edit(tiny_sd1, inversion, specs)
    assert torch.equal(together.reconstruction, plain.reconstruction)
    assert torch.equal(together.images[0], together.images[2])
    assert not torch.equal(together.images[0], together.images[1])
    # a batch of another size: float32 sums in another order
    assert torch.allclose(together.images[0], plain.images[0], atol=1e-3)


def test_under_plain_guidance_it_is_the_null_branch(tiny_sd1, inversion):
    """Direct inversion leaves the empty prompt's embedding, so the difference is a replacement."""
    from nulltext.editing.targets import Targets, rows_of
    from nulltext.inversion.replay import Replaying

    replaying = Replaying.of(tiny_sd1, inversion)
    spec = nulltext.EditSpec("a dog", negative="a red cat")
    size = tuple(inversion.trajectory.shape[-2:])
    targets = Targets.start(replaying, rows_of(tiny_sd1, "a cat", [spec], 3, size))
    null = replaying.conditions.at(0).null_embeds + targets.null_shifts
    assert torch.allclose(null, tiny_sd1.embed(["a red cat"]), atol=1e-5)  # float32, two sums


def test_a_chain_keeps_it():
    spec = nulltext.EditSpec("a dog", negative="a\u00a0red\u200b cat").then("a cow")
    assert spec.negative == "a red cat"


def test_it_is_refused_where_there_is_no_null_branch(tiny_sd1, inversion, here, saved, run):
    spec = nulltext.EditSpec("a dog", negative="a cow", guidance_scale=1.0)
    with pytest.raises(OptionError, match=r"steers nothing at guidance 1"):
        nulltext.edit(tiny_sd1, inversion, spec)
    edit = ("edit", "--inversion", saved, "--target", "a dog", "--negative")
    sweep = ("--sweep", "g.png", "--over", "target-guidance=1,3")
    for options, said in (
        (("a cow", "--target-guidance", 1), "guidance 1"),
        (("a cow", *sweep), "which --over target-guidance has"),
        ((" ",), "--negative is empty"),
    ):
        code, _, err = run(*edit, *options)
        assert code == 2
        assert said in err


@pytest.mark.parametrize("texts", [{"negative": ["a", "b"]}, {"negative": 3}, {"target": ["a"]}])
def test_what_is_no_text_is_refused(texts):
    with pytest.raises(OptionError, match=r"is one text, not a (list|int)"):
        nulltext.EditSpec(**{"target": "a dog"} | texts)


def test_the_command_line_records_it(here, model, run, saved):
    pictures = {}
    for name, options in {"with": ("--negative", "a red cat"), "without": ()}.items():
        code, _, err = run(
            *("edit", "--inversion", saved, "--model", model, "--target", "a dog"),
            *("-o", f"{name}.png", *options),
        )
        assert code == 0, err
        with Image.open(f"{name}.png") as picture:
            settings = json.loads(picture.text["nulltext"])
            pictures[name] = picture.tobytes()
        assert settings["negative"] == (options[1] if options else None)
    assert pictures["with"] != pictures["without"]


def test_jobs_and_commands_have_it(tmp_path):
    line = {"image": "a.png", "source": "a cat", "target": "a dog", "negative": "a red cat"}
    job = parse_job(json.dumps(line).encode(), 1, tmp_path)
    assert isinstance(job, Job)
    assert job.edit_options().negative == "a red cat"
    assert arguments_of(EditOptions(negative="a cow")) == ["--negative", "a cow"]
