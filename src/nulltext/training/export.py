"""From checkpoints to the folders of a model and of a captioner, in half precision, with a card.

A model is an ordinary Stable Diffusion folder with no file of 16 MB or more (larger weights are
sharded), safetensors and JSON only: diffusers, transformers and `nulltext --model FOLDER` open it
alike. Checkpoints of unfinished stages are exported as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nulltext.captioning.captioner import vision_class
from nulltext.captioning.folder import check_captioner_target, save_captioner
from nulltext.errors import OptionError, OutputError
from nulltext.models.checkpoint import quiet_libraries
from nulltext.models.known_figure import write_known
from nulltext.models.load import load
from nulltext.models.side_files import GUIDANCE_FILE, write_guidance, write_words
from nulltext.storage.files import replace_file, replacing_folder
from nulltext.storage.untrusted import MEGABYTE, parse_json, read_text
from nulltext.training.captioner import LICENCE, build_captioner, find_known_photos
from nulltext.training.dataset import known_words
from nulltext.training.flow import flow_pipeline, measure_text
from nulltext.training.loop import (
    checkpoint_path,
    load_average,
    read_checkpoint,
    step_generator,
    updates_done,
)
from nulltext.training.recipe import BETA_START, Recipe
from nulltext.training.stages import TrainingRun
from nulltext.training.views import EncodedViews

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

SHARD = "15MB"
RECIPE_FILE, CARD_FILE = "recipe.json", "README.md"

MODEL_CARD = """# {name}

A small text-to-image latent diffusion model in Stable Diffusion format (float16), made by
`nulltext train` to edit photographs with: {resolution} x {resolution} pixels,
{latents} latent channels at 1/{stride} of the resolution, epsilon-prediction, scaled-linear betas
from {beta_start:g} to {beta_end:g} (Stable Diffusion 1.x: 0.012).

Parameters: {sizes}.
{suggestion}
## Training
{origin} Code: {code}. Every number is in `recipe.json`.

| stage | updates | seen per update | optimiser | learning rate |
|---|---|---|---|---|
{stages}

## Limits
It has seen {photos} photos{kinds}, at {resolution} pixels, and nothing else: other motifs come out
as what it knows, words that are not in its captions (`words.json` lists those that are) mean little
to it, and shapes are weaker than colours. It may remember training photos. It is no general image
model.

## Licence
The one that its author chooses. The photos belong to their authors, whose own licences hold;
they are not part of the model's folder.
"""
FLOW_CARD = """# {name}

A small text-to-image rectified-flow transformer in Stable Diffusion 3 format (float16), made by
`nulltext train` to edit photographs with: {resolution} x {resolution} pixels, {latents} latent
channels at 1/{stride} of the resolution, patches of {patch} x {patch} of them, {layers} joint
blocks of width {width} with normalised queries and keys, shift {shift:g}. Autoencoder and
tokenizer are those of `{teacher}` (fingerprint {fingerprint}), and so is the text encoder, which
takes both CLIP places (its projection is the identity). There is no T5:

    StableDiffusion3Pipeline.from_pretrained("{name}", text_encoder_3=None, tokenizer_3=None)

Parameters: {sizes}.
{suggestion}
## Training
The transformer began from noise: {updates} of {total} updates of {batch} encoded views,
{optimizer}, learning rate {rate:g}. {teaching} Code: {code}. Every number is in `recipe.json`.

## Limits
It has seen {photos} photos{kinds}, at {resolution} pixels, and nothing else: other motifs come out
as what it knows, words that are not in its captions mean little to it, and shapes are weaker than
colours. It may remember training photos. It is no general image model.

## Licence
The one that its author chooses. The photos belong to their authors, whose own licences hold;
they are not part of the model's folder.
"""
TEACHING = """{share:.0%} of the targets were velocities of that model's own UNet at equal \
signal-to-noise ratio until {until:.0%} of the training; the rest is the photos' own."""
SUGGESTION = """
Inversions and edits take the guidance scale {scale:g} unless given one (`{file}`): at higher ones \
colours may come out garish.
"""
CAPTIONER_CARD = """# {name}: a captioner

ClipCap (Mokady, Hertz and Bermano 2021): {vision} at {side} pixels, an MLP as mapping
network and GPT-2, made by `nulltext train --stage captioner` from {photos} photos, {updates} of
{total} updates, seed {seed}. {size:.1f} MB in float16; `nulltext caption IMAGE --captioner FOLDER`.

It knows no other words than the captions of these photos, and calls everything by them. Read what
it says before you use it.

