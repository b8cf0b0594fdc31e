"""Choose the files of a model that are read: configs, tokenizers, a set of weights per component.

A component's weights are one file or shards with an index, plain or of a variant ("fp16", "bf16",
"non_ema"), named as diffusers and transformers name them (S is the stem, V the variant):

    S.safetensors                       S.V.safetensors
    S-00001-of-00002.safetensors        S.V-00001-of-00002.safetensors
    S.safetensors.index.json            S.safetensors.index.V.json

and, as older releases wrote them, S-00001-of-00002.V.safetensors with S.safetensors.V.index.json.

Plain weights are read where there are any, since a fingerprint taken of them is the one that other
people have; fp16 weights are other numbers with another fingerprint. So a variant is read only when
it is asked for, or where a component has nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nulltext.errors import ModelError, shorten
from nulltext.models.side_files import GUIDANCE_FILE, WORDS_FILE
from nulltext.models.tensor_files import UNSAFE

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
"""Files of which a tokenizer needs either set; T5's has the first alone."""
SENTENCEPIECE = "spiece.model"
"""T5's vocabulary in a format that needs another library."""
SIDE_FILES = (WORDS_FILE, GUIDANCE_FILE)

DIFFUSERS = (
    *("UNet2DConditionModel", "AutoencoderKL"),
    *("SD3Transformer2DModel", "FluxTransformer2DModel"),
)
"""Classes whose weights diffusers writes; those of all others transformers does."""
NOT_READ = (*UNSAFE, ".msgpack", ".h5", ".onnx")

COMMON = ("fp32", "fp16", "bf16")
"""Variants in the order in which they stand in for plain weights; others come after, by name."""


@dataclass(frozen=True)
class Weights:
    """The files with the weights of one component."""

    variant: str | None
    """"fp16", "bf16", "non_ema", ...; None for the plain ones."""
    files: tuple[str, ...]
    """Paths in the model: one file, or the shards in their order."""
    index: str | None
    """Path of the shards' index; None for one file."""


Variants = Mapping[str | None, Weights]
"""What weights a component has."""


def _stem_of(class_name: str) -> str:
    return "diffusion_pytorch_model" if class_name in DIFFUSERS else "model"


