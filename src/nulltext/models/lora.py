"""LoRA: low-rank differences of weights, merged into a model's own.

For a layer with weight W [out, in] (a convolution's [out, in, k, k]) and factors of rank r,

    W' = W + weight (alpha / r) up down,    down [r, in k k],  up [out, r]

and with LoCon's Tucker core M [r, r, k, k], the difference is sum_ij up_oi M_ijkl down_jn.
alpha is the file's; without one the scale is 1; rank-stabilised LoRAs divide by sqrt(r).
Source: Hu et al. 2022 (LoRA), sec. 4.1; LyCORIS (LoCon); Kalajdzievski 2023 (rsLoRA), eq. 8.

Tensors of a model are never written to: a layer gets a new one, in float32 or the model's float64,
of a transformer rounded to the file's own precision.

A file's keys name layers in one of several ways:

    diffusers   unet.down_blocks.0…attn1.to_q.lora.down.weight
                unet.down_blocks.0…attn1.processor.to_q_lora.down.weight
    PEFT        base_model.model.down_blocks.0…attn1.to_q.lora_A.weight
    kohya       lora_unet_down_blocks_0…attn1_to_q.lora_down.weight
    LDM         lora_unet_input_blocks_1_1…attn1_to_q.lora_down.weight (kohya's of SDXL)
    original    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight (kohya's of FLUX)
    XLabs       double_blocks.0.processor.qkv_lora1.down.weight

The last two are of transformers. One layer of their authors' names may be several here, each with
some rows of `up` (`original_names`). kohya's scripts call a transformer `unet`, too.

A key is split into its stem and which factor it is; stems are compared with the layers that the
model has, with all separators as underscores, so that a key means a layer or nothing. The model
that a file is for is told by the widths of its layers, and where no width decides by what the
trainer wrote into the file's metadata, which may be missing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nulltext.errors import ModelError, OptionError, reason_of
from nulltext.models.original_names import Origin, origins_of
from nulltext.models.tensor_files import (
    EXPECTED,
    TensorFile,
    adapter_file,
    known_kinds,
    open_adapter,
    shown,
    split_choice,
)
from nulltext.models.unet import PROMPT_WIDTHS
from nulltext.storage.files import path_exists
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

PEFT_FILE, PEFT_CONFIG = EXPECTED["--lora"].files[1], "adapter_config.json"
"""PEFT's file in a folder, and where its alpha is."""
PEFT_METADATA = "lora_adapter_metadata"
"""In the metadata of diffusers' files: the same, of each component."""

FACTOR = re.compile(
    r"(.+?)[._]lora([12]?)(?:[._]|_linear_layer\.)(down|up|mid|A|B)(?:\.[\w-]+)?\.weight", re.DOTALL
)
ALPHA = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha", re.DOTALL)
ROLES = ("down", "up", "mid", "alpha")
PEFT_ROLES = {"A": "down", "B": "up"}

PREFIXES = {
    "base_model.model.": None,
    "lora_unet_": "unet",
    "unet.": "unet",
    "lora_transformer_": "transformer",
    "transformer.": "transformer",
    "diffusion_model.": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
"""What precedes a layer's name, and the component that it says."""

NETWORKS = ("unet", "transformer")
"""Components that denoise: a model has one of them, whatever a file calls it."""

TRANSFORMERS = {
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "FluxTransformer2DModel": "FLUX.1",
}
"""Models by the class of their transformer."""

TRANSFORMER_WIDTHS = {
    1536: "Stable Diffusion 3",
    2432: "Stable Diffusion 3",
    3072: "FLUX",
}
"""Models by the width of their transformer."""

JOINT = re.compile(r"(?<!single_)transformer_blocks[._]\d+[._]attn[._](?:to|add)_[qkv]")

A_TRANSFORMER = "a diffusion transformer"

OLD_PROJECTIONS = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}
"""Projections of text encoders as the first LoRAs of diffusers name them."""

LDM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
LDM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?"
    r"\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)

BIAS = re.compile(r"lora[._](?:linear_layer\.)?(?:up|down|A|B)(?:\.[\w-]+)?\.bias$")