{licence}The photos belong to their authors.
"""
VISION_LICENCE = """The vision model began with the weights of '{name}' and was changed in training:
it is under the licence that they came with{where}, the rest under that of the package.
"""
OWN_LICENCE = "The weights are under the licence of the package. "


def check_output(folder: Path, recipe: Recipe) -> None:
    """Refuse to put a model where something else is.

    Raises:
        OutputError: there is a file, a folder with something in it, or another recipe's model.
    """
    if not folder.exists() and not folder.parent.is_dir():
        raise OutputError(f"The folder '{folder.parent}' does not exist: create it first.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        name = parse_json(read_text(folder / RECIPE_FILE, MEGABYTE))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != recipe.name:
        raise OutputError(
            f"'{folder}' holds something that was not made by the recipe '{recipe.name}': choose "
            "another name with -o."
        )


def export_model(run: TrainingRun, folder: Path, *, commit: str | None = None) -> None:
    """Write the model to `folder`, with the commit of the code that trained it on its card.

    Raises:
        OptionError: the autoencoder is unfinished, there is no denoiser or flow yet, or it was
            trained with other settings.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_output(folder, run.recipe)
    EXPORTS[run.recipe.makes](run, folder, commit)


def _export_diffusion(run: TrainingRun, folder: Path, commit: str | None) -> None:
    vae = run.autoencoder()
    views = EncodedViews.load(run.views_path, run.views_identity(vae))
    path = checkpoint_path(run.folder, "denoiser")
    if views is None or not path.is_file():
        raise OptionError(
            f"There is no denoiser in '{run.folder}' yet; train it first (--stage denoiser)."
        )
    if read_checkpoint(path, None).recipe != run.depends_on(run.denoiser_settings(views, vae)):
        raise OptionError(
            f"The checkpoint '{path}' was made with other settings or photos than this recipe has; "
            "use the recipe that it was made with."
        )
    pipe = run.build_pipeline(vae, views)
    load_average(pipe.unet, path, "unet.")
    load_average(pipe.text_encoder, path, "text_encoder.")
    with replacing_folder(folder) as fresh, quiet_libraries():
        card = _model_card(run, pipe, commit)
        _write_pipeline(run, pipe, views, card, fresh)


def _export_flow(run: TrainingRun, folder: Path, commit: str | None) -> None:
    teacher = run.teacher()
    views = EncodedViews.load(run.views_path, run.views_identity(teacher.vae))
    path = checkpoint_path(run.folder, "flow")
    if views is None or not path.is_file():
        raise OptionError(f"There is no flow in '{run.folder}' yet; train it first (--stage flow).")
    if read_checkpoint(path, None).recipe != run.depends_on(run.flow_settings()):
        raise OptionError(
            f"The checkpoint '{path}' was made with other settings or photos than this recipe has; "
            "use the recipe that it was made with."
        )
    transformer = run.build_transformer()
    load_average(transformer, path)
    pipe = flow_pipeline(teacher, transformer, measure_text(teacher, views, run.recipe), run.recipe)
    with replacing_folder(folder) as fresh, quiet_libraries():
        card = _flow_card(run, pipe, commit)
        _write_pipeline(run, pipe, views, card, fresh)


def _write_pipeline(
    run: TrainingRun, pipe: Any, views: EncodedViews, card: str, folder: Path
) -> None:
    """Write a pipeline, its card and recipe, and what is kept beside its weights."""
    known = known_words(views.examples, run.recipe.captions, step_generator(run.recipe.seed, 0))
    pipe.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD)
    replace_file(folder / CARD_FILE, card.encode())
    replace_file(folder / RECIPE_FILE, run.recipe.to_json().encode())
    saved = load(folder, device="cpu")
    write_known(saved, folder)
    write_words(known, saved.fingerprint, folder)
    write_guidance(run.recipe.guidance_scale, saved.fingerprint, folder)


def _flow_card(run: TrainingRun, pipe: StableDiffusion3Pipeline, commit: str | None) -> str:
    recipe, flow, teacher = run.recipe, run.recipe.flow, run.teacher()
    kinds = Counter(example.kind for example in run.examples if example.kind)
    counts = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
    parts = {
        "transformer": pipe.transformer,
        "autoencoder": pipe.vae,
        "text encoder (twice)": pipe.text_encoder,
    }
    sizes = {name: sum(w.numel() for w in part.parameters()) for name, part in parts.items()}
    scale = recipe.guidance_scale
    return FLOW_CARD.format(
        name=recipe.name,
        resolution=recipe.resolution,
        latents=pipe.vae.config.latent_channels,
        stride=teacher.vae_stride,
        patch=flow.patch,
        layers=flow.layers,
        width=flow.heads * flow.head_width,
        shift=flow.shift,
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        sizes=", ".join(f"{name} {count / 1e6:.1f} M" for name, count in sizes.items()),
        suggestion=SUGGESTION.format(scale=scale, file=GUIDANCE_FILE) if scale else "",
        updates=updates_done(checkpoint_path(run.folder, "flow")),
        total=flow.loop.steps,
        batch=flow.loop.batch_size,
        optimizer=flow.loop.optimizer,
        rate=flow.loop.learning_rate,
        teaching=TEACHING.format(share=flow.teacher_share, until=flow.teacher_until)
        if flow.teacher_share
        else "",
        code=f"commit {commit}" if commit else "not under version control",
        photos=len(run.examples),
        kinds=f" of {counts}" if counts else "",
    )


