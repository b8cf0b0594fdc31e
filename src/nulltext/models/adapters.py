"""What is put into a model beside its own weights: LoRAs, learnt tokens, another autoencoder.

An autoencoder is a folder of diffusers, or a single file. A single file says by its tensors how
wide and how deep it is; what they cannot say (the scale of the latents, above all) is the model's
own, as the network was trained on it. Names of the original code (LDM) become diffusers'.

What cannot be read, or is for another kind of model, is refused as a ModelError.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from nulltext.errors import ModelError, OptionError, reason_of, shorten
from nulltext.models.checkpoint import Checkpoint, build_checked, first_line
from nulltext.models.embeddings import Embedding, add_embeddings, parse_embedding, token_of
from nulltext.models.lora import Lora, merge_loras, parse_lora
from nulltext.models.tensor_files import (
    Option,
    TensorFile,
    adapter_file,
    known_kinds,
    open_adapter,
    shown,
)
from nulltext.models.weights import fill
from nulltext.storage.files import expand_user, path_exists

if TYPE_CHECKING:
    from nulltext.models.families import Family

SHA_CHARACTERS = 10
"""As many as sites that publish LoRAs show of a file's SHA-256."""

VAE_CONFIG = "config.json"
VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
VAE_CLASS = "AutoencoderKL"
VAE_PREFIXES = ("first_stage_model.", "vae.")
"""What precedes an autoencoder's tensors in a whole checkpoint's file."""
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
LDM_KEY = re.compile(r"(?:encoder\.down|decoder\.up)\.\d+\.block\.")
INSTEAD = "pass an AutoencoderKL of the model's own family"


class AdapterPath(NamedTuple):
    """A file that is added to a model."""

    option: Option
    path: Path
    file: Path


@dataclass(frozen=True)
class Adapters:
    """LoRAs, learnt tokens and an autoencoder that are asked for beside a model."""

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
        loras, embeddings = _texts(lora, "lora"), _texts(embedding, "embedding")
        if not (vae is None or (isinstance(vae, str | Path) and str(vae))):
            raise OptionError(f"vae is {shorten(repr(vae))}, expected a folder or a file.")
        return cls(
            [parse_lora(text) for text in loras],
            [parse_embedding(text) for text in embeddings],
            None if vae is None else expand_user(vae),
        )

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings or self.vae)

    def check(self) -> None:
        """Look at all files, before a model is read or fetched."""
        for each in self._paths():
            with open_adapter(each.file, each.option):
                pass

    def put_into(self, parts: Mapping[str, Any], family: Family, model: str) -> list[str]:
        """Merge LoRAs and add learnt tokens; returns notes for the user."""
        encoders = {name: name.replace("tokenizer", "text_encoder") for name in family.tokenizers}
        modules = {name: parts[name] for name in (family.network, *encoders.values())}
        if self.embeddings and family.network != "unet":
            raise ModelError(
                f"The model '{model}' takes no learnt tokens (--embedding), which are added to "
                "Stable Diffusion 1, 2 and XL alone; leave it out, or pass a LoRA of the subject "
                "with --lora."
            )
        notes = merge_loras(modules, self.loras, model=model)
        return notes + add_embeddings(
            [parts[name] for name in encoders],
            [parts[name] for name in encoders.values()],
            self.embeddings,
            model=model,
        )

    def described(self) -> list[dict[str, Any]]:
        """List names without folders, weights and the beginnings of SHA-256 sums, for JSON."""
        details: list[dict[str, Any]] = [{"weight": float(one.weight)} for one in self.loras]
        details += [{"token": token_of(one)} for one in self.embeddings]
        found = []
        for index, each in enumerate(self._paths()):
            try:
                with each.file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"'{each.file}' cannot be read ({reason_of(error)}); pass a file of tensors."
                ) from error
            entry = {
                "kind": each.option.removeprefix("--"),
                "name": expand_user(each.path).resolve().name,
                "sha256": digest[:SHA_CHARACTERS],
            }
            found.append(entry | (details[index] if index < len(details) else {}))
        return found

    def _paths(self) -> Iterator[AdapterPath]:
        for lora in self.loras:
            yield AdapterPath("--lora", lora.path, adapter_file(lora.path, "--lora"))
        for embedding in self.embeddings:
            file = adapter_file(embedding.path, "--embedding")
            yield AdapterPath("--embedding", embedding.path, file)
        if self.vae is not None:
            yield AdapterPath("--vae", self.vae, _vae_weights(self.vae))


def _texts(given: object, name: str) -> list[str]:
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
    """Write descriptions for a reader: "lora style.safetensors (0.8)"; empty for none."""
    said = []
    for one in adapters:
        of = [f"{one[name]}" for name in ("weight", "token") if name in one]
        said.append(f"{one.get('kind')} {one.get('name')}" + (f" ({of[0]})" if of else ""))
    return ", ".join(said)


