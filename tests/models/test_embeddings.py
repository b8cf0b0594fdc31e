"""Learnt tokens added to a model, as diffusers adds them, or refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import nulltext
from nulltext.errors import ModelError, OptionError
from nulltext.models.embeddings import Embedding, add_embeddings, parse_embedding
from support.tiny import SECOND_WIDTH, WIDTH, tiny_pipeline


def vectors(count, width=WIDTH, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def written(folder, name="my-cat.safetensors", **tensors):
    save_file(tensors, folder / name)
    return folder / name


def both(pipe):
    if hasattr(pipe, "tokenizer_2"):
        return [pipe.tokenizer, pipe.tokenizer_2], [pipe.text_encoder, pipe.text_encoder_2]
    return [pipe.tokenizer], [pipe.text_encoder]


def add(pipe, *embeddings, model="mine"):
    return add_embeddings(*both(pipe), embeddings, model=model)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_learnt_token_is_what_diffusers_makes_of_it(tmp_path, family, count):
    learnt = vectors(count)
    path = written(tmp_path, **{"<cat>": learnt})
    ours, theirs = (tiny_pipeline(family) for _ in range(2))
    old = ours.text_encoder.get_input_embeddings().weight
    kept = old.detach().clone()
    add(ours, Embedding(path))
    theirs.load_textual_inversion({"<cat>": learnt})
    tokens = ("<cat>", "<cat>_1", "<cat>_2")[:count]
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    pair = [pipe.text_encoder.get_input_embeddings() for pipe in (ours, theirs)]
    assert torch.equal(pair[0].weight, pair[1].weight)
    assert pair[0].num_embeddings == pair[1].num_embeddings == len(kept) + count
    assert ours.text_encoder.config.vocab_size == theirs.text_encoder.config.vocab_size
    assert torch.equal(old, kept), "a longer table, the old one is as it was"
    prompt = f"a photo of a {' '.join(tokens)} on a sofa"
    embeds = [pipe.encode_prompt(prompt, "cpu", 1, False)[0] for pipe in (ours, theirs)]
    assert torch.equal(*embeds)
    if count == 1:
        assert torch.equal(nulltext.from_pipe(ours).embed([prompt]), embeds[1])


def test_a_file_of_the_web_ui_is_called_by_its_name(tmp_path):
    path = written(tmp_path, emb_params=vectors(2).half())
    pipe = tiny_pipeline("sd1")
    assert add(pipe, Embedding(path)) == [
        "Note: the embedding 'my-cat.safetensors' is called my-cat in prompts (2 vectors)."
    ]
    ids = pipe.tokenizer.convert_tokens_to_ids(["my-cat", "my-cat_1"])
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], vectors(2).half().float())


def test_a_token_may_be_named_and_a_single_vector_be_flat(tmp_path):
    path = written(tmp_path, **{"<old>": vectors(1)[0]})
    pipe = tiny_pipeline("sd1")
    assert add(pipe, parse_embedding(f"{path}:<new>")) == []
    (token,) = pipe.tokenizer.convert_tokens_to_ids(["<new>"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[token], vectors(1)[0])


@pytest.mark.parametrize(
    "names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")], ids="-".join
)
def test_sdxl_takes_vectors_for_both_encoders(tmp_path, names):
    first, second = vectors(2), vectors(2, SECOND_WIDTH, seed=1)
    path = written(tmp_path, **dict(zip(names, (first, second), strict=True)))
    ours, theirs = (tiny_pipeline("sdxl") for _ in range(2))
    (note,) = add(ours, Embedding(path, "<s>"))
    assert "<s> in prompts (2 vectors)" in note
    for tensor, suffix in ((first, ""), (second, "_2")):
        theirs.load_textual_inversion(
            {"<s>": tensor},
            tokenizer=getattr(theirs, f"tokenizer{suffix}"),
            text_encoder=getattr(theirs, f"text_encoder{suffix}"),
        )
    embeds = [pipe.encode_prompt("a <s> <s>_1 cat", device="cpu")[0] for pipe in (ours, theirs)]
    assert torch.equal(*embeds)


def test_several_files_and_rows_to_spare(tmp_path):
    pipe = tiny_pipeline("sd1")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + 1, mean_resizing=False)
    rows = len(pipe.tokenizer) + 1
    paths = [
        written(tmp_path, f"{i}.safetensors", **{f"<t{i}>": vectors(1, seed=i)}) for i in (1, 2)
    ]
    add(pipe, *map(Embedding, paths))
    table = pipe.text_encoder.get_input_embeddings().weight
    assert len(table) == rows + 1
    ids = pipe.tokenizer.convert_tokens_to_ids(["<t1>", "<t2>"])
    assert torch.equal(table[ids], torch.cat([vectors(1, seed=1), vectors(1, seed=2)]))


def test_a_learnt_token_changes_the_fingerprint(tmp_path):
    seen = {nulltext.from_pipe(tiny_pipeline("sd1")).fingerprint}
    for seed in (0, 1):
        pipe = tiny_pipeline("sd1")
        add(pipe, Embedding(written(tmp_path, **{"<cat>": vectors(1, seed=seed)})))
        seen.add(nulltext.from_pipe(pipe).fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("text", "path", "token"),
    [
        ("cat.safetensors:<cat>", "cat.safetensors", "<cat>"),
        ("cat.safetensors", "cat.safetensors", None),
        (r"C:\cat.safetensors", r"C:\cat.safetensors", None),
        (r"C:\cat.safetensors:cat:s", r"C:\cat.safetensors", "cat:s"),
    ],
)
def test_a_token_follows_the_file(text, path, token):
    found = parse_embedding(text)
    assert (str(found.path), found.token) == (path, token)


@pytest.mark.parametrize("token", ["", "two words", "\x1b[31m"])
def test_tokens_that_are_no_word_are_refused(token):
    with pytest.raises(OptionError, match="expected one word without spaces"):
        parse_embedding(f"cat.safetensors:{token}")


def refused(pipe, embedding, *words):
    tokenizers, encoders = both(pipe)
    sizes = [len(tokenizer) for tokenizer in tokenizers]
    tables = [encoder.get_input_embeddings().weight for encoder in encoders]
    with pytest.raises(ModelError) as caught:
        add(pipe, embedding)
    for word in words:
        assert word in str(caught.value)
    assert [len(tokenizer) for tokenizer in tokenizers] == sizes
    for encoder, table in zip(encoders, tables, strict=True):
        assert encoder.get_input_embeddings().weight is table


@pytest.mark.parametrize(
    ("width", "family"),
    [
        (768, "Stable Diffusion 1 (or SDXL's first encoder)"),
        (1024, "Stable Diffusion 2"),
        (1280, "SDXL's second encoder"),
    ],
)
def test_vectors_of_another_width_say_whose_they_are(tmp_path, width, family):
    path = written(tmp_path, emb_params=torch.zeros(1, width))
    refused(tiny_pipeline("sd1"), Embedding(path), f"{width} numbers", family, "'mine' takes 32")


@pytest.mark.parametrize("token", ["cat", "Cat", "<|endoftext|>"])
def test_words_of_the_vocabulary_are_refused(tmp_path, token):
    path = written(tmp_path, emb_params=vectors(1))
    refused(tiny_pipeline("sd1"), Embedding(path, token), f"'{token}'", "already in the vocabulary")


def test_the_same_token_twice_is_refused(tmp_path):
    path = written(tmp_path, emb_params=vectors(2))
    pipe = tiny_pipeline("sd1")
    add(pipe, Embedding(path, "<x>"))
    refused(pipe, Embedding(path, "<x>"), "already in the vocabulary")
    refused(pipe, Embedding(path, "<x>_1"), "already in the vocabulary")


@pytest.mark.parametrize(
    ("family", "tensors", "words"),
    [
        ("sdxl", {"clip_l": (1, 32)}, "lacks clip_g"),
        ("sdxl", {"<x>": (1, 32)}, "has two (SDXL)"),
        ("sd1", {"clip_l": (1, 32), "clip_g": (1, 48)}, "is for SDXL's two text encoders"),
        ("sdxl", {"clip_l": (1, 32), "clip_g": (2, 48)}, "1 and 2 vectors"),
        ("sd1", {"<x>": (76, 32)}, "76 vectors, expected 1 to 75"),
        ("sd1", {"<x>": (0, 32)}, "0 vectors"),
        ("sd1", {"<x>": ()}, "a tensor of shape []"),
        ("sd1", {"<x>": (1, 1, 32)}, "a tensor of shape [1, 1, 32], expected vectors [n, 32]"),
        ("sd1", {"<x>": (1, 32), "<y>": (1, 32)}, "has 2 tensors, expected one"),
        ("sd1", {"x.lora_down.weight": (1, 32)}, "pass it as --lora"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, family, tensors, words):
    path = written(tmp_path, **{name: torch.ones(shape) for name, shape in tensors.items()})
    refused(tiny_pipeline(family), Embedding(path), words)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    pipe = tiny_pipeline("sd1")
    refused(pipe, Embedding(tmp_path / "cat.pt"), "could run code", ".safetensors")
    refused(pipe, Embedding(tmp_path), "has no learned_embeds.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    refused(pipe, Embedding(tmp_path / "cut.safetensors"), "truncated or damaged")
