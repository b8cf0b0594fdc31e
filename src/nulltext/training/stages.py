"""A training run and its stages, in order; each stage is a generator that reports its updates.

    tokenizer -> autoencoder -> decoder            words to tokens; pixels to latents and back
                            \\-> views -> denoiser   photos to latents; latents from noise and words
    captioner                                      photos to words, independent of the others

Decoder and denoiser need the encoder only, so they may train at the same time. All state is in one
folder: killed at any moment, every stage continues from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nulltext.errors import DataError, OptionError
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import from_pipe
from nulltext.training.autoencoder import AutoencoderStage, DecoderStage
from nulltext.training.captioner import CaptionerStage, PretrainedVision, build_captioner
from nulltext.training.components import (
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_unet,
    grow_latents,
    train_tokenizer,
    warm_start,
    warm_start_embeddings,
)
from nulltext.training.dataset import (
    TRAIN,
    Example,
    as_floats,
    compose,
    digest,
    load_pixels,
    read_dataset,
    shrink,
)
from nulltext.training.denoiser import DenoiserStage
from nulltext.training.flow import FlowStage, build_transformer
from nulltext.training.loop import (
    Objective,
    TrainInfo,
    checkpoint_path,
    load_average,
    step_generator,
    train,
    updates_done,
)
from nulltext.training.recipe import CaptionSettings, LoopSettings, Recipe
from nulltext.training.views import ENCODED_TOGETHER, EncodedViews, encode_views

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusionPipeline
    from transformers import CLIPTokenizer

HELD_OUT_EVERY = 20
MAX_HELD_OUT = 64

Stage = Generator[TrainInfo, None, None]


class Splits(NamedTuple):
    """Examples to train on, and examples for sample pictures."""

    trained: list[Example]
    held_out: list[Example]


@dataclass(frozen=True)
class TrainingRun:
    """A recipe, its photos, what it begins with, and the folder of its state."""

    recipe: Recipe
    photos: Path
    folder: Path
    """Folder of checkpoints, sample pictures and encoded views."""
    device: torch.device
    autocast: torch.dtype | None = None
    """Dtype of the matrix products, None for float32."""
    origin: LatentDiffusion | None = None
    """Model to begin with, as far as its tensors fit."""
    vision: PretrainedVision | None = None
    """Vision model for the captioner to begin with; None for a new one."""

    @cached_property
    def splits(self) -> Splits:
        """The photos, with one in 20 held out for the sample pictures where no split is given."""
        everything = read_dataset(self.photos)
        trained = [example for example in everything if example.split == TRAIN]
        held_out = [example for example in everything if example.split != TRAIN]
        if not held_out:
            trained = [e for i, e in enumerate(everything) if i % HELD_OUT_EVERY]
            held_out = everything[::HELD_OUT_EVERY]
        if not trained:
            raise DataError(f"'{self.photos}' has no photo of the split '{TRAIN}' to train on.")
        return Splits(trained, held_out)

    @property
    def examples(self) -> list[Example]:
        return self.splits.trained

    @cached_property
    def pixels(self) -> Tensor:
        """Training photos, uint8 [N, 3, S, S]."""
        return load_pixels(self.examples, self.recipe.photo_side)

    @cached_property
    def held_out_pixels(self) -> Tensor:
        """Held-out photos, uint8 [N, 3, S, S]."""
        return load_pixels(self.splits.held_out[:MAX_HELD_OUT], self.recipe.photo_side)

    @cached_property
    def words(self) -> str:
        """Digest of all captions and labels, and of the tokenizer's settings."""
        words = [(e.captions, e.kind, e.colour, e.background) for e in self.examples]
        return digest(repr((words, self.recipe.tokenizer)).encode())

    @cached_property
    def identity(self) -> str:
        photos = digest(self.pixels.numpy().tobytes())
        origin = None if self.origin is None else self.origin.fingerprint
        return repr((self.recipe.resolution, self.recipe.photo_side, photos, origin))

    def depends_on(self, settings: str) -> str:
        return f"{self.identity} {settings}"

    def train(self, objective: Objective, loop: LoopSettings, settings: str) -> Stage:
        yield from train(
            objective,
            loop,
            self.folder,
            seed=self.recipe.seed,
            recipe=self.depends_on(settings),
            autocast=self.autocast,
        )

    def tokenizer(self) -> CLIPTokenizer:
        from transformers import CLIPTokenizer

        folder = self.folder / f"tokenizer-{self.words}"
        if (folder / "tokenizer.json").is_file():
            saved: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
            return saved
        settings = CaptionSettings(empty=0.0, filler=0.0)
        captions = [text for e in self.examples for text in e.captions]
        rng = step_generator(self.recipe.seed, 0)
        captions += [compose(e, settings, (), rng).text for e in self.examples if not e.captions]
        tokenizer = train_tokenizer(captions, self.recipe.tokenizer)
        tokenizer.save_pretrained(folder)
        return tokenizer

    def autoencoder(self) -> AutoencoderKL:
        """Load the trained autoencoder, with the later decoder if there is one.

        Raises:
            OptionError: its stage has not been trained to the end.
        """
        path = checkpoint_path(self.folder, "autoencoder")
        done, wanted = updates_done(path), self.recipe.autoencoder.loop.steps
        if done < wanted or not path.is_file():
            raise OptionError(
                f"The autoencoder has {done} of {wanted} updates; train it first "
                "(--stage autoencoder)."
            )
        vae = build_autoencoder(self.recipe)
        load_average(vae, path)
        later = checkpoint_path(self.folder, "decoder")
        if later.is_file():
            for name in ("decoder", "post_quant_conv"):
                load_average(getattr(vae, name), later, f"{name}.")
        return vae.requires_grad_(False)

    @property
    def views_path(self) -> Path:
        return self.folder / "views.safetensors"

    def views_identity(self, vae: AutoencoderKL) -> str:
        recipe = self.recipe
        settings = [asdict(recipe.views), recipe.seed, self.words, encoder_digest(vae)]
        return self.depends_on(json.dumps(settings))

    def denoiser_settings(self, views: EncodedViews, vae: AutoencoderKL) -> str:
        """Text of what a denoiser's weights depend on beside photos, seed and loop."""
        settings = asdict(replace(self.recipe.denoiser, prompts=()))
        settings.pop("loop")
        captions, scale = asdict(self.recipe.captions), self.latent_scale(views)
        return json.dumps([settings, captions, scale, self.views_identity(vae)])

    def latent_scale(self, views: EncodedViews) -> float:
        """Return the scaling factor: the origin's if its latents are kept, or for unit variance."""
        if self.origin is not None and self.recipe.autoencoder.keeps_latents:
            return float(self.origin.vae.config.scaling_factor)
        return views.scale

    def teacher(self) -> LatentDiffusion:
        """Return the model whose autoencoder, text encoder and noise a flow is trained with.

        Raises:
            OptionError: no model was named, or it is not of the recipe's kind.
        """
        return check_teacher(self.recipe, self.origin)

    def flow_settings(self) -> str:
        """Text of what a flow's weights depend on beside photos, teacher, seed and loop."""
        settings = asdict(replace(self.recipe.flow, prompts=()))
        settings.pop("loop")
        views = self.views_identity(self.teacher().vae)
        return json.dumps([settings, asdict(self.recipe.captions), views])

    def build_transformer(self) -> SD3Transformer2DModel:
        teacher = self.teacher()
        encoder: Any = teacher.components["text_encoder"]
        return build_transformer(
            self.recipe,
            side=self.recipe.resolution // teacher.vae_stride,
            channels=int(teacher.vae.config.latent_channels),
            text=int(encoder.config.hidden_size),
        )

    def build_pipeline(self, vae: AutoencoderKL, views: EncodedViews) -> StableDiffusionPipeline:
        from diffusers import StableDiffusionPipeline

        tokenizer = self.tokenizer()
        unet = build_unet(self.recipe)
        text_encoder = build_text_encoder(self.recipe, tokenizer)
        if self.origin is not None:
            old: Any = self.origin.components["text_encoder"]
            warm_start(unet, dict(self.origin.unet.named_parameters()))
            warm_start(text_encoder, dict(old.named_parameters()))
            warm_start_embeddings(
                text_encoder.get_input_embeddings(),
                old.get_input_embeddings(),
                tokens=tokenizer.get_vocab(),
                old_tokens=self.origin.tokenizer.get_vocab(),
            )
        vae.register_to_config(scaling_factor=self.latent_scale(views))
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=build_scheduler(self.recipe),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def encoder_digest(vae: AutoencoderKL) -> str:
    own = [(n, w) for n, w in vae.named_parameters() if n.startswith(("encoder.", "quant_conv."))]
    return digest(b"".join(weight.detach().cpu().numpy().tobytes() for _, weight in sorted(own)))


