"""Opening what a request names: photos with their crops, and words with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nulltext.errors import ImageError
from nulltext.image.images import CropBox, SizeChoice, default_crop
from nulltext.image.photos import Photo, load_photo
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.words.prompts import find_words, has_word


def open_photo(image: Path, crop: str | None, size: SizeChoice) -> tuple[Photo, CropBox]:
    """Load a photo, and find the region that is asked for in it."""
    box = None if crop is None else CropBox.parse(crop)
    photo = load_photo(image)
    if box is None:
        box = default_crop(photo.size, size)
    box.check_inside(photo.size)
    return photo, box


def open_photos(
    images: Sequence[Path], crop: str | None, size: SizeChoice
) -> list[tuple[Photo, CropBox]]:
    """`open_photo` of each; what is wrong with one of several names it.

    Raises:
        ImageError: a photo cannot be read, or the crop does not fit it.
    """
    opened = []
    for image in images:
        try:
            opened.append(open_photo(image, crop, size))
        except ImageError as error:
            if len(images) == 1 or str(image) in str(error):
                raise
            raise ImageError(f"'{image}': {error}") from error
    return opened


def weights_of_targets(
    model: LatentDiffusion, targets: Sequence[str], factors: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """For each target, the weights whose words it has.

    Raises:
        PromptError: no target has the word.
    """
    prompts = {target: model.tokenize(target) for target in targets}
    owned: dict[str, dict[str, float]] = {target: {} for target in targets}
    for word, factor in factors.items():
        homes = [target for target, prompt in prompts.items() if has_word(prompt, word)]
        if not homes:
            find_words(prompts[targets[0]], word)  # says which words there are
        for target in homes:
            owned[target][word] = factor
    return owned
