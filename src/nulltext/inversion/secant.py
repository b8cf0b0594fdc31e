"""Null-text inversion, accelerated: begun at the prompt, solved by a multisecant method.

The problem of each timestep is that of `null_text`: zbar_t and the pivot z*_{t-1} fixed,

    r(∅) = a zbar_t + b (o_C + (1 - w) (o_∅ - o_C)) - z*_{t-1} = b (1 - w) (o_∅ - u*)
    u*   = o_C + (o* - o_C) / (1 - w),   o* = (z*_{t-1} - a zbar_t) / b
    L(∅) = mean r^2

so the output that the null branch ought to give, u*, is known in closed form, and r is the distance
rho = o_∅ - u* from it, scaled by the gain b (1 - w). Where the gain is zero (a step that is the
identity) r is the same under all ∅, and no step is taken.

With ∅ = C the guided output is o_C at any w, which is what the pivot was walked with: a start there
is off by the discretisation alone, so most timesteps need no step at all. Where one does, with J
the Jacobian of rho and g = -J^T rho one backward pass:

    probe      x' = x + g / kappa,   s = x' - x,   y = rho(x') - rho(x) ≈ J s
    combine    c  = argmin ||rho + sum_i c_i y_i||^2 + mu sum_i c_i^2 ||y_i||^2
    test       x + sum_i c_i s_i

over this pair and the last m, those of earlier timesteps among them: the null branch's Jacobian
changes slowly from timestep to timestep. kappa = ||y||^2 / ||s||^2 is the curvature that the last
probe met, so a probe is a step of nearly the right length already. A step costs 3 evaluations:
forward with its backward 2, probe 1 (its test is the next step's forward); a last test that
promises little is left out.
Source: Mokady et al. 2023, sec. 3.3 (the problem); Miyake et al. 2023, sec. 3 (the start is their
whole method); Fang & Saad 2009, sec. 2 (multisecant); Barzilai & Borwein 1988 (step length).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import guide
from nulltext.diffusion.levels import Step
from nulltext.diffusion.loops import StepInfo, pivot_steps
from nulltext.errors import OptionError
from nulltext.inversion.base import Problem, Solution
from nulltext.inversion.fitting import Batch, BatchMethod, Best, State, check_null_branch
from nulltext.models.latent_diffusion import LatentDiffusion

NullStart = Literal["prompt", "empty"]
"""At which embedding the null embeddings begin."""

PROMPT_SHARE = 0.5
"""A null embedding smaller than this part of its prompt's embedding, as SDXL's zeros are, does not
tell how large embeddings are; the prompt's does."""

FIRST_PROBE = 1e-2
"""Length of the very first probe, whose curvature is unknown, relative to the embedding."""

WORTH_A_TEST = 0.8
"""A last test is made where it promises a loss below this fraction of the best one so far."""

STEP, IMAGE = "step.", "image."
"""Begin the names of what is remembered."""


