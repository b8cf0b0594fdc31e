"""Null-text inversion as a diffusers pipeline.

    pipe = NullTextPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipe.invert(image, "a photo of a cat")
    images = pipe("a photo of a dog").images

The pipeline holds the parts of a Stable Diffusion 1, 2 or XL pipeline and calls `nulltext.invert`
and `nulltext.edit` on them; the pixels are theirs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import BaseOutput
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from nulltext.diffusion.loops import StepInfo
from nulltext.editing.loop import Edit, edit
from nulltext.editing.spec import EditSpec
from nulltext.errors import ModelError, OptionError
from nulltext.image.images import CropBox, SizeChoice, to_pil
from nulltext.image.photos import PhotoLike
from nulltext.inversion.base import InversionMethod
from nulltext.inversion.invert import invert, invert_many
from nulltext.inversion.record import Inversion
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.load import BUNDLED_FOLDER, bundled_models, from_pipe

OutputType = Literal["pil", "np", "pt", "latent"]

LARGEST_SEED = 2**62


@dataclass
class NullTextPipelineOutput(BaseOutput):
    """Edited pictures."""

    images: Any
    """One per target: a list of PIL images, an array [K, H, W, 3] in [0, 1], a tensor [K, 3, H, W]
    in [0, 1], or latents [K, C, h, w], by `output_type`."""
    edit: Edit
    """The reconstruction that was sampled beside them, its PSNR, the masks and the cost."""


class NullTextPipeline(DiffusionPipeline):
    """Invert photos and edit them by their prompts, with a Stable Diffusion 1, 2 or XL base model.

    A safety checker is kept for `save_pretrained` and is not run; pass `safety_checker=None` to
    load none. Load LoRAs and learnt tokens into a stock pipeline, then use `from_pipe`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "text_encoder_2",
        "tokenizer_2",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    ]
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        force_zeros_for_empty_prompt: bool = True,
        requires_safety_checker: bool = True,
    ) -> None:
        """Take the parts of a pipeline; `from_pretrained` and `from_pipe` are shorter.

        Args:
            scheduler: any whose config describes the model's noise levels; sampling is DDIM.
            text_encoder_2, tokenizer_2: of SDXL.
        """
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.register_to_config(
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            requires_safety_checker=requires_safety_checker,
        )
        self.inversion: Inversion | None = None
        """The last photo's, which a call edits that is given none."""
        self._model: LatentDiffusion | None = None
        self._model_parts: list[Any] = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a folder or a hub id as every diffusers pipeline does; or a bundled model's name."""
        name = str(pretrained_model_name_or_path)
        place = str(BUNDLED_FOLDER / name) if name in bundled_models() else name
        pipe: Self = super().from_pretrained(place, **kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """Use the parts of a pipeline as they are: weights, device and precision are shared.

        Args:
            pipeline: a diffusers pipeline, also a subclass or one that only samples otherwise.
            kwargs: parts and settings that replace the pipeline's.

        Raises:
            ModelError: the parts are not those of a supported model.
        """
        found = from_pipe(pipeline)
        if found.text.network != "unet":
            kind = type(pipeline).__name__
            raise ModelError(
                f"This is for Stable Diffusion 1, 2 and XL, and a {kind} has another network; use "
                "nulltext.from_pipe(pipe) with nulltext.invert and nulltext.edit."
            )
        names = {*inspect.signature(cls.__init__).parameters}
        given = {**pipeline.components, **pipeline.parameters, **kwargs}
        pipe = cls(**{name: value for name, value in given.items() if name in names})
        pipe.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        return pipe

    @property
    def model(self) -> LatentDiffusion:
        """The pipeline's parts as a model of nulltext, with shared weights.

        Raises:
            ModelError: the parts are not those of a supported model.
        """
        parts = list(self.components.values())
        if self._model is None or any(
            now is not then for now, then in zip(parts, self._model_parts, strict=True)
        ):
            self._model, self._model_parts = from_pipe(self), parts
        return self._model

    def invert(
        self,
        image: PhotoLike | list[PhotoLike],
        prompt: str | list[str],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        method: str | InversionMethod | None = None,
        crop: CropBox | None = None,
        size: SizeChoice = None,
        generator: torch.Generator | None = None,
    ) -> Inversion | list[Inversion]:
        """Invert a photo, or a list of photos with a list of prompts; see `nulltext.invert`.

        The inversion of a single photo is kept in `inversion`.

        Args:
            image: a PIL image, a file, an array or a tensor.
            prompt: what it shows.
            num_inference_steps: by default the budget's, else 50.
            guidance_scale: of the reconstruction; by default 7.5.
            method: an inversion method or its name; by default that of the default budget.
            crop, size: which part of the photo the model sees, and at which size.
            generator: seeds the methods that draw noise; without one, the seed is 0.

        Raises:
            UserError: one of `ImageError`, `PromptError`, `OptionError`, `ModelError`.
        """
        options: dict[str, Any] = {
            "num_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "method": method,
            "crop": crop,
            "size": size,
            "seed": 0 if generator is None else _drawn_seed(generator),
        }
        with self._progress() as on_step:
            if isinstance(image, list) or isinstance(prompt, list):
                images = image if isinstance(image, list) else [image]
                prompts = prompt if isinstance(prompt, list) else [prompt]
                return invert_many(self.model, images, prompts, on_step=on_step, **options)
            self.inversion = invert(self.model, image, prompt, on_step=on_step, **options)
        return self.inversion

    def __call__(
        self,
        prompt: str | EditSpec | Sequence[str | EditSpec],
        inversion: Inversion | None = None,
        *,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        strength: float | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> NullTextPipelineOutput | tuple[Any]:
        """Edit an inverted photo, to one or several targets at once; see `nulltext.edit`.

        Args:
            prompt: what the photo shall show; an `EditSpec` where a target has a mask, a blend,
                weights or an editor of its own.
            inversion: by default that of the last photo.
            negative_prompt: of prompts, what the pictures shall not show.
            guidance_scale: of prompts; by default the inversion's.
            strength: of prompts, how far the edit may go: 0 the reconstruction, 0.5 the default, 1
                the words alone.
            output_type: what `images` are; see `NullTextPipelineOutput`.
            return_dict: whether to return a `NullTextPipelineOutput`, or `(images,)`.

        Raises:
            UserError: one of `PromptError`, `OptionError`, `InversionFileError`.
        """
        inversion = self.inversion if inversion is None else inversion
        if inversion is None:
            raise OptionError("There is no inversion to edit; call invert first, or pass one.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise OptionError(f"output_type is '{output_type}'; choose pil, np, pt or latent.")

        def spec_of(target: str | EditSpec) -> EditSpec:
            if isinstance(target, EditSpec):
                return target
            spec = EditSpec(target, guidance_scale=guidance_scale, negative=negative_prompt)
            return spec if strength is None else spec.at_strength(strength)

        prompts = [prompt] if isinstance(prompt, str | EditSpec) else prompt
        of_prompts = {
            "negative_prompt": negative_prompt,
            "guidance_scale": guidance_scale,
            "strength": strength,
        }
        given = [name for name, value in of_prompts.items() if value is not None]
        if given and prompts and all(isinstance(target, EditSpec) for target in prompts):
            raise OptionError(
                f"{given[0]} is for plain prompts, and every target is an EditSpec; set it there."
            )
        specs = [spec_of(target) for target in prompts]
        with self._progress() as on_step:
            made = edit(self.model, inversion, specs, on_step=on_step)
        images = _images(made, output_type)
        return NullTextPipelineOutput(images, made) if return_dict else (images,)

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write model_index.json for the stock pipeline of these parts, so that it opens them."""
        super().save_config(save_directory, **kwargs)
        stock = (
            diffusers.StableDiffusionPipeline
            if self.text_encoder_2 is None
            else diffusers.StableDiffusionXLPipeline
        )
        known = inspect.signature(stock.__init__).parameters
        path = Path(save_directory) / self.config_name
        index = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: index[name] for name in index if name in known or name.startswith("_")}
        kept["_class_name"] = stock.__name__
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @contextmanager
    def _progress(self) -> Iterator[Callable[[StepInfo], None]]:
        """Show a bar per stage, as `set_progress_bar_config` says."""
        bars: dict[str, Any] = {}

        def show(info: StepInfo) -> None:
            if info.stage not in bars:
                bars[info.stage] = self.progress_bar(total=info.total)
                bars[info.stage].set_description(info.stage)
            bars[info.stage].update(info.index - bars[info.stage].n)

        try:
            yield show
        finally:
            for bar in bars.values():
                bar.close()


def _drawn_seed(generator: torch.Generator) -> int:
    """Draw a seed, so that a generator's next inversion has another."""
    seed = torch.randint(
        LARGEST_SEED, (1,), generator=generator, device=generator.device, dtype=torch.int64
    )
    return int(seed)


def _images(made: Edit, output_type: OutputType) -> Any:
    if output_type == "pil":
        return [to_pil(image) for image in made.images]
    if output_type == "latent":
        return made.latents
    return VaeImageProcessor().postprocess(made.images, output_type)