def check_origin(recipe: Recipe, origin: LatentDiffusion | None) -> None:
    """Refuse to keep another model's autoencoder, or its latents, where that is impossible.

    Raises:
        OptionError: no model was named, or its autoencoder does not fit.
    """
    own = recipe.autoencoder
    if not own.keeps_latents:
        return
    if origin is None:
        raise OptionError(
            "The recipe keeps another model's autoencoder (0 updates) or its latents (keep): name "
            "that model with --init."
        )
    old = origin.vae.config
    unchanged = own.loop.steps == 0
    more = own.latent_channels - old.latent_channels
    if more < 0 or (unchanged and more) or own.channels != tuple(old.block_out_channels):
        raise OptionError(
            f"The recipe's autoencoder has {own.latent_channels} latent channels and channels "
            f"{list(own.channels)}, that of '{origin.name}' {old.latent_channels} and "
            f"{list(old.block_out_channels)}: to keep it, both must agree"
            + ("." if unchanged else ", or the recipe have more latent channels.")
        )


def check_teacher(recipe: Recipe, origin: LatentDiffusion | None) -> LatentDiffusion:
    """Return the model that a flow is trained with, if it can be.

    Raises:
        OptionError: there is none, it predicts no noise, reads two texts, or has another size.
    """
    if origin is None:
        raise OptionError(
            f"The recipe '{recipe.name}' trains a flow on another model's latents and words: name "
            "that model with --init (flowers)."
        )
    if origin.schedule.prediction != "epsilon" or "text_encoder_2" in origin.components:
        raise OptionError(
            f"'{origin.name}' cannot teach a flow: give --init a Stable Diffusion 1.x model, with "
            "one text encoder, that predicts epsilon."
        )
    unit = origin.vae_stride * recipe.flow.patch
    if recipe.resolution % unit:
        raise OptionError(
            f"The recipe's resolution is {recipe.resolution}; choose a multiple of {unit}, which "
            f"is {recipe.flow.patch} latent pixels of '{origin.name}'."
        )
    return origin


