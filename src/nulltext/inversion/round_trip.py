"""The round trip of a method that inverts by a solver: how well the solver itself inverts.

    z_0 -> z*_T -> z'_0,   both by the method's solver, at w = 1, without corrections

The replay of such an inversion is steered onto its trajectory, and so says nothing of it: see
`solving`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor

from nulltext.diffusion.loops import StepInfo, run
from nulltext.diffusion.solvers import levels_of, solve_steps
from nulltext.errors import OptionError
from nulltext.image.images import from_uint8, psnr
from nulltext.inversion.pivots import velocity_of
from nulltext.inversion.record import Inversion
from nulltext.inversion.registry import METHODS
from nulltext.inversion.replay import Replay, Replaying
from nulltext.inversion.solving import SolverMethod
from nulltext.models.latent_diffusion import LatentDiffusion


def round_trip(
    model: LatentDiffusion,
    inversion: Inversion,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Replay:
    """Walk a photo back from its noise by the solver that it was inverted with.

    Raises:
        InversionFileError: the inversion belongs to another model.
        OptionError: its method has no solver of its own.
        NumericalError: the latents became infinite or NaN.
    """
    image = model.decode(run(round_trip_steps(model, inversion), on_step)).cpu()
    return Replay(image=image, psnr=psnr(image, from_uint8(inversion.photo)))


def round_trip_steps(
    model: LatentDiffusion, inversion: Inversion
) -> Generator[StepInfo, None, Tensor]:
    """`round_trip` as a generator that returns z'_0, [1, C, h, w]."""
    name = inversion.header.method
    method = METHODS.get(name)
    if method is None or not issubclass(method, SolverMethod):
        raise OptionError(
            f"The method {name} has no solver of its own towards the image: its round trip is the "
            "replay; call nulltext.replay."
        )
    replaying = Replaying.of(model, inversion)
    velocity = velocity_of(replaying.model, replaying.conditions.prompt_embeds)
    levels = levels_of(replaying.grid)[::-1]
    walked = yield from solve_steps(method.back, velocity, replaying.start, levels, stage="replay")
    return walked[-1]
