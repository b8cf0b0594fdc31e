"""What is fuzzed: every reader of a file that may come from a stranger, one line each.

A reader gets the path of a damaged file and either reads it or raises a `UserError`. Where a file
is one of several in a folder, `around` makes the others, once, and `placed` says under which name
the damaged one goes: that of its seed, with `__` for a slash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz.surroundings import captioner_folder, model_folder, nothing, two_photos

if TYPE_CHECKING:
    from nulltext.jobs.job_files import Job


@dataclass(frozen=True)
class Reader:
    """One way in."""

    read: Callable[[Path], object]
    """Reads the file at this path."""
    share: int = 1
    """How many inputs it gets for one of a reader with a share of 1."""
    around: Callable[[Path], None] = nothing
    """Fills a folder with what the file is read with."""


def read_inversion(path: Path) -> None:
    """As `nulltext inspect` does."""
    from nulltext.cli.saved import described
    from nulltext.inversion.header import InversionOutline
    from nulltext.inversion.record import Inversion

    described(InversionOutline.load(path))
    Inversion.load(path)


def read_image(path: Path) -> None:
    """Load, and show to a model."""
    from nulltext.image.images import largest_centred_square, to_tensor
    from nulltext.image.photos import load_photo

    photo = load_photo(path)
    to_tensor(photo, largest_centred_square(*photo.size), (16, 16))


def read_mask(path: Path) -> None:
    """Load, and lay on a crop of a photo of 24 x 16 pixels."""
    from nulltext.image.images import CropBox
    from nulltext.image.masks import crop_around, load_mask, mask_on_crop

    mask = load_mask(path)
    crop_around(mask, (24, 16), 8)
    mask_on_crop(mask, (24, 16), CropBox(0, 0, 16, 16))


def read_collections(path: Path) -> None:
    """As `train` and as `study` read a folder of photos and captions."""
    from nulltext.errors import UserError
    from nulltext.evaluation.datasets import read_items
    from nulltext.training.collection import read_collection

    try:
        read_collection(path.parent)
    except UserError:
        read_items(path.parent, split="train")
        raise
    read_items(path.parent, split="train")


def read_jobs(path: Path) -> None:
    """As `nulltext batch --dry-run` does; the first line that is refused is the file's refusal."""
    from nulltext.errors import DataError
    from nulltext.jobs.job_files import Refused
    from nulltext.jobs.job_files import read_jobs as lines

    refused = [job.reason if isinstance(job, Refused) else _unmeant(job) for job in lines(path)]
    if reasons := [reason for reason in refused if reason]:
        raise DataError(reasons[0])


def _unmeant(job: Job) -> str:
    from nulltext.errors import UserError
    from nulltext.jobs.request import check_options

    try:
        check_options(job.edit_options())
    except UserError as error:
        return str(error)
    return ""


def read_pie_edits(path: Path) -> None:
    """As `nulltext benchmark pie` does, masks included."""
    from nulltext.evaluation.pie.dataset import decode_mask, read_pie

    for item in read_pie(path.parent):
        item.path.is_file()
        decode_mask(item.runs)


def read_recipe(path: Path) -> None:
    """A recipe of `train`."""
    from nulltext.training.recipe import load_recipe

    load_recipe(str(path))


def read_captioner(path: Path) -> None:
    """The captioner's folder around the file."""
    from nulltext.captioning.folder import load_captioner

    load_captioner(_root(path, "config.json", "mapper.safetensors"), device="cpu")


def read_model(path: Path) -> None:
    """The model's folder around the file."""
    from nulltext.models.load import load

    load(_root(path, "model_index.json"), device="cpu")


def read_adapter(path: Path) -> None:
    """The file as the option that its name begins with takes it, beside a model."""
    from nulltext.models.load import load

    given: dict[str, Any] = {path.stem.rpartition("--")[2]: path}
    load(_root(path, "model_index.json"), device="cpu", **given)


def read_prompt(path: Path) -> None:
    """A prompt, as the bundled model's tokenizer counts its words."""
    from fuzz.surroundings import bundled_tokenizer
    from nulltext.words.prompts import find_words, tokenize

    text = path.read_bytes().decode("utf-8", "replace")
    prompt = tokenize(bundled_tokenizer(), text, max_length=20)
    find_words(prompt, prompt.words[0].text)


def _root(path: Path, *names: str) -> Path:
    """The folder with the others in it, wherever in it the file is."""
    return next(p for p in path.parents if all((p / n).exists() or path == p / n for n in names))


READERS = {
    "inversion": Reader(read_inversion, share=8),
    "image": Reader(read_image, share=10),
    "mask": Reader(read_mask, share=4),
    "labels": Reader(read_collections, share=6, around=two_photos),
    "jobs": Reader(read_jobs, share=4),
    "pie": Reader(read_pie_edits, share=2),
    "recipe": Reader(read_recipe, share=4),
    "prompt": Reader(read_prompt, share=2),
    "captioner": Reader(read_captioner, around=captioner_folder),
    "model": Reader(read_model, around=model_folder),
    "adapter": Reader(read_adapter, around=model_folder),
}
