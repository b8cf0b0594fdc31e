"""Whether a model's configuration fits its weights, as an inversion shows without further work.

With z*_{T-1}, z*_T the noisy end of the trajectory and a, b of the last step, the network said

    eps = (z*_T - a z*_{T-1}) / b,        and        z*_T = sqrt(ab) x0 + sqrt(1 - ab) eps

so where hardly any photo is left (ab near 0), z*_T is of unit variance and eps is nearly z*_T. With
another `prediction_type` than the network was trained for, one of the two fails.
"""

from __future__ import annotations

from nulltext.diffusion.levels import affine, noise_estimate
from nulltext.diffusion.schedule import SMALLEST_ALPHA_CUMPROD
from nulltext.health.expectations import schedule_note
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion

FEWEST_STEPS = 10
"""With fewer, the discretisation alone moves both: at 3 steps deviations are 0.66 to 1.25."""

LEAST_NOISE = 0.98
"""1 - alpha-bar of the noisiest timestep, above which the photo no longer counts."""

DEVIATION = (0.8, 1.25)
"""Of eps and z*_T. The bundled model has 0.96 to 1.11 on photos, flat colours, noise and stripes;
read as v_prediction 1.63 to 3.0, as sample 1.4 to 5.4 (but on flat grey 1.04 and 1.23)."""

UNTRAINED = 0.5
"""With both deviations below, the weights are hardly trained: random ones of every family have 0.28
to 0.40."""

LEAST_COSINE = 0.97
"""Of the angle between eps and z*_T: the bundled model has 0.995 and more, a network that predicts
v and is read as epsilon 0.95 and less."""


def note_on_configuration(model: LatentDiffusion, inversion: Inversion) -> str | None:
    """Say what does not fit: the betas of a published family, which a fine-tune may have changed,
    and the noise that an inversion ends in; None where both are as they should be, or too little is
    known.
    """
    said = " ".join(filter(None, [_wrong_noise(model, inversion), _other_betas(model)]))
    if not said:
        return None
    return (
        f"Note on the model '{model.name}': {said} Compare "
        "scheduler/scheduler_config.json with the published file, or run nulltext doctor with this "
        "model and --report FILE, which tells what it should say."
    )


def _other_betas(model: LatentDiffusion) -> str | None:
    rescaled = model.schedule.alphas_cumprod[-1] <= SMALLEST_ALPHA_CUMPROD  # on purpose
    return None if rescaled else schedule_note(model)


def _wrong_noise(model: LatentDiffusion, inversion: Inversion) -> str | None:
    noisiest = model.schedule.grid(inversion.num_steps)[0]
    guided = inversion.header.method_config.get("inversion_guidance", 1.0) != 1.0
    few = inversion.num_steps < FEWEST_STEPS
    if guided or few or noisiest.noisier.sigma**2 < LEAST_NOISE:
        return None
    cleaner, noisy = inversion.trajectory[-2:].double()
    prediction = model.schedule.prediction
    a, b = affine(prediction, noisiest.cleaner, noisiest.noisier)
    output = (noisy - a * cleaner) / b
    noise_pred = noise_estimate(prediction, noisiest.cleaner, cleaner, output)
    sizes = [float(one.square().mean().sqrt()) for one in (noise_pred, noisy)]
    cosine = float((noise_pred * noisy).mean()) / max(sizes[0] * sizes[1], 1e-12)
    low, high = DEVIATION
    if all(low <= size <= high for size in sizes) and cosine >= LEAST_COSINE:
        return None
    untrained = max(sizes) < UNTRAINED
    return (
        f"Its {'weights look untrained' if untrained else 'configuration looks wrong'}: the noise "
        f"that it inverts the photo to has a deviation of {sizes[1]:.2f}, what its UNet takes for "
        f"noise there one of {sizes[0]:.2f} and a likeness of {cosine:.2f}, and each should be 1"
        f"{'; if they are trained,' if untrained else ', so'} its prediction_type may not be "
        f"{prediction}."
    )