def _model_card(run: TrainingRun, pipe: StableDiffusionPipeline, commit: str | None) -> str:
    recipe, autoencoder = run.recipe, run.recipe.autoencoder
    kinds = Counter(example.kind for example in run.examples if example.kind)
    counts = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
    parts = {"autoencoder": pipe.vae, "UNet": pipe.unet, "text encoder": pipe.text_encoder}
    sizes = {name: sum(w.numel() for w in part.parameters()) for name, part in parts.items()}
    origin = "All weights began from noise."
    if run.origin is not None:
        origin = (
            f"Weights began from the model '{run.origin.name}' (fingerprint "
            f"{run.origin.fingerprint}), as far as names and shapes allowed."
        )
    crops = f"crops of {autoencoder.crop} px"
    rows = []
    for title, stage, loop, seen in (
        ("autoencoder", "autoencoder", autoencoder.loop, crops),
        ("decoder alone", "decoder", autoencoder.decoder_loop, crops),
        ("UNet and text encoder", "denoiser", recipe.denoiser.loop, "encoded views"),
    ):
        done = updates_done(checkpoint_path(run.folder, stage))
        rows.append(
            f"| {title} | {done} of {loop.steps} | {loop.batch_size} {seen} "
            f"| {loop.optimizer} | {loop.learning_rate:g} |"
        )
    scale = recipe.guidance_scale
    return MODEL_CARD.format(
        name=recipe.name,
        resolution=recipe.resolution,
        latents=autoencoder.latent_channels,
        stride=autoencoder.stride,
        beta_start=BETA_START,
        beta_end=recipe.denoiser.beta_end,
        sizes=", ".join(f"{name} {count / 1e6:.1f} M" for name, count in sizes.items()),
        suggestion=SUGGESTION.format(scale=scale, file=GUIDANCE_FILE) if scale else "",
        origin=origin,
        code=f"commit {commit}" if commit else "not under version control",
        stages="\n".join(rows),
        photos=len(run.examples),
        kinds=f" of {counts}" if counts else "",
    )


EXPORTS = {"diffusion": _export_diffusion, "flow": _export_flow}
"""By what a recipe makes."""


def export_captioner(run: TrainingRun, folder: Path) -> None:
    """Write the captioner to `folder`.

    Raises:
        OptionError: there is no checkpoint yet, or it was made with other settings.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_captioner_target(folder)
    path, recipe = checkpoint_path(run.folder, "captioner"), run.recipe
    if not path.is_file():
        raise OptionError(
            f"There is no captioner in '{run.folder}' yet; train it first (--stage captioner)."
        )
    captioner = build_captioner(
        recipe.captioner, run.tokenizer(), name=recipe.name, seed=recipe.seed, vision=run.vision
    )
    load_average(captioner.model, path, "model.")
    captioner.model.requires_grad_(False).eval()
    rng = step_generator(recipe.seed, 0)
    captioner = replace(captioner, known_photos=find_known_photos(captioner, *run.splits, rng))

    def add_licence_and_card(fresh: Path) -> None:
        licence = OWN_LICENCE
        if run.vision is not None:
            where = ""
            if run.vision.licence is not None:
                part = vision_class(captioner.model.vision).folder
                replace_file(fresh / part / LICENCE, run.vision.licence.encode())
                where = f" ({part}/{LICENCE})"
            licence = VISION_LICENCE.format(name=run.vision.name, where=where)
        card = CAPTIONER_CARD.format(
            name=recipe.name,
            side=recipe.captioner.side,
            vision=type(captioner.model.vision).__name__,
            photos=len(run.examples),
            updates=updates_done(path),
            total=recipe.captioner.loop.steps,
            seed=recipe.seed,
            licence=licence,
            size=sum(p.stat().st_size for p in fresh.rglob("*") if p.is_file()) / 1e6,
        )
        replace_file(fresh / CARD_FILE, card.encode())

    save_captioner(captioner, folder, dtype=torch.float16, finish=add_licence_and_card)