CROSS = re.compile(r"attn2[._](?:processor\.)?to_[kv]$")

UNET_KEY = re.compile(r"(?:down|up)_blocks[._]\d|mid_block|(?:input|output)_blocks_\d|middle_block")

SAID_BASE = ("modelspec.architecture", "ss_base_model_version")

DISTILLED = re.compile(
    r"(?:^|[^a-z])(lcm|lightning|hyper-?sd\w*|turbo|dmd2?|tcd|pcm|flash-?sd\w*)(?:[^a-z]|$)",
    re.IGNORECASE,
)
"""Parts of the names of LoRAs that distil a model to a few steps."""
MAX_TITLE = 200
MAX_TRIGGERS = 3


class Lora(NamedTuple):
    """A LoRA file and its weight."""

    path: Path
    weight: float = 1.0


class Layer(NamedTuple):
    """A layer of a model."""

    component: str
    path: str
    origin: Origin = Origin("")
    """Which rows of the file's factor `up` are its own."""


Names = Mapping[str, Sequence[Layer]]
"""Layers by what a key may call them, separators as underscores."""

Keys = dict[str, str]
"""A layer's keys in the file by their roles: "down", "up", "mid", "alpha"."""


def parse_lora(text: str) -> Lora:
    """Read FILE[:WEIGHT], such as "style.safetensors:0.8".

    Raises:
        OptionError: the weight is no finite number.
    """
    path, said = split_choice(text)
    if said is None:
        return Lora(path)
    try:
        weight = float(said)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise OptionError(
            f"The weight of the LoRA '{path}' is '{shown(said)}', expected a finite number; write "
            f"--lora {shlex.quote(f'{path}:0.8')}."
        )
    return Lora(path, weight)


def merge_loras(
    modules: Mapping[str, nn.Module], loras: Sequence[Lora], *, model: str = "model"
) -> list[str]:
    """Merge LoRAs into the weights of a UNet or a transformer and its text encoders.

    Returns notes for the user: keys without a layer, words to use, distillation.

    Raises:
        ModelError: a file is missing, damaged, no LoRA, of a method that cannot be merged, or for
            other models. Of that LoRA nothing is merged then.
    """
    notes: list[str] = []
    names = {
        name: layers_by_name(name, module)
        for name, module in modules.items()
        if loras and name in PREFIXES.values()
    }
    for path, weight in loras:
        with open_adapter(adapter_file(path, "--lora"), "--lora") as file:
            check_method(file)
            factors, unused = _matched(file, names)
            reason = _misfit(file, modules, factors, unused)
            if reason is not None:
                meant, here = meant_for(file), model_is(modules)
                why = f"does not fit: {reason}"
                if meant and not _means(meant, here, modules):
                    why = f"is for {meant}"
                raise ModelError(
                    f"The LoRA '{file.path.name}' {why}, and the model '{model}' is {here}; pass "
                    "a LoRA that was trained on the model's own family."
                )
            settings = _peft_settings(file)
            for layer, keys in factors.items():
                module: Any = modules[layer.component].get_submodule(layer.path)
                read = {role: file.tensor(key) for role, key in keys.items()}
                rank = len(read["down"])
                if "alpha" in read:
                    scale = float(read["alpha"]) / rank
                else:
                    scale = _peft_scale(settings, layer, rank)
                old = module.weight.detach()
                delta = lora_delta(
                    old,
                    read["down"],
                    layer.origin.rows(read["up"]),
                    mid=read.get("mid"),
                    scale=weight * scale,
                )
                # A transformer of 12 B weights would take 48 GB in float32.
                kept = old.dtype if layer.component == "transformer" else delta.dtype
                module.weight = nn.Parameter(delta.add_(old).to(kept), requires_grad=False)
            if unused:
                more = ", …" if len(unused) > 1 else ""
                notes.append(
                    f"Note: {len(unused)} of the {len(file.shapes)} tensors of the LoRA "
                    f"'{file.path.name}' match no layer of the model '{model}' and are not used "
                    f"({shown(unused[0])}{more})."
                )
            notes += notes_on(file)
    return notes


