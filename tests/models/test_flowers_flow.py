"""The bundled flow model: its files, and that the methods work on trained weights."""

from __future__ import annotations

import pytest
import torch

import nulltext
from nulltext.inversion import NullText
from nulltext.models.known_figure import TOLERANCE, deviations, read_known
from nulltext.models.load import BUNDLED_FOLDER
from support.examples import DAHLIA_PROMPT, EXAMPLE

FOLDER = BUNDLED_FOLDER / "flowers-flow"
STEPS = 6


@pytest.fixture(scope="module")
def model():
    return nulltext.load("flowers-flow", device="cpu")


def test_it_is_what_its_side_files_were_written_for(model):
    """After new weights: `nulltext train --stage export` writes them anew."""
    known = read_known(FOLDER)
    assert known["fingerprint"] == model.fingerprint
    found = deviations(model, known)
    assert found.keys() == {"text", "encode", "transformer", "decode"}
    assert max(found.values()) < TOLERANCE / 10
    assert model.guidance_scale == 3.0
    assert {"tulip", "red"} <= set(model.known_words.named)
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 50e6
    assert sum(p.numel() for p in model.network.parameters()) < 24e6


def test_the_stock_pipeline_opens_and_samples_it(model):
    from diffusers import StableDiffusion3Pipeline

    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER, **without_t5)
    pipe.to(torch.float32).set_progress_bar_config(disable=True)
    latents = torch.randn(1, *model.latents_shape, generator=torch.Generator().manual_seed(0))
    theirs = pipe(
        "a red tulip",
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=latents,
        height=128,
        width=128,
        output_type="latent",
    ).images
    null, prompt = model.embed(["", "a red tulip"]).chunk(2)
    ours = latents
    for step in model.grid(2):
        outputs = [model.predict(ours, step.noisier, each) for each in (null, prompt)]
        ours = step.denoise(ours, outputs[0] + 3.0 * (outputs[1] - outputs[0])).detach()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_null_text_comes_near_the_bound_where_euler_s_replay_does_not(model):
    def gap(method):
        header = nulltext.invert(
            model, EXAMPLE, DAHLIA_PROMPT, method=method, num_steps=STEPS
        ).header
        return header.psnr_bound - header.psnr_reconstruction

    fitted = gap(NullText(pivot="fixed-point", inner_steps=5))
    assert fitted < 2.0
    assert gap("ddim") > fitted + 5.0
    assert abs(gap("fixed-point")) < 0.01


def test_uni_inv_is_replayed_as_published(model):
    header = nulltext.invert(model, EXAMPLE, DAHLIA_PROMPT, method="uni-inv").header
    assert header.guidance_scale == 1.0
    assert header.psnr_bound - header.psnr_reconstruction < 1.0


def test_a_colour_goes_where_the_flower_is(model):
    inversion = nulltext.invert(model, EXAMPLE, "a photo of an orange flower", num_steps=STEPS)
    made = nulltext.edit(model, inversion, "a photo of a white flower")
    middle = (slice(48, 80), slice(48, 80))
    before, after = made.reconstruction[0], made.images[0]
    blue = after[2][middle].mean() - before[2][middle].mean()  # what orange lacks of white
    assert float(blue) > 0.2