def autoencoder_stage(run: TrainingRun) -> Stage:
    check_origin(run.recipe, run.origin)
    vae, own = build_autoencoder(run.recipe), run.recipe.autoencoder
    origin = None if run.origin is None else run.origin.vae
    if origin is not None:
        grow_latents(vae, origin)
    kept = origin if own.loss.keep > 0 else None
    vae.to(run.device).train()
    objective = AutoencoderStage(vae, run.pixels, run.held_out_pixels, run.recipe, origin=kept)
    yield from run.train(objective, own.loop, _without_loops(asdict(own)))


def decoder_stage(run: TrainingRun) -> Stage:
    vae = run.autoencoder()
    settings = encoder_digest(vae)
    vae.to(run.device).train()
    objective = DecoderStage(vae, run.pixels, run.held_out_pixels, run.recipe)
    yield from run.train(objective, run.recipe.autoencoder.decoder_loop, settings)


def encoded_views(run: TrainingRun, vae: AutoencoderKL) -> Generator[TrainInfo, None, EncodedViews]:
    """Encode the photos' views, or read them if they have been encoded."""
    identity = run.views_identity(vae)
    views = EncodedViews.load(run.views_path, identity)
    if views is None:
        vae.to(run.device).eval()
        views = yield from encode_views(vae, run.pixels, run.examples, run.recipe)
        views.save(run.views_path, identity)
    return views


def denoiser_stage(run: TrainingRun) -> Stage:
    vae = run.autoencoder()
    views = yield from encoded_views(run, vae)
    model = from_pipe(run.build_pipeline(vae, views).to(run.device))
    objective = DenoiserStage(replace(model, name=run.recipe.name), views, run.recipe)
    objective.module.train()
    settings = run.denoiser_settings(views, vae)
    yield from run.train(objective, run.recipe.denoiser.loop, settings)


def flow_stage(run: TrainingRun) -> Stage:
    teacher = run.teacher()
    views = yield from encoded_views(run, teacher.vae)
    objective = flow_objective(run, views)
    yield from run.train(objective, run.recipe.flow.loop, run.flow_settings())


def flow_objective(run: TrainingRun, views: EncodedViews) -> FlowStage:
    """Build the untrained transformer beside its teacher."""
    teacher = run.teacher()
    for part in teacher.components.values():
        part.to(run.device).requires_grad_(False).eval()
    transformer = run.build_transformer().to(run.device).train()
    pixels = as_floats(shrink(run.held_out_pixels, run.recipe.resolution))
    latents = torch.cat([teacher.encode(rows).cpu() for rows in pixels.split(ENCODED_TOGETHER)])
    labels = run.splits.held_out[:MAX_HELD_OUT]
    return FlowStage(teacher, transformer, views, run.recipe, (latents, labels))


def captioner_stage(run: TrainingRun) -> Stage:
    recipe = run.recipe
    captioner = build_captioner(
        recipe.captioner, run.tokenizer(), name=recipe.name, seed=recipe.seed, vision=run.vision
    )
    captioner.model.to(run.device).eval()
    objective = CaptionerStage(
        captioner, run.pixels, run.held_out_pixels, run.examples, recipe.captioner
    )
    labels = [[repr(e.captions), e.kind, e.colour, e.background] for e in run.examples]
    settings = f"{_without_loops(asdict(recipe.captioner))} {digest(json.dumps(labels).encode())}"
    if run.vision is not None:
        settings += f" {run.vision.fingerprint}"
    yield from run.train(objective, recipe.captioner.loop, settings)


def _without_loops(settings: dict[str, object]) -> str:
    return json.dumps({k: v for k, v in settings.items() if not k.endswith("loop")})


STAGES = {
    "autoencoder": autoencoder_stage,
    "decoder": decoder_stage,
    "denoiser": denoiser_stage,
    "flow": flow_stage,
    "captioner": captioner_stage,
}
