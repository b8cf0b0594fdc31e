"""The noise schedule of a checkpoint that was trained on discrete timesteps, and its grids.

With alpha-bar the cumulative product of 1 - beta (`alphas_cumprod`, written ab), the noise level of
a timestep is alpha = sqrt(ab), sigma = sqrt(1 - ab), and the network is fed the timestep. The steps
between levels are those of `levels`.

The grid and the final alpha-bar follow diffusers' `DDIMScheduler`, so that a checkpoint means here
what it means there: every timestep s has the cleaner neighbour s - train_steps // num_steps, also
where (linspace, some trailing grids) the next timestep that is visited lies a little beside it.

The last step of a grid that visits timestep 0 is the identity where the final alpha-bar is that of
timestep 0 (`set_alpha_to_one` false, as in SD 1.x and 2.x). Such grids are linspace (the default of
DPM++ and Euler schedulers, which keep SD's `set_alpha_to_one` where `from_config` made them),
leading with `steps_offset` 0 (the DDIM scheduler of the null-text paper's notebooks), and those of
all training steps. Replays pass through it unchanged, and nothing can be fitted there:
`levels.Step.moves`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from nulltext.diffusion.levels import Grid, Level, Prediction, Step
from nulltext.errors import ModelError, OptionError, shorten

if TYPE_CHECKING:
    import torch

Spacing = Literal["leading", "linspace", "trailing"]

SMALLEST_ALPHA_CUMPROD = 2.0**-24
"""Stands in for zero at a zero-terminal-SNR timestep, where noise alone does not fix x0
(the value that diffusers' Euler scheduler uses for the same purpose)."""

NOT_DISCRETE = ("FlowMatch", "EDM", "CosineDPM")
"""How the names of schedulers begin whose models know no alpha-bar."""

COSINE_OFFSET = 0.008
"""The s of the squared-cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""

MOST_STEPS = 100_000
"""Of a model's training; published ones have 1000."""

SAMPLED_TIMESTEPS = 16
"""About how many alphas stand for all of them in a fingerprint."""

MAX_BETA = 0.999
"""The cap of the squared-cosine schedule's betas (Nichol & Dhariwal 2021, sec. 3.2)."""


class Schedule(Protocol):
    """A checkpoint's noise levels: discrete (`DiscreteSchedule`) or of a flow (`FlowSchedule`)."""

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        ...

    @property
    def train_steps(self) -> int:
        """The most steps that a run may have, usually 1000."""
        ...

    @property
    def identity(self) -> tuple[object, ...]:
        """All that gives the weights their meaning, for the fingerprint; its repr counts."""
        ...

    def grid(self, num_steps: int, tokens: int = ...) -> Grid:
        """Return the `num_steps` steps of a run, noisiest first; `tokens`: of the picture, where
        the network divides it into tokens.

        Raises:
            OptionError: there is no such number of steps.
        """
        ...

    def level_at(self, fraction: float) -> Level:
        """Return the noise level at a fraction (0 to below 1) of the way to noise."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a report says of it."""
        ...

    def scheduler(self) -> Any:
        """Make the diffusers scheduler that samples on these levels."""
        ...

    def random_level(self, generator: torch.Generator) -> Level:
        """Draw a level."""
        ...

    def nearest_level(self, alpha_cumprod: float) -> Level:
        """Return the level with the signal to noise of an alpha-bar, or the nearest to it."""
        ...


@dataclass(frozen=True)
class DiscreteSchedule:
    """A checkpoint's noise schedule, over discrete timesteps."""

    alphas_cumprod: np.ndarray
    """[train_steps], float64, decreasing in (0, 1)."""
    final_alpha_cumprod: float
    """alpha-bar of the clean image: alphas_cumprod[0] (SD 1.x, 2.x) or 1."""
    spacing: Spacing = "leading"
    """How the timesteps of a run are laid over the training steps."""
    steps_offset: int = 0
    """Added to every timestep of the leading grid (1 in SD 1.x)."""
    prediction: Prediction = "epsilon"
    """What the UNet's output means."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DiscreteSchedule:
        """Read a diffusers `scheduler_config.json`, whichever scheduler class wrote it.

        Missing fields have the defaults of `DDIMScheduler`. Fields that only other samplers use
        are ignored, and so is `clip_sample`, as latents have no range to clip to (diffusers'
        own Stable Diffusion pipelines switch it off).

        Raises:
            ModelError: a field has a value that is not known here, or the scheduler is of another
                kind of model.
        """
        kind = str(config.get("_class_name", ""))
        if kind.startswith(NOT_DISCRETE) or config.get("use_flow_sigmas", False):
            raise ModelError(
                f"The scheduler is of class {shorten(kind)}, whose noise levels are no DDIM "
                "schedule (flow matching or EDM), as the network needs; get the model again."
            )
        alphas_cumprod = _alphas_cumprod(config)
        spacing = config.get("timestep_spacing", "leading")
        if spacing not in ("leading", "linspace", "trailing"):
            raise ModelError(
                f"The scheduler config has timestep_spacing {shorten(repr(spacing))}, "
                "expected 'leading', 'linspace' or 'trailing'."
            )
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ModelError(
                f"The scheduler config has prediction_type {shorten(repr(prediction))}, "
                "expected 'epsilon', 'v_prediction' or 'sample'."
            )
        if config.get("thresholding", False):
            raise ModelError(
                "The scheduler config asks for dynamic thresholding, which DDIM inversion cannot "
                "undo; use a checkpoint of a latent diffusion model."
            )
        to_one = bool(config.get("set_alpha_to_one", True))
        return cls(
            alphas_cumprod=alphas_cumprod,
            final_alpha_cumprod=1.0 if to_one else float(alphas_cumprod[0]),
            spacing=spacing,
            steps_offset=int(number_in(config, "steps_offset", 0, 0, len(alphas_cumprod))),
            prediction=prediction,
        )

    @property
    def train_steps(self) -> int:
        """Number of timesteps that the model was trained on, usually 1000."""
        return len(self.alphas_cumprod)

    def timesteps(self, num_steps: int) -> tuple[int, ...]:
        """The `num_steps` timesteps of a run, noisiest first.

        Raises:
            OptionError: num_steps is outside 1 … train_steps.
        """
        whole = isinstance(num_steps, numbers.Integral)  # numpy's, too
        if not whole or not 1 <= num_steps <= self.train_steps:
            raise OptionError(
                f"The number of steps is {num_steps}; choose a whole number from 1 to "
                f"{self.train_steps} (50 is usual)."
            )
        n = self.train_steps
        if self.spacing == "linspace":
            grid = np.linspace(0, n - 1, num_steps).round()[::-1].astype(np.int64)
        elif self.spacing == "leading":
            stride = n // num_steps
            offset = min(self.steps_offset, n - 1 - stride * (num_steps - 1))
            grid = (np.arange(num_steps) * stride)[::-1] + offset
        else:
            # By index, not np.arange(n, 0, -n / num_steps): rounding can give that one value more.
            grid = (np.round(n - np.arange(num_steps) * (n / num_steps)) - 1).astype(np.int64)
        return tuple(int(t) for t in grid)

    @property
    def identity(self) -> tuple[object, ...]:
        """What the fingerprint takes in: some alphas to five digits, and the grid's settings."""
        every = max(1, self.train_steps // SAMPLED_TIMESTEPS)
        alphas = [f"{a:.5g}" for a in self.alphas_cumprod[::every]]
        final = f"{self.final_alpha_cumprod:.5g}"
        return alphas, final, self.spacing, self.steps_offset, self.prediction

    def grid(self, num_steps: int, tokens: int = 0) -> Grid:  # noqa: ARG002
        """The `num_steps` steps of a run, noisiest first, whatever the picture's size.

        Raises:
            OptionError: num_steps is outside 1 … train_steps.
        """
        stride = self.train_steps // max(1, num_steps)
        return tuple(
            Step(self.level(timestep), self.level(timestep - stride), self.prediction)
            for timestep in self.timesteps(num_steps)
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a report says of it."""
        return {
            "prediction_type": self.prediction,
            "timestep_spacing": self.spacing,
            "steps_offset": self.steps_offset,
            "train_steps": self.train_steps,
            "alpha_cumprod_first": float(self.alphas_cumprod[0]),
            "alpha_cumprod_last": float(self.alphas_cumprod[-1]),
            "final_alpha_cumprod": self.final_alpha_cumprod,
        }

    def scheduler(self) -> Any:
        """Make a `DDIMScheduler` with these levels."""
        from diffusers import DDIMScheduler

        betas = 1.0 - self.alphas_cumprod / [1.0, *self.alphas_cumprod[:-1]]
        return DDIMScheduler(
            num_train_timesteps=self.train_steps,
            trained_betas=betas.tolist(),
            clip_sample=False,
            set_alpha_to_one=self.final_alpha_cumprod == 1.0,
            steps_offset=self.steps_offset,
            prediction_type=self.prediction,
            timestep_spacing=self.spacing,
        )

    def level(self, timestep: int) -> Level:
        """The noise level of a timestep; of any negative one, that of the clean image."""
        ab = self.final_alpha_cumprod if timestep < 0 else float(self.alphas_cumprod[timestep])
        return Level(math.sqrt(ab), math.sqrt(1.0 - ab), max(timestep, 0))

    def level_at(self, fraction: float) -> Level:
        """The noise level at a fraction (0 to below 1) of the training's timesteps."""
        return self.level(round(fraction * self.train_steps))

    def random_level(self, generator: torch.Generator) -> Level:
        """Draw a level as training does: its timestep is uniform over the training's."""
        import torch

        return self.level(int(torch.randint(self.train_steps, (), generator=generator)))

    def nearest_level(self, alpha_cumprod: float) -> Level:
        """The noise level whose alpha-bar is nearest to a value."""
        return self.level(int(np.abs(self.alphas_cumprod - alpha_cumprod).argmin()))


def number_in(
    config: Mapping[str, Any], key: str, default: float, least: float, most: float
) -> float:
    """A number of a scheduler's config, within its bounds.

    Raises:
        ModelError: it is something else.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ModelError(
            f"The scheduler config has {key} {shorten(repr(value))}, expected a number from "
            f"{least:g} to {most:g}; get the model again."
        )
    return value


def _alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray:
    """alpha-bar of every timestep, [train_steps].

    Raises:
        ModelError: the config's betas give none, or none between a clean image and noise alone.
    """
    train_steps = int(number_in(config, "num_train_timesteps", 1000, 1, MOST_STEPS))
    betas = _betas(config, train_steps)
    if betas.ndim != 1 or not 1 <= betas.size <= MOST_STEPS or not _proper(betas):
        raise ModelError(
            f"The scheduler config's betas are no list of 1 to {MOST_STEPS:,} numbers above 0 "
            "and below 1; get the model again."
        )
    alphas_cumprod = np.cumprod(1.0 - betas)
    first, last = alphas_cumprod[0], alphas_cumprod[-1]
    to_zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if not 0 < last <= first < 1 or (to_zero_snr and last == first):
        raise ModelError(
            f"The scheduler config's betas lead from alpha-bar {first:g} to {last:g}, which is no "
            "range of noise levels between 1 (a clean image) and 0 (noise alone); get the model "
            "again."
        )
    return _rescale_to_zero_snr(alphas_cumprod) if to_zero_snr else alphas_cumprod


def _proper(betas: np.ndarray) -> bool:
    return bool(np.isfinite(betas).all() and betas.min() > 0 and betas.max() < 1)


def _betas(config: Mapping[str, Any], train_steps: int) -> np.ndarray:
    trained = config.get("trained_betas")
    if trained is not None:
        try:
            return np.asarray(trained, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            return np.empty(0)
    start = number_in(config, "beta_start", 0.0001, 0, 1)
    end = number_in(config, "beta_end", 0.02, 0, 1)
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(start, end, train_steps, dtype=np.float64)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, train_steps, dtype=np.float64) ** 2
    if kind == "squaredcos_cap_v2":
        edges = np.arange(train_steps + 1) / train_steps
        bar = np.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
        return np.minimum(1.0 - bar[1:] / bar[:-1], MAX_BETA)
    raise ModelError(
        f"The scheduler config has beta_schedule {shorten(repr(kind))}, "
        "expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'."
    )


def _rescale_to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha-bar) so that the last is (nearly) 0.

    Source: Lin et al. 2024 (Common diffusion noise schedules ... are flawed), algorithm 1.
    """
    root = np.sqrt(alphas_cumprod)
    first, last = root[0], root[-1]
    rescaled = ((root - last) * first / (first - last)) ** 2
    return np.maximum(rescaled, SMALLEST_ALPHA_CUMPROD)
