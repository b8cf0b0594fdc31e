"""Rules: plans of editors that choose the output by which a target steps.

    z^tgt_{t-1} = denoise(z^tgt_t, o')          o' the rule's, in place of the guided output

A rule takes no attention. It asks the network as often as it needs, on latents of its own making:
under the targets' prompts and guidance, or under the photo's (`Moment`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from nulltext.attention.controller import AttentionController, Site
from nulltext.attention.maps import NoOpController
from nulltext.attention.store import TargetControl
from nulltext.diffusion.levels import Step
from nulltext.errors import OptionError
from nulltext.inversion.replay import Replaying
from nulltext.models.latent_diffusion import LatentDiffusion

R = TypeVar("R")


class TargetOutput(Protocol):
    """The guided output of targets."""

    def __call__(
        self, latents: Tensor, rows: Sequence[int] | None = None, *, reads: bool = True
    ) -> Tensor:
        """Return o [b, C, h, w] of latents [b, C, h, w], under the prompts of `rows` of the moment.

        Args:
            rows: where not all are there.
            reads: whether token maps are read from this pass, of all rows.
        """
        ...


SourceOutput = Callable[[Tensor, float], Tensor]
"""The photo's: o [b, C, h, w] of latents [b, C, h, w] under the source prompt, at some w."""


@dataclass(frozen=True)
class Moment(Generic[R]):
    """One step of targets whose plans are rules of one class."""

    plans: Sequence[R]
    """B of them."""
    latents: Tensor
    """[B, C, h, w]."""
    index: int
    """Of the step; 0 is the noisiest."""
    replaying: Replaying
    """What the targets are sampled beside."""
    reads: bool
    """Whether every step has to be asked for all targets and the photo, as their token maps are
    read."""
    target: TargetOutput
    source: SourceOutput

    @property
    def step(self) -> Step:
        """The step itself."""
        return self.replaying.grid[self.index]


class Rule(ABC):
    """A plan that chooses outputs; `attention.store.Plan` says what its other members are."""

    foreground: ClassVar[None] = None
    is_clean: ClassVar[bool] = False
    """Whether its latents start from the photo's z_0 and stay pictures without noise, under the
    model's own embeddings, so that no inversion is needed."""

    @property
    def guidance_scale(self) -> float | None:
        """The target's w where none is given; None: the inversion's."""
        return None

    @classmethod
    @abstractmethod
    def outputs(cls, moment: Moment[Self]) -> Tensor:
        """Return o' of all targets of a moment, [B, C, h, w]."""

    def takes_maps(self, step: int, site: Site) -> bool:  # noqa: ARG002
        return False

    def takes_queries(self, step: int, site: Site) -> bool:  # noqa: ARG002
        return False

    def takes_inputs(self, step: int, site: Site) -> bool:  # noqa: ARG002
        return False

    @classmethod
    def controller(
        cls,
        controls: Sequence[TargetControl[Self]],  # noqa: ARG003
        step: int,  # noqa: ARG003
        *,
        guided: bool,
    ) -> AttentionController:
        return NoOpController(guided=guided)


def check_flow(model: LatentDiffusion, editor: str) -> None:
    """Refuse a model whose output is no velocity.

    Raises:
        OptionError: so it is.
    """
    if model.schedule.prediction != "flow":
        raise OptionError(
            f"The editor {editor} steps by the velocity of a rectified-flow model (Stable "
            f"Diffusion 3, FLUX), and '{model.name}' is none; choose another --editor such as "
            "prompt-to-prompt."
        )
