"""Examine an installation and a model: try each part of an edit, then measure what the parts yield.

The short trial tells which part of an edit fails; the long check-up measures each on the example
photo and compares it with `expectations`. A part that needs another one is skipped where that one
failed, so the first failure is the cause.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import edit
from nulltext.errors import NulltextError, NumericalError, reason_of
from nulltext.health.expectations import (
    EDIT_CHANGE,
    GUESS,
    LATENTS_STD,
    LOST_DEFAULT,
    LOST_W1,
    WORDS,
    Range,
    family_name,
    psnr_bound_range,
    rounded,
)
from nulltext.health.noise import noise_errors, noise_findings
from nulltext.health.report import Health, describe_installation
from nulltext.image.images import default_crop, from_uint8, psnr, to_tensor, to_uint8
from nulltext.image.photos import load_photo
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.ddim import DDIM
from nulltext.inversion.invert import invert
from nulltext.inversion.record import Inversion
from nulltext.models.choice import ModelChoice
from nulltext.models.known_figure import FILE, TOLERANCE, deviations, read_known
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import bundled_models, find_device, folder_of
from nulltext.models.side_files import GUIDANCE_FILE, read_guidance, read_words

SOURCE = "a photo of an orange flower with a dark background"
TARGET = "a photo of a red flower with a dark background"

TRIAL_STEPS = 2
CHECKUP_STEPS = 20
"""T of the measured inversions, unless another number is requested."""

LOAD, TEXT, ENCODE, DECODE = "load", "text encoder", "autoencoder encode", "autoencoder decode"
NETWORK, GRADIENT, SHORT_EDIT = "network", "gradient", "edit in two steps"
NOISE, PLAIN, FITTED, EDIT = "noise prediction", "DDIM at w = 1", "default inversion", "edit"

TRIAL_PARTS = (LOAD, TEXT, ENCODE, DECODE, NETWORK, GRADIENT, SHORT_EDIT)
CHECKUP_PARTS = (*TRIAL_PARTS, NOISE, PLAIN, FITTED, EDIT)

HALF_TOLERANCE = 8
"""Units of a precision's last place that its rounding may add up to in a known figure: the bundled
model is off by 2.2 in float16 and 2.5 in bfloat16."""

RESET_PEAK = "5"
"""Written to Linux's clear_refs, it sets a process's peak of resident memory to its present size
(proc(5))."""

NETWORK_FIELDS = (
    "sample_size in_channels block_out_channels layers_per_block cross_attention_dim "
    "attention_head_dim transformer_layers_per_block use_linear_projection upcast_attention "
    "addition_embed_type patch_size num_layers num_single_layers joint_attention_dim qk_norm "
    "dual_attention_layers guidance_embeds"
)
VAE_FIELDS = "latent_channels block_out_channels scaling_factor shift_factor force_upcast"
TEXT_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads hidden_act max_position_embeddings "
    "vocab_size projection_dim"
)


@dataclass
class Part:
    """One part of the work, with its cost."""

    name: str
    outcome: Literal["ok", "failed", "skipped"] = "ok"
    seconds: float = 0.0
    peak_bytes: int | None = None
    """CUDA: the most bytes that tensors held, weights included. CPU: by how much the process grew
    at its fullest. None where the system does not say."""
    reason: str | None = None
    """Why it failed, or which failed parts it needs."""
    figures: dict[str, Any] = field(default_factory=dict)


class PeakMemory:
    """Measures the most memory that is held after its creation."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.base = device, 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu" and sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
            except OSError:
                return
            self.base = _resident_bytes("VmRSS")

    def read(self) -> int | None:
        """Return bytes, see `Part.peak_bytes`; waits for the device, so that seconds are true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return int(torch.cuda.max_memory_allocated(self.device))
        return max(0, _resident_bytes("VmHWM") - self.base) if self.base else None


def _resident_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(sizes[key].split()[0]) * 1024 if key in sizes else 0


class Checkup:
    """The parts of an edit by a model, run one after another; `health` has what they found."""

    model: LatentDiffusion
    """Loaded by the first part; the others need it."""
    prompts: Tensor
    """Embeddings of `SOURCE` and `TARGET`, [2, R, D]."""
    image: Tensor
    """The photo's largest square at the model's size, [1, 3, H, W] in [-1, 1]."""
    latents: Tensor
    """[1, C, h, w], of `image`."""
    inversion: Inversion

    def __init__(
        self,
        chosen: ModelChoice,
        device: torch.device,
        on_part: Callable[[str], None] | None,
        on_step: Callable[[StepInfo], None] | None,
        on_bytes: Callable[[int, int], None] | None,
    ) -> None:
        self.chosen, self.device = replace(chosen, device=str(device)), device
        self.on_part, self.on_step, self.on_bytes = on_part, on_step, on_bytes
        self.parts: list[Part] = []
        self.health = describe_installation()
        self.health.model = {"name": chosen.model, "device": str(device), "dtype": chosen.dtype}
        with as_file(files("nulltext").joinpath("studio/front/dahlia.jpg")) as path:
            self.photo = load_photo(path)

    def run_trial(self) -> None:
        self._run(LOAD, self._load)
        self._run(TEXT, self._embed, [LOAD])
        self._run(ENCODE, self._encode, [LOAD])
        self._run(DECODE, self._decode, [ENCODE])
        self._run(NETWORK, self._predict, [TEXT, ENCODE])
        self._run(GRADIENT, self._differentiate, [NETWORK])
        self._run(SHORT_EDIT, self._edit_shortly, [GRADIENT, DECODE])

    def run_measurements(self, num_steps: int) -> None:
        plain = partial(self._invert, DDIM(), 1.0, num_steps, LOST_W1)
        fitted = partial(self._invert, "null-text", None, num_steps, LOST_DEFAULT)
        self._run(NOISE, self._measure_noise, [NETWORK])
        self._run(PLAIN, plain, [NETWORK, DECODE])
        if self._has(LOAD) and self.model.guidance != "branches":  # null-text has nothing to fit
            fitted = partial(self._invert, None, None, num_steps, LOST_DEFAULT)
        self._run(FITTED, fitted, [GRADIENT, DECODE])
        self._run(EDIT, self._edit, [FITTED])

    def _has(self, name: str) -> bool:
        return any(part.name == name and part.outcome == "ok" for part in self.parts)

    def _run(
        self, name: str, work: Callable[[], Mapping[str, Any]], needs: Sequence[str] = ()
    ) -> None:
        """Run and record one part, unless one that it needs has failed.

        Whatever it raises becomes its reason, as finding out what fails is the purpose.
        """
        missing = [part.name for part in self.parts if part.name in needs and part.outcome != "ok"]
        if missing:
            self.parts.append(Part(name, "skipped", reason=f"needs: {', '.join(missing)}"))
            return
        if self.on_part is not None:
            self.on_part(name)
        part, peak, started = Part(name), PeakMemory(self.device), time.perf_counter()
        try:
            part.figures = dict(work())
        except Exception as error:  # a driver, a kernel or a library may raise anything
            part.outcome, part.reason = "failed", _first_sentence(error)
            problem = part.reason
            if name != LOAD:
                problem = (
                    f"The part '{name}' of the model '{self.chosen.model}' fails on {self.device} "
                    f"in {self.health.model['dtype']}: {problem}"
                )
            self.health.problems.append(problem)
        part.peak_bytes = peak.read()
        part.seconds = round(time.perf_counter() - started, 3)
        self.parts.append(part)

    def _load(self) -> Mapping[str, Any]:
        model = self.model = self.chosen.load(self.on_bytes)
        self.health.notes += [note.removeprefix("Note: ") for note in model.notes]
        self.health.model |= {
            "dtype": _name(model.network.dtype),
            "fingerprint": model.fingerprint,
            "resolution": list(model.resolution),
            "family": family_name(model),
            "config": _settings(model),
            "deviations": {},
            "reproduces": None,
        }
        modules = model.components
        return {
            "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
            "precision": {n: _name(next(m.parameters()).dtype) for n, m in modules.items()},
        }

    def _embed(self) -> Mapping[str, Any]:
        self.prompts = self.model.embed([SOURCE, TARGET])
        distance = _distance(*self.prompts)
        self._compare(WORDS, distance)
        return {"prompts_distance": rounded(distance)}

    def _encode(self) -> Mapping[str, Any]:
        box = default_crop(self.photo.size, None)
        size = self.model.sizes.of(box, None)
        self.image = from_uint8(to_uint8(to_tensor(self.photo, box, size)))
        self.latents = self.model.encode(self.image)
        deviation, mean = float(self.latents.std()), float(self.latents.mean())
        self._compare(LATENTS_STD, deviation)
        return {"latents_std": rounded(deviation), "latents_mean": rounded(mean)}

    def _decode(self) -> Mapping[str, Any]:
        bound = psnr(self.model.decode(self.latents).cpu(), self.image)
        mean = self.image.mean(dim=(2, 3), keepdim=True).expand_as(self.image)
        one_colour = psnr(mean, self.image)
        self._compare(psnr_bound_range(self.model, one_colour), bound)
        return {"psnr_bound": rounded(bound), "psnr_one_colour": rounded(one_colour)}

    @torch.no_grad()
    def _predict(self) -> Mapping[str, Any]:
        level = self.model.schedule.nearest_level(0.5)
        both = self.latents.expand(2, -1, -1, -1)
        noise_pred = self.model.predict_noise(both, level, self.prompts)
        check_finite(noise_pred, "The network's prediction", level)
        distance = _distance(*noise_pred)
        if distance == 0.0:
            self.health.problems.append(
                "The network predicts the same noise for two prompts: it does not hear its text; "
                f"get the {self.model.text.network} folder of this checkpoint again."
            )
        return {"words_change_noise": rounded(distance)}

    def _differentiate(self) -> Mapping[str, Any]:
        return {"norm": rounded(gradient_norm(self.model, self.latents, self.prompts[:1]))}

    def _edit_shortly(self) -> Mapping[str, Any]:
        inversion = invert(self.model, self.photo, SOURCE, num_steps=TRIAL_STEPS)
        made = edit(self.model, inversion, TARGET)
        return {"unet_evaluations": inversion.header.unet_evaluations + made.unet_evaluations}

    def _measure_noise(self) -> Mapping[str, Any]:
        errors = noise_errors(self.model, self.latents, self.prompts[:1])
        found = noise_findings(self.model, errors)
        self.health.compared.append(GUESS.as_json(errors.over_guess))
        self.health.problems += found.problems
        self.health.notes += found.notes
        return errors.as_json()

    def _invert(
        self,
        method: str | InversionMethod | None,
        guidance: float | None,
        num_steps: int,
        lost: Range,
    ) -> Mapping[str, Any]:
        self.inversion = invert(
            self.model,
            self.photo,
            SOURCE,
            method=method,
            guidance_scale=guidance,
            num_steps=num_steps,
            on_step=self.on_step,
        )
        header = self.inversion.header
        gap = header.psnr_bound - header.psnr_reconstruction
        self._compare(lost.at_steps(num_steps, CHECKUP_STEPS), gap)
        return {
            "method": header.method,
            "steps": num_steps,
            "guidance_scale": header.guidance_scale,
            "psnr_reconstruction": rounded(header.psnr_reconstruction),
            "psnr_lost": rounded(gap),
            "unet_evaluations": header.unet_evaluations,
        }

    def _edit(self) -> Mapping[str, Any]:
        made = edit(self.model, self.inversion, TARGET, on_step=self.on_step)
        change = float((made.images - made.reconstruction).abs().mean()) * 127.5
        self._compare(EDIT_CHANGE, change)
        return {"edit_change": rounded(change), "unet_evaluations": made.unet_evaluations}

    def _compare(self, expected: Range, value: float) -> None:
        self.health.compared.append(expected.as_json(value))
        finding = expected.finding(value)
        if finding is not None:
            self.health.problems.append(finding)


def _first_sentence(error: BaseException) -> str:
    if isinstance(error, NulltextError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else reason_of(error)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _distance(one: Tensor, other: Tensor) -> float:
    """|a - b| / |b|, of tensors of one shape."""
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def gradient_norm(model: LatentDiffusion, latents: Tensor, prompt_embeds: Tensor) -> float:
    """|d mean eps^2 / dC|: the gradient of null-text inversion's kind, by one backward pass.

    Raises:
        NumericalError: it is zero or not finite.
    """
    embeds = prompt_embeds.detach().clone().requires_grad_(True)
    with model.frozen(), torch.enable_grad():
        noise_pred = model.predict_noise(latents, model.schedule.level_at(0.5), embeds)
        (gradient,) = torch.autograd.grad(noise_pred.square().mean(), embeds)
    check_finite(gradient, "The gradient in the prompt's embedding")
    norm = float(gradient.norm())
    if norm == 0.0:
        raise NumericalError(
            "The gradient in the prompt's embedding is zero, so nothing can be optimised; "
            "pass --dtype float32."
        )
    return norm


def examine(
    chosen: ModelChoice,
    *,
    num_steps: int | None = None,
    on_part: Callable[[str], None] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Health:
    """Examine the installation and a model, and edit in two steps.

    Args:
        num_steps: T of the measured inversions; None: nothing is measured.
        on_part: called with the name of each part of the work.
        on_step: called with the steps of the measured inversions.
        on_bytes: see `ModelChoice.load`.

    Raises:
        OptionError: the device cannot be used here.
        ModelError: there is no such model.
    """
    device = find_device(chosen.device)
    folder = folder_of(chosen.model)
    chosen.check()
    checkup = Checkup(chosen, device, on_part, on_step, on_bytes)
    health = checkup.health
    checkup.run_trial()
    if checkup.parts[0].outcome == "ok":
        if checkup.model.adapters:
            health.notes.append("With adapters, no known figure is compared.")
        else:
            _compare_known_figure(health, checkup.model, chosen.model, folder)
        if num_steps is not None:
            checkup.run_measurements(num_steps)
    health.parts = [asdict(part) for part in checkup.parts]
    return health


def _settings(model: LatentDiffusion) -> dict[str, dict[str, Any]]:
    found = {
        model.text.network: _fields(model.network, NETWORK_FIELDS),
        "vae": _fields(model.vae, VAE_FIELDS),
    }
    found |= {name: _fields(module, TEXT_FIELDS) for name, module in model.text.modules.items()}
    found["scheduler"] = dict(model.schedule.settings)
    return found


def _fields(module: Any, names: str) -> dict[str, Any]:
    known = {name: getattr(module.config, name, None) for name in names.split()}
    return {"class": type(module).__name__, **{n: v for n, v in known.items() if v is not None}}


def _compare_known_figure(
    health: Health, model: LatentDiffusion, name: str, folder: Path | None
) -> None:
    try:
        known = None if folder is None else read_known(folder)
        if folder is not None:
            read_words(folder, model.fingerprints)
            guidance = folder / GUIDANCE_FILE
            if read_guidance(folder, model.fingerprints) is None and guidance.exists():
                health.notes.append(
                    f"'{guidance}' is of other weights, so its guidance scale is not used."
                )
        found = {} if known is None else deviations(model, known)
    except NulltextError as error:
        health.problems.append(str(error))
        return
    if known is None:
        missing = f"The model '{name}' has no {FILE} beside it, so there is no figure to reproduce"
        if name in bundled_models():
            health.problems.append(f"{missing}; install nulltext again.")
        else:
            health.notes.append(f"{missing}.")
        return
    if known["fingerprint"] not in model.fingerprints:
        health.problems.append(
            f"The weights of the model '{name}' ({model.fingerprint[:8]}) are not those that its "
            f"{FILE} was written for ({known['fingerprint'][:8]}); get the model again."
        )
    tolerance = max(TOLERANCE, HALF_TOLERANCE * torch.finfo(model.network.dtype).eps)
    off = [part for part, distance in found.items() if not distance < tolerance]
    health.model |= {"deviations": found, "reproduces": not off}
    if off:
        health.problems.append(
            f"The model '{name}' does not reproduce its known figure on {health.model['device']}: "
            f"{', '.join(off)} off by up to {max(found.values()):.2g} ({tolerance:g} may be "
            "rounding); get the model again, or try --device cpu."
        )
