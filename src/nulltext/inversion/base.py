"""The protocol of an inversion method: what it is given, and what it returns."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nulltext.diffusion.levels import Grid
from nulltext.diffusion.loops import StepInfo
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.reprs import short_repr


@dataclass(frozen=True)
class Problem:
    """What a method is given."""

    latents: Tensor
    """z_0, [1, C, h, w], scaled."""
    prompt_embeds: Tensor
    """C, [1, R, D]."""
    grid: Grid
    """T steps, noisiest first."""
    guidance_scale: float
    """w of the replay."""
    generator: torch.Generator
    """Source of noise for the methods that draw some."""
    kept: Mapping[str, Tensor] | None = None
    """What `StepInfo.kept` of an earlier run of the same problem held, to go on from there; of a
    batch, its problems share one."""

    __repr__ = short_repr


@dataclass(frozen=True)
class Solution:
    """What a method returns; the tensors are those of `record.Inversion`."""

    trajectory: Tensor
    """[T + 1, C, h, w]."""
    null_embeds: Tensor | None = None
    """[1 or T, R, D]."""
    prompt_embeds: Tensor | None = None
    """[1 or T, R, D]."""
    corrections: Tensor | None = None
    """[T, C, h, w]."""
    weight_delta: Mapping[str, Tensor] | None = None
    """Low-rank factors by layer; see `models.network_calls`."""
    iterations: int = 0
    """Gradients of a loss that it took."""
    unconverged: int | None = None
    """Timesteps at which fixed-point inversion ended above its tolerance; None of other methods."""
    replayed: Tensor | None = None
    """Latents that a replay arrives at, [1, C, h, w], where the method comes by them anyway."""

    __repr__ = short_repr


class InversionMethod(Protocol):
    """A frozen dataclass of options with a `steps` generator."""

    name: ClassVar[str]
    differentiates: ClassVar[bool]
    """Whether it asks for gradients, which is what needs memory."""
    draws: ClassVar[bool]
    """Whether it draws noise, so that its result depends on the seed."""

    def check(self, guidance_scale: float) -> None:
        """Refuse, with an OptionError, a guidance scale that the method cannot work at."""
        ...

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Invert, yielding progress."""
        ...


@runtime_checkable
class BatchInversionMethod(InversionMethod, Protocol):
    """A method that can also work on several photos side by side."""

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """`steps` for problems with one grid and scale; each photo's solution as if alone."""
        ...


class SideBySide:
    """Base of methods that work on several photos at once, and on one as a batch of one."""

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """Invert photos side by side."""
        raise NotImplementedError

    def steps(
        self, model: LatentDiffusion, problem: Problem
    ) -> Generator[StepInfo, None, Solution]:
        """Invert one photo."""
        (solution,) = yield from self.batch_steps(model, [problem])
        return solution


@dataclass(frozen=True)
class Batch:
    """Problems that differ in photo and prompt alone, side by side."""

    latents: Tensor
    """[B, C, h, w]."""
    prompt_embeds: Tensor
    """[B, R, D]."""
    grid: Grid
    guidance_scale: float
    generators: Sequence[torch.Generator]
    """B of them, for the methods that draw noise."""
    kept: Mapping[str, Tensor] | None = None
    """What an earlier run kept, if there was one; each method reads its own."""

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Batch:
        """Stack problems of one grid and one guidance scale."""
        first = problems[0]
        shared = {(tuple(problem.grid), problem.guidance_scale) for problem in problems}
        assert len(shared) == 1, "one grid and one scale per batch"
        return cls(
            latents=torch.cat([problem.latents for problem in problems]),
            prompt_embeds=torch.cat([problem.prompt_embeds for problem in problems]),
            grid=first.grid,
            guidance_scale=first.guidance_scale,
            generators=[problem.generator for problem in problems],
            kept=first.kept,
        )
