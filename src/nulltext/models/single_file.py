"""Read a checkpoint in one `.safetensors` file, as most fine-tunes are shared.

The file holds all components under the names of the original code (`model.diffusion_model.…`,
`first_stage_model.…`, `cond_stage_model.…`) and no configs, which come from the published
checkpoint of its family, or from a folder that is given. Names are translated by diffusers. What is
missing, damaged or does not fit is refused as a ModelError.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from nulltext.errors import ModelError, OptionError
from nulltext.models.checkpoint import (
    Checkpoint,
    build,
    checked_tokenizer,
    first_line,
)
from nulltext.models.weights import MappedTensors, Renamed, fill
from nulltext.storage.files import expand_user

PUBLISHED = Path(__file__).parent / "published"
VOCABULARY = PUBLISHED / "clip"

CONFIGS = {
    "sd15": "Stable Diffusion 1.x",
    "sd14": "Stable Diffusion 1.4",
    "sd21": "Stable Diffusion 2.x, 768 px, v-prediction",
    "sd21b": "Stable Diffusion 2.x base, 512 px, epsilon-prediction",
    "sdxl": "Stable Diffusion XL base",
}
"""Published configurations that come with the package, and what they are of."""

BASE_MARKS = ("512", "base")
"""In the name of a Stable Diffusion 2 file: it is of the 512 px model, which predicts epsilon."""

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Tensors that fine-tunes of XL carry to say how they were trained."""

OPEN_CLIP = {
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
"""Prefixes of text encoders under OpenCLIP's names, and their components."""

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""How the names of each component's tensors begin."""

PARTS = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


class SingleFile:
    """One file with all weights, and the configs that belong to it."""

    def __init__(self, file: Path, name: str, config: str | None = None) -> None:
        """Open the file and find its configs.

        Args:
            name: what it is called in messages.
            config: name of a published configuration, or a folder with configs; by default
                inferred.
        """
        self.file, self.name, self.config = file, name, config
        try:
            self.tensors = MappedTensors([file])
        except Exception as error:  # safetensors raises several kinds
            raise ModelError(
                f"'{name}' is no complete safetensors file ({first_line(error)}); get it again."
            ) from error
        self.says_v_prediction = V_PREDICTION in self.tensors
        chosen = self._infer(file) if config is None else config
        folder = PUBLISHED / chosen if chosen in CONFIGS else expand_user(chosen)
        if not (folder / "model_index.json").is_file():
            raise OptionError(
                f"There is no configuration '{chosen}'; pass --config {', '.join(CONFIGS)}, or a "
                "folder with model_index.json and the components' config.json files."
            )
        title = f"{name} ({CONFIGS[chosen]})" if chosen in CONFIGS else str(folder)
        self.folder, self.configs = folder, Checkpoint(folder, title)

    @property
    def note(self) -> str:
        kind = self.folder.name
        if self.config is not None:
            own = " and v-prediction, as it says itself" if self.says_v_prediction else ""
            return f"Note: '{self.name}' is read with the configuration '{self.config}'{own}."
        said = CONFIGS[kind] + (", v-prediction" if self.says_v_prediction else "")
        other = {"sd21": " sd21b", "sd21b": " sd21"}.get(kind, f" {', '.join(CONFIGS)}")
        return f"Note: '{self.name}' is read as {said}; if that is wrong, pass --config{other}."

    def json(self, name: str) -> dict[str, Any]:
        content = self.configs.json(name)
        if name == "scheduler/scheduler_config.json" and self.says_v_prediction:
            content |= {"prediction_type": "v_prediction"}
            content |= {"rescale_betas_zero_snr": ZERO_SNR in self.tensors}
        return content

    def tokenizer(self, name: str, class_name: str = "CLIPTokenizer") -> Any:
        """Load a CLIP tokenizer, with the published vocabulary where the configs have none."""
        if (self.folder / name / "vocab.json").is_file() or self.folder.parent != PUBLISHED:
            return self.configs.tokenizer(name, class_name)
        from transformers import CLIPTokenizer

        settings = self.json(f"{name}/tokenizer_config.json")
        padding = self.json(f"{name}/special_tokens_map.json")["pad_token"]
        settings["pad_token"] = padding["content"] if isinstance(padding, dict) else padding
        return checked_tokenizer(CLIPTokenizer.from_pretrained(VOCABULARY, **settings))

    def modules(self, classes: Mapping[str, str]) -> dict[str, Any]:
        for part in classes:
            if not self._has(*PREFIXES[part]):
                advice = f"pass a whole checkpoint, or another --config than {self.folder.name}"
                if part == "vae":
                    advice = "pass one with --vae"
                raise ModelError(f"'{self.name}' has no {PARTS[part]}; {advice}.")
        return {part: self._module(part, kind) for part, kind in classes.items()}

    def _module(self, part: str, class_name: str) -> Any:
        try:
            module = build(self.configs, part, class_name, [self.file])
            tensors = translated(self.tensors, partial(diffusers_names, part, module.config))
            fill(module, tensors)
        except ModelError:
            raise
        except Exception as error:  # the libraries raise many kinds; the reason is in the text
            raise ModelError(
                f"The {part} of '{self.name}' does not fit the configuration {self.folder.name} "
                f"({first_line(error)}); pass another --config ({', '.join(CONFIGS)}, or a folder "
                "with the configs of this very model)."
            ) from error
        return module

    def _infer(self, file: Path) -> str:
        if self._has("conditioner.embedders.1."):
            return "sdxl"
        if self._has("cond_stage_model.model."):
            base = any(mark in file.stem.lower() for mark in BASE_MARKS)
            return "sd21b" if base else "sd21"
        return "sd15"

    def _has(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self.tensors)


def translated(
    tensors: MappedTensors, translate: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Give tensors the names that `translate` makes; each is still read when it is asked for.

    A translation mostly renames, and takes a few tensors apart. So it is run on tensors without
    numbers first; what comes out of it as it went in has only been renamed.
    """
    outline = tensors.outline()
    renamed = translate(outline)
    origins = {id(tensor): name for name, tensor in outline.items()}
    names = {new: origins[id(t)] for new, t in renamed.items() if id(t) in origins}
    if len(names) == len(renamed):
        return Renamed(tensors, names)
    made = translate(dict(tensors))
    parts = {new: tensor for new, tensor in made.items() if new not in names}
    return ChainMap(parts, Renamed(tensors, names))  # type: ignore[arg-type]  # only read


def diffusers_names(part: str, config: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give a component's tensors among those of a file the names that they have in diffusers."""
    from diffusers.loaders import single_file_utils as original

    own = {name: t for name, t in tensors.items() if name.startswith(PREFIXES[part])}
    if part == "unet":
        found = original.convert_ldm_unet_checkpoint(own, dict(config))
    elif part == "vae":
        found = original.convert_ldm_vae_checkpoint(own, dict(config))
    else:
        for prefix, encoder in OPEN_CLIP.items():
            if encoder == part and any(name.startswith(prefix) for name in own):
                shape = SimpleNamespace(config=SimpleNamespace(hidden_size=config.hidden_size))
                return dict(original.convert_open_clip_checkpoint(shape, own, prefix=prefix))
        found = original.convert_ldm_clip_checkpoint(own)
    return dict(found)
