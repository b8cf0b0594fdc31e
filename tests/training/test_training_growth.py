"""Muon against its formula and torch's own, and autoencoders that grow out of others."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nulltext.errors import OptionError
from nulltext.training.components import build_autoencoder, grow_latents
from nulltext.training.loop import (
    COEFFICIENTS,
    MOMENTUM,
    Muon,
    TrainingState,
    build_optimizers,
    orthogonal,
)
from nulltext.training.recipe import AutoencoderLoss, LoopSettings, load_recipe
from nulltext.training.stages import TrainingRun, autoencoder_stage
from nulltext.training.views import EncodedViews
from support.dots import LOOP


def newton_schulz(matrix):
    """Jordan et al. 2024, as printed: on the matrix itself, in double precision."""
    a, b, c = COEFFICIENTS
    wide = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48), (40, 16 * 9)])
def test_orthogonal_is_newton_schulz_and_nearly_orthogonal(shape):
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=rng)
    made = orthogonal(matrix)
    torch.testing.assert_close(made.double(), newton_schulz(matrix), atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(made)
    assert values.max() < 1.3
    assert values.median() > 0.6


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_on_matrices_it_is_torchs_muon():
    start = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    own = Muon([ours], weight_decay=0.1)
    own.param_groups[0]["lr"] = 0.02
    other = torch.optim.Muon(
        [theirs],
        lr=0.02,
        weight_decay=0.1,
        momentum=MOMENTUM,
        nesterov=True,
        ns_coefficients=COEFFICIENTS,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(3):
        gradient = torch.randn(48, 96, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        other.step()
    moved = (theirs - start).norm()  # torch's works in bfloat16
    assert (ours - theirs).norm() < 0.01 * moved


def test_a_kernel_is_one_row_per_output_channel():
    kernel = nn.Parameter(torch.zeros(32, 8, 3, 3))
    matrix = nn.Parameter(torch.zeros(32, 72))
    gradient = torch.randn(32, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel.grad, matrix.grad = gradient, gradient.reshape(32, 72)
    optimizer = Muon([kernel, matrix], weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    torch.testing.assert_close(kernel.detach().reshape(32, 72), matrix.detach())


def test_vectors_tables_and_thin_layers_are_left_to_adamw():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(90, 64)
            self.time_embedding = nn.Linear(64, 32)
            self.patch_embedding = nn.Conv2d(3, 64, 3)
            self.kernel = nn.Conv2d(32, 64, 3)
            self.thin = nn.Conv2d(64, 3, 3)
            self.head = nn.Linear(64, 90, bias=False)
            self.head.weight = self.wte.weight  # tied, as in GPT-2

    reader = Reader()
    moved = {Muon: [], torch.optim.AdamW: []}
    for optimizer in build_optimizers(reader, LoopSettings(1, 1, 0.1, optimizer="muon")):
        for group in optimizer.param_groups:
            moved[type(optimizer)] += map(id, group["params"])
    assert moved[Muon] == [id(reader.time_embedding.weight), id(reader.kernel.weight)]
    assert sorted(moved[Muon] + moved[torch.optim.AdamW]) == sorted(map(id, reader.parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_a_matrix(optimizer):
    rng = torch.Generator().manual_seed(0)
    wanted = torch.randn(32, 32, generator=rng)
    torch.manual_seed(0)
    module = nn.Linear(32, 32)
    settings = LoopSettings(200, 1, 0.2, optimizer=optimizer, warmup_steps=1, ema_decay=0.5)
    state = TrainingState(module, settings)
    first = None
    for _ in range(200):
        inputs = torch.randn(64, 32, generator=rng)
        loss = (module(inputs) - inputs @ wanted).square().mean()
        first = float(loss.detach()) if first is None else first
        state.update(loss)
    assert float(loss.detach()) < 1e-2 * first


SMALL = {"channels": (16, 32, 32), "norm_groups": 8, "crop": 32, "loop": LoopSettings(**LOOP)}
HAD, HAS = 4, 6


def recipe_with(**changes):
    recipe = load_recipe("flowers")
    own = dataclasses.replace(recipe.autoencoder, **SMALL | {"latent_channels": HAS} | changes)
    return dataclasses.replace(recipe, autoencoder=own)


@pytest.fixture
def pixels():
    """A picture [1, 3, 32, 48] with three times more in it than `HAD` channels can hold."""
    rng = torch.Generator().manual_seed(0)
    return (
        (torch.rand(1, 3, 16, 24, generator=rng) * 2 - 1)
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
    )


@pytest.fixture
def old(pixels):
    """An autoencoder of `HAD` latent channels that has learnt one picture a little."""
    vae = build_autoencoder(recipe_with(latent_channels=HAD))
    state = TrainingState(vae, LoopSettings(30, 1, 3e-3, optimizer="muon", warmup_steps=1))
    for _ in range(30):
        state.update((vae(pixels).sample - pixels).square().mean())
    return vae.requires_grad_(False).eval()


def test_a_grown_autoencoder_begins_as_the_one_it_grew_from(old, pixels):
    grown = build_autoencoder(recipe_with()).eval()
    grow_latents(grown, old)
    close = {"atol": 1e-4, "rtol": 1e-4}  # float32, summed in another order
    with torch.no_grad():
        before, after = old.encode(pixels).latent_dist, grown.encode(pixels).latent_dist
        torch.testing.assert_close(after.mean[:, :HAD], before.mean, **close)
        torch.testing.assert_close(after.logvar[:, :HAD], before.logvar, **close)
        decoded = grown.decode(after.mean).sample
        torch.testing.assert_close(decoded, old.decode(before.mean).sample, **close)
    new = after.mean[:, HAD:]
    assert float(new.std()) > 0.1
    assert float(after.std[:, HAD:].max()) < float(new.std())


def test_it_learns_to_use_the_new_channels(old, pixels):
    grown = build_autoencoder(recipe_with())
    grow_latents(grown, old)
    state = TrainingState(grown, LoopSettings(60, 1, 3e-3, optimizer="muon", warmup_steps=1))
    for _ in range(60):
        state.update((grown(pixels).sample - pixels).square().mean())
    with torch.no_grad():
        latents = grown.encode(pixels).latent_dist.mode()
        error = (grown.decode(latents).sample - pixels).square().mean()
        latents[:, HAD:] = 0.0
        without = (grown.decode(latents).sample - pixels).square().mean()
    assert float(without) > 1.2 * float(error)


@pytest.fixture
def run_of(dots, tmp_path, tiny_sd1):
    """Makes a place where an autoencoder is made."""

    def make(name, vae=None, **changes):
        origin = None
        if vae is not None:
            origin = dataclasses.replace(tiny_sd1, vae=vae, name="old")
        folder = tmp_path / name
        folder.mkdir()
        return TrainingRun(recipe_with(**changes), dots, folder, torch.device("cpu"), origin=origin)

    return make


def test_growing_keeps_the_old_latents_and_their_scale(run_of, old, pixels):
    old.register_to_config(scaling_factor=0.37)
    before = old.encode(pixels).latent_dist.mode()
    changes = []
    for keep in (0.0, 100.0):
        run = run_of(f"{keep}", old, loss=AutoencoderLoss(keep=keep))
        said = [info.parts for info in autoencoder_stage(run)]
        assert ("change" in said[0]) == (keep > 0)
        after = run.autoencoder().encode(pixels).latent_dist.mode()[:, :HAD]
        changes.append(float((after - before).square().mean()))
        views = EncodedViews(torch.randn(2, HAS, 4, 4), torch.zeros(2, 4, 4), ())
        assert run.latent_scale(views) == pytest.approx(0.37 if keep else views.scale)
    assert changes[1] < 0.5 * changes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_channels": HAD - 1, "loss": AutoencoderLoss(keep=1.0)},
        {"channels": (16, 32), "loss": AutoencoderLoss(keep=1.0)},
        {"loop": LoopSettings(0, 1, 1e-3)},
    ],
)
def test_what_cannot_be_kept_is_refused(run_of, old, changes):
    with pytest.raises(OptionError, match="both must agree"):
        next(autoencoder_stage(run_of("other", old, **changes)))


def test_latents_of_no_model_cannot_be_kept(run_of):
    with pytest.raises(OptionError, match="--init"):
        next(autoencoder_stage(run_of("none", loss=AutoencoderLoss(keep=1.0))))


def test_the_loop_settings_name_the_optimizer():
    settings = LoopSettings(**LOOP)
    assert settings.optimizer == "adamw"
    with pytest.raises(OptionError, match="choose adamw or muon"):
        dataclasses.replace(settings, optimizer="sgd")
