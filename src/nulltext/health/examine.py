"""The doctor's examination: the installation, then a model at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nulltext.diffusion.loops import StepInfo
from nulltext.errors import NulltextError
from nulltext.health.checkup import Patient, failure
from nulltext.health.expectations import family_name
from nulltext.health.installation import Health, look_around
from nulltext.health.parts import Parts
from nulltext.models.choice import ModelChoice
from nulltext.models.known_figure import FILE, TOLERANCE, deviations, read_known
from nulltext.models.known_words import read_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import find_device
from nulltext.models.locate import bundled_models, folder_of
from nulltext.models.suggested_guidance import FILE as GUIDANCE_FILE
from nulltext.models.suggested_guidance import read_guidance

HALF_TOLERANCE = 8
"""Units of a precision's last place that its rounding may add up to in a known figure: the bundled
model is off by 2.2 in float16 and 2.5 in bfloat16."""

UNET_FIELDS = (
    *("sample_size", "in_channels", "block_out_channels", "layers_per_block"),
    *("cross_attention_dim", "attention_head_dim", "transformer_layers_per_block"),
    *("use_linear_projection", "upcast_attention", "addition_embed_type"),
)
VAE_FIELDS = (
    *("latent_channels", "block_out_channels", "scaling_factor", "shift_factor", "force_upcast"),
)
TEXT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("max_position_embeddings", "vocab_size", "projection_dim"),
)


def examine(
    chosen: ModelChoice,
    *,
    num_steps: int | None = None,
    on_part: Callable[[str], None] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Health:
    """Look at everything once, and edit in two steps.

    Args:
        num_steps: T of the check-up's inversions; None: no check-up.
        on_part: called with the name of each part of the work.
        on_step: called with the steps of the check-up's inversions.
        on_bytes: see `ModelChoice.load`.

    Raises:
        OptionError: the device cannot be used here.
        ModelError: there is no such model.
    """
    target, model = find_device(chosen.device), chosen.model
    folder = folder_of(model)
    chosen.check()
    health = Health()
    look_around(health)
    parts = Parts(target, on_part)
    patient = Patient(partial(replace(chosen, device=str(target)).load, on_bytes), parts, on_step)
    health.model = {"name": model, "device": str(target), "dtype": chosen.dtype}
    patient.trial()
    if patient.model is not None:
        _describe(health, patient.model)
        if patient.model.adapters:
            health.notes.append("With adapters, no known figure is compared.")
        else:
            _look_at_known(health, patient.model, model, folder)
        if num_steps is not None:
            patient.checkup(num_steps)
    used = health.model["dtype"]
    health.problems += [failure(part, model, str(target), used) for part in parts.failed]
    health.problems += patient.findings
    health.notes += patient.notes
    health.parts = [asdict(part) for part in parts.done]
    health.compared = patient.compared
    return health


def _describe(health: Health, model: LatentDiffusion) -> None:
    health.model |= {
        "dtype": str(model.unet.dtype).removeprefix("torch."),
        "fingerprint": model.fingerprint,
        "resolution": list(model.resolution),
        "family": family_name(model),
        "config": settings(model),
        "deviations": {},
        "reproduces": None,
    }


def settings(model: LatentDiffusion) -> dict[str, dict[str, Any]]:
    """The settings that give a checkpoint's weights their meaning, by component."""
    schedule = model.schedule
    found = {"unet": _fields(model.unet, UNET_FIELDS), "vae": _fields(model.vae, VAE_FIELDS)}
    found |= {name: _fields(module, TEXT_FIELDS) for name, module in model.text.modules.items()}
    found["scheduler"] = {
        "prediction_type": schedule.prediction,
        "timestep_spacing": schedule.spacing,
        "steps_offset": schedule.steps_offset,
        "train_steps": schedule.train_steps,
        "alpha_cumprod_first": float(schedule.alphas_cumprod[0]),
        "alpha_cumprod_last": float(schedule.alphas_cumprod[-1]),
        "final_alpha_cumprod": schedule.final_alpha_cumprod,
    }
    return found


def _fields(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    known = {name: getattr(module.config, name, None) for name in names}
    return {"class": type(module).__name__, **{n: v for n, v in known.items() if v is not None}}


def _look_at_known(
    health: Health, loaded: LatentDiffusion, model: str, folder: Path | None
) -> None:
    """Compute the known figure again, and read what else is kept beside the weights."""
    try:
        known = None if folder is None else read_known(folder)
        if folder is not None:
            read_words(folder, loaded.fingerprints)
            _compare_guidance(health, folder, loaded.fingerprints)
        found = {} if known is None else deviations(loaded, known)
    except NulltextError as error:
        health.problems.append(str(error))
        return
    if known is None:
        _miss_known(health, model)
        return
    if known["fingerprint"] not in loaded.fingerprints:
        health.problems.append(
            f"The weights of the model '{model}' ({loaded.fingerprint[:8]}) are not those that its "
            f"{FILE} was written for ({known['fingerprint'][:8]}); get the model again."
        )
    tolerance = max(TOLERANCE, HALF_TOLERANCE * torch.finfo(loaded.unet.dtype).eps)
    off = [name for name, distance in found.items() if not distance < tolerance]
    health.model |= {"deviations": found, "reproduces": not off}
    if off:
        health.problems.append(
            f"The model '{model}' does not reproduce its known figure on {health.model['device']}: "
            f"{', '.join(off)} off by up to {max(found.values()):.2g} ({tolerance:g} may be "
            "rounding); get the model again, or try --device cpu."
        )


def _compare_guidance(health: Health, folder: Path, fingerprints: Sequence[str]) -> None:
    if read_guidance(folder, fingerprints) is None and (folder / GUIDANCE_FILE).exists():
        health.notes.append(
            f"'{folder / GUIDANCE_FILE}' is of other weights, so its guidance scale is not used."
        )


def _miss_known(health: Health, model: str) -> None:
    """The bundled model comes with a figure; others may."""
    said = f"The model '{model}' has no {FILE} beside it, so there is no figure to reproduce"
    if model in bundled_models():
        health.problems.append(f"{said}; install nulltext again.")
    else:
        health.notes.append(f"{said}.")
