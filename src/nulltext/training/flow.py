"""The stage of a rectified-flow transformer: velocities from noisy latents and words.

    x_s = (1 - s) x_0 + s eps                           s = k u / (1 + (k - 1) u),  u = sigmoid(n)
    L   = E |v_theta(x_s, 1000 s, C) - v*|^2  +  g E G(A_s)                         n ~ N(0, 1)

with k the schedule's shift and G the grounding of words (`training.grounding`), of the image's
attention A_s to the text in all joint attention below the level `grounded_below`. The target v* is
eps - x_0 or, for some of the rows, what an epsilon-model of the same latents makes of x_s. That
model, the teacher, knows these latents, scaled, at the timestep t of equal signal-to-noise ratio:

    z = x_s / sqrt((1 - s)^2 + s^2),      ab_t / (1 - ab_t) = ((1 - s) / s)^2
    v = e - (x_s - s e) / (1 - s) = (e - x_s) / (1 - s),      e = eps_phi(z, t, C)

This is the same target without the noise of its sample, so that small batches suffice. Near s = 1
no timestep has so little signal, and 1 / (1 - s) magnifies what the teacher does wrong: from
`highest_taught` on, the target is the plain one, as it is at the end of the training.

The text encoder is the teacher's, twice, and frozen. Its hidden states are large and far from zero
mean: the transformer trains on standardised ones, and `folded` moves mean and deviation into its
first layers, so that an exported model reads the encoders' own. In place of T5, Stable Diffusion 3
pads the text with any number N of zeros. They have no places and so remain one and the same token:
one token whose attention logits are raised by log N stands for all of them, exactly. N is drawn
anew for each row, so that a trained model takes any number.
Sources: Liu et al. 2023 (rectified flow), eq. 1; Esser et al. 2024 (Stable Diffusion 3), sec. 3.1
(logit-normal levels), sec. 5.3.2, eq. 23 (shift); Salimans and Ho 2022, app. D, for predictions of
one kind made of another's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nulltext.attention.maps import StepMaps
from nulltext.diffusion.schedule import DiscreteSchedule
from nulltext.image.images import to_pil
from nulltext.image.strip import Tile, tile_grid
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.training.components import common_words, seeded
from nulltext.training.dataset import Example, compose, plain_caption
from nulltext.training.grounding import CaptionTokenizer, grounding_loss
from nulltext.training.loop import step_generator
from nulltext.training.recipe import FlowRecipe, Recipe
from nulltext.training.views import EncodedViews

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

TIME_SCALE = 1000.0
"""The transformer is fed 1000 s."""
COLUMNS, TOGETHER = 8, 8
SAMPLE_SEED, HELD_OUT_SEED = 7, 11
SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 4.0
DESCRIBED = 512
"""Captions whose embeddings give mean and deviation."""
LEAST_DEVIATION = 1e-3
BLANK = 256
"""Zeros that Stable Diffusion 3 puts in T5's place, unless told otherwise."""


class TextFeatures(NamedTuple):
    """What a transformer of the Stable Diffusion 3 family reads of captions."""

    context: Tensor
    """[B, L, 2 w], or [1, 1, 2 w]: hidden states of the second last layer, twice."""
    pooled: Tensor
    """[B, 2 w]: the last layer's at the end of the text, normalised, twice."""


@dataclass(frozen=True)
class Standardisation:
    """Mean and deviation of text features, channel by channel."""

    mean: TextFeatures
    deviation: TextFeatures

    def __call__(self, features: TextFeatures) -> TextFeatures:
        """Shift and scale features to zero mean and unit variance."""
        rows = zip(features, self.mean, self.deviation, strict=True)
        return TextFeatures(*((own - mean) / deviation for own, mean, deviation in rows))

    @classmethod
    def of(cls, features: TextFeatures) -> Standardisation:
        """Measure features [B, …, 2 w]."""
        flat = [own.flatten(0, -2) for own in features]
        means = TextFeatures(*(own.mean(dim=0) for own in flat))
        spread = (own.std(dim=0).clamp(min=LEAST_DEVIATION) for own in flat)
        return cls(means, TextFeatures(*spread))


