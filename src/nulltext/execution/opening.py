"""Opening what a request names: photos with their crops, and words with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nulltext.errors import ImageError
from nulltext.framing import SizeChoice, box_for
from nulltext.images import CropBox, to_tensor, to_uint8
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.photos import Photo, load_photo
from nulltext.prompts import find_words, has_word
from nulltext.record import Inversion

SAME_PHOTO = 2.0
"""Mean absolute difference, in 8-bit levels, up to which two crops are of the same photo: decoders
and resizers differ by less, other photos by far more."""


def open_photo(image: Path, crop: str | None, size: SizeChoice) -> tuple[Photo, CropBox]:
    """Load a photo, and find the region that is asked for in it."""
    box = None if crop is None else CropBox.parse(crop)
    photo = load_photo(image)
    if box is None:
        box = box_for(photo.size, size)
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


def check_same_photo(inversion: Inversion, photo: Photo) -> None:
    """Refuse to use an inversion beside another photo than its own.

    Raises:
        ImageError: the photo's pixels in the inversion's crop are not those that were inverted.
    """
    header = inversion.header
    if photo.sha256 == header.image_sha256:
        return
    if list(photo.size) == header.image_size:
        height, width = inversion.photo.shape[-2:]
        pixels = to_uint8(to_tensor(photo, CropBox.from_list(header.crop), (height, width)))
        difference = (pixels.float() - inversion.photo.float()).abs().mean().item()
        if difference <= SAME_PHOTO:
            return
    raise ImageError(
        "The inversion was made from another photo "
        f'({header.image_size[0]} x {header.image_size[1]}, "{header.prompt}"); '
        "pass that photo, or invert this one."
    )
