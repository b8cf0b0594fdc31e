"""Distilled checkpoints are recognised, and ordinary ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.models.pipelines import recognise_distilled
from nulltext.models.side_files import LEAST
from nulltext.models.tensor_files import known_kinds

KINDS = known_kinds()["distilled"]["kinds"]

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}
"""What the published configs of schedulers below have in common."""

EULER = BETAS | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
"""Of SDXL's base model."""

ANCESTRAL = EULER | {"_class_name": "EulerAncestralDiscreteScheduler"}
PNDM = BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
LCM = BETAS | {
    "_class_name": "LCMScheduler",
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}
TCD = LCM | {"_class_name": "TCDScheduler"}
KARRAS = BETAS | {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "use_karras_sigmas": True,
}

ORDINARY = {
    "SD 1.4 and 1.5": PNDM,
    "SD 2.1": BETAS
    | {
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "skip_prk_steps": True,
    },
    "SD 2.1 base": PNDM | {"prediction_type": "epsilon"},
    "SDXL base": EULER,
    "a fine-tune with DPM++ Karras": KARRAS,
    "a fine-tune with Euler a": ANCESTRAL,
    "an old fine-tune with Euler a": BETAS
    | {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon"},
    "velocity at zero signal": EULER
    | {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "velocity, Euler a": ANCESTRAL
    | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "noise at zero signal": EULER
    | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "DDIM with trailing timesteps": BETAS
    | {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    "none": {},
}


@pytest.mark.parametrize("scheduler", ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize(
    "name", ["owner/dreamshaper-8", "juggernautXL_v9.safetensors", "/home/turbo/lcm/sd15", ""]
)
def test_ordinary_checkpoints_are_not_taken_for_distilled(name, scheduler):
    assert recognise_distilled(name, scheduler) is None


@pytest.mark.parametrize(
    ("name", "scheduler", "kind"),
    [
        ("stabilityai/sdxl-turbo", ANCESTRAL | {"timestep_spacing": "trailing"}, "Turbo"),
        ("stabilityai/sd-turbo", EULER | {"timestep_spacing": "trailing"}, "Turbo"),
        ("model", ANCESTRAL | {"timestep_spacing": "trailing"}, "Turbo or Lightning"),
        ("sdxl-lightning-4-steps", EULER | {"timestep_spacing": "trailing"}, "Lightning"),
        ("model", EULER | {"timestep_spacing": "trailing"}, "Turbo or Lightning"),
        ("model", EULER | {"timestep_spacing": "trailing", "prediction_type": "sample"}, None),
        ("SimianLuo/LCM_Dreamshaper_v7", LCM, "LCM"),
        ("model", LCM, "LCM"),
        ("tianweiy/DMD2", LCM, "DMD2"),
        ("model", TCD, "TCD"),
        ("Hyper-SDXL-1step", TCD, "Hyper-SD"),
    ],
)
def test_published_schedulers_say_that_a_model_is_distilled(name, scheduler, kind):
    found = recognise_distilled(name, scheduler)
    assert found is not None
    assert "scheduler" in found.reason
    assert found.kind == (kind or "Turbo or Lightning")
    assert found.guidance_scale == 1.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sdxlturbo.safetensors", "Turbo"),
        ("/models/DreamShaperXL_Turbo_v2.safetensors", "Turbo"),
        ("SG161222/RealVisXL_V4.0_Lightning", "Lightning"),
        ("realvisxlV50_v50LightningBakedvae.safetensors", "Lightning"),
        ("realisticVisionV60B1_v51HyperVAE.safetensors", "Hyper-SD"),
        ("latent-consistency/lcm-sdxl", "LCM"),
        ("sdxl_dmd2_4step", "DMD2"),
        ("PCM_Weights", "PCM"),
        ("sd-community/sdxl-flash", "Flash"),
        ("/cache/models--stabilityai--sd-turbo/snapshots/b261bac6fd", "Turbo"),
        ("hyper-realistic", None),
        ("HyperRealism_v1.safetensors", None),
        ("flash_photography", None),
        ("turbofan", None),
        ("hyper-detailed", None),
    ],
)
def test_names_say_it_where_the_scheduler_is_the_base_models(name, kind):
    found = recognise_distilled(name, EULER)
    assert (found and found.kind) == kind
    if found is not None:
        assert found.reason == "its name says so"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_suggests_what_null_text_inversion_can_use(kind):
    (low, high), scale = KINDS[kind]["steps"], KINDS[kind]["guidance_scale"]
    assert 1 <= low < high <= 16
    assert LEAST < scale <= 3


def test_the_note_is_one_sentence_with_the_steps_and_the_guidance():
    found = recognise_distilled("sd-community/sdxl-flash", EULER)
    assert found is not None
    for word in ("4 to 9 steps", "Flash", "--guidance is 3 ", "weaker"):
        assert word in found.note
    assert "\n" not in found.note


@pytest.mark.parametrize("scheduler", [LCM, TCD, ANCESTRAL | {"timestep_spacing": "trailing"}])
def test_their_noise_levels_are_those_of_stable_diffusion(scheduler):
    """So that they load, and a note is all that stands between them and an inversion."""
    ordinary = DiscreteSchedule.from_config(BETAS | {"_class_name": "DDIMScheduler"})
    found = DiscreteSchedule.from_config(scheduler)
    assert np.array_equal(found.alphas_cumprod, ordinary.alphas_cumprod)
    assert found.prediction == "epsilon"
    assert found.spacing == scheduler["timestep_spacing"]