class JointTraining:
    """Joint attention in training: N blank tokens as one, and maps of image-to-text attention.

    Equal to the library's own processor on a text with N zeros at its end, but in rounding.
    """

    def __init__(self) -> None:
        self.blank_logits = torch.zeros(1)
        """[B] or [1]: log N."""
        self.maps: StepMaps | None = None
        self.grid = (0, 0)
        """Rows and columns of image tokens."""

    def attach(self, transformer: SD3Transformer2DModel) -> None:
        """Use this in all of a transformer's joint attention."""
        for index, block in enumerate(transformer.transformer_blocks):
            block.attn.set_processor(_JointProcessor(self, f"transformer_blocks.{index}"))


class _JointProcessor:
    def __init__(self, shared: JointTraining, name: str) -> None:
        self.shared, self.name = shared, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states.shape[1], encoder_hidden_states.shape[1]

        def joined(own: nn.Module, norm: Any, added: nn.Module, added_norm: Any) -> Tensor:
            both = ((own, norm, hidden_states), (added, added_norm, encoder_hidden_states))
            rows = []
            for layer, normalise, tokens in both:
                heads = layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                rows.append(heads if normalise is None else normalise(heads))
            return torch.cat(rows, dim=2)

        q = joined(attn.to_q, attn.norm_q, attn.add_q_proj, attn.norm_added_q)
        k = joined(attn.to_k, attn.norm_k, attn.add_k_proj, attn.norm_added_k)
        v = joined(attn.to_v, None, attn.add_v_proj, None)
        logits = q @ (k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        blank = logits.new_zeros(len(self.shared.blank_logits), 1, 1, image + text)
        blank[..., -1] = self.shared.blank_logits.view(-1, 1, 1)
        probabilities = (logits + blank).float().softmax(dim=-1)
        if self.shared.maps is not None:
            words = probabilities[:, :, :image, image:-1].mean(dim=1).transpose(1, 2)
            self.shared.maps.passes[self.name] = [words.unflatten(-1, self.shared.grid)]
        out = (probabilities.to(v) @ v).transpose(1, 2).flatten(2)
        hidden, context = out.split((image, text), dim=1)
        if not attn.context_pre_only:
            context = attn.to_add_out(context)
        return attn.to_out[0](hidden), context


def build_transformer(recipe: Recipe, *, side: int, channels: int, text: int) -> Any:
    """Build an untrained transformer whose blocks begin as the identity (adaLN-Zero).

    Args: side: of the square latents. channels: of latents. text: width of one text encoder.

    Source: Peebles and Xie 2023 (DiT), sec. 3.2, on adaLN-Zero.
    """
    from diffusers import SD3Transformer2DModel

    sizes = recipe.flow
    with seeded(recipe.seed + 3):
        transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=sizes.patch,
            in_channels=channels,
            out_channels=channels,
            num_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.head_width,
            joint_attention_dim=2 * text,
            caption_projection_dim=sizes.heads * sizes.head_width,
            pooled_projection_dim=2 * text,
            pos_embed_max_size=2 * side // sizes.patch,
            qk_norm="rms_norm",
        )
    zeros = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        zeros += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeros:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_flow_scheduler(recipe: FlowRecipe) -> Any:
    """Build the schedule that is exported."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TIME_SCALE), shift=recipe.shift)


@torch.no_grad()
def folded(transformer: Any, text: Standardisation) -> Any:
    """Copy a transformer that reads standardised text, as one that reads the encoders' own.

    W (c - m) / d + b = (W / d) c + (b - W m / d).
    """
    result = copy.deepcopy(transformer)
    first = (result.context_embedder, result.time_text_embed.text_embedder.linear_1)
    for layer, mean, deviation in zip(first, text.mean, text.deviation, strict=True):
        layer.weight /= deviation
        layer.bias -= layer.weight @ mean
    return result


@torch.no_grad()
def embed_twice(
    model: LatentDiffusion, ids: Sequence[Sequence[int]]
) -> tuple[Tensor, TextFeatures]:
    """Compute what a model's own UNet reads of token ids, [B, L, w], and what a transformer does.

    The pooled features are those before any projection.
    """
    encoder: Any = model.components["text_encoder"]
    with torch.autocast(model.device.type, enabled=False):  # hidden states of up to 100
        output = encoder(torch.tensor(ids, device=model.device), output_hidden_states=True)
    hidden, pooled = output.hidden_states[-2].float(), output.pooler_output.float()
    twice = TextFeatures(torch.cat([hidden] * 2, dim=-1), torch.cat([pooled] * 2, dim=-1))
    return output.last_hidden_state.float(), twice


def measure_text(model: LatentDiffusion, views: EncodedViews, recipe: Recipe) -> Standardisation:
    """Measure the text features of captions of the views."""
    rng, examples = step_generator(recipe.seed, 0), views.examples
    rows = torch.randint(len(examples), (DESCRIBED,), generator=rng)
    captions = [compose(examples[i], recipe.captions, (), rng) for i in rows]
    tokenize = CaptionTokenizer(model)
    return Standardisation.of(embed_twice(model, [tokenize(c).ids for c in captions])[1])


def flow_pipeline(
    teacher: LatentDiffusion, transformer: Any, text: Standardisation, recipe: Recipe
) -> StableDiffusion3Pipeline:
    """Put a trained transformer into a library's pipeline, with its teacher's other parts."""
    from diffusers import StableDiffusion3Pipeline
    from diffusers.models.attention_processor import JointAttnProcessor2_0
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    own: Any = teacher.components["text_encoder"]
    width = own.config.hidden_size
    config = CLIPTextConfig(**{**own.config.to_dict(), "projection_dim": width})
    encoders = [CLIPTextModelWithProjection(config) for _ in range(2)]
    for encoder in encoders:
        encoder.text_model.load_state_dict(own.state_dict())
        with torch.no_grad():
            encoder.text_projection.weight.copy_(torch.eye(width))
    vae = copy.deepcopy(teacher.vae)
    vae.register_to_config(shift_factor=vae.config.shift_factor or 0.0)  # the pipeline needs one
    ordinary = folded(transformer, text)
    ordinary.set_attn_processor(JointAttnProcessor2_0())
    return StableDiffusion3Pipeline(
        transformer=ordinary,
        scheduler=build_flow_scheduler(recipe.flow),
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        text_encoder_3=None,
        tokenizer=teacher.tokenizer,
        tokenizer_2=copy.deepcopy(teacher.tokenizer),
        tokenizer_3=None,
    )


def logit_normal_levels(uniform: Tensor, shift: float) -> Tensor:
    """Turn numbers in (0, 1), uniform, into levels s: k u / (1 + (k - 1) u), u = sigmoid(n)."""
    level = torch.sigmoid(torch.special.ndtri(uniform))
    return shift * level / (1.0 + (shift - 1.0) * level)


def stratified(count: int, rng: torch.Generator) -> Tensor:
    """Draw one number from each of `count` equal parts of (0, 1), in random order: [count]."""
    jitter = torch.rand(count, generator=rng, dtype=torch.float64).clamp(1e-6, 1.0 - 1e-6)
    return ((torch.randperm(count, generator=rng) + jitter) / count).float()


def equal_snr_timesteps(alphas_cumprod: Tensor, levels: Tensor) -> Tensor:
    """Return the timesteps, with fractions, at which diffusion has the levels' signal-to-noise.

    Args: alphas_cumprod: [T]. levels: [B], s in (0, 1); beyond the schedule's ends, the end.
    Returns: [B], float32, in [0, T - 1].
    """
    ab = alphas_cumprod.double().cpu()
    of_timestep = 0.5 * (ab.log() - (1.0 - ab).log())
    s = levels.double().cpu()
    wanted = (1.0 - s).log() - s.log()
    timesteps = np.arange(len(ab), dtype=np.float64)[::-1]
    found = np.interp(wanted.numpy(), of_timestep.flip(0).numpy(), timesteps)
    return torch.from_numpy(found).float().to(levels.device)


def teacher_velocity(
    model: LatentDiffusion, latents: Tensor, levels: Tensor, embeds: Tensor, timesteps: Tensor
) -> Tensor:
    """Compute v of an epsilon-model at flow latents x_s [B, C, h, w], levels [B]."""
    s = levels.view(-1, 1, 1, 1)
    scaled = latents / ((1.0 - s).square() + s.square()).sqrt()
    eps = model.network(scaled, timesteps, encoder_hidden_states=embeds).sample.float()
    return (eps - latents) / (1.0 - s)


class FlowStage:
    """Training of the transformer on encoded views, with a teacher or without."""

    stage = "flow"

    def __init__(
        self,
        teacher: LatentDiffusion,
        transformer: Any,
        views: EncodedViews,
        recipe: Recipe,
        held_out: tuple[Tensor, Sequence[Example]] | None = None,
    ) -> None:
        """Args: teacher: whose autoencoder and text encoder are kept, too. held_out: latents
        [N, C, h, w], float32, scaled, and their labels."""
        self.teacher, self.transformer, self.views = teacher, transformer, views
        self.module: nn.Module = transformer
        self.recipe, self.settings, self.held_out = recipe, recipe.flow, held_out
        self.teacher_share = self.settings.teacher_share
        self.joint = JointTraining()
        self.joint.attach(transformer)
        self.fillers = common_words()
        self.tokenize = CaptionTokenizer(teacher)
        assert isinstance(teacher.schedule, DiscreteSchedule)
        self.alphas_cumprod = torch.from_numpy(teacher.schedule.alphas_cumprod).float()
        self.lowest_taught = _lowest_level(self.alphas_cumprod)
        self.standardise = measure_text(teacher, views, recipe)

    @property
    def device(self) -> torch.device:
        """Where all networks are."""
        return self.teacher.device

    def follow(self, progress: float) -> None:
        """Choose the share of the teacher's targets."""
        taught = progress < self.settings.teacher_until
        self.teacher_share = self.settings.teacher_share if taught else 0.0

    def loss(self, rng: torch.Generator, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        rows = torch.randint(len(self.views.examples), (batch_size,), generator=rng)
        clean = self.views.latents[rows].float() * float(self.teacher.vae.config.scaling_factor)
        levels = logit_normal_levels(stratified(batch_size, rng), settings.shift)
        noise = torch.randn(clean.shape, generator=rng)
        blank = torch.rand(batch_size, generator=rng) * math.log(max(settings.most_blank, 1))
        taught = torch.rand(batch_size, generator=rng) < self.teacher_share
        examples = [self.views.examples[row] for row in rows]
        captions = [compose(e, self.recipe.captions, self.fillers, rng) for e in examples]
        tokenized = [self.tokenize(caption) for caption in captions]
        clean, levels, noise, blank = (x.to(self.device) for x in (clean, levels, noise, blank))
        embeds, features = self._embed([caption.ids for caption in tokenized])
        s = levels.view(-1, 1, 1, 1)
        latents, target = (1.0 - s) * clean + s * noise, noise - clean
        taught = taught.to(self.device) & (levels < settings.highest_taught)
        taught &= levels > self.lowest_taught
        if bool(taught.any()):
            target[taught] = self._teach(latents[taught], levels[taught], embeds[taught])
        grounded = settings.loss.grounding > 0
        self.joint.maps = StepMaps(latents[0, 0].numel()) if grounded else None
        predicted = self.velocity(latents, levels, features, blank)
        square = (predicted - target).square().mean()
        parts = {"velocity": float(square.detach())}
        if self.joint.maps is None:
            return square, parts
        visible = (levels < settings.loss.grounded_below).float()
        masks = self.views.masks[rows].float().to(self.device) / 255.0 * visible.view(-1, 1, 1)
        spans = [caption.spans for caption in tokenized]
        outside = grounding_loss(self.joint.maps, captions, spans, masks)
        self.joint.maps = None
        parts["astray"] = float(outside.detach())
        return square + settings.loss.grounding * outside, parts

    def velocity(
        self, latents: Tensor, levels: Tensor, features: TextFeatures, blank_logits: Tensor
    ) -> Tensor:
        """Compute v_theta [B, C, h, w], float32, under the encoders' own text features.

        Args: levels: [B]. blank_logits: [B] or [1], log N.
        """
        width = features.context.shape[-1]
        zeros = features.context.new_zeros(len(latents), 1, width)
        context = torch.cat([features.context, zeros], dim=1)
        own = self.standardise(TextFeatures(context, features.pooled))
        patch = self.settings.patch
        self.joint.blank_logits = blank_logits
        self.joint.grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
        output = self.transformer(
            hidden_states=latents,
            encoder_hidden_states=own.context,
            pooled_projections=own.pooled,
            timestep=TIME_SCALE * levels,
            return_dict=False,
        )[0]
        return output.float()

    @torch.no_grad()
    def held_out_loss(self, *, of_teacher: bool = False, batch: int = 16) -> float:
        """Measure transformer or teacher against the plain target, at fixed levels and noise."""
        assert self.held_out is not None
        clean, examples = self.held_out
        rng, total = step_generator(HELD_OUT_SEED, 0), 0.0
        levels = logit_normal_levels(stratified(len(clean), rng), self.settings.shift)
        noise = torch.randn(clean.shape, generator=rng)
        for part in torch.arange(len(clean)).split(batch):
            x0, eps, s = (x[part].to(self.device) for x in (clean, noise, levels))
            latents = x0 + s.view(-1, 1, 1, 1) * (eps - x0)
            embeds, features = self._embed_texts([plain_caption(examples[i]) for i in part])
            if of_teacher:
                velocity = self._teach(latents, s, embeds)
            else:
                velocity = self.velocity(latents, s, features, self._blank(1))
            total += float((velocity - (eps - x0)).square().mean()) * len(part)
        return total / len(clean)

    def picture(self) -> Image.Image:
        prompts = self.settings.prompts
        latents = self.sample_latents(prompts)
        images = torch.cat([self.teacher.decode(rows).cpu() for rows in latents.split(TOGETHER)])
        tiles = [Tile(to_pil(image), text) for image, text in zip(images, prompts, strict=True)]
        return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])

    @torch.no_grad()
    def sample_latents(
        self,
        prompts: Sequence[str],
        num_steps: int = SAMPLE_STEPS,
        guidance_scale: float = SAMPLE_GUIDANCE,
    ) -> Tensor:
        """Draw latents [N, C, h, w], float32, by Euler steps; the k-th depends on prompt and k."""
        scheduler = build_flow_scheduler(self.settings)
        scheduler.set_timesteps(num_steps)
        shape = self.views.latents.shape[1:]
        noise = [
            torch.randn(shape, generator=step_generator(SAMPLE_SEED, row))
            for row in range(len(prompts))
        ]
        finished = []
        for part in torch.arange(len(prompts)).split(TOGETHER):
            texts = [prompts[i] for i in part]
            features = self._embed_texts([""] * len(texts) + texts)[1]
            latents = torch.stack([noise[i] for i in part]).to(self.device)
            for s, cleaner in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
                levels = s.expand(2 * len(texts)).to(self.device)
                both = self.velocity(torch.cat([latents] * 2), levels, features, self._blank(1))
                null, prompt = both.chunk(2)
                velocity = null + guidance_scale * (prompt - null)
                latents = latents + float(cleaner - s) * velocity
            finished.append(latents)
        return torch.cat(finished)

    def _blank(self, rows: int) -> Tensor:
        return torch.full((rows,), math.log(BLANK), device=self.device)

    @torch.no_grad()
    def _teach(self, latents: Tensor, levels: Tensor, embeds: Tensor) -> Tensor:
        timesteps = equal_snr_timesteps(self.alphas_cumprod, levels)
        return teacher_velocity(self.teacher, latents, levels, embeds, timesteps)

    def _embed(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, TextFeatures]:
        return embed_twice(self.teacher, ids)

    def _embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, TextFeatures]:
        tokenize = self.teacher.tokenize
        return self._embed([list(tokenize(t, allow_empty=True).token_ids) for t in texts])


def _lowest_level(alphas_cumprod: Tensor) -> float:
    """Return the level whose signal-to-noise ratio is the first timestep's."""
    signal, noise = float(alphas_cumprod[0]) ** 0.5, (1.0 - float(alphas_cumprod[0])) ** 0.5
    return noise / (signal + noise)
