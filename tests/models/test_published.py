"""Checkpoints as they are published: every kind, in every layout, through the command line.

All layouts of a kind hold the same numbers, so they have to give the same pictures.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from PIL import Image

import nulltext
from support.examples import EXAMPLE
from support.published import (
    KINDS,
    config_of,
    parts_of,
    shapes_of,
    weights,
    write_folder,
    write_linspace,
    write_single_file,
)
from support.single_files import single_file

SHORT = {"method": "ddim", "steps": 2, "guidance": 1}
"""Settings that take little time."""
SHORT_OPTIONS = [word for name, value in SHORT.items() for word in (f"--{name}", value)]

WORDS = {"source": "a cat", "target": "a dog"}
WORD_OPTIONS = [word for name, value in WORDS.items() for word in (f"--{name}", value)]

LAYOUTS = ["fp16", "sharded", "single file"]
"""Beside the plain folder, to whose pictures they are held. Each is read by one verb for every
kind, and by all verbs for one kind, since verbs do not know how a model was read."""

REAL_SIZE = "a photo of an orange flower", "a photo of a white flower"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A miniature of a kind in a layout, as the arguments that name it; written once."""
    root = tmp_path_factory.mktemp("published")

    @functools.cache
    def written(kind, layout):
        out = root / layout.replace(" ", "-") / kind
        if layout == "plain":
            return {"model": str(write_folder(kind, out, dtype=torch.float32))}
        if layout == "linspace":
            return {"model": str(write_linspace(Path(written(kind, "plain")["model"]), out))}
        if layout == "single file":
            file = write_single_file(kind, out.with_suffix(".safetensors"))
            return {"model": str(file), "config": written(kind, "plain")["model"]}
        shards = 3 if "sharded" in layout else 1
        variant = "fp16" if "fp16" in layout else None
        return {"model": str(write_folder(kind, out, variant=variant, shards=shards))}

    return written


class Picture(NamedTuple):
    """What is in a PNG but for the model's name and the job, which say what files were given."""

    size: tuple[int, int]
    pixels: bytes
    settings: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a checkpoint makes of the photo, by every verb."""

    picture: Picture
    inversion: nulltext.Inversion


@pytest.fixture(scope="session")
def known():
    """What plain folders made of the photo, by kind; see `plain`."""
    return {}


@pytest.fixture
def plain(here, run, checkpoint, known):
    """The outcome of a kind's plain folder, which the other layouts have to repeat."""

    def outcome(kind):
        if kind not in known:
            known[kind] = by_every_verb(run, checkpoint(kind, "plain"), here / "plain")
        return known[kind]

    return outcome


def picture(path):
    """Read a PNG of an edit."""
    with Image.open(path) as image:
        assert np.asarray(image).std() > 1, "it is of one colour"
        settings = json.loads(image.text["nulltext"])
        del settings["model"], settings["job"]
        return Picture(image.size, image.tobytes(), settings)


def by_every_verb(run, given, out):
    """Edit the photo on the command line and from Python, with the same result everywhere."""
    out.mkdir()
    edited, again, kept, jobs = (out / n for n in ("a.png", "b.png", "c.safetensors", "d.jsonl"))
    jobs.write_text(json.dumps({"image": "../cat.png", **WORDS, **SHORT}))
    chosen = [word for name, value in given.items() for word in (f"--{name}", value)]
    for line in [
        ("edit", "cat.png", *WORD_OPTIONS, *SHORT_OPTIONS, "-o", edited),
        ("invert", "cat.png", "--prompt", WORDS["source"], *SHORT_OPTIONS, "-o", kept),
        ("edit", "--inversion", kept, "--target", WORDS["target"], "-o", again),
        ("batch", jobs, "-o", out / "batch"),
    ]:
        code, _, err = run(*line, *chosen)
        assert code == 0, err
    row = json.loads((out / "batch" / "results.jsonl").read_text())
    made = picture(edited)
    assert picture(again) == made
    assert picture(out / "batch" / row["outputs"][0]) == made
    inversion = nulltext.Inversion.load(kept)
    from_python(given, inversion, made.pixels)
    return Outcome(made, inversion)


