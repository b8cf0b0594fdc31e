"""What inverting a photo produces.

An `Inversion` holds everything that replaying and editing consume. Every method fills the same
fields, so nothing downstream asks which method it was:

    trajectory      z*_0 … z*_T                          all methods; encode: z*_0 alone
    null_embeds     per-step (or one) unconditional      null-text; the prompt's own: fixed-point
    prompt_embeds   per-step (or one) conditional        when the prompt's embedding was moved
    corrections     d_t, what lands a source step on it  when replay is steered onto the pivot
    weight_delta     a low-rank difference of weights     when the UNet was tuned to the photo
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nulltext.errors import InversionFileError
from nulltext.image.saving import encoded
from nulltext.image.strip import Tile, figures_html
from nulltext.inversion.header import (
    DELTA_PREFIX,
    OPTIONAL_TENSORS,
    REQUIRED_TENSORS,
    check_names,
    check_tensors,
    damaged,
)
from nulltext.inversion.header import InversionHeader as InversionHeader
from nulltext.inversion.header import SavedLevel as SavedLevel
from nulltext.storage.inversion_file import (
    TensorOutline,
    read_header,
    read_outline,
    read_tensors,
    write_inversion,
)


@dataclass(frozen=True)
class Inversion:
    """A photo as a point from which a diffusion model can sample it again."""

    trajectory: Tensor
    """[T + 1, C, h, w]: z*_0 (the encoded photo) … z*_T (the noise), or, of the method `encode`,
    [1, C, h, w]: z*_0 alone. float32, as all tensors but the photo, or float64 from float64
    weights."""
    photo: Tensor
    """[3, H, W], uint8: the crop at the size that the model saw."""
    header: InversionHeader
    null_embeds: Tensor | None = None
    """None (the model's own empty prompt), [1, R, D], or [T, R, D], first for the noisiest."""
    prompt_embeds: Tensor | None = None
    """None (the prompt's own embedding), [1, R, D] or [T, R, D]."""
    corrections: Tensor | None = None
    """None or [T, C, h, w]."""
    weight_delta: Mapping[str, Tensor] | None = None
    """None, or low-rank factors by layer of the UNet; see `models.network_calls`."""

    def __post_init__(self) -> None:
        outlines = {
            name: TensorOutline(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self.tensors().items()
        }
        check_tensors(outlines, self.num_steps)

    def __repr__(self) -> str:
        header, (height, width) = self.header, self.photo.shape[-2:]
        return (
            f"Inversion({header.prompt!r}, {width} x {height}, model={header.model!r}, "
            f"method={header.method!r}, num_steps={self.num_steps}, "
            f"guidance_scale={header.guidance_scale:g}, "
            f"psnr_reconstruction={header.psnr_reconstruction:.2f}, "
            f"psnr_bound={header.psnr_bound:.2f})"
        )

    def _repr_png_(self) -> bytes:
        return encoded(self._picture(), "PNG")

    def _repr_html_(self) -> str:
        header = self.header
        caption = (
            f"{header.prompt} ({header.method}, {self.num_steps} steps, guidance "
            f"{header.guidance_scale:g}; {header.psnr_reconstruction:.1f} of "
            f"{header.psnr_bound:.1f} dB)"
        )
        return figures_html([Tile(self._picture(), caption)])

    def _picture(self) -> Image.Image:
        return Image.fromarray(self.photo.permute(1, 2, 0).numpy())

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.header.levels)

    @property
    def is_encoded_only(self) -> bool:
        """Whether it holds z*_0 alone, from which nothing can be replayed."""
        return len(self.trajectory) == 1

    def save(self, path: str | Path) -> None:
        """Write one safetensors file.

        Raises:
            OutputError: it cannot be written there.
        """
        write_inversion(Path(path), self.tensors(), asdict(self.header))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by field name; factors by `DELTA_PREFIX` and their name."""
        delta = self.weight_delta or {}
        return self._own_tensors() | {DELTA_PREFIX + name: delta[name] for name in delta}

    def _own_tensors(self) -> dict[str, Tensor]:
        """Those with a field of their own."""
        found = {name: getattr(self, name) for name in (*REQUIRED_TENSORS, *OPTIONAL_TENSORS)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> Inversion:
        """Read a file that `save` wrote; tensors are on the CPU.

        Raises:
            InversionFileError: it is missing, damaged, foreign, or newer than this nulltext.
        """
        path = Path(path)
        values, outlines = read_header(path), read_outline(path)
        try:
            check_names(outlines)
            header = InversionHeader.from_json(values)
            check_tensors(outlines, len(header.levels))
            tensors = read_tensors(path)
            endless = [name for name, tensor in tensors.items() if not _all_finite(tensor)]
            if endless:
                raise ValueError(f"{', '.join(endless)} holds values that are not finite")
            delta = {
                name.removeprefix(DELTA_PREFIX): tensors.pop(name)
                for name in [*tensors]
                if name.startswith(DELTA_PREFIX)
            }
            return cls(header=header, weight_delta=delta or None, **tensors)
        except (ValueError, InversionFileError) as error:
            raise damaged(path, error) from error


def _all_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
