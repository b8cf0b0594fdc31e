"""Latent diffusion as four functions: encode, decode, embed, predict.

    z_0 = s (mode of q(z | x) - m)      encode, s the autoencoder's scaling factor, m its shift
    x   = D(z_0 / s + m)                decode
    C   = text encoders(prompt)         embed
    o   = UNet(z, t, C)                 predict: eps, v or x0, as the checkpoint was trained

Everything that depends on the checkpoint (scale, prediction type, token limit, resolution) is read
from its configs; its `TextConditioner` makes what its family is conditioned on. Latents
and embeddings are float32 whatever the weights are (float64 for float64 weights).
Source: Rombach et al. 2022, sec. 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nulltext.constants import GUIDANCE_SCALE
from nulltext.diffusion.finite import check_finite
from nulltext.diffusion.guidance import CONDITIONAL_ONLY, GuidanceScale
from nulltext.diffusion.levels import Grid, Level, noise_estimate
from nulltext.diffusion.schedule import Schedule
from nulltext.errors import OptionError, convert_out_of_memory
from nulltext.image.images import Sizes
from nulltext.models.families import Guidance, TextConditioner
from nulltext.models.fingerprint import fingerprints, with_true_cfg
from nulltext.models.network_calls import Passes, applied, differentiable_in_half
from nulltext.models.placement import (
    PLANS,
    MemoryPlan,
    at_work,
    execution_device,
    in_pieces,
    is_hooked,
    safe_dtype,
)
from nulltext.models.side_files import KnownWords
from nulltext.words.prompts import TokenizedPrompt

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

BUCKET_UNITS = 16
"""Parts of a side that buckets are counted in."""


@dataclass(frozen=True)
class LatentDiffusion:
    """A loaded checkpoint. Its weights are never changed."""

    name: str
    """What it was loaded as: a bundled name, a folder, a hub id."""
    network: Any
    """What denoises: a UNet, or a transformer (Stable Diffusion 3, FLUX)."""
    vae: AutoencoderKL
    text: TextConditioner
    """Tokenizers and text encoders, and how the family's UNet is conditioned on them."""
    schedule: Schedule
    loaded_fingerprints: tuple[str, ...]
    """Fingerprints of the weights as they were loaded, in their own precision."""
    loaded_digests: tuple[str, ...]
    """The same of the weights as they are used: another one after a cast to half precision."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Long and short sides that its family was trained at, in sixteenths of its own side."""
    weight_delta: Mapping[str, Tensor] | None = None
    """A low-rank difference that the UNet runs with; the weights themselves stay."""
    memory: MemoryPlan = PLANS["plenty"]
    """How work is cut to fit the device."""
    true_cfg: bool = False
    """Whether a model that has no null branch of its own (FLUX) is guided by one all the same."""
    offload: bool = False
    """Whether text encoders and autoencoder are on the UNet's device only while they work. Their
    own weights then stay where they are, on the CPU as a rule."""
    known_words: KnownWords | None = None
    """Words that it was taught, where they were kept beside its weights."""
    adapters: Sequence[Mapping[str, Any]] = ()
    """LoRAs, learnt tokens and another autoencoder that were added; see `Adapters.described`."""
    notes: tuple[str, ...] = ()
    """What its user should know before using it, in whole sentences."""
    guidance_scale: float = GUIDANCE_SCALE
    """w of inversions that are given none: what is suggested beside its weights, else 7.5."""
    passes: Passes = field(default_factory=Passes, compare=False)
    """UNet evaluations so far; a run has its own, see `counted`."""

    def __repr__(self) -> str:
        height, width = self.resolution
        return (
            f"LatentDiffusion({self.name!r}, {width} x {height}, {self.network.dtype}, "
            f"device={str(self.device)!r}, guidance_scale={self.guidance_scale:g})"
        )

    @property
    def fingerprint(self) -> str:
        """The identity of the weights as they are now, to which a saved inversion is bound.

        It changes where a LoRA is loaded, switched off or merged, and returns with the weights.
        """
        return self.fingerprints[0]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprint, then the one that older libraries led to: what carries any of them was
        made with these weights."""
        now = fingerprints(self.components, self.schedule, self.text.settings)
        found = self.loaded_fingerprints if now == self.loaded_digests else now
        # guidance by another kind of branch: inversions are not exchangeable
        return tuple(map(with_true_cfg, found)) if self.true_cfg else found

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """All modules with weights, by their names in a checkpoint's folder."""
        return {self.text.network: self.network, "vae": self.vae, **self.text.modules}

    @property
    def unet(self) -> Any:
        """The network, by its name in Stable Diffusion 1, 2 and XL."""
        return self.network

    @property
    def tokenizer(self) -> Any:
        """The tokenizer by which words and tokens are counted."""
        return self.text.tokenizer

    @property
    def precision(self) -> torch.dtype:
        """Of latents, embeddings and noise predictions: float32, or float64 for such weights."""
        return torch.promote_types(self.network.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the UNet computes: latents and embeddings live there."""
        return execution_device(self.network)

    @property
    def vae_stride(self) -> int:
        """Pixels per latent pixel: 8 in Stable Diffusion."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of one photo's latents at the model's own resolution."""
        size = getattr(self.network.config, "sample_size", None)
        if size is None:  # FLUX: its autoencoder knows
            size = int(self.vae.config.sample_size) // self.vae_stride
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.vae.config.latent_channels), int(height), int(width)

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was made for."""
        _, height, width = self.latents_shape
        return height * self.vae_stride, width * self.vae_stride

    @property
    def sizes(self) -> Sizes:
        """The sizes that it works at: its own, its family's buckets, and any multiple of 8, or 16
        where the network takes patches of 2 x 2 latents for tokens."""
        height, width = self.resolution
        step = self.vae_stride * self.text.patch
        unit, buckets = min(height, width) // BUCKET_UNITS, self.buckets
        if unit % step:
            buckets = ()
        sizes = {(unit * a, unit * b) for a, b in buckets}
        sizes |= {(b, a) for a, b in sizes}
        side = self.text.largest_side
        most = None if side is None else side * self.vae_stride
        return Sizes((width, height), step, tuple(sorted(sizes)), most)

    def grid(self, num_steps: int, size: tuple[int, int] | None = None) -> Grid:
        """Return the `num_steps` steps of a run, noisiest first.

        Args:
            size: (height, width) of the picture in pixels, on which the levels of some flow models
                depend; by default the model's own.

        Raises:
            OptionError: the model has no such number of steps.
        """
        height, width = size or self.resolution
        side = self.vae_stride * self.text.patch
        return self.schedule.grid(num_steps, (height // side) * (width // side))

    @property
    def max_tokens(self) -> int:
        """Length of a padded prompt, L, begin and end of text included."""
        return self.text.max_tokens

    @property
    def guidance(self) -> Guidance:
        """How a guidance scale other than 1 acts here."""
        return "branches" if self.true_cfg else self.text.guidance

    def check_guidance(self, guidance_scale: float, negative: str | None = None) -> None:
        """Refuse a guidance scale, or a negative prompt, that cannot act.

        Raises:
            OptionError: the model has no guidance, or no null branch for a negative prompt.
        """
        if self.guidance == "none" and guidance_scale != CONDITIONAL_ONLY:
            raise OptionError(
                f"The model '{self.name}' was distilled to work without guidance, so "
                f"{guidance_scale:g} does nothing; leave the guidance out (it is 1), or pass "
                "--true-cfg."
            )
        if self.guidance != "branches" and negative:
            raise OptionError(
                f"The model '{self.name}' has no null branch, from which a negative prompt would "
                "steer away; leave it out, or pass --true-cfg."
            )

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """(R, D) of an embedded prompt: L token rows, then the family's pooled ones if any."""
        return self.text.embeds_shape

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode photos to latents, deterministically (the posterior's mode).

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W multiples of `vae_stride`.

        Returns:
            scaled latents [B, C, h, w], `precision`, on the model's device.

        Raises:
            NumericalError: the autoencoder left the finite numbers.
            OutOfMemoryError: the device's memory did not suffice.
        """
        with self._autoencoder(len(images), (images.shape[-2], images.shape[-1])) as to:
            posterior = self.vae.encode(images.to(**to)).latent_dist
            latents = posterior.mode().to(self.device, self.precision)
        check_finite(latents, "The autoencoder's encoding of the photo")
        return (latents - self._vae_shift) * self._vae_scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w] to images [B, 3, H, W], float32, about [-1, 1].

        Raises:
            NumericalError: the autoencoder left the finite numbers.
            OutOfMemoryError: the device's memory did not suffice.
        """
        height, width = (side * self.vae_stride for side in latents.shape[-2:])
        with self._autoencoder(len(latents), (height, width)) as to:
            latents = latents / self._vae_scale + self._vae_shift
            images: Tensor = self.vae.decode(latents.to(**to)).sample
        check_finite(images, "The autoencoder's picture")
        return images.float()

    def tokenize(self, prompt: str, *, allow_empty: bool = False) -> TokenizedPrompt:
        """Split a prompt into tokens and words.

        Raises:
            PromptError: it is empty (unless allowed), too long, or unreadable to the tokenizer.
        """
        return self.text.tokenize(prompt, allow_empty=allow_empty)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, "" included: [B, R, D], `precision`.

        Each goes through the text encoder alone, so that its neighbours do not change its last bit.

        Raises:
            PromptError: a prompt is too long or unreadable to the tokenizer.
            NumericalError: a text encoder left the finite numbers.
        """
        with convert_out_of_memory(), ExitStack() as parts:
            for encoder in self.text.modules.values():
                parts.enter_context(at_work(encoder, self._home_of(encoder)))
            rows = [self.text.embed(prompt) for prompt in prompts]
        embeds = torch.cat(rows).to(self.device, self.precision)
        check_finite(embeds, "The text encoder's embedding of the prompt")
        return embeds

    def counted(self, photos: int = 1) -> LatentDiffusion:
        """Return the same model with its own count of UNet evaluations, from zero."""
        return replace(self, passes=Passes(photos))

    def predict(
        self,
        latents: Tensor,
        level: Level,
        embeds: Tensor,
        rows: Sequence[int] | None = None,
        guidance: GuidanceScale | None = None,
    ) -> Tensor:
        """Return the network's own output; B UNet evaluations, differentiable in the embeddings.

        Args:
            latents: [B, C, h, w], scaled. embeds: [B, R, D]. Both any float dtype.
            rows: [B], the photos that they belong to, where not all are there.
            guidance: what a guidance-distilled network is fed; by default 1. Others ignore it.

        Returns:
            o [B, C, h, w], `precision`; `schedule.prediction` says what it means.
        """
        dtype = self.network.dtype
        fed: GuidanceScale | None = None
        if self.text.guidance == "input":
            fed = CONDITIONAL_ONLY if guidance is None else guidance
        size = (latents.shape[-2] * self.vae_stride, latents.shape[-1] * self.vae_stride)

        def output_under(rows_of_text: Tensor) -> Tensor:
            output = self.text.output(
                self.network, latents.to(dtype), level, rows_of_text, size=size, guidance=fed
            )
            self.passes.note(output, rows)
            return output

        with applied(self.network, self.weight_delta):
            if dtype == torch.float16 and torch.is_grad_enabled() and embeds.requires_grad:
                output = differentiable_in_half(output_under, embeds, dtype)
            else:
                output = output_under(embeds.to(dtype))
        return output.to(self.precision)

    def predict_noise(self, latents: Tensor, level: Level, embeds: Tensor) -> Tensor:
        """Return eps [B, C, h, w], whatever the checkpoint predicts; arguments as of `predict`."""
        output = self.predict(latents, level, embeds)
        latents = latents.to(self.precision)
        return noise_estimate(self.schedule.prediction, level, latents, output)

    @property
    def token_rows(self) -> Tensor:
        """[R, 1], 1 for the rows of an embedding that are tokens', 0 for a pooled one (SDXL)."""
        rows, _ = self.embeds_shape
        tokens = torch.arange(rows, device=self.device) < self.max_tokens
        return tokens[:, None].to(self.precision)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no UNet weight collect gradients inside the block, and keep for a backward pass what
        the memory plan says; all is restored after it."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            with self.memory.backward(self.network):
                yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def to_diffusers(self) -> Any:
        """Make its family's stock diffusers pipeline, with a DDIM or a flow-matching scheduler.

        Weights are shared: what is loaded into the pipeline works through this model, too.
        """
        return self.text.pipeline(self.network, self.vae, self.schedule.scheduler())

    @contextmanager
    def _autoencoder(self, batch: int, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Run the autoencoder where it computes, in a safe precision and in pieces that fit.

        Gives the device and dtype that it takes its input in.
        """
        device = self._home_of(self.vae) or execution_device(self.vae)
        dtype = safe_dtype(self.vae)
        cast = None if dtype == self.vae.dtype else dtype
        with (
            convert_out_of_memory(),
            at_work(self.vae, self._home_of(self.vae), cast),
            in_pieces(self.vae, batch, size, self.resolution),
        ):
            yield {"device": device, "dtype": dtype}

    def _home_of(self, part: torch.nn.Module) -> torch.device | None:
        """Find where a part is taken for its work; None if it stays, or accelerate moves it."""
        return self.device if self.offload and not is_hooked(part) else None

    @property
    def _vae_scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _vae_shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)
