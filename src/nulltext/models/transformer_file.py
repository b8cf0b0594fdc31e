"""Read a transformer of Stable Diffusion 3, 3.5 or FLUX.1 in one `.safetensors` file.

Such files hold the transformer, under its authors' names (`original_names`) or diffusers', and at
times text encoders and the autoencoder. None has configs, schedule or T5's vocabulary. So a folder
of the same model in diffusers format is given with it, and all that the file lacks is read there.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.errors import ModelError, OptionError
from nulltext.models.checkpoint import Checkpoint, build, first_line
from nulltext.models.families import Family
from nulltext.models.mmdit import FLUX, STABLE_DIFFUSION_3
from nulltext.models.original_names import OriginalWeights
from nulltext.models.pipelines import family_of
from nulltext.models.single_file import diffusers_names, translated
from nulltext.models.tensor_files import read_header, shown
from nulltext.models.weights import MappedTensors, Renamed, fill
from nulltext.storage.files import expand_user

FAMILIES: Mapping[str, tuple[str, Family]] = {
    "sd3": ("Stable Diffusion 3", STABLE_DIFFUSION_3),
    "flux": ("FLUX.1", FLUX),
}
"""What files of these kinds (`kinds.toml`) are, and their families."""

BLOCK = re.compile(r"((?:\w+\.)*?)(joint_blocks|double_blocks|(?:single_)?transformer_blocks)\.\d")
ENCODERS = {
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
}
"""What the text encoders are called in the file."""
ENCODER = "text_encoders.{}.transformer."
VAE = ("first_stage_model.", "vae.")
OTHERS = ("text_encoders.", *VAE)

UNPROJECTED = "text_encoders.clip_l."
"""The encoder whose pooled state Stable Diffusion 3 takes without a projection."""

STORED = ("F64", "F32", "F16", "BF16")
QUANTISED = re.compile(r"scaled_fp8|\.(scale_weight|weight_scale|absmax|quant_map|comfy_quant)")


class TransformerFile:
    """A file with a transformer, and the folder with all that it lacks."""

    def __init__(self, file: Path, name: str, kind: str, config: str | None) -> None:
        """Open the file and the folder.

        Args:
            name: what it is called in messages.
            kind: "sd3" or "flux", as `tensor_files.kind_of_file` tells.
            config: a folder of the same model in diffusers format.
        """
        self.file, self.name, self.kind = file, name, kind
        self.title, family = FAMILIES[kind]
        _check_precision(file, name)
        folder = None if config is None else expand_user(config)
        if folder is None or not (folder / "model_index.json").is_file():
            given = "" if config is None else f", and '{config}' is none"
            raise OptionError(
                f"'{name}' holds a transformer of {self.title}, whose configs and vocabularies are "
                f"in no single file; pass --config FOLDER, a folder of the same model in diffusers "
                f"format, from which text encoders and autoencoder are read, too, where the file "
                f"has none{given}."
            )
        self.folder, self.rest = folder, Checkpoint.at(folder)
        index = self.rest.json("model_index.json")
        found = family_of(index.get("_class_name"), str(folder), index)
        if found.modules[found.network] != family.modules[family.network]:
            raise ModelError(
                f"'{name}' holds a transformer of {self.title}, and the folder '{folder}' is of "
                f"class {shown(str(index.get('_class_name')))}; pass with --config a folder of "
                f"class {family.pipelines[0]}."
            )
        self.tensors = MappedTensors([file])

    @property
    def note(self) -> str:
        own = ["transformer"]
        if self._begins(*VAE):
            own.append("autoencoder")
        if self._begins("text_encoders."):
            own.append("text encoders")
        return (
            f"Note: the {', '.join(own)} of '{self.name}' {'is' if len(own) == 1 else 'are'} read "
            f"with the configuration in '{self.folder}', from where all other parts come."
        )

    def json(self, name: str) -> dict[str, Any]:
        return self.rest.json(name)

    def tokenizer(self, name: str, class_name: str = "CLIPTokenizer") -> Any:
        return self.rest.tokenizer(name, class_name)

    def modules(self, classes: Mapping[str, str]) -> dict[str, Any]:
        own = {part: kind for part, kind in classes.items() if self._has(part)}
        modules = {part: self._module(part, kind) for part, kind in own.items()}
        return modules | self.rest.modules({p: k for p, k in classes.items() if p not in own})

    def _has(self, part: str) -> bool:
        if part == "vae":
            return self._begins(*VAE)
        encoder = ENCODERS[self.kind].get(part)
        return encoder is None or self._begins(ENCODER.format(encoder))

    def _begins(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self.tensors)

    def _module(self, part: str, class_name: str) -> Any:
        try:
            module = build(self.rest, part, class_name, [self.file])
            if part == "vae":
                names = partial(diffusers_names, part, module.config)
                weights: Mapping[str, Tensor] = translated(self.tensors, names)
            elif part in ENCODERS[self.kind]:
                weights = self._encoder(part, module)
            else:
                weights = self._transformer(module)
            fill(module, weights)
        except ModelError:
            raise
        except Exception as error:  # the libraries raise many kinds; the reason is in the text
            raise ModelError(
                f"The {part} of '{self.name}' does not fit the configuration in '{self.folder}' "
                f"({first_line(error)}); pass with --config a folder of this very model."
            ) from error
        return module

    def _encoder(self, part: str, module: Any) -> Mapping[str, Tensor]:
        prefix = ENCODER.format(ENCODERS[self.kind][part])
        names = {n.removeprefix(prefix): n for n in self.tensors if n.startswith(prefix)}
        weights = Renamed(self.tensors, names)
        if not prefix.startswith(UNPROJECTED) or not hasattr(module, "text_projection"):
            return weights
        identity = {"text_projection.weight": torch.eye(module.config.projection_dim)}
        return ChainMap(identity, weights)  # type: ignore[arg-type]  # only read

    def _transformer(self, module: Any) -> Mapping[str, Tensor]:
        match = next(filter(None, map(BLOCK.match, self.tensors)))
        prefix, own = match[1], set(self._own(match[1]))
        if match[2].endswith("transformer_blocks"):
            weights: Mapping[str, Tensor] = Renamed(
                self.tensors, {name.removeprefix(prefix): name for name in own}
            )
            unused = own - {prefix + name for name in module.state_dict()}
        else:
            weights = OriginalWeights.of(module, self.tensors, prefix)
            unused = own - {key for key, _ in weights.places.values()}
        if unused:
            raise ValueError(f"it has {len(unused)} weights beyond it ({shown(min(unused))}, …)")
        return weights

    def _own(self, prefix: str) -> Iterator[str]:
        return (n for n in self.tensors if n.startswith(prefix) and not n.startswith(OTHERS))


def _check_precision(file: Path, name: str) -> None:
    """Refuse weights that are quantised, or of 8 bits.

    Raises:
        ModelError: names one of them.
    """
    header = read_header(file)
    for tensor, kind in header.dtypes.items():
        whole = len(header.shapes[tensor]) > 1 and kind not in STORED
        if whole or QUANTISED.search(tensor):
            raise ModelError(
                f"'{name}' holds quantised weights ({shown(tensor)} in {kind}), with which "
                "nulltext does not compute; pass the file with all weights in float16 or bfloat16."
            )
