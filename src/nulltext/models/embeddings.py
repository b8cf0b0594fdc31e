"""Learnt tokens (textual inversion): vectors that are added to the tokenizers and their encoders.

A file with n vectors adds the tokens `tok`, `tok_1`, …, `tok_{n-1}`, as diffusers names them. The
encoder's table of vectors is replaced by a longer one; it is never written to.
Source: Gal et al. 2022 (An Image is Worth One Word).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nulltext.errors import ModelError, OptionError
from nulltext.models.tensor_files import (
    TensorFile,
    adapter_file,
    open_adapter,
    shown,
    split_choice,
)

WITHOUT_TOKEN = "emb_params"
"""The only tensor in an embedding file of A1111's web UI, which does not name its token."""
TWO_ENCODERS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""Names of the two tensors in an embedding file for SDXL."""
WIDTHS = {
    768: "Stable Diffusion 1 (or SDXL's first encoder)",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second encoder",
}
"""What vectors are for, by their width."""
MAX_VECTORS = 75
"""More than this no prompt has room for."""


class Embedding(NamedTuple):
    """A learnt token that is asked for."""

    path: Path
    token: str | None = None
    """Its name in prompts; None for the one that the file says, or the file's own."""


def parse_embedding(text: str) -> Embedding:
    """Read FILE[:TOKEN], such as "cat.safetensors:<cat>".

    Raises:
        OptionError: the token is empty or has spaces.
    """
    path, token = split_choice(text)
    if token is not None:
        _check_token(token, path)
    return Embedding(path, token)


def add_embeddings(
    tokenizers: Sequence[Any],
    encoders: Sequence[nn.Module],
    embeddings: Sequence[Embedding],
    *,
    model: str = "model",
) -> list[str]:
    """Add learnt tokens to a model's tokenizers and text encoders.

    Returns notes for the user: what to write in a prompt.

    Args:
        tokenizers, encoders: of the same order and number, two for SDXL.
        model: its name, for messages.

    Raises:
        ModelError: a file is missing, damaged, no embedding, of other widths than the encoders, for
            fewer or more of them, or its token is a word that the model has.
        OptionError: the name of the token, or of the file that it is taken from, has spaces.
    """
    notes = []
    for path, asked in embeddings:
        with open_adapter(adapter_file(path, "--embedding"), "--embedding") as file:
            names = _tensor_names(file, len(encoders), model)
            token = asked if asked is not None else _own_token(file)
            _check_token(token, file.path)
            _check_shapes(file, names, encoders, model)
            vectors = [file.tensor(name) for name in names]
        tokens = [token, *(f"{token}_{i}" for i in range(1, _count(file.shapes[names[0]])))]
        for tokenizer in tokenizers:
            _check_new(tokenizer, tokens, file, model)
        for tokenizer, encoder, rows in zip(tokenizers, encoders, vectors, strict=True):
            _add(tokenizer, encoder, tokens, rows)
        if asked is None or len(tokens) > 1:
            several = f" ({len(tokens)} vectors)" if len(tokens) > 1 else ""
            what = f"the embedding '{file.path.name}' is called {token} in prompts{several}"
            notes.append(f"Note: {what}.")
    return notes


def _tensor_names(file: TensorFile, encoders: int, model: str) -> list[str]:
    pair = next((pair for pair in TWO_ENCODERS if set(pair) & set(file.shapes)), None)
    found = [name for name in pair or file.shapes if name in file.shapes]
    if len(found) == encoders and len(found) == (len(file.shapes) if pair is None else len(pair)):
        return found
    if pair is not None and len(found) < len(pair):
        reason = f"lacks {(set(pair) - set(found)).pop()}, the vectors of one of SDXL's encoders"
    elif pair is not None:
        reason = f"is for SDXL's two text encoders, and the model '{model}' has one"
    elif encoders == len(TWO_ENCODERS[0]) and len(found) == 1:
        reason = f"has vectors for one text encoder, and the model '{model}' has two (SDXL)"
    else:
        reason = (
            f"has {len(file.shapes)} tensors, expected one (or {' and '.join(TWO_ENCODERS[0])})"
        )
    raise ModelError(
        f"The embedding '{file.path.name}' {reason}; pass one that was made for the model's family."
    )


def token_of(embedding: Embedding) -> str:
    """Return the token that is asked for, else the one that the file says, or the file's name."""
    if embedding.token is not None:
        return embedding.token
    with open_adapter(adapter_file(embedding.path, "--embedding"), "--embedding") as file:
        return _own_token(file)


def _own_token(file: TensorFile) -> str:
    unnamed = {WITHOUT_TOKEN, *(name for pair in TWO_ENCODERS for name in pair)}
    names = list(file.shapes)
    return names[0] if len(names) == 1 and names[0] not in unnamed else file.path.stem


def _check_token(token: str, path: Path) -> None:
    if not token or any(each.isspace() or not each.isprintable() for each in token):
        raise OptionError(
            f"The token of the embedding '{path.name}' is '{shown(token)}', expected one word "
            f"without spaces; write --embedding 'FILE:<name>'."
        )


def _count(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 1 else shape[0]


def _check_shapes(
    file: TensorFile, names: Sequence[str], encoders: Sequence[Any], model: str
) -> None:
    shapes = [file.shapes[name] for name in names]
    for shape, encoder in zip(shapes, encoders, strict=True):
        width = encoder.get_input_embeddings().embedding_dim
        if len(shape) not in (1, 2):
            raise ModelError(
                f"The embedding '{file.path.name}' has a tensor of shape {list(shape)}, expected "
                f"vectors [n, {width}]; get it again."
            )
        made = shape[-1]
        if made != width:
            kind = f", which is {WIDTHS[made]}'s" if made in WIDTHS else ""
            raise ModelError(
                f"The vectors of the embedding '{file.path.name}' have {made} numbers{kind}, and "
                f"the text encoder of the model '{model}' takes {width}; pass one that was made "
                "for the model's family."
            )
    counts = {_count(shape) for shape in shapes}
    if len(counts) > 1 or not 1 <= min(counts) <= MAX_VECTORS:
        raise ModelError(
            f"The embedding '{file.path.name}' has {' and '.join(map(str, sorted(counts)))} "
            f"vectors, expected 1 to {MAX_VECTORS}, alike for each encoder; get it again."
        )


def _check_new(tokenizer: Any, tokens: Sequence[str], file: TensorFile, model: str) -> None:
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known or f"{token.lower()}</w>" in known:
            other = shlex.quote(f"{file.path}:my-{token.strip('<>')}")
            raise ModelError(
                f"The token '{token}' of the embedding '{file.path.name}' is already in the "
                f"vocabulary of the model '{model}'; name another: --embedding {other}."
            )


def _add(tokenizer: Any, encoder: Any, tokens: Sequence[str], vectors: Tensor) -> None:
    tokenizer.add_tokens(list(tokens))
    table: nn.Embedding = encoder.get_input_embeddings()
    old = table.weight.detach()
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    kind = torch.promote_types(old.dtype, torch.float32)
    new = torch.zeros(max(len(old), len(tokenizer)), old.shape[1], dtype=kind, device=old.device)
    new[: len(old)] = old
    new[ids] = vectors.reshape(len(tokens), -1).to(new)
    table.weight = nn.Parameter(new, requires_grad=False)
    table.num_embeddings = len(new)
    for config in (encoder.config, getattr(encoder.config, "text_config", None)):
        if config is not None:
            config.vocab_size = len(new)
