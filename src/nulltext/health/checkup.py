"""A checkpoint at work, part by part: the two-step edit, and the measurements of a report.

The short trial tells which part of an edit
fails; the long check-up measures what each part yields on the example photo and holds it against
`expectations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import edit
from nulltext.health.expectations import (
    EDIT_CHANGE,
    GUESS,
    LATENTS_STD,
    LOST_DEFAULT,
    LOST_W1,
    WORDS,
    Range,
    bound_range,
    widened,
)
from nulltext.health.measures import distance, gradient_norm, noise_errors
from nulltext.health.noise_findings import noise_figures, noise_findings, over_guess
from nulltext.health.parts import Part, Parts, rounded
from nulltext.image.framing import box_for
from nulltext.image.images import from_uint8, psnr, to_tensor, to_uint8
from nulltext.image.photos import Photo, load_photo
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.ddim import DDIM
from nulltext.inversion.invert import invert
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion

PACKAGE, EXAMPLE = "nulltext", "studio/front/dahlia.jpg"
SOURCE = "a photo of an orange flower with a dark background"
TARGET = "a photo of a red flower with a dark background"

TRIAL_STEPS = 2
CHECKUP_STEPS = 20
"""T of the measured inversions, unless another number is asked for."""

LOAD, TEXT, ENCODE, DECODE = "load", "text encoder", "autoencoder encode", "autoencoder decode"
UNET, GRADIENT, SHORT_EDIT = "UNet", "gradient", "edit in two steps"
NOISE, PLAIN, FITTED, EDIT = "noise prediction", "DDIM at w = 1", "default inversion", "edit"

TRIAL_PARTS = (LOAD, TEXT, ENCODE, DECODE, UNET, GRADIENT, SHORT_EDIT)
CHECKUP_PARTS = (*TRIAL_PARTS, NOISE, PLAIN, FITTED, EDIT)


@dataclass
class Patient:
    """A model at work on the example photo, and what its parts have yielded so far."""

    opened: Callable[[], LatentDiffusion]
    """Loads the model."""
    parts: Parts
    on_step: Callable[[StepInfo], None] | None = None
    """Called with the steps of long parts."""
    findings: list[str] = field(default_factory=list)
    """What is outside its range."""
    notes: list[str] = field(default_factory=list)
    compared: list[dict[str, Any]] = field(default_factory=list)
    """Every figure that was held against a range."""
    model: LatentDiffusion | None = None
    prompts: Tensor = field(default_factory=lambda: torch.empty(0))
    """Embeddings of `SOURCE` and `TARGET`, [2, R, D]."""
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    """[1, C, h, w]."""
    inversion: Inversion | None = None

    @cached_property
    def photo(self) -> Photo:
        """The example, which comes with the package."""
        with as_file(files(PACKAGE).joinpath(EXAMPLE)) as path:
            return load_photo(path)

    @cached_property
    def image(self) -> Tensor:
        """Its largest square at the model's size, [1, 3, H, W] in [-1, 1], as inversions see it."""
        box = box_for(self.photo.size, None)
        size = self._model.sizes.of(box, None)
        return from_uint8(to_uint8(to_tensor(self.photo, box, size)))

    def trial(self) -> None:
        """Take each part of an edit once, then the whole in two steps."""
        run = self.parts.run
        run(LOAD, self._load)
        run(TEXT, self._embed, [LOAD])
        run(ENCODE, self._encode, [LOAD])
        run(DECODE, self._decode, [ENCODE])
        run(UNET, self._predict, [TEXT, ENCODE])
        run(GRADIENT, self._differentiate, [UNET])
        run(SHORT_EDIT, self._short_edit, [GRADIENT, DECODE])

    def checkup(self, num_steps: int) -> None:
        """Measure what a trial has found to run; see `expectations`."""
        run = self.parts.run
        run(NOISE, self._measure_noise, [UNET])
        run(PLAIN, lambda: self._invert(DDIM(), 1.0, num_steps, LOST_W1), [UNET, DECODE])
        run(
            FITTED,
            lambda: self._invert("null-text", None, num_steps, LOST_DEFAULT),
            [GRADIENT, DECODE],
        )
        run(EDIT, self._edit, [FITTED])

    @property
    def _model(self) -> LatentDiffusion:
        assert self.model is not None, "every other part needs the first"
        return self.model

    def _load(self) -> Mapping[str, Any]:
        self.model = self.opened()
        self.notes += [note.removeprefix("Note: ") for note in self.model.notes]
        modules = self.model.components
        sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
        return {
            "parameters": sizes,
            "precision": {n: _name(next(m.parameters()).dtype) for n, m in modules.items()},
        }

    def _embed(self) -> Mapping[str, Any]:
        self.prompts = self._model.embed([SOURCE, TARGET])
        apart = distance(*self.prompts)
        self._hold(WORDS, apart)
        return {"prompts_distance": rounded(apart)}

    def _encode(self) -> Mapping[str, Any]:
        self.latents = self._model.encode(self.image)
        deviation = float(self.latents.std())
        self._hold(LATENTS_STD, deviation)
        return {
            "latents_std": rounded(deviation),
            "latents_mean": rounded(float(self.latents.mean())),
        }

    def _decode(self) -> Mapping[str, Any]:
        bound = psnr(self._model.decode(self.latents).cpu(), self.image)
        mean = self.image.mean(dim=(2, 3), keepdim=True).expand_as(self.image)
        flat = psnr(mean, self.image)
        self._hold(bound_range(self._model, flat), bound)
        return {"psnr_bound": rounded(bound), "psnr_one_colour": rounded(flat)}

    @torch.no_grad()
    def _predict(self) -> Mapping[str, Any]:
        level = self._model.schedule.nearest_level(0.5)
        both = self.latents.expand(2, -1, -1, -1)
        noise_pred = self._model.predict_noise(both, level, self.prompts)
        check_finite(noise_pred, "The UNet's prediction", level)
        heard = distance(*noise_pred)
        if heard == 0.0:
            self.findings.append(
                "The UNet predicts the same noise for two prompts: it does not hear its text; get "
                "the unet folder of this checkpoint again."
            )
        return {"words_change_noise": rounded(heard)}

    def _differentiate(self) -> Mapping[str, Any]:
        return {"norm": rounded(gradient_norm(self._model, self.latents, self.prompts[:1]))}

    def _short_edit(self) -> Mapping[str, Any]:
        inversion = invert(self._model, self.photo, SOURCE, num_steps=TRIAL_STEPS)
        made = edit(self._model, inversion, TARGET)
        spent = inversion.header.unet_evaluations + made.unet_evaluations
        return {"unet_evaluations": spent}

    def _measure_noise(self) -> Mapping[str, Any]:
        errors = noise_errors(self._model, self.latents, self.prompts[:1])
        found, notes = noise_findings(self._model, errors)
        self.compared.append(GUESS.as_json(over_guess(errors)))
        self.findings += found
        self.notes += notes
        return noise_figures(errors)

    def _invert(
        self, method: str | InversionMethod, guidance: float | None, num_steps: int, lost: Range
    ) -> Mapping[str, Any]:
        made = invert(
            self._model,
            self.photo,
            SOURCE,
            method=method,
            guidance_scale=guidance,
            num_steps=num_steps,
            on_step=self.on_step,
        )
        self.inversion, header = made, made.header
        gap = header.psnr_bound - header.psnr_reconstruction
        self._hold(widened(lost, num_steps, CHECKUP_STEPS), gap)
        return {
            "method": header.method,
            "steps": num_steps,
            "guidance_scale": header.guidance_scale,
            "psnr_reconstruction": rounded(header.psnr_reconstruction),
            "psnr_lost": rounded(gap),
            "unet_evaluations": header.unet_evaluations,
        }

    def _edit(self) -> Mapping[str, Any]:
        assert self.inversion is not None
        made = edit(self._model, self.inversion, TARGET, on_step=self.on_step)
        change = float((made.images - made.reconstruction).abs().mean()) * 127.5
        self._hold(EDIT_CHANGE, change)
        return {"edit_change": rounded(change), "unet_evaluations": made.unet_evaluations}

    def _hold(self, expected: Range, value: float) -> None:
        """Compare a figure, and keep what is wrong with it."""
        said = expected.finding(value)
        self.compared.append(expected.as_json(value))
        if said is not None:
            self.findings.append(f"{said}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def failure(part: Part, model: str, device: str, dtype: str) -> str:
    """The problem that a failed part is, for a person."""
    if part.name == LOAD:
        return part.reason or f"The model '{model}' cannot be loaded."
    return (
        f"The part '{part.name}' of the model '{model}' fails on {device} in {dtype}: {part.reason}"
    )
