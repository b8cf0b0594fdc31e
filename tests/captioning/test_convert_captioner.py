"""Published ClipCap weights: small real ones in their layout, converted, damaged, foreign."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Tokenizer
from typer.testing import CliRunner

from nulltext.captioning.captioner import ImagePreprocessing
from nulltext.captioning.convert import convert, read_published
from nulltext.captioning.folder import load_captioner, preprocessor_config
from nulltext.cli.main import app
from nulltext.errors import ModelError
from support import captioners

CORNERS = ["a", "b", "c", ".", "Ġ", "ab", "Ġc"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a CLIP and of a GPT-2, as transformers writes them, and that GPT-2."""
    folder = tmp_path_factory.mktemp("parts")
    captioners.clip().save_pretrained(folder / "clip")
    (folder / "clip" / "preprocessor_config.json").write_text(
        json.dumps(preprocessor_config(ImagePreprocessing(16)))
    )
    vocabulary = {word: number for number, word in enumerate(["<|endoftext|>", *CORNERS])}
    GPT2Tokenizer(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "c")]).save_pretrained(
        folder / "gpt2"
    )
    language = captioners.gpt(len(vocabulary))
    language.save_pretrained(folder / "gpt2")
    return folder, language


def published(mapper, language):
    """A state dict as the published code saves it, with an old transformers' buffers."""
    tensors = {f"clip_project.{name}": value for name, value in mapper.state_dict().items()}
    tensors |= {f"gpt.{name}": value for name, value in language.state_dict().items()}
    for layer in range(2):
        tensors[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        tensors[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_published_weights_become_a_captioner(kind, parts, photo, tmp_path):
    folder, language = parts
    mapper = captioners.mapper(kind)
    torch.save(published(mapper, language), tmp_path / "weights.pt")
    command = ["convert-captioner", str(tmp_path / "weights.pt"), "--clip", str(folder / "clip")]
    command += ["--gpt2", str(folder / "gpt2"), "-o", str(tmp_path / "made"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    made = load_captioner(tmp_path / "made")
    assert made.model.mapper.settings == mapper.settings
    assert made.model.unit_features == (kind == "transformer")
    assert made.preprocessing == ImagePreprocessing(16)
    assert made.stop == 1 + CORNERS.index(".")
    for own, other in ((made.model.mapper, mapper), (made.model.gpt, language)):
        for name, tensor in other.state_dict().items():
            half = tensor.half().float()  # it is stored in half precision
            torch.testing.assert_close(own.state_dict()[name], half, rtol=0, atol=0)
    assert set(made.caption(photo, beams=2)) <= set("abc ")


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("gpt.transformer.h.1.ln_1.bias"), r"lacks .*h\.1\.ln_1\.bias"),
        (lambda t: t.update({"clip_project.extra": torch.ones(1)}), r"clip_project\.extra"),
        (lambda t: t.update({"gpt.transformer.h.0.attn.other": torch.ones(1)}), r"attn\.other"),
        (lambda t: t.update({"gpt.transformer.wpe.weight": torch.ones(2, 16)}), r"shape \[2, 16\]"),
        (lambda t: t.update({"gpt.lm_head.weight": torch.ones(8, 16)}), "differ"),
    ],
)
def test_what_is_left_over_or_missing_is_named(kind, change, said, parts, tmp_path):
    folder, language = parts
    tensors = published(captioners.mapper(kind), language)
    change(tensors)
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=said):
        convert(tmp_path / "weights.pt", clip=folder / "clip", gpt2=folder / "gpt2", name="x")


def test_another_clip_is_refused(parts, tmp_path):
    folder, language = parts
    captioners.clip(14).save_pretrained(tmp_path / "clip")
    torch.save(published(captioners.mapper("mlp"), language), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="embeddings of 14 numbers and the mapper reads 12"):
        convert(tmp_path / "weights.pt", clip=tmp_path / "clip", gpt2=folder / "gpt2", name="x")


class Trap:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize("content", [Trap(), {"gpt": Trap()}, [1, 2], {"step": 3}])
def test_only_tensors_are_read(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pt")
    with pytest.raises(ModelError, match=r"weights\.pt"):
        read_published(tmp_path / "weights.pt")
    assert not (tmp_path / "trapped").exists()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        read_published(tmp_path / "weights.pt")
