"""What is put into a model beside its own weights: LoRAs, learnt tokens, another autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from nulltext.errors import ModelError, OptionError, reason_of, shorten
from nulltext.models.adapter_files import check_kind, opened
from nulltext.models.autoencoder_files import autoencoder_files, load_vae
from nulltext.models.embeddings import (
    Embedding,
    add_embeddings,
    embedding_file,
    parse_embedding,
    token_of,
)
from nulltext.models.file_kinds import Option
from nulltext.models.lora import Lora, lora_file, merge_loras, parse_lora
from nulltext.models.weights import Unallocated, fill
from nulltext.storage.files import expand_user

SHA_CHARACTERS = 10
"""As many as sites that publish LoRAs show of a file's SHA-256."""


@dataclass(frozen=True)
class Adapters:
    """Everything that is asked for beside a model."""

    loras: Sequence[Lora] = ()
    embeddings: Sequence[Embedding] = ()
    vae: Path | None = None

    @classmethod
    def parsed(
        cls,
        lora: str | Path | Sequence[str | Path] = (),
        embedding: str | Path | Sequence[str | Path] = (),
        vae: str | Path | None = None,
    ) -> Adapters:
        """From texts as the command line takes them.

        Raises:
            OptionError: a weight or a token cannot be read.
        """
        loras, embeddings = _texts(lora, "lora"), _texts(embedding, "embedding")
        if not (vae is None or (isinstance(vae, str | Path) and str(vae))):
            raise OptionError(f"vae is {shorten(repr(vae))}, expected a folder or a file.")
        return cls(
            [parse_lora(text) for text in loras],
            [parse_embedding(text) for text in embeddings],
            None if vae is None else expand_user(vae),
        )

    def check(self) -> None:
        """Look at all files, before a model is read or fetched.

        Raises:
            ModelError: one is missing, damaged, or something else than what it is passed as.
        """
        options: list[tuple[Path, str, Option]] = [
            *((lora_file(one.path), "LoRA", "--lora") for one in self.loras),
            *((embedding_file(one.path), "embedding", "--embedding") for one in self.embeddings),
            *((autoencoder_files(p)[1], "autoencoder", "--vae") for p in [self.vae] if p),
        ]
        for path, what, option in options:
            with opened(path, what) as file:
                check_kind(file, option)

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.loras or self.embeddings or self.vae)

    def autoencoder(self, own: Mapping[str, Any]) -> Any:
        """The other autoencoder.

        Args:
            own: config of the one whose place it takes.

        Raises:
            ModelError: it cannot be read, or its latents are of another kind.
        """
        from diffusers import AutoencoderKL

        assert self.vae is not None, "there is another autoencoder"
        defaults = signature(AutoencoderKL.__init__).parameters  # what a config may leave out
        own = {n: one.default for n, one in defaults.items() if n != "self"} | dict(own)
        config, state = load_vae(self.vae, own)
        with Unallocated():
            module = AutoencoderKL.from_config(config).requires_grad_(False).eval()
        fill(module, state)
        return module

    def put_into(
        self, parts: Mapping[str, Any], tokenizers: Sequence[str], model: str
    ) -> list[str]:
        """Merge LoRAs and add learnt tokens; returns what there is to say about them.

        Args:
            parts: modules and tokenizers by name. tokenizers: names of the tokenizers.
            model: for messages.

        Raises:
            ModelError: a file cannot be read, or is for another kind of model.
        """
        encoders = {name: name.replace("tokenizer", "text_encoder") for name in tokenizers}
        modules = {name: parts[name] for name in ("unet", *encoders.values())}
        merged = merge_loras(modules, self.loras, model=model)
        added = add_embeddings(
            [parts[name] for name in encoders],
            [parts[name] for name in encoders.values()],
            self.embeddings,
            model=model,
        )
        return [*merged.notes, *added.notes]

    def described(self) -> list[dict[str, Any]]:
        """Names without folders, weights and the beginnings of SHA-256 sums; JSON can hold it.

        Raises:
            ModelError: a file cannot be read.
        """
        found: list[dict[str, Any]] = []
        for path, weight in self.loras:
            found.append(_entry("lora", path, lora_file(path)) | {"weight": float(weight)})
        for embedding in self.embeddings:
            entry = _entry("embedding", embedding.path, embedding_file(embedding.path))
            found.append(entry | {"token": token_of(embedding)})
        if self.vae is not None:
            found.append(_entry("vae", self.vae, autoencoder_files(self.vae)[1]))
        return found


def _texts(given: object, name: str) -> list[str]:
    """One text or path, or several, as texts.

    Raises:
        OptionError: something else is among them.
    """
    several = [given] if isinstance(given, str | Path) else given
    if not isinstance(several, list | tuple) or not all(
        isinstance(one, str | Path) and str(one) for one in several
    ):
        raise OptionError(
            f"{name} is {shorten(repr(given))}, expected a file, or a list of files; for a LoRA "
            "with a weight write 'style.safetensors:0.8'."
        )
    return [str(one) for one in several]


def said_of(adapters: Sequence[Mapping[str, Any]]) -> str:
    """Descriptions as a person reads them: "lora style.safetensors (0.8)"; empty for none."""
    said = []
    for one in adapters:
        of = [f"{one[name]}" for name in ("weight", "token") if name in one]
        said.append(f"{one.get('kind')} {one.get('name')}" + (f" ({of[0]})" if of else ""))
    return ", ".join(said)


def _entry(kind: str, path: Path, file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{file}' cannot be read ({reason_of(error)}); pass a file of tensors."
        ) from error
    name = expand_user(path).resolve().name
    return {"kind": kind, "name": name, "sha256": digest[:SHA_CHARACTERS]}