@dataclass(frozen=True)
class SecantNullText(BatchMethod):
    """Options of accelerated null-text inversion."""

    name: ClassVar[str] = "null-text-secant"
    differentiates: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    gradient_cost: ClassVar[int] = 3

    inner_steps: int = 2
    """N: steps per timestep at most; more is closer to the pivot and slower."""
    start: NullStart = "prompt"
    """Where the null embeddings begin: at the prompt's, which is nearly there already, or at that
    of "", as published."""
    loss_tolerance: float = 1e-5
    """Loss below which the noisiest timestep is good enough."""
    loss_tolerance_slope: float = 2e-5
    """What each further timestep adds to that tolerance."""
    pooled: Literal["fixed", "optimised"] = "fixed"
    """Whether the pooled null embedding moves with the tokens' (SDXL; elsewhere there is none)."""
    memory: int = 20
    """Pairs that are remembered: more finds better combinations, and costs memory alone."""
    damping: float = 5e-2
    """mu: higher trusts remembered pairs less."""
    trust: float = 0.3
    """Longest probe and longest step, relative to the embedding: lower is safer and slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in get_args(NullStart):
            choices = " or ".join(map(repr, get_args(NullStart)))
            raise OptionError(f"start is {self.start!r}; choose {choices}.")
        if self.pooled not in ("fixed", "optimised"):
            raise OptionError(f"pooled is {self.pooled!r}; choose 'fixed' or 'optimised'.")
        if self.memory < 1 or self.damping <= 0 or self.trust <= 0:
            raise OptionError(
                f"memory is {self.memory}, damping {self.damping:g} and trust {self.trust:g}; "
                "choose at least 1, and more than 0 (20, 0.05, 0.3 are usual)."
            )

    def check(self, guidance_scale: float) -> None:
        """Refuse scales at which the null embedding does not act."""
        check_null_branch("Null-text inversion", guidance_scale)

    def batch_steps(
        self, model: LatentDiffusion, problems: Sequence[Problem]
    ) -> Generator[StepInfo, None, list[Solution]]:
        """Invert photos side by side, each of which stops as early as it would alone.

        Raises:
            NumericalError: a loss or gradient is not finite; names the timestep.
        """
        photos = Batch.of(problems)
        state = photos.kept or State.start(
            (yield from pivot_steps(model, photos.latents, photos.prompt_embeds, photos.grid))
        )
        state.resume(model.passes)
        start = photos.prompt_embeds
        if self.start == "empty":
            start = model.embed([""]).repeat(len(problems), 1, 1)
        pairs = Pairs.recalled(self, state.remembered, len(problems))
        for i in range(state.done, len(photos.grid)):
            embeds = state.fitted[-1] if state.fitted else start
            task = TimestepTask.of(model, photos, state, i, self.pooled == "optimised")
            best = Best(embeds, task.latents, task.step)
            tolerance = self.loss_tolerance + self.loss_tolerance_slope * i
            with model.frozen():
                inner = self._solve(task, best, pairs, tolerance)
            state = state.after(best, model.passes, task.gradients, pairs.remembered())
            yield state.info(best, inner)
        return state.solutions("null_embeds")

    def _solve(self, task: TimestepTask, best: Best, pairs: Pairs, tolerance: float) -> int:
        """Lower the losses from where `best` starts; returns the steps of the slowest photo."""
        rows, tried = task.rows, best.embeds.clone()
        most = self.inner_steps if task.moves else 0
        for inner in range(most + 1):
            left = most - inner
            embeds = tried.requires_grad_(left > 0)
            with torch.set_grad_enabled(left > 0):
                landing = task.evaluate(embeds, rows)
            losses, better = best.offer(embeds, landing.output, landing.losses, rows)
            going = better & (losses >= tolerance)
            if left == 0 or not bool(going.any()):
                return inner
            probes = self._probes(task, pairs, embeds, landing, going)
            del landing  # and its graph: two at a time would double the memory
            tried, rows = self._combinations(task, best, pairs, probes, tolerance, final=left == 1)
            if len(rows) == 0:
                return inner + 1  # the probe was a step
        raise AssertionError("the last step returns")

    def _probes(
        self,
        task: TimestepTask,
        pairs: Pairs,
        embeds: Tensor,
        landing: Landing,
        going: Tensor,
    ) -> Probes:
        """Take one step along the slope for each photo that goes on."""
        distance = landing.residual.detach() / task.gain
        slopes = task.pullback(landing, embeds, -distance / task.gain)
        points, slopes, rows = embeds.detach()[going], slopes[going], landing.rows[going]
        sizes = task.sizes(points, rows)
        steps = [
            pairs.step_length(row, size, slope) * slope
            for row, size, slope in zip(rows.tolist(), sizes, slopes, strict=True)
        ]
        shortened = within_trust(torch.stack(steps), sizes, self.trust)
        return Probes(rows, points, shortened, distance[going])

    def _combinations(
        self,
        task: TimestepTask,
        best: Best,
        pairs: Pairs,
        probes: Probes,
        tolerance: float,
        *,
        final: bool,
    ) -> tuple[Tensor, Tensor]:
        """Test the probes, learn from them, and return what to test next: (embeddings, rows)."""
        rows, tested = probes.rows, probes.points + probes.steps
        with torch.no_grad():
            landing = task.evaluate(tested, rows)
        best.offer(tested, landing.output, landing.losses, rows)
        moved = landing.residual / task.gain - probes.distance
        steps, kept = [], []
        for i, row in enumerate(rows.tolist()):
            pairs.add(row, probes.steps[i], moved[i])
            if not pairs.of[row]:
                continue
            step, promised = pairs.combine(row, probes.distance[i])
            reached = best.losses[row].item()
            worth = WORTH_A_TEST if final else 1.0
            if reached >= tolerance and promised * task.gain**2 < worth * reached:
                steps.append(step)
                kept.append(i)
        points, kept_rows = probes.points[kept], rows[kept]
        if not steps:
            return points, kept_rows
        sizes = task.sizes(points, kept_rows)
        return points + within_trust(torch.stack(steps), sizes, self.trust), kept_rows


class Landing(NamedTuple):
    """Where one step arrives under some embeddings."""

    output: Tensor
    """Guided o, [b, C, h, w]."""
    residual: Tensor
    """r, [b, C, h, w]."""
    rows: Tensor
    """[b], the photos."""

    @property
    def losses(self) -> Tensor:
        """L = mean r^2 of each photo, [b]."""
        return self.residual.square().flatten(1).mean(dim=1)


class Probes(NamedTuple):
    """Steps along the slope."""

    rows: Tensor
    """[b], the photos."""
    points: Tensor
    """x, [b, R, D]."""
    steps: Tensor
    """s, [b, R, D]."""
    distance: Tensor
    """rho at the points, [b, C, h, w]."""


@dataclass(frozen=True)
class TimestepTask:
    """The least-squares problem of one timestep, for B photos side by side."""

    model: LatentDiffusion
    step: Step
    latents: Tensor
    """zbar_t, [B, C, h, w]."""
    target: Tensor
    """z*_{t-1}, [B, C, h, w]."""
    output_prompt: Tensor
    """o_C, [B, C, h, w]."""
    share: float
    """1 - w: what the null branch counts for in the guided output."""
    natural_sizes: Tensor
    """[B], norm of the embedding of each photo's prompt, times `PROMPT_SHARE`."""
    moves_pooled: bool
    """Whether a pooled row (SDXL) moves with the tokens'."""
    gradients: Tensor
    """[B], int64: backward passes so far."""

    @classmethod
    def of(
        cls,
        model: LatentDiffusion,
        photos: Batch,
        state: State,
        index: int,
        moves_pooled: bool = False,
    ) -> TimestepTask:
        """Set the problem of a step up; costs one evaluation per photo, for o_C."""
        step, prompt_embeds = photos.grid[index], photos.prompt_embeds
        with torch.no_grad():
            output_prompt = model.predict(state.latents, step.noisier, prompt_embeds)
        return cls(
            model=model,
            step=step,
            latents=state.latents,
            target=state.target(index),
            output_prompt=output_prompt,
            share=1.0 - photos.guidance_scale,
            natural_sizes=PROMPT_SHARE * prompt_embeds.detach().flatten(1).norm(dim=1),
            moves_pooled=moves_pooled,
            gradients=torch.zeros(len(state.latents), dtype=torch.int64),
        )

    @property
    def rows(self) -> Tensor:
        """[B], the index of every photo."""
        return torch.arange(len(self.latents), device=self.latents.device)

    @property
    def gain(self) -> float:
        """b (1 - w): what turns rho into r."""
        return self.step.gain * self.share

    @property
    def moves(self) -> bool:
        """Whether an embedding can change the residual."""
        return self.step.moves(self.share, self.latents.dtype)

    def evaluate(self, embeds: Tensor, rows: Tensor) -> Landing:
        """Return r under embeddings [b, R, D], differentiable; one evaluation per row."""
        latents = self.latents[rows]
        output_null = self.model.predict(latents, self.step.noisier, embeds, rows.tolist())
        output = guide(self.output_prompt[rows], output_null, self.share)
        return Landing(output, self.step.denoise(latents, output) - self.target[rows], rows)

    def pullback(self, landing: Landing, embeds: Tensor, cotangents: Tensor) -> Tensor:
        """Return J^T u, [b, R, D]: a backward pass per row. A row that stays gets 0.

        Raises:
            NumericalError: it is infinite or NaN; names the timestep.
        """
        self.gradients[landing.rows.cpu()] += 1
        (product,) = torch.autograd.grad(landing.residual, embeds, cotangents)
        check_finite(product, "The gradient in the embedding", self.step.noisier)
        return product if self.moves_pooled else product * self.model.token_rows

    def sizes(self, embeds: Tensor, rows: Tensor) -> Tensor:
        """Return how large embeddings are at embeds [b, R, D]: [b], what steps are measured by."""
        own = embeds.detach().flatten(1).norm(dim=1)
        return torch.maximum(own, self.natural_sizes[rows])