def from_python(given, saved, pixels):
    """Do in Python what the command line did, and see that it is the same."""
    model = nulltext.load(**given)
    short = {"method": SHORT["method"], "num_steps": 2, "guidance_scale": SHORT["guidance"]}
    inversion = nulltext.invert(model, "cat.png", WORDS["source"], **short)
    assert torch.equal(inversion.trajectory, saved.trajectory)
    assert model.fingerprint == saved.header.fingerprint
    edit = nulltext.edit(model, inversion, WORDS["target"])
    [placed] = nulltext.edit_photo(model, inversion, WORDS["target"])
    assert placed.image.tobytes() == pixels
    assert torch.equal(nulltext.replay(model, inversion).image, edit.reconstruction)


def by_one_command(run, given, out):
    """Edit the photo on the command line alone."""
    out.mkdir()
    edited, kept = out / "a.png", out / "c.safetensors"
    chosen = [word for name, value in given.items() for word in (f"--{name}", value)]
    line = ("edit", "cat.png", *WORD_OPTIONS, *SHORT_OPTIONS, "-o", edited)
    code, _, err = run(*line, "--save-inversion", kept, *chosen)
    assert code == 0, err
    return Outcome(picture(edited), nulltext.Inversion.load(kept))


def by_default(run, given, out):
    """Edit the photo on the command line by the default method."""
    code, _, err = run(
        *("edit", "cat.png", *WORD_OPTIONS, "--steps", 2, "--model", given["model"], "-o", out)
    )
    assert code == 0, err
    return picture(out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_folder_of_every_kind_works_by_every_verb(here, run, checkpoint, plain, kind):
    header = plain(kind).inversion.header
    assert (header.model, [level.fed for level in header.levels]) == (kind, [501, 1])
    guided = by_default(run, checkpoint(kind, "plain"), here / "guided.png")
    assert guided.pixels != plain(kind).picture.pixels


@pytest.mark.parametrize("layout", [*LAYOUTS, "linspace"])
def test_every_layout_works_by_every_verb(here, run, checkpoint, layout):
    by_every_verb(run, checkpoint("sdxl", layout), here / "own")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_of_the_same_weights_gives_the_same_picture(
    here, run, checkpoint, plain, kind, layout
):
    ours, expected = by_one_command(run, checkpoint(kind, layout), here / "own"), plain(kind)
    assert ours.picture == expected.picture
    assert ours.inversion.header.fingerprint == expected.inversion.header.fingerprint
    assert torch.equal(ours.inversion.trajectory, expected.inversion.trajectory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linspace_scheduler_gives_another_grid(here, run, checkpoint, plain, kind):
    ours, other = by_one_command(run, checkpoint(kind, "linspace"), here / "own"), plain(kind)
    assert ours.inversion.header.levels[0].fed == 999
    assert ours.inversion.header.fingerprint != other.inversion.header.fingerprint
    assert ours.picture.pixels != other.picture.pixels
    guided = by_default(run, checkpoint(kind, "linspace"), here / "guided.png")
    assert guided.pixels != ours.picture.pixels


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_a_variant_are_the_same_weights(checkpoint, kind):
    plain, shards = (nulltext.load(**checkpoint(kind, x)) for x in ("plain", "sharded fp16"))
    assert shards.fingerprint == plain.fingerprint


@pytest.mark.slow
def test_a_checkpoint_of_real_size_gives_the_same_picture_from_every_layout(tmp_path):
    """Stable Diffusion 1.5 in half precision: 2 GB a layout, of which one is kept at a time."""
    folder = write_folder("sd15", tmp_path / "sd15", mini=False)
    plain = edited_dahlia(folder, tmp_path / "plain")
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert edited_dahlia(folder, tmp_path / "variant") == plain
    shutil.rmtree(folder)
    file = write_single_file("sd15", tmp_path / "sd15.safetensors", mini=False)
    assert edited_dahlia(file, tmp_path / "single") == plain
    file.unlink()


def edited_dahlia(model, out):
    """Edit the example photo in a process of its own: the picture, and the model's fingerprint."""
    out.mkdir()
    edited, kept = out / "dahlia.png", out / "dahlia.safetensors"
    line = ["edit", EXAMPLE, "--source", REAL_SIZE[0], "--target", REAL_SIZE[1], "--model", model]
    line += ["--size", "128x128", "--steps", 2, "-o", edited, "--save-inversion", kept]
    command = [sys.executable, "-m", "nulltext.cli.entry", *map(str, line)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return picture(edited), nulltext.Inversion.load(kept).header.fingerprint


def full_size(kind):
    """The components of the published checkpoint, without numbers."""
    parts = {}
    for part in parts_of(kind):
        shapes = shapes_of(part, config_of(kind, part, mini=False))
        parts[part] = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return parts


def converted_by_diffusers(kind, state, *, mini):
    """The components of a single file as diffusers gets them from it."""
    unet, vae = (config_of(kind, part, mini=mini) for part in ("unet", "vae"))
    parts = {
        "unet": convert_ldm_unet_checkpoint(dict(state), unet),
        "vae": convert_ldm_vae_checkpoint(dict(state), vae),
    }
    if kind.startswith("sd2"):
        return parts | {"text_encoder": convert_open_clip_checkpoint(None, dict(state))}
    parts["text_encoder"] = convert_ldm_clip_checkpoint(dict(state))
    del parts["text_encoder"]["text_model.embeddings.position_ids"]
    if kind == "sdxl":
        prefix = "conditioner.embedders.1.model."
        parts["text_encoder_2"] = convert_open_clip_checkpoint(None, dict(state), prefix)
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_converts_a_single_file_to_the_tensors_it_was_made_of(kind):
    parts = dict(weights(kind))
    back = converted_by_diffusers(kind, single_file(kind, parts), mini=True)
    assert set(back) == set(parts)
    for part, state in parts.items():
        assert set(back[part]) == set(state), part
        assert all(torch.equal(back[part][name], state[name]) for name in state), part


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_knows_and_converts_a_single_file_of_real_size(kind):
    parts = full_size(kind)
    file = single_file(kind, parts)
    assert (
        infer_diffusers_model_type(file) == {"sd1": "v1", "sd2": "v2", "sdx": "xl_base"}[kind[:3]]
    )
    back = converted_by_diffusers(kind, file, mini=False)
    assert all(back["unet"][name] is tensor for name, tensor in parts["unet"].items())
    for part, state in parts.items():
        shapes = {name: tensor.shape for name, tensor in state.items()}
        assert {name: tensor.shape for name, tensor in back[part].items()} == shapes, part


@pytest.mark.parametrize("layout", ["fp16", "sharded", "sharded fp16", "single file"])
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_diffusers_loads_every_layout(checkpoint, kind, layout):
    pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    absent = ["tokenizer", "tokenizer_2"] if kind == "sdxl" else ["tokenizer", "safety_checker"]
    options = dict.fromkeys([*absent, "feature_extractor"])
    given = checkpoint(kind, layout)
    if "config" in given:
        file, config = given["model"], given["config"]
        options |= {"config": config, "local_files_only": True}
        loaded = pipeline.from_single_file(file, **options)
    else:
        variant = "fp16" if "fp16" in layout else None
        loaded = pipeline.from_pretrained(given["model"], variant=variant, **options)
    for part, state in weights(kind):
        own = getattr(loaded, part).state_dict()
        if not any(name.startswith("text_model.") for name in own):
            state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        assert set(own) == set(state), part
        assert all(torch.equal(own[name], state[name].float()) for name in state), part