def lora_delta(
    weight: Tensor, down: Tensor, up: Tensor, *, mid: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Compute the difference that two factors, or three, make to a layer's weight.

    Args:
        weight: W, [out, in] or [out, in, k, k]; gives the difference its shape, its device and,
            where it is more than float32, its dtype.
        down: [r, in] or [r, in, k, k]; [r, in, 1, 1] with `mid`. up: [out, r] or [out, r, 1, 1].
        mid: Tucker core, [r, r, k, k].

    Returns: as W, float32 or float64.
    """
    kind = torch.promote_types(weight.dtype, torch.float32)
    first, second = (each.to(weight.device, kind).flatten(1) for each in (down, up))
    if mid is not None:
        core = mid.to(weight.device, kind)
        return scale * torch.einsum("oi,ijkl,jn->onkl", second, core, first)
    return scale * (second @ first).reshape(weight.shape)


def _matched(file: TensorFile, names: Mapping[str, Names]) -> tuple[dict[Layer, Keys], list[str]]:
    factors: dict[Layer, Keys] = {}
    unused = []
    network = next((name for name in NETWORKS if name in names), "")
    for key in file.shapes:
        split = split_key(key)
        component, name = split_stem(split[0]) if split else ("", "")
        component = network if component in NETWORKS else component
        layers = names.get(component, {}).get(name)
        if split is None or layers is None:
            unused.append(key)
            continue
        for layer in layers:
            keys = factors.setdefault(layer, {})
            if split[1] in keys:
                raise _damaged(file, f"it has two of {shown(key)}")
            keys[split[1]] = key
    return factors, unused


def _misfit(
    file: TensorFile,
    modules: Mapping[str, nn.Module],
    factors: Mapping[Layer, Keys],
    unused: Sequence[str],
) -> str | None:
    """Say that most of a LoRA means no layer here, or some has another shape; None if it fits."""
    if len(unused) > len(file.shapes) / 2 or not factors:
        what = f"{len(unused)} of its {len(file.shapes)} tensors match no layer"
        return f"{what} ({shown((unused or [''])[0])})"
    for layer, keys in factors.items():
        module: Any = modules[layer.component].get_submodule(layer.path)
        shapes = {role: file.shapes[key] for role, key in keys.items()}
        absent = {"down", "up"} - shapes.keys()
        if absent:
            raise _damaged(file, f"{shown(next(iter(keys.values())))} lacks its {absent.pop()}")
        if not _fits(tuple(module.weight.shape), shapes, layer.origin):
            down, up = (list(shapes[role]) for role in ("down", "up"))
            return (
                f"its factors {down} and {up} do not make the weight {list(module.weight.shape)} "
                f"of {layer.component}.{layer.path}"
            )
    return None


def _fits(weight: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], origin: Origin) -> bool:
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    if len(down) < 2 or len(up) < 2 or math.prod(shapes.get("alpha", ())) != 1:
        return False
    out, rank, inputs = weight[0], down[0], math.prod(weight[1:])
    if mid is not None:
        if len(weight) != 4 or mid != (rank, rank, *weight[2:]):
            return False
        inputs = weight[1]
    pointwise, parts = math.prod(up[2:]) == 1, origin.last - origin.first
    rows = up[0] * parts == out * origin.of and up[1] == rank
    return rank > 0 and pointwise and rows and math.prod(down[1:]) == inputs


def _damaged(file: TensorFile, reason: str) -> ModelError:
    return ModelError(f"The LoRA '{file.path.name}' is damaged ({reason}); get it again.")


def _peft_settings(file: TensorFile) -> Mapping[str, Any]:
    """Read PEFT's settings from the file's metadata, or from PEFT's config beside it.

    They are of one component or, with its name and a dot before each, of several.
    """
    config = file.path.with_name(PEFT_CONFIG)
    try:
        settings = file.json(PEFT_METADATA)
        if settings is None and file.path.name == PEFT_FILE and path_exists(config):
            settings = parse_json(read_text(config, MEGABYTE))
    except (OSError, ValueError) as error:
        raise _damaged(file, f"its {PEFT_CONFIG}: {reason_of(error)}") from error
    settings = settings if isinstance(settings, dict) else {}
    for name, value in settings.items():
        if name.endswith("lora_alpha") and not _is_number(value):
            raise _damaged(file, f"its {shown(name)} is no number")
    return settings


def _peft_scale(settings: Mapping[str, Any], layer: Layer, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised LoRA; 1 without an alpha."""
    alpha, patterns, stable = (
        settings.get(f"{layer.component}.{name}", settings.get(name))
        for name in ("lora_alpha", "alpha_pattern", "use_rslora")
    )
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if f".{layer.path}".endswith(f".{pattern}") and _is_number(value):
            alpha = value
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if stable is True else rank)


