"""Networks that judge pictures, from transformers: whole, from safetensors, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nulltext.errors import ModelError
from nulltext.models.checkpoint import first_line, plain_texts, quiet_libraries


def pretrained(kind: Any, source: str, device: torch.device, option: str, **options: Any) -> Any:
    """A network of a transformers class, frozen, on the device, in float32.

    Args:
        source: a folder, or a hub id. option: what the command line calls it, for messages.

    Raises:
        ModelError: it cannot be had, is no safetensors, or lacks a weight.
    """
    wanted: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
        **options,
    }
    try:
        with quiet_libraries():
            if Path(source).is_dir():
                with plain_texts(Path(source)) as texts:
                    wanted["config"] = kind.config_class.from_pretrained(str(texts))
            network, info = kind.from_pretrained(source, **wanted)
    except Exception as error:  # the library raises many kinds; the reason is in the text
        raise ModelError(
            f"'{source}' cannot be loaded as {kind.__name__} ({first_line(error)}); pass {option} "
            f"a folder with transformers' {kind.__name__} in safetensors."
        ) from error
    lacking = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    if lacking:
        raise ModelError(
            f"'{source}' is no {kind.__name__}: it lacks {len(lacking)} weights "
            f"({min(lacking)}, …); pass {option} a folder that has them."
        )
    return network.to(device).eval().requires_grad_(False)
