"""Which model is used, where it runs, and what is added to it: one set of options for every verb.

A field of `ModelChoice` is an option of each verb that loads a model; the command line takes its
flag, help and placeholder from the field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from nulltext.constants import MODEL, Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.models.placement import MemoryName


def _about(text: str, placeholder: str | None = None) -> dict[str, Any]:
    return {"help": text, "metavar": placeholder}


@dataclass(frozen=True)
class ModelChoice:
    """A model with all that decides what it computes and where; plain data."""

    model: str = field(
        default=MODEL,
        metadata=_about(
            "Bundled name, diffusers folder, .safetensors file, or hub id (owner/name[@revision]).",
            "MODEL",
        ),
    )
    lora: tuple[str, ...] = field(
        default=(),
        metadata=_about("LoRA to add, with a weight if not 1; may be repeated.", "FILE[:WEIGHT]"),
    )
    embedding: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Learnt token (textual inversion) to add; may be repeated.", "FILE[:TOKEN]"
        ),
    )
    vae: str | None = field(
        default=None, metadata=_about("Autoencoder in the place of the model's own.", "FOLDER|FILE")
    )
    variant: str | None = field(
        default=None,
        metadata=_about(
            "Which weights of a folder or hub model: fp16, bf16, non_ema; default: the plain ones, "
            "or what there is.",
            "NAME",
        ),
    )
    config: str | None = field(
        default=None,
        metadata=_about(
            "What a single file is: sd14, sd15, sd21, sd21b, sdxl, or a folder with configs; "
            "default: inferred. Of SD 3 and FLUX.1: the model's folder, for what the file lacks.",
            "NAME|FOLDER",
        ),
    )
    device: str | None = field(
        default=None, metadata=_about("cpu, cuda, mps; default: the best there is.", "DEVICE")
    )
    dtype: Precision | None = field(
        default=None,
        metadata=_about(
            "Precision of the network and text encoders; default float16 on CUDA, else float32."
        ),
    )
    offload: bool = field(
        default=False,
        metadata=_about(
            "Keep text encoders and autoencoder off the device while the network works."
        ),
    )
    true_cfg: bool = field(
        default=False,
        metadata=_about(
            "Guide a model without a null branch of its own (FLUX) by one, at twice the cost; "
            "null-text inversion needs it there."
        ),
    )
    low_memory: bool = field(
        default=False,
        metadata=_about(
            "Slower, with less memory, to the same result: compute blocks again, one at a time.",
        ),
    )

    def load(self, on_bytes: Callable[[int, int], None] | None = None) -> LatentDiffusion:
        from nulltext.models.load import load

        given = asdict(self)
        memory: MemoryName = "low" if given.pop("low_memory") else "plenty"
        return load(given.pop("model"), memory=memory, on_bytes=on_bytes, **given)

    def as_arguments(self) -> list[str]:
        """Write the options that differ from their defaults, as on a command line."""
        words: list[str] = []
        for one in fields(self):
            value, flag = getattr(self, one.name), f"--{one.name.replace('_', '-')}"
            if value == one.default:
                continue
            if isinstance(value, tuple):
                words += [word for each in value for word in (flag, each)]
            else:
                words += [flag] if value is True else [flag, str(value)]
        return words

    def check(self) -> None:
        """Check the files that are added, before the model is read or fetched."""
        from nulltext.models.adapters import Adapters

        Adapters.parsed(self.lora, self.embedding, self.vae).check()
