"""The readers that are fuzzed: every reader of files that may come from somewhere else.

A reader gets the path of a damaged file and either reads it or raises a `UserError`. Where the file
is one of several in a folder, `prepare` makes the others, once. The damaged file lies in the folder
under the name that it has in the corpus, `corpus/READER/`, with `__` for a slash; a name that
begins with "broke-" is of an input that once broke the reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nulltext.jobs.job_files import Job


CORPUS = Path(__file__).parent / "corpus"
BROKE = "broke-"

SMALL: dict[str, Any] = {
    "name": "small",
    "resolution": 16,
    "photo_side": 16,
    "autoencoder": {"channels": [8, 8], "latent_channels": 4, "norm_groups": 4, "crop": 8},
    "denoiser": {
        "channels": [32, 32],
        "attention": [True, False],
        "heads": 2,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
    },
    "captioner": {
        "side": 16,
        "patch": 8,
        "width": 16,
        "vision_layers": 1,
        "heads": 2,
        "language_layers": 1,
        "prefix_length": 2,
        "hidden": 16,
    },
}
"""A recipe of networks that load in no time."""


@dataclass(frozen=True)
class Reader:
    """A function that reads a file, and the files that it needs besides."""

    read: Callable[[Path], object]
    share: int = 1
    """Number of inputs for each input of a reader with a share of 1."""
    prepare: Callable[[Path], object] = str
    """Fills a folder with the files that are read with the damaged one; str does nothing."""


def corpus_of(reader: str) -> list[Path]:
    """List all files of a reader's corpus by name."""
    return sorted(path for path in (CORPUS / reader).iterdir() if path.is_file())


def read_inversion(path: Path) -> None:
    """As `nulltext inspect` does."""
    from nulltext.cli.inversions import described
    from nulltext.inversion.header import InversionOutline
    from nulltext.inversion.record import Inversion

    described(InversionOutline.load(path))
    Inversion.load(path)


def read_image(path: Path) -> None:
    """Load a photo and convert it for a model."""
    from nulltext.image.images import largest_centred, to_tensor
    from nulltext.image.photos import load_photo

    photo = load_photo(path)
    to_tensor(photo, largest_centred(*photo.size), (16, 16))


def read_mask(path: Path) -> None:
    """Load a mask and fit it to a crop of a photo of 24 x 16 pixels."""
    from nulltext.image.images import CropBox
    from nulltext.image.masks import crop_around, load_mask, mask_on_crop

    mask = load_mask(path)
    crop_around(mask, (24, 16), 8)
    mask_on_crop(mask, (24, 16), CropBox(0, 0, 16, 16))


def read_datasets(path: Path) -> None:
    """Read a folder of photos and captions as `train` and `study` do."""
    from nulltext.errors import UserError
    from nulltext.evaluation.datasets import read_photos
    from nulltext.training.dataset import read_dataset

    try:
        read_dataset(path.parent)
    except UserError:
        read_photos(path.parent, split="train")
        raise
    read_photos(path.parent, split="train")


def read_jobs(path: Path) -> None:
    """Read jobs as `nulltext batch --dry-run` does; raise for the first line that is refused."""
    from nulltext.errors import DataError
    from nulltext.jobs.job_files import Refused
    from nulltext.jobs.job_files import read_jobs as lines

    refused = [job.reason if isinstance(job, Refused) else _refusal(job) for job in lines(path)]
    if reasons := [reason for reason in refused if reason]:
        raise DataError(reasons[0])


def _refusal(job: Job) -> str:
    from nulltext.errors import UserError
    from nulltext.jobs.request import check_options

    try:
        check_options(job.edit_options())
    except UserError as error:
        return str(error)
    return ""


def read_pie_edits(path: Path) -> None:
    """Read PIE-Bench as `nulltext benchmark pie` does, masks included."""
    from nulltext.evaluation.pie import decode_mask, read_pie

    for item in read_pie(path.parent):
        item.path.is_file()
        decode_mask(item.runs)


def read_recipe(path: Path) -> None:
    """Read a recipe of `train`."""
    from nulltext.training.recipe import load_recipe

    load_recipe(str(path))


def read_captioner(path: Path) -> None:
    """Load the captioner whose folder the file is in."""
    from nulltext.captioning.folder import load_captioner

    load_captioner(_root(path, "config.json", "mapper.safetensors"), device="cpu")


def read_model(path: Path) -> None:
    """Load the model whose folder the file is in."""
    from nulltext.models.load import load

    load(_root(path, "model_index.json"), device="cpu")


def read_adapter(path: Path) -> None:
    """Load a model with the file as the option that it is named after."""
    from nulltext.models.load import load

    given: dict[str, Any] = {path.stem.rpartition("--")[2]: path}
    load(_root(path, "model_index.json"), device="cpu", **given)


def read_prompt(path: Path) -> None:
    """Split a prompt into words with the bundled model's tokenizer."""
    from nulltext.words.prompts import find_words, tokenize

    text = path.read_bytes().decode("utf-8", "replace")
    prompt = tokenize(bundled_tokenizer(), text, max_length=20)
    find_words(prompt, prompt.words[0].text)


def _root(path: Path, *names: str) -> Path:
    """Find the folder above a file that holds the others, or the file itself, by name."""
    return next(p for p in path.parents if all((p / n).exists() or path == p / n for n in names))


def two_photos(folder: Path) -> None:
    """Make a.png and b.png with a caption each."""
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}\n", encoding="utf-8")


def captioner_folder(folder: Path) -> None:
    """Save a captioner with random weights."""
    import torch

    from nulltext.captioning.folder import save_captioner
    from nulltext.training.captioner import build_captioner

    made = build_captioner(_recipe().captioner, bundled_tokenizer(), name="small", seed=0)
    save_captioner(made, folder, dtype=torch.float32)


def model_folder(folder: Path) -> None:
    """Save a model with random weights, its UNet's weights in shards."""
    from diffusers import StableDiffusionPipeline

    from nulltext.training import components

    recipe = _recipe()
    pipe = StableDiffusionPipeline(
        vae=components.build_autoencoder(recipe),
        text_encoder=components.build_text_encoder(recipe, bundled_tokenizer()),
        tokenizer=bundled_tokenizer(),
        unet=components.build_unet(recipe),
        scheduler=components.build_scheduler(recipe),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="200KB")


@cache
def bundled_tokenizer() -> Any:
    """Load the bundled model's tokenizer."""
    from nulltext.models.checkpoint import Checkpoint
    from nulltext.models.load import BUNDLED_FOLDER

    return Checkpoint.at(BUNDLED_FOLDER / "flowers").tokenizer("tokenizer")


def _recipe() -> Any:
    from nulltext.training.recipe import Recipe, from_json

    return from_json(Recipe, SMALL, "recipe")


READERS = {
    "inversion": Reader(read_inversion, share=8),
    "image": Reader(read_image, share=10),
    "mask": Reader(read_mask, share=4),
    "labels": Reader(read_datasets, share=6, prepare=two_photos),
    "jobs": Reader(read_jobs, share=4),
    "pie": Reader(read_pie_edits, share=2),
    "recipe": Reader(read_recipe, share=4),
    "prompt": Reader(read_prompt, share=2),
    "captioner": Reader(read_captioner, prepare=captioner_folder),
    "model": Reader(read_model, prepare=model_folder),
    "adapter": Reader(read_adapter, prepare=model_folder),
}