def _is_number(value: object) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))


def split_key(key: str) -> tuple[str, str] | None:
    """Split a key into stem and role: "down", "up", "mid" or "alpha"; None for any other key."""
    match = FACTOR.fullmatch(key)
    if match:
        return match[1] + match[2], PEFT_ROLES.get(match[3], match[3])
    match = ALPHA.fullmatch(key)
    return (match[1], "alpha") if match else None


def split_stem(stem: str) -> tuple[str, str]:
    """Split a stem into component and layer, separators as underscores.

    A stem without a component's name is the network's, or a text encoder's by how it begins.
    """
    component, rest = None, stem
    while True:
        prefix = next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None)
        if prefix is None:
            break
        component, rest = PREFIXES[prefix] or component, rest.removeprefix(prefix)
    if component is None:
        component = "text_encoder" if rest.startswith("text_model") else "unet"
    return component, _flat(rest.replace(".processor.", "."))


def layers_by_name(component: str, module: nn.Module) -> dict[str, list[Layer]]:
    """Find what each name means: one layer, or of a transformer's authors' names several."""
    own = layer_names(component, module)
    layers = {name: [Layer(component, path)] for name, path in own.items()}
    for path in dict.fromkeys(own.values()):
        for origin in origins_of(module, path):
            if _flat(origin.name) not in own:
                layers.setdefault(_flat(origin.name), []).append(Layer(component, path, origin))
    return layers


def layer_names(component: str, module: nn.Module) -> dict[str, str]:
    """Name a component's layers in all ways that mean one layer each."""
    paths = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    names = {_flat(path): path for path in paths}
    if component == "unet":
        others = _unet_names(module.config, paths)
    elif component in NETWORKS:
        others = ((_flat(path.removesuffix(".0")), path) for path in paths)
    else:
        others = _text_names(paths)
    return dict(others) | names


def _flat(path: str) -> str:
    flat = path.replace(".", "_")
    return flat.removeprefix("text_model_")  # transformers has it for some encoders only


