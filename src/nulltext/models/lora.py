"""LoRA: low-rank differences of weights, merged into a model's own.

For a layer with weight W [out, in] (a convolution's [out, in, k, k]) and factors of rank r,

    W' = W + weight (alpha / r) up down,    down [r, in k k],  up [out, r]

and with LoCon's Tucker core M [r, r, k, k], the difference is sum_ij up_oi M_ijkl down_jn.
alpha is the file's; without one the scale is 1; rank-stabilised LoRAs divide by sqrt(r).
Source: Hu et al. 2022 (LoRA), sec. 4.1; LyCORIS (LoCon); Kalajdzievski 2023 (rsLoRA), eq. 8.

Tensors of a model are never written to: a layer gets a new one, in float32 or the model's float64.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nulltext.errors import ModelError, OptionError, reason_of
from nulltext.models.adapter_files import (
    AdapterFile,
    check_kind,
    file_in,
    opened,
    shown,
    split_choice,
)
from nulltext.models.lora_kinds import check_method, meant_for, model_is, notes_on
from nulltext.models.lora_names import by_component, split_key, split_stem
from nulltext.storage.files import path_exists
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and PEFT call a LoRA in a folder."""
PEFT_CONFIG = "adapter_config.json"
"""Beside PEFT's file: where its alpha is."""
PEFT_METADATA = "lora_adapter_metadata"
"""In the metadata of diffusers' files: the same, of each component."""


class Lora(NamedTuple):
    """A LoRA that is asked for."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class LoraReport:
    """What merging did."""

    layers: int = 0
    """How many weights were changed, counted once for each LoRA."""
    notes: tuple[str, ...] = ()
    """Sentences for the one who asked: keys without a layer, words to use, distillation."""


ROLES = ("down", "up", "mid", "alpha")
Place = tuple[str, str]
"""A component and a layer of it."""
Keys = dict[str, str]
"""A layer's keys in the file by their roles: "down", "up", "mid", "alpha"."""


def parse_lora(text: str) -> Lora:
    """FILE[:WEIGHT] as file and weight; "style.safetensors:0.8".

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


def lora_file(path: Path) -> Path:
    """The file of a LoRA: the path itself, or the file of diffusers or PEFT in a folder.

    Raises:
        ModelError: the folder has neither.
    """
    return file_in(path, LORA_FILES, "LoRA")


def merge_loras(
    modules: Mapping[str, nn.Module], loras: Sequence[Lora], *, model: str = "model"
) -> LoraReport:
    """Merge LoRAs into the weights of a UNet and its text encoders.

    Args:
        modules: by their names in a checkpoint's folder, with tensors that hold numbers.
        model: its name, for messages.

    Raises:
        ModelError: a file is missing, damaged, no LoRA, of a method that cannot be merged, or for
            other models. Of that LoRA nothing is merged then.
    """
    notes: list[str] = []
    layers = 0
    names = by_component(modules) if loras else {}
    for path, weight in loras:
        with opened(lora_file(path), "LoRA") as file:
            check_kind(file, "--lora")
            check_method(file)
            factors, unused = _matched(file, names)
            _check_fit(file, modules, factors, unused, model)
            scaling = _PeftScaling.of(file)
            for (component, layer), keys in factors.items():
                module: Any = modules[component].get_submodule(layer)
                down, up, mid, alpha = (_read(file, keys, role) for role in ROLES)
                assert down is not None
                assert up is not None
                if alpha is not None:
                    scale = float(alpha) / len(down)
                else:
                    scale = scaling.scale(component, layer, len(down))
                old = module.weight.detach()
                merged = lora_delta(old, down, up, mid=mid, scale=weight * scale).add_(old)
                module.weight = nn.Parameter(merged, requires_grad=False)
            layers += len(factors)
            notes += [*_note_on_unused(file, unused, model), *notes_on(file)]
    return LoraReport(layers, tuple(notes))


def lora_delta(
    weight: Tensor, down: Tensor, up: Tensor, *, mid: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """The difference that two factors, or three, make to a layer's weight.

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


def _matched(
    file: AdapterFile, names: Mapping[str, Mapping[str, str]]
) -> tuple[dict[Place, Keys], list[str]]:
    """Factors by their layers, and the keys that mean none."""
    factors: dict[Place, Keys] = {}
    unused = []
    for key in file.shapes:
        split = split_key(key)
        component, name = split_stem(split[0]) if split else ("", "")
        layer = names.get(component, {}).get(name)
        if split is None or layer is None:
            unused.append(key)
            continue
        keys = factors.setdefault((component, layer), {})
        if split[1] in keys:
            raise _damaged(file, f"it has two of {shown(key)}")
        keys[split[1]] = key
    return factors, unused


