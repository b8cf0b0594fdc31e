"""Examples of the documents, run as they are written."""

from __future__ import annotations

import re
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import nulltext
from nulltext.editing.editors import EDITORS
from nulltext.inversion.registry import METHODS
from nulltext.models import pipelines
from support.examples import EXAMPLE
from support.tiny import tiny_pipeline

DOCS = Path(__file__).parent.parent / "docs"


def examples(document):
    """Python code of a document, block by block."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def beside_the_photo(tmp_path, monkeypatch):
    shutil.copy(EXAMPLE, tmp_path / "dahlia.jpg")
    monkeypatch.chdir(tmp_path)


def test_the_diffusers_pipeline_edits_a_photo(beside_the_photo):
    names = {}
    exec(compile(examples("diffusers.md")[0], "diffusers.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(128, 128)] * 2
    assert Path("red.png").is_file()
    assert Path("dahlia.safetensors").is_file()


@pytest.fixture
def run_extension(monkeypatch):
    """Run an example of extending.md; registries are as before after the test."""
    for registry in (METHODS, EDITORS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(pipelines, "FAMILIES", list(pipelines.FAMILIES))

    def run(number):
        module = types.ModuleType(f"extending_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
        code = examples("extending.md")[number]
        exec(compile(code, "extending.md", "exec"), vars(module))
        return module

    return run


def test_the_method_of_the_document_lies_between_two_others(run_extension, tiny_sd1, photo):
    blended = run_extension(0).BlendedNull

    def replayed(method):
        made = nulltext.invert(tiny_sd1, photo, "a cat", method=method, num_steps=3)
        return made.header.method, nulltext.replay(tiny_sd1, made).image

    name, half = replayed("blended-null")
    assert name == "blended-null"
    for share, other in ((0.0, "ddim"), (1.0, "negative-prompt")):
        _, same = replayed(blended(share=share))
        # float32: lerp ends at its ends to rounding
        torch.testing.assert_close(same, replayed(other)[1], atol=1e-4, rtol=0)
        assert not torch.allclose(half, same, atol=1e-4)


def test_the_editor_of_the_document_edits_and_chains(run_extension, tiny, photo):
    shared = run_extension(1).SharedAttention
    made = nulltext.invert(tiny, photo, "a white cat", method="ddim", num_steps=3)

    def spec(until, **options):
        return nulltext.EditSpec("a white dog", editor=shared(until=until), **options)

    words = nulltext.EditSpec("a white dog", cross_steps=0.0, self_steps=0.0)
    chain = nulltext.chain(spec(1.0), "a red dog")
    specs = [words, spec(0.0), spec(1.0), spec(1.0, guidance_scale=1.0), *chain]
    alone, without, full, unguided, _, second = nulltext.edit(tiny, made, specs).images
    torch.testing.assert_close(without, alone, atol=1e-4, rtol=0)  # float32, other batches
    for image in (full, unguided, second):
        assert image.isfinite().all()
        assert not torch.allclose(image, alone, atol=1e-4)
    assert EDITORS["shared-attention"] is shared


def test_the_family_of_the_document_opens_its_pipelines(run_extension, tmp_path, photo):
    run_extension(2)
    stock = tiny_pipeline("sd1")
    kind = type("ClipSkipPipeline", (StableDiffusionPipeline,), {})
    pipe = kind(**stock.components, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path)
    model = nulltext.from_pipe(pipe)
    assert nulltext.load(tmp_path).fingerprint == model.fingerprint
    plain = nulltext.from_pipe(stock)
    assert model.fingerprint != plain.fingerprint
    assert not torch.allclose(model.embed(["a cat"]), plain.embed(["a cat"]), atol=1e-4)
    made = nulltext.invert(model, photo, "a cat", method="ddim", num_steps=2)
    assert nulltext.edit(model, made, "a dog").images.isfinite().all()
    with pytest.raises(nulltext.UserError, match="ClipSkipPipeline is in a family"):
        run_extension(2)
