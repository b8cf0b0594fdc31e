"""Fingerprints outlast an upgrade of the libraries: names that change between releases do not
matter, and what carries a fingerprint that an older release led to still fits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import nulltext
from nulltext.diffusion.loops import run as run_steps
from nulltext.health.checkup import examine
from nulltext.inversion import partial as partials
from nulltext.inversion.invert import invert_steps
from nulltext.inversion.partial import digests_of
from nulltext.inversion.replay import check_model
from nulltext.jobs.ledger import Kind, open_book
from nulltext.models.choice import ModelChoice
from nulltext.models.fingerprint import fingerprints, known_names, spellings
from nulltext.models.known_figure import FILE as CHECK
from nulltext.models.known_figure import write_known
from nulltext.models.side_files import KnownWords, write_guidance, write_words
from support.tiny import tiny_pipeline

FLOWERS = (
    "2b3433c9a1d1b013bebbc8c1c4f60fd1",  # with transformers 5.6 and later
    "4478ee8c23ae474f96aac1b244d659bd",  # with transformers 5.0 to 5.5, before names were unified
)


def test_the_bundled_model_has_the_fingerprints_of_all_releases(flowers):
    assert flowers.fingerprints == FLOWERS
    assert flowers.fingerprint == FLOWERS[0]


@pytest.mark.parametrize(
    ("component", "name", "known"),
    [
        ("unet", "text_model.weight", ("text_model.weight", "text_model.weight")),
        ("text_encoder", "encoder.a", ("encoder.a", "text_model.encoder.a")),
        ("text_encoder", "text_model.encoder.a", ("encoder.a", "text_model.encoder.a")),
        ("text_encoder_2", "encoder.a", ("text_model.encoder.a", "text_model.encoder.a")),
        ("text_encoder_2", "text_model.encoder.a", ("text_model.encoder.a",) * 2),
        ("text_encoder_2", "text_projection.weight", ("text_projection.weight",) * 2),
    ],
)
def test_a_weight_has_its_names_whatever_library_is_installed(component, name, known):
    assert known_names(component, name) == known


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_modules_that_differ_in_names_only_have_equal_fingerprints(flowers, component):
    torch.manual_seed(0)
    bare = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("embeddings", "encoder", "norm")})
    last = nn.Linear(3, 3, bias=False)
    plain = nn.ModuleDict({**bare, "text_projection": last})
    prefixed = nn.ModuleDict({"text_model": bare, "text_projection": last})
    found = [
        fingerprints({"vae": flowers.vae, component: module}, flowers.schedule)
        for module in (plain, prefixed)
    ]
    assert found[0] == found[1]
    with torch.no_grad():
        last.weight[0, 0] += 1
    assert fingerprints({"vae": flowers.vae, component: plain}, flowers.schedule) != found[0]


def test_names_of_an_identity_are_those_that_either_fingerprint_gives():
    now, then = "a1" * 16, "b2" * 16
    identity = [{"fingerprint": now, "prompt": "a cat"}]
    before = json.dumps([{"fingerprint": then, "prompt": "a cat"}], sort_keys=True)
    assert digests_of(identity, (now, then))[1] == hashlib.sha256(before.encode()).hexdigest()
    assert digests_of(identity, (now, then))[0] == digests_of(identity, (now,))[0]
    settings = {"model": f"m ({now[:8]})", "steps T": 50}
    assert spellings(settings, (now, then)) == [settings, settings | {"model": f"m ({then[:8]})"}]


@pytest.fixture
def older(tmp_path):
    """A model's folder, with all that is kept beside weights, as an older release wrote it."""
    folder = tmp_path / "model"
    tiny_pipeline("sd1").save_pretrained(folder)
    model = nulltext.load(folder, device="cpu")
    then = model.fingerprints[1]
    write_words(KnownWords(("cat",), ("a",)), then, folder)
    write_guidance(3.5, then, folder)
    write_known(model, folder)
    check = json.loads((folder / CHECK).read_text())
    (folder / CHECK).write_text(json.dumps(check | {"fingerprint": then}))
    return folder


def test_what_an_older_release_kept_beside_the_weights_is_used(older):
    model = nulltext.load(older)
    assert model.known_words is not None
    assert model.guidance_scale == 3.5
    health = examine(ModelChoice(str(older), device="cpu"))
    assert not [problem for problem in health.problems if CHECK in problem]
    assert health.model["reproduces"]
    assert not [note for note in health.notes if "other weights" in note]


def test_an_inversion_of_an_older_release_is_used(tiny, photo):
    made = nulltext.invert(tiny, photo, "a cat", method="ddim", num_steps=2)
    assert made.header.fingerprint == tiny.fingerprint
    then = replace(made.header, fingerprint=tiny.fingerprints[1])
    check_model(tiny, replace(made, header=then))
    strange = replace(made.header, fingerprint="0" * 32)
    with pytest.raises(nulltext.UserError, match="other weights"):
        check_model(tiny, replace(made, header=strange))


def test_a_partial_file_of_an_older_release_is_gone_on_from(tiny_sd1, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(partials, "WRITING_SHARE", float("inf"))
    now, then = tiny_sd1.fingerprints
    before = replace(tiny_sd1, loaded_fingerprints=(then, now))
    path, seen = tmp_path / "x.partial", []
    for info in (loop := invert_steps(before, photo, "a cat", num_steps=3, partial=path)):
        if info.index == 2:
            break
    loop.close()
    run_steps(invert_steps(tiny_sd1, photo, "a cat", num_steps=3, partial=path), seen.append)
    assert [info.index for info in seen if info.stage == "pivot"] == [3]


def test_a_batch_of_an_older_release_goes_on(here, model, run, monkeypatch):
    line = {"image": "cat.png", "source": "a cat", "steps": 2, "method": "ddim"}
    jobs = here / "jobs.jsonl"
    arguments = ("batch", jobs, "-o", "out", "--model", model, "--json")
    jobs.write_text(json.dumps(line | {"target": "a dog"}))
    with monkeypatch.context() as patched:
        patched.setattr(
            "nulltext.models.fingerprint.known_names",
            lambda component, name: known_names(component, name)[::-1],
        )
        assert run(*arguments)[0] == 0
    kept = sorted((here / "out" / "inversions").rglob("*.safetensors"))
    jobs.write_text("\n".join(json.dumps(line | {"target": f"a {t}"}) for t in ("dog", "cow")))
    code, out, err = run(*arguments)
    assert (code, json.loads(out)["done"]) == (0, 2), err
    assert sorted((here / "out" / "inversions").rglob("*.safetensors")) == kept


def test_settings_that_an_older_release_wrote_are_the_same(tmp_path):
    kind = Kind("study", lambda row: row["a"], ())
    now = {"model": "m (a1a1a1a1)", "dtype": "float32"}
    older = spellings(now, ("a1" * 16, "b2" * 16))
    with open_book(kind, tmp_path, older[1], fresh=False):
        pass
    with open_book(kind, tmp_path, now, fresh=False, older=older):
        pass
    other = now | {"dtype": "float16"}
    with (
        pytest.raises(nulltext.UserError, match="other settings"),
        open_book(kind, tmp_path, other, fresh=False, older=spellings(other, ("a1" * 16,))),
    ):
        pass