def files_of(folder: Path) -> list[str]:
    """List the paths of all files of a model's folder and of its components' folders."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    paths = [path for place in places for path in sorted(place.iterdir()) if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in paths]


def choose_weights(
    names: Iterable[str], modules: Mapping[str, str], model: str, variant: str | None = None
) -> dict[str, Weights]:
    """Choose the weights to read of each component.

    Without `variant`: the plain ones; where a component has none, the variant that most such
    components have. With it: that variant; a component that lacks it is read as without it, as
    diffusers does.

    Raises:
        ModelError: a component has no safetensors weights, or no component has the variant.
    """
    names = list(names)
    held = {part: _variants(names, part, _stem_of(kind)) for part, kind in modules.items()}
    for part, kind in modules.items():
        if not held[part]:
            raise ModelError(_without_weights(names, part, _stem_of(kind), model))
    if variant is not None and not any(variant in found for found in held.values()):
        others = sorted({name or "plain" for found in held.values() for name in found})
        raise ModelError(
            f"The model '{model}' has no weights of the variant '{shorten(variant)}'; it has "
            f"{', '.join(others)}."
        )
    stand_ins = _stand_ins(held.values())
    order = [variant, None, *stand_ins] if variant else [None, *stand_ins]
    return {
        part: next(found[name] for name in order if name in found) for part, found in held.items()
    }


def needed_files(
    names: Iterable[str],
    modules: Mapping[str, str],
    tokenizers: Sequence[str],
    model: str,
    variant: str | None = None,
) -> list[str]:
    """List the paths of all files that a model is loaded from, small ones first."""
    names = set(names)
    chosen = choose_weights(names, modules, model, variant)
    configs = [INDEX, SCHEDULER, *(f"{part}/config.json" for part in modules)]
    for name in configs:
        if name not in names:
            raise ModelError(f"The model '{model}' has no {name}; get the model again.")
    words = []
    for part in tokenizers:
        own = [name for name in TOKENIZER_FILES if f"{part}/{name}" in names]
        if "tokenizer.json" not in own and f"{part}/{SENTENCEPIECE}" in names:
            raise without_json(part, model)
        if not any(vocabulary <= set(own) for vocabulary in VOCABULARIES):
            raise ModelError(
                f"The {part} of the model '{model}' has no tokenizer.json, and not both of "
                "vocab.json and merges.txt; get the model again."
            )
        words += [f"{part}/{name}" for name in own]
    indices = [weights.index for weights in chosen.values() if weights.index]
    weights = [file for part in chosen.values() for file in part.files]
    return [*configs, *words, *(name for name in SIDE_FILES if name in names), *indices, *weights]


def without_json(tokenizer: str, model: str) -> ModelError:
    """Make the error for a vocabulary that is there as spiece.model alone."""
    return ModelError(
        f"The {tokenizer} of the model '{model}' has its vocabulary as {SENTENCEPIECE} alone, "
        "which is not read; get a copy with tokenizer.json, or write one into its folder with "
        "T5TokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers, which "
        "needs sentencepiece for it."
    )


def _variants(names: Iterable[str], component: str, stem: str) -> Variants:
    """Find all complete sets of weights of a component; one file is preferred to shards."""
    inside = {n.removeprefix(f"{component}/") for n in names if n.startswith(f"{component}/")}
    shards: dict[tuple[str | None, int], dict[int, str]] = {}
    whole: dict[str | None, Weights] = {}
    for name in sorted(inside):
        found = _pattern(stem).fullmatch(name)
        if found is None:
            continue
        variant = found["variant"] or found["older"]
        if found["number"] is None:
            whole[variant] = Weights(variant, (f"{component}/{name}",), None)
        else:
            shards.setdefault((variant, int(found["count"])), {})[int(found["number"])] = name
    complete: dict[str | None, Weights] = {}
    for (variant, count), files in shards.items():
        index = next((name for name in _indices(stem, variant) if name in inside), None)
        if index is not None and sorted(files) == list(range(1, count + 1)):
            paths = tuple(f"{component}/{files[number]}" for number in sorted(files))
            complete[variant] = Weights(variant, paths, f"{component}/{index}")
    return complete | whole


def _pattern(stem: str) -> re.Pattern[str]:
    return re.compile(
        rf"{stem}(\.(?P<variant>\w+))?"
        r"(-(?P<number>\d{5})-of-(?P<count>\d{5})(\.(?P<older>\w+))?)?\.safetensors"
    )


def _indices(stem: str, variant: str | None) -> list[str]:
    if variant is None:
        return [f"{stem}.safetensors.index.json"]
    return [
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.safetensors.{variant}.index.json",
        f"{stem}.{variant}.safetensors.index.json",
    ]


def _stand_ins(held: Iterable[Variants]) -> list[str]:
    lacking = [found for found in held if None not in found]
    every = {name for found in lacking for name in found if name is not None}

    def rank(name: str) -> tuple[int, int, str]:
        common = COMMON.index(name) if name in COMMON else len(COMMON)
        return -sum(name in found for found in lacking), common, name

    return sorted(every, key=rank)


def _without_weights(names: Iterable[str], component: str, stem: str, model: str) -> str:
    inside = sorted(n.removeprefix(f"{component}/") for n in names if n.startswith(f"{component}/"))
    of = f"The {component} of the model '{model}'"
    if any((found := _pattern(stem).fullmatch(name)) and found["number"] for name in inside):
        return f"{of} lacks shards of its weights, or their index; get the model again."
    others = [name for name in inside if name.endswith(NOT_READ)]
    if not others:
        return f"{of} has no weights ({component}/{stem}.safetensors); get the model again."
    danger = ", which could run code when opened," if others[0].endswith(UNSAFE) else ""
    return (
        f"{of} has its weights as {shorten(others[0])}{danger} and not as safetensors; look for "
        "a revision or a copy with safetensors, or convert the model where you trust it, with "
        "save_pretrained(..., safe_serialization=True)."
    )
