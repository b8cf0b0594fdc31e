"""A person's mask: read as it comes, laid on photo or crop, and refused where it means nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nulltext.errors import ImageError
from nulltext.images import CropBox
from nulltext.masks import crop_around, load_mask, mask_on_crop


def drawn(size, *boxes, level=255):
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(level, box)
    return mask


def test_white_may_change_and_grey_may_change_partly():
    mask = drawn((6, 4), (0, 0, 2, 4))
    mask.paste(51, (2, 0, 4, 4))
    got = mask_on_crop(mask, (6, 4), CropBox(1, 0, 4, 4))
    assert got[0].tolist() == pytest.approx([1.0, 0.2, 0.2, 0.0])


def test_transparent_is_black_whatever_colour_hides_there(tmp_path):
    sheet = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    sheet.paste((255, 255, 255, 255), (0, 0, 8, 16))
    sheet.save(tmp_path / "m.png")
    grey = np.asarray(load_mask(tmp_path / "m.png"))
    assert (grey[:, :8] == 255).all()
    assert (grey[:, 8:] == 0).all()


@pytest.mark.parametrize(("level", "words"), [(0, "black everywhere"), (255, "white everywhere")])
def test_empty_and_full_masks_are_refused_by_name(tmp_path, level, words):
    Image.new("L", (16, 16), level).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=words) as caught:
        load_mask(tmp_path / "m.png")
    assert "m.png" in str(caught.value)


def test_a_mask_may_have_the_size_of_the_photo_of_the_crop_or_their_proportions():
    box, photo = CropBox(200, 0, 800, 800), (1200, 800)
    of_photo = drawn((1200, 800), (600, 400, 700, 500))
    of_crop = drawn((800, 800), (400, 400, 500, 500))
    small = drawn((300, 200), (150, 100, 175, 125))
    first, second, third = (mask_on_crop(m, photo, box) for m in (of_photo, of_crop, small))
    assert torch.equal(first, second)
    assert first.shape == third.shape == (800, 800)
    assert float((first - third).abs().mean()) < 0.01
    with pytest.raises(ImageError, match="1200 x 800"):
        mask_on_crop(drawn((500, 300), (0, 0, 9, 9)), photo, box)
    with pytest.raises(ImageError, match="no white inside the crop"):
        mask_on_crop(drawn((1200, 800), (0, 0, 100, 100)), photo, box)


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (1100, 700, 1200, 800), (300, 200, 900, 700)])
def test_the_automatic_crop_holds_the_mask_and_lies_in_the_photo(box):
    crop = crop_around(drawn((1200, 800), box), (1200, 800), 256)
    crop.check_inside((1200, 800))
    assert crop.width == crop.height >= 256
    assert crop.x <= box[0]
    assert crop.y <= box[1]
    assert crop.x + crop.width >= box[2]
    assert crop.y + crop.height >= box[3]


def test_a_mask_of_other_proportions_is_taken_to_be_of_the_centred_square():
    assert crop_around(drawn((64, 64), (0, 0, 9, 9)), (1200, 800), 256) == CropBox(200, 0, 800, 800)