def _check_fit(
    file: AdapterFile,
    modules: Mapping[str, nn.Module],
    factors: Mapping[Place, Keys],
    unused: Sequence[str],
    model: str,
) -> None:
    """Refuse a LoRA of which most means no layer here, or some has another shape."""
    if len(unused) > len(file.shapes) / 2 or not factors:
        what = f"{len(unused)} of its {len(file.shapes)} tensors match no layer"
        raise _unfit(file, modules, model, f"{what} ({shown((unused or [''])[0])})")
    for (component, layer), keys in factors.items():
        module: Any = modules[component].get_submodule(layer)
        shapes = {role: file.shapes[key] for role, key in keys.items()}
        absent = {"down", "up"} - shapes.keys()
        if absent:
            raise _damaged(file, f"{shown(next(iter(keys.values())))} lacks its {absent.pop()}")
        if not _fits(tuple(module.weight.shape), shapes):
            down, up = (list(shapes[role]) for role in ("down", "up"))
            raise _unfit(
                file,
                modules,
                model,
                f"its factors {down} and {up} do not make the weight {list(module.weight.shape)} "
                f"of {component}.{layer}",
            )


def _fits(weight: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether factors make a weight of this shape."""
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    if len(down) < 2 or len(up) < 2 or math.prod(shapes.get("alpha", ())) != 1:
        return False
    out, rank, inputs = weight[0], down[0], math.prod(weight[1:])
    if mid is not None:
        if len(weight) != 4 or mid != (rank, rank, *weight[2:]):
            return False
        inputs = weight[1]
    pointwise = math.prod(up[2:]) == 1
    return rank > 0 and pointwise and up[:2] == (out, rank) and math.prod(down[1:]) == inputs


def _read(file: AdapterFile, keys: Keys, role: str) -> Tensor | None:
    return file.tensor(keys[role]) if role in keys else None


def _unfit(
    file: AdapterFile, modules: Mapping[str, nn.Module], model: str, reason: str
) -> ModelError:
    meant, here = meant_for(file), model_is(modules)
    why = f"is for {meant}" if meant and meant not in here else f"does not fit: {reason}"
    return ModelError(
        f"The LoRA '{file.path.name}' {why}, and the model '{model}' is {here}; pass a LoRA that "
        "was trained on the model's own family."
    )


def _damaged(file: AdapterFile, reason: str) -> ModelError:
    return ModelError(f"The LoRA '{file.path.name}' is damaged ({reason}); get it again.")


def _note_on_unused(file: AdapterFile, unused: Sequence[str], model: str) -> list[str]:
    if not unused:
        return []
    more = ", …" if len(unused) > 1 else ""
    return [
        f"Note: {len(unused)} of the {len(file.shapes)} tensors of the LoRA '{file.path.name}' "
        f"match no layer of the model '{model}' and are not used ({shown(unused[0])}{more})."
    ]


@dataclass(frozen=True)
class _PeftScaling:
    """Scales of layers by PEFT's settings, which its files keep beside the tensors."""

    settings: Mapping[str, Any]
    """Of one component or, with its name and a dot before each, of several."""

    @classmethod
    def of(cls, file: AdapterFile) -> _PeftScaling:
        """From the file's metadata, or from PEFT's config beside it.

        Raises:
            ModelError: they are there and damaged.
        """
        config = file.path.with_name(PEFT_CONFIG)
        try:
            settings = file.json(PEFT_METADATA)
            if settings is None and file.path.name == LORA_FILES[1] and path_exists(config):
                settings = parse_json(read_text(config, MEGABYTE))
        except (OSError, ValueError) as error:
            raise _damaged(file, f"its {PEFT_CONFIG}: {reason_of(error)}") from error
        scaling = cls(settings if isinstance(settings, dict) else {})
        for name, value in scaling.settings.items():
            if name.endswith("lora_alpha") and not _is_number(value):
                raise _damaged(file, f"its {shown(name)} is no number")
        return scaling

    def scale(self, component: str, layer: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised LoRA; 1 without an alpha."""
        alpha = self._setting(component, "lora_alpha")
        patterns = self._setting(component, "alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if f".{layer}".endswith(f".{pattern}") and _is_number(value):
                alpha = value
        if alpha is None:
            return 1.0
        stable = self._setting(component, "use_rslora") is True
        return float(alpha) / (math.sqrt(rank) if stable else rank)

    def _setting(self, component: str, name: str) -> Any:
        return self.settings.get(f"{component}.{name}", self.settings.get(name))


def _is_number(value: object) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))