def load_vae(path: Path, own: Mapping[str, Any]) -> Any:
    """Load an autoencoder that takes the place of a model's own, with weights as they are stored.

    Args:
        path: a file, a folder of an autoencoder, or a folder of a pipeline.
        own: config of the autoencoder that the model has.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    defaults = signature(AutoencoderKL.__init__).parameters  # what a config may leave out
    own = {n: one.default for n, one in defaults.items() if n != "self"} | dict(own)
    weights = _vae_weights(path)
    folder_config = weights.with_name(VAE_CONFIG) if expand_user(path).is_dir() else None
    config = None if folder_config is None else _vae_config(folder_config, own)
    with open_adapter(weights, "--vae") as file:
        state = _vae_tensors(file)
        if config is None:
            config = _config_of_tensors(file, state, own)
        _check_latents(file, config, own)
        if any(LDM_KEY.match(name) for name in state):
            state = convert_ldm_vae_checkpoint(state, dict(config))
    try:
        module = build_checked(lambda: AutoencoderKL.from_config(dict(config)), config, [weights])
        fill(module, state)
    except Exception as error:  # a config may fail anywhere in the libraries
        raise ModelError(
            f"The autoencoder '{weights}' cannot be used: {first_line(error)}; get it again."
        ) from error
    return module


def _vae_weights(path: Path) -> Path:
    """Find the weights that a path means: itself, or those of a folder with a config."""
    path = expand_user(path)
    if not path_exists(path) or not path.is_dir():
        return path
    for folder in (path, path / "vae"):
        for name in VAE_WEIGHTS:
            if (folder / VAE_CONFIG).is_file() and (folder / name).is_file():
                return folder / name
    raise ModelError(
        f"The folder '{path}' has no autoencoder ({VAE_CONFIG} with {VAE_WEIGHTS[0]}); pass a "
        "folder written by save_pretrained(), or a .safetensors file."
    )


def _vae_config(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    config = Checkpoint.at(path.parent).json(path.name)
    kind = str(config.get("_class_name", VAE_CLASS))
    if kind != VAE_CLASS:
        others = known_kinds()["autoencoder"]["classes"]
        raise _refused(path.parent, others.get(kind, f"of the class {shown(kind)}"))
    if config.get("scaling_factor") is None:
        config["scaling_factor"] = own["scaling_factor"]
    return config


def _vae_tensors(file: TensorFile) -> dict[str, Tensor]:
    prefix = next((p for p in VAE_PREFIXES if any(name.startswith(p) for name in file.shapes)), "")
    names = {name: name.removeprefix(prefix) for name in file.shapes if name.startswith(prefix)}
    tables = known_kinds()["autoencoder"]
    for pattern, kind in tables["names"].items():
        if any(re.match(pattern, name) for name in names.values()):
            raise _refused(file.path, tables["classes"][kind])
    return {bare: file.tensor(name) for name, bare in names.items() if bare.startswith(VAE_PARTS)}


def _config_of_tensors(
    file: TensorFile, state: Mapping[str, Tensor], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a config by the shapes of a single file's tensors; the rest is the model's own."""
    ldm = any(LDM_KEY.match(name) for name in state)
    block = r"encoder\.down\.(\d+)\.block" if ldm else r"encoder\.down_blocks\.(\d+)\.resnets"
    found = re.compile(block + r"\.(\d+)\.conv1\.weight")
    matches = [match for match in map(found.fullmatch, state) if match]
    widths = {int(m[1]): len(state[m[0]]) for m in matches if m[2] == "0"}
    needed = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    complete = all(name in state and state[name].ndim == 4 for name in needed)
    if not complete or sorted(widths) != list(range(len(widths))) or not widths:
        raise ModelError(
            f"'{file.path}' holds no whole autoencoder ({len(state)} tensors of an encoder and a "
            f"decoder); {INSTEAD}."
        )
    known = {name: value for name, value in own.items() if not name.startswith("_")}
    channels = state["encoder.conv_in.weight"].shape[1]
    return {
        **known,
        "_class_name": VAE_CLASS,
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [widths[i] for i in range(len(widths))],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1 + max(int(match[2]) for match in matches),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
    }


def _check_latents(file: TensorFile, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    channels = config.get("latent_channels", own["latent_channels"])
    if channels != own["latent_channels"]:
        what = known_kinds()["autoencoder"]["channels"].get(
            str(channels), f"an autoencoder with {shown(str(channels))} latent channels"
        )
        raise _refused(
            file.path, f"{what}, where the model's network takes {own['latent_channels']}"
        )
    depth, here = (len(each.get("block_out_channels", ())) for each in (config, own))
    if depth != here:
        raise _refused(
            file.path,
            f"an autoencoder that shrinks photos {2 ** (depth - 1)}-fold (such as KL-f4 does "
            f"4-fold), where the model's does {2 ** (here - 1)}-fold"
            if 0 < depth < 8
            else f"an autoencoder of {depth} blocks, where the model's has {here}",
        )
    for name, done in (("scaling_factor", "scaled"), ("shift_factor", "shifted")):
        value, expected = config.get(name) or 0.0, own[name] or 0.0
        if not isinstance(value, int | float) or abs(value - expected) > 1e-6:
            raise _refused(
                file.path,
                f"an autoencoder whose latents are {done} by {shown(str(value))}, where the "
                f"model's are by {expected:g}: it belongs to another family",
            )


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(f"'{path}' is {what}; {INSTEAD}.")