def within_trust(steps: Tensor, sizes: Tensor, fraction: float) -> Tensor:
    """Shorten steps [b, R, D] that are longer than a fraction of the embeddings' sizes [b].

    A linear model of the residual holds for short steps only, and the network was trained on
    embeddings of the text encoder's size.
    """
    lengths = steps.flatten(1).norm(dim=1).clamp_min(torch.finfo(steps.dtype).tiny)
    return (fraction * sizes / lengths).clamp_max(1.0)[:, None, None] * steps


Pair = tuple[Tensor, Tensor]
"""(s, y)."""


@dataclass(frozen=True)
class Pairs:
    """The pairs that are remembered, photo by photo."""

    damping: float
    of: Sequence[deque[Pair]]
    """By photo, oldest first."""

    @classmethod
    def recalled(cls, options: SecantNullText, tensors: Mapping[str, Tensor], photos: int) -> Pairs:
        """Read what `remembered` returned in an earlier run."""
        own: list[deque[Pair]] = [deque(maxlen=options.memory) for _ in range(photos)]
        for name in sorted((n for n in tensors if n.startswith(STEP)), key=_photo_and_age):
            pair = tensors[name], tensors[IMAGE + name.removeprefix(STEP)]
            own[_photo_and_age(name)[0]].append(pair)
        return cls(options.damping, own)

    def remembered(self) -> Mapping[str, Tensor]:
        """Return the pairs by name: `step.PHOTO.AGE` and `image.PHOTO.AGE`."""
        found: dict[str, Tensor] = {}
        for photo, pairs in enumerate(self.of):
            for age, (step, image) in enumerate(pairs):
                found |= {f"{STEP}{photo}.{age}": step, f"{IMAGE}{photo}.{age}": image}
        return found

    def step_length(self, photo: int, size: Tensor, slope: Tensor) -> Tensor:
        """Return 1 / kappa by the last pair; without one, by the size of embeddings."""
        if not self.of[photo]:
            return FIRST_PROBE * size / slope.norm().clamp_min(torch.finfo().tiny)
        step, image = self.of[photo][-1]
        return step.square().sum() / image.square().sum().clamp_min(torch.finfo().tiny)

    def add(self, photo: int, step: Tensor, image: Tensor) -> None:
        """Remember a pair, unless the step changed nothing."""
        if bool(image.any()):
            self.of[photo].append((step, image))

    def combine(self, photo: int, distance: Tensor) -> tuple[Tensor, float]:
        """Return the best step in the pairs' span, [R, D], and the mean square it promises."""
        pairs = self.of[photo]
        images = torch.stack([image.flatten() for _, image in pairs])
        gram = images @ images.T
        damped = gram + self.damping * gram.diagonal().diag()
        slopes = images @ distance.flatten()
        # a few numbers, on the CPU: older torch does not solve on MPS
        factors = torch.linalg.solve(damped.cpu(), -slopes.cpu()).to(images.device)
        step = sum(
            (factor * pair[0] for factor, pair in zip(factors, pairs, strict=True)),
            start=torch.zeros_like(pairs[0][0]),
        )
        promised = (distance.flatten() + factors @ images).square().mean().item()
        return step, promised


def _photo_and_age(name: str) -> tuple[int, int]:
    photo, age = name.removeprefix(STEP).split(".")
    return int(photo), int(age)
