"""The noise levels of a rectified-flow checkpoint, and its grids.

    z_s = (1 - s) x0 + s eps        alpha = 1 - s,  sigma = s;  the network's output is eps - x0

The levels s of a run are those of diffusers' `FlowMatchEulerDiscreteScheduler`, which is asked for
them, so that a checkpoint means here what it means there: static shift, dynamic shift by the number
of image tokens, terminal shift, Karras, exponential and beta spacings. What the scheduler starts
from is the pipeline's: its own range (Stable Diffusion 3) or linspace(1, 1 / N, N) (FLUX).

    static    s <- k s / (1 + (k - 1) s)
    dynamic   s <- e^mu / (e^mu + 1 / s - 1),   mu linear in the number of image tokens

Sources: Liu et al. 2023 (Rectified Flow), eq. 1; Esser et al. 2024 (Stable Diffusion 3), sec. 3.1
and 5.3.2 (shift).
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nulltext.diffusion.levels import Grid, Level, Prediction, Step
from nulltext.diffusion.schedule import MOST_STEPS, number_in
from nulltext.errors import ModelError, OptionError, shorten

if TYPE_CHECKING:
    import torch

Start = Literal["range", "linspace"]
"""What the scheduler shifts: from its largest to its smallest level, or 1 … 1 / N."""

SCHEDULER = "FlowMatchEulerDiscreteScheduler"

LARGEST_SHIFT = 100.0
MOST_TOKENS = 2**24

SWITCHES = (
    *("use_dynamic_shifting", "use_karras_sigmas"),
    *("use_exponential_sigmas", "use_beta_sigmas"),
)
TIME_SHIFTS = ("exponential", "linear")


@dataclass(frozen=True)
class FlowSchedule:
    """A rectified-flow checkpoint's noise levels, over a continuum."""

    config: str
    """The scheduler's settings as JSON, checked."""
    start: Start = "range"
    prediction: Prediction = "flow"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], start: Start = "range") -> FlowSchedule:
        """Read the `scheduler_config.json` of a rectified-flow checkpoint.

        Raises:
            ModelError: a field has a value that is not known here, or the scheduler is of another
                kind of model.
        """
        config = {name: value for name, value in config.items() if value is not None}
        kind = str(config.get("_class_name", SCHEDULER))
        if kind != SCHEDULER:
            raise ModelError(
                f"The scheduler is of class {shorten(kind)}, expected {SCHEDULER} beside a "
                "rectified-flow transformer; get the model again."
            )
        for name, what in (
            ("invert_sigmas", "counts its levels from the image to noise"),
            ("stochastic_sampling", "adds noise at every step, which cannot be undone"),
        ):
            if config.get(name):
                raise ModelError(
                    f"The scheduler config has {name}, which {what}; pass a checkpoint without it."
                )
        steps = number_in(config, "num_train_timesteps", 1000, 1, MOST_STEPS)
        read: dict[str, Any] = {
            "num_train_timesteps": int(steps),
            "shift": number_in(config, "shift", 1.0, 1 / LARGEST_SHIFT, LARGEST_SHIFT),
            "base_shift": number_in(config, "base_shift", 0.5, -LARGEST_SHIFT, LARGEST_SHIFT),
            "max_shift": number_in(config, "max_shift", 1.15, -LARGEST_SHIFT, LARGEST_SHIFT),
            "base_image_seq_len": number_in(config, "base_image_seq_len", 256, 1, MOST_TOKENS),
            "max_image_seq_len": number_in(config, "max_image_seq_len", 4096, 1, MOST_TOKENS),
            "time_shift_type": config.get("time_shift_type", "exponential"),
            **{name: bool(config.get(name, False)) for name in SWITCHES},
        }
        if read["time_shift_type"] not in TIME_SHIFTS:
            raise ModelError(
                f"The scheduler config has time_shift_type "
                f"{shorten(repr(read['time_shift_type']))}, expected 'exponential' or 'linear'."
            )
        if sum(read[name] for name in SWITCHES[1:]) > 1:
            raise ModelError(
                "The scheduler config asks for several spacings of its levels at once "
                "(use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas); get the model again."
            )
        if read["base_image_seq_len"] >= read["max_image_seq_len"]:
            raise ModelError(
                "The scheduler config has a base_image_seq_len that is not below its "
                "max_image_seq_len; get the model again."
            )
        if config.get("shift_terminal"):
            read["shift_terminal"] = number_in(config, "shift_terminal", 0.0, 0.0, 0.999)
        return cls(json.dumps(read, sort_keys=True), start)

    @property
    def settings(self) -> dict[str, Any]:
        """The scheduler's settings."""
        read: dict[str, Any] = json.loads(self.config)
        return read

    @property
    def train_steps(self) -> int:
        """What a level of 1 is fed to the network as, usually 1000."""
        return int(self.settings["num_train_timesteps"])

    @property
    def identity(self) -> tuple[object, ...]:
        """All that gives the weights their meaning, for the fingerprint."""
        return self.config, self.start, self.prediction

    def grid(self, num_steps: int, tokens: int = 256) -> Grid:
        """The `num_steps` steps of a run, noisiest first.

        Args: tokens: image tokens of the picture, which dynamic shifting depends on.

        Raises:
            OptionError: num_steps is outside 1 … train_steps, or too few for the spacing.
        """
        whole = isinstance(num_steps, numbers.Integral)  # numpy's, too
        if not whole or not 1 <= num_steps <= self.train_steps:
            raise OptionError(
                f"The number of steps is {num_steps}; choose a whole number from 1 to "
                f"{self.train_steps} (28 is usual)."
            )
        sigmas, fed = _levels(self.config, self.start, int(num_steps), tokens)
        levels = [Level(1.0 - s, s, t) for s, t in zip(sigmas, fed, strict=True)]
        return tuple(
            Step(noisier, cleaner, self.prediction) for noisier, cleaner in pairwise(levels)
        )

    def scheduler(self) -> Any:
        """Make a `FlowMatchEulerDiscreteScheduler` with these settings."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        try:
            return FlowMatchEulerDiscreteScheduler(**self.settings)
        except ImportError as error:
            raise ModelError(
                "The model's noise levels are spaced by a beta distribution, for which scipy is "
                "needed; install it: pip install scipy."
            ) from error

    def level(self, sigma: float) -> Level:
        """The noise level with this share of noise, 0 to 1."""
        return Level(1.0 - sigma, sigma, sigma * self.train_steps)

    def level_at(self, fraction: float) -> Level:
        """The noise level at a fraction (0 to below 1) of the way to noise."""
        return self.level(fraction)

    def random_level(self, generator: torch.Generator) -> Level:
        """Draw a level, uniformly."""
        import torch

        return self.level(float(torch.rand((), generator=generator)))

    def nearest_level(self, alpha_cumprod: float) -> Level:
        """The level at which signal to noise is that of a diffusion model's alpha-bar.

        (1 - s) / s = sqrt(ab / (1 - ab))
        """
        signal, noise = math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod)
        return self.level(noise / (signal + noise))


@lru_cache(maxsize=256)
def _levels(
    config: str, start: Start, num_steps: int, tokens: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares of noise, N + 1 with the trailing 0, and what the network is fed for them.

    Raises:
        OptionError: they are no falling sequence.
    """
    settings = json.loads(config)
    scheduler = FlowSchedule(config, start).scheduler()
    mu = _dynamic_shift(settings, tokens) if settings["use_dynamic_shifting"] else None
    given = None if start == "range" else np.linspace(1.0, 1 / num_steps, num_steps)
    try:
        with np.errstate(all="ignore"):
            scheduler.set_timesteps(num_steps, sigmas=given, mu=mu)
    except OverflowError as error:
        raise OptionError(
            f"The model's scheduler shifts its noise levels by e^{mu:.3g} at this size, which is "
            "no number; choose another --size, or get the model again."
        ) from error
    sigmas = tuple(float(sigma) for sigma in scheduler.sigmas)
    fed = tuple(float(timestep) for timestep in scheduler.timesteps)
    falling = all(a > b for a, b in pairwise(sigmas))
    if not falling or not sigmas[0] <= 1.0:
        raise OptionError(
            f"The model's scheduler gives no falling noise levels for {num_steps} steps; "
            "choose another number of --steps (28 is usual)."
        )
    return sigmas, (*fed, 0.0)


def _dynamic_shift(settings: Mapping[str, Any], tokens: int) -> float:
    """Return mu, on the line through the base and the largest number of tokens and their shifts."""
    least, most = settings["base_image_seq_len"], settings["max_image_seq_len"]
    slope = (settings["max_shift"] - settings["base_shift"]) / (most - least)
    return float(tokens * slope + (settings["base_shift"] - slope * least))
