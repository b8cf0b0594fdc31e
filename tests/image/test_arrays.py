"""Arrays and tensors for photos: read by their library's conventions, or refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import nulltext
from nulltext.errors import ImageError
from nulltext.image.photos import load_photo
from support.pictures import noise, pixels, refuses

RGB = noise(10, 12, 3)
UNIT = RGB / np.float32(255)
CHANNELS_FIRST = torch.from_numpy(RGB.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "source",
    [
        *(RGB, UNIT, UNIT.astype(np.float64), np.asfortranarray(RGB)),
        *(CHANNELS_FIRST, CHANNELS_FIRST / 255, (CHANNELS_FIRST / 255)[None]),
        (CHANNELS_FIRST / 255).double().requires_grad_(),
    ],
)
def test_colour_is_what_the_pixels_were(source):
    photo = load_photo(source)
    assert photo.size == (12, 10)
    assert (pixels(photo.image) == RGB).all()
    assert photo.path is None


@pytest.mark.parametrize("bands", [0, 1, 4])
def test_grey_and_opacity(bands):
    raw = noise(9, 11, *([bands] if bands else []))
    as_tensor = torch.from_numpy(raw.copy())
    for source in (raw, raw / 255, as_tensor.movedim(-1, 0) if bands else as_tensor):
        photo = load_photo(source)
        if bands == 4:
            assert (pixels(photo.straight) == raw[..., :3]).all()
            assert (pixels(photo.alpha) == raw[..., 3]).all()
        else:
            assert (pixels(photo.image) == raw.reshape(9, 11, 1)).all()
    deep = noise(9, 11, dtype=np.uint16)
    for order in "<>":
        values = deep.astype(deep.dtype.newbyteorder(order))
        assert (pixels(load_photo(values).image) == np.rint(deep / 257)[..., None]).all()


def test_a_saved_array_is_read_as_the_array(tmp_path):
    np.save(tmp_path / "photo.npy", RGB)
    photo = load_photo(tmp_path / "photo.npy")
    assert (pixels(photo.image) == RGB).all()
    assert photo.path == tmp_path / "photo.npy"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (UNIT * 2 - 1, ["[10, 12, 3]", "float32", "from -1 to 1", "(x + 1) / 2"]),
        (torch.from_numpy(UNIT * 2 - 1).movedim(-1, 0), ["(x + 1) / 2"]),
        (UNIT * 255, ["from 0 to 255", "divide it by 255"]),
        (UNIT * 300, ["expected uint8, or float from 0 to 1."]),
        (UNIT * np.float32("nan"), ["expected uint8, or float from 0 to 1."]),
        (RGB.astype(int), ["int64", "expected uint8, or float"]),
        (RGB.transpose(2, 0, 1), ["[3, 10, 12]", "transpose(1, 2, 0)"]),
        (torch.from_numpy(UNIT), ["[10, 12, 3]", "permute(2, 0, 1)"]),
        (np.stack([RGB, RGB]), ["expected one image", "list"]),
        (CHANNELS_FIRST[None].repeat(2, 1, 1, 1), ["expected one image", "list"]),
        (RGB[0, 0], ["shape [3]", "[H, W, 3]"]),
        (RGB[:0], ["[0, 12, 3]"]),
        (RGB[:4], ["12 x 4 px"]),
        ([RGB], ["A list is not an image"]),
        (None, ["A NoneType is not an image"]),
    ],
)
def test_what_is_no_image_is_refused_by_shape_type_and_range(source, words):
    with pytest.raises(ImageError) as caught:
        load_photo(source)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    for word in words:
        assert word in message


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(np.array([{}])), "holds object"),
        (npy(RGB)[:-1], "cut off"),
        (npy(RGB).replace(b"(10, 12, 3)", b"(10**9,9,3)"), "damaged"),
        (npy(RGB).replace(b"(10, 12, 3)", b"(9999,1,99)"), "cut off"),
        (npy(RGB)[:40], "damaged"),
        (npy(RGB.astype(complex)), "holds complex128"),
    ],
)
def test_a_saved_array_is_bounded_before_it_is_read(tmp_path, data, words):
    (tmp_path / "photo.npy").write_bytes(data)
    refuses(tmp_path / "photo.npy", words)


def test_a_saved_array_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((64, 64), np.uint8))
    with pytest.raises(ImageError, match="4,096 numbers, more than are read"):
        load_photo(tmp_path / "a.npy", max_pixels=1000)


def test_a_tensor_is_inverted_as_its_picture_is(tiny_sd1, photo):
    """And edited under a mask of the whole photo, laid over the crop."""
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    options = {"method": "ddim", "num_steps": 2}
    ours, theirs = (nulltext.invert(tiny_sd1, x, "a cat", **options) for x in (tensor, photo))
    assert torch.equal(ours.photo, theirs.photo)
    assert ours.header.image_sha256 == theirs.header.image_sha256
    mask = np.zeros((48, 64), bool)
    mask[:, :32] = True  # the crop is the middle 48 x 48: its left half is 24 wide
    over = nulltext.mask_for(ours, mask)
    assert over.shape == (48, 48)
    edit = nulltext.edit(tiny_sd1, ours, nulltext.EditSpec("a dog", mask=over))
    assert (edit.masks[0].mean(dim=0) > 0).tolist() == [True] * 4 + [False] * 4
    assert edit.unchanged == (None,)
    with pytest.raises(nulltext.UserError, match=r"of the photo's proportions.*mask_for"):
        nulltext.edit(tiny_sd1, ours, nulltext.EditSpec("a dog", mask=mask))