def _text_names(paths: list[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        head, _, last = path.rpartition(".")
        if last in OLD_PROJECTIONS:
            yield _flat(f"{head}.{OLD_PROJECTIONS[last]}"), path


def _unet_names(config: Any, paths: list[str]) -> Iterator[tuple[str, str]]:
    layers = config.layers_per_block
    per_block = layers + 1 if isinstance(layers, int) else None
    crossed = {path.split(".attentions.")[0] for path in paths if ".attentions." in path}
    for path in paths:
        names = [path, *_ldm_names(path, per_block, crossed)]
        for name in names:
            yield _flat(name.removesuffix(".0") if name.endswith("to_out.0") else name), path
            yield _flat(name), path


def _ldm_names(path: str, per_block: int | None, crossed: set[str]) -> Iterator[str]:
    """Name a UNet's layer as the original code does; nothing where blocks are of unequal depth.

    Args:
        per_block: entries of each block there: its layers, and a sampler or one layer more.
        crossed: blocks with attention, which is an entry's second part.
    """
    if path in LDM_OUTSIDE:
        yield LDM_OUTSIDE[path]
    match = BLOCK.fullmatch(path)
    if match is None or per_block is None:
        return
    block, number, kind, index, rest = match.groups()
    first, place = int(number or 0) * per_block, int(index)
    rest = LDM_RESNET.get(rest, rest) if kind == "resnets" else rest
    inner = int(kind == "attentions")
    if block == "mid_block":
        yield f"middle_block.{1 if inner else 2 * place}.{rest}"
    elif kind == "downsamplers":
        yield f"input_blocks.{first + per_block}.0.op"
    elif kind == "upsamplers":
        inner = 2 if f"up_blocks.{number}" in crossed else 1
        yield f"output_blocks.{first + per_block - 1}.{inner}.{rest}"
    elif block == "down_blocks":
        yield f"input_blocks.{1 + first + place}.{inner}.{rest}"
    else:
        yield f"output_blocks.{first + place}.{inner}.{rest}"


def check_method(file: TensorFile) -> None:
    methods = known_kinds()["lora"]["methods"]
    for name in file.shapes:
        method = next((what for part, what in methods.items() if _has(name, part)), None)
        if BIAS.search(name):
            method = "a LoRA with biases"
        if method is not None:
            raise ModelError(
                f"The LoRA '{file.path.name}' is {method} ({shown(name)}), which nulltext cannot "
                "merge; merge it into a checkpoint with the tool that made it and pass that with "
                "--model, or pass a plain LoRA."
            )


def _has(name: str, part: str) -> bool:
    """Whether a key has a part; full differences are told by the key's end (`diffusion_model`)."""
    return name.endswith(part) if part.startswith(".diff") else part in name


def meant_for(file: TensorFile) -> str | None:
    for name, shape in file.shapes.items():
        stem, role = split_key(name) or ("", "")
        if role == "down" and CROSS.search(stem) and len(shape) > 1 and shape[1] in PROMPT_WIDTHS:
            return PROMPT_WIDTHS[shape[1]]
        joint = role == "down" and JOINT.search(stem) and len(shape) > 1
        if joint and shape[1] in TRANSFORMER_WIDTHS and not UNET_KEY.search(stem):
            return TRANSFORMER_WIDTHS[shape[1]]
    unet = any(UNET_KEY.search(name) for name in file.shapes)
    for part, model in known_kinds()["lora"]["models"].items():
        clear = model == "Stable Diffusion XL" or "video" in model
        if (clear or not unet) and any(part in name for name in file.shapes):
            return str(model)
    for key in SAID_BASE:
        said = file.metadata.get(key, "").lower()
        for pattern, model in known_kinds()["lora"]["bases"].items():
            if re.match(pattern, said):
                return str(model)
    return None


def model_is(modules: Mapping[str, nn.Module]) -> str:
    """Name a model by its network: "Stable Diffusion 1 (prompt width 768)"."""
    network: Any = modules[next(name for name in NETWORKS if name in modules)]
    named, config = TRANSFORMERS.get(type(network).__name__), network.config
    if named is not None:
        width = config.num_attention_heads * config.attention_head_dim
        return f"{named} (transformer width {width})"
    width = getattr(config, "cross_attention_dim", None)
    named = PROMPT_WIDTHS.get(width) if isinstance(width, int) else None
    return f"{named or 'a model of its own kind'} (prompt width {width})"


def _means(meant: str, here: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a name of models, or of several, is this model's."""
    alike = meant == A_TRANSFORMER and "transformer" in modules
    return alike or any(each in here for each in meant.split(" or "))


def notes_on(file: TensorFile) -> Iterator[str]:
    name = file.path.name
    titles = (name, file.path.parent.name, file.metadata.get("modelspec.title", "")[:MAX_TITLE])
    match = next(filter(None, map(DISTILLED.search, titles)), None)
    if match:
        yield (
            f"Note: by its name ({match[1]}), the LoRA '{name}' distils a model to a few steps "
            "without guidance; inversions, which take many steps with guidance, come out worse "
            "with it."
        )
    words = _trigger_words(file)
    if words:
        yield f"Note: the LoRA '{name}' was trained with the words {', '.join(map(repr, words))}."


def _trigger_words(file: TensorFile) -> list[str]:
    """Find what a prompt should say for a LoRA to act: its phrase, or its most frequent tags."""
    phrase = file.metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return [shown(phrase)]
    try:
        folders = file.json("ss_tag_frequency")
    except ValueError:
        return []
    counts: dict[str, float] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int | float) and math.isfinite(count) and tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    most = sorted(counts, key=lambda tag: -counts[tag])[:MAX_TRIGGERS]
    return [shown(tag, 40) for tag in most if 2 * counts[tag] > counts[most[0]]]
