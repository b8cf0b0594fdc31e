"""images.py against an independent numpy construction of each case."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nulltext.errors import ImageError, OptionError, OutputError
from nulltext.image import images
from nulltext.image.images import CropBox
from nulltext.image.photos import load_photo
from nulltext.image.saving import check_writable, save_image
from support.pictures import SRGB, noise, pixels

# --- the crop box ---------------------------------------------------------------------------------


def test_crop_box_text_and_list() -> None:
    box = CropBox.parse(" 3, 4,512 ")
    assert box == CropBox(3, 4, 512, 512)
    assert CropBox.from_list(box.as_list()) == box
    assert box.as_list() == [3, 4, 512, 512]
    wide = CropBox.parse("3,4,600,400")
    assert wide == CropBox(3, 4, 600, 400)
    assert [CropBox.parse(str(one)) for one in (box, wide)] == [box, wide]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2",
        "1,2,3,4,5",
        "1,2,0,4",
        "1,2,4,0",
        "a,b,c",
        "1,2,3.5",
        "1,2,0",
        "1,2,-3",
        "-1,2,3",
        "1;2;3",
        "1,2,9e9",
    ],
)
def test_crop_box_refuses(text: str) -> None:
    with pytest.raises(OptionError, match="x,y,size") as caught:
        CropBox.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("values", [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4.0], [1, 2, 3, True]])
def test_crop_box_list_refuses(values: list) -> None:
    with pytest.raises(OptionError, match="four integers"):
        CropBox.from_list(values)


def test_crop_box_inside() -> None:
    CropBox(0, 0, 30, 20).check_inside((30, 20))
    CropBox(29, 19, 1, 1).check_inside((30, 20))
    outside = [(1, 0, 30, 20), (0, 1, 30, 20), (-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5)]
    for values in [*outside, (0, 0, 5, 0)]:
        with pytest.raises(ImageError, match=r"30 x 20 px: the largest square that fits is 5,0,20"):
            CropBox(*values).check_inside((30, 20))


def test_largest_centred_square() -> None:
    assert images.largest_centred(30, 21) == CropBox(4, 0, 21, 21)
    assert images.largest_centred(21, 30) == CropBox(0, 4, 21, 21)
    assert images.largest_centred(8, 8) == CropBox(0, 0, 8, 8)


# --- tensors --------------------------------------------------------------------------------------


def test_to_tensor_crops_exactly_when_no_resize_is_needed() -> None:
    raw = noise(40, 50, 3)
    tensor = images.to_tensor(load_photo(Image.fromarray(raw)), CropBox(7, 5, 24, 16), (16, 24))
    assert tensor.shape == (1, 3, 16, 24)
    assert tensor.dtype == torch.float32
    expected = raw[5:21, 7:31].transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(tensor[0].numpy() - expected).max() < 1e-6  # float32
    assert tensor.min() >= -1
    assert tensor.max() <= 1


def test_to_tensor_resizes_the_crop_alone() -> None:
    raw = noise(40, 50, 3)
    raw[10:30, 10:40] = (200, 100, 50)  # what is outside the box must not bleed in
    tensor = images.to_tensor(load_photo(Image.fromarray(raw)), CropBox(10, 10, 30, 20), (32, 64))
    assert tensor.shape == (1, 3, 32, 64)
    expected = torch.tensor([200, 100, 50]).view(1, 3, 1, 1).expand_as(tensor)
    assert ((tensor + 1) * 127.5).sub(expected).abs().max() < 1e-4  # float32
    with pytest.raises(ImageError):
        images.to_tensor(load_photo(Image.fromarray(raw)), CropBox(30, 30, 30, 30), (64, 64))


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    tensor = images.from_uint8(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert torch.equal(images.to_uint8(tensor), levels)
    assert torch.equal(images.to_uint8(images.from_uint8(levels[None])), levels)
    assert torch.equal(images.to_uint8(tensor.double()), levels)
    assert (pixels(images.to_pil(tensor)) == levels.permute(1, 2, 0).numpy()).all()


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-9.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 9.0])
    result = images.to_uint8(values.expand(3, 1, 6))
    assert result.dtype == torch.uint8
    assert result[1, 0].tolist() == [0, 0, 0, 1, 255, 255]
    image = images.to_pil(values.requires_grad_().expand(1, 3, 1, 6))
    assert image.mode == "RGB"
    assert image.size == (6, 1)
    for shape in [(2, 3, 4, 4), (4, 4, 3), (4, 4)]:
        with pytest.raises(AssertionError, match="expected"):
            images.to_uint8(torch.zeros(shape))


def test_psnr_against_numpy() -> None:
    a, b = (torch.from_numpy(noise(1, 3, 9, 7, seed=s) / 127.5 - 1) for s in (1, 2))
    mse = np.mean(((a.numpy() + 1) / 2 - (b.numpy() + 1) / 2) ** 2)
    assert images.psnr(a, b) == pytest.approx(10 * np.log10(1 / mse), abs=1e-9)  # float64
    assert images.psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.2)) == pytest.approx(
        20, abs=1e-5
    )
    assert images.psnr(a, a) == math.inf
    white, beyond = torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 5.0)
    assert images.psnr(white, beyond) == math.inf
    assert images.psnr(beyond, white) == math.inf
    assert images.psnr(torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 1.0)) == 0
    with pytest.raises(ImageError, match="shape"):
        images.psnr(a, b[..., 1:])


# --- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp"])
@pytest.mark.parametrize("bands", [3, 4])
def test_lossless_round_trip(tmp_path: Path, name: str, bands: int) -> None:
    raw = noise(16, 24, bands)
    if bands == 4:
        raw[:8, :, 3] = 0  # colours under full transparency count as well
    save_image(Image.fromarray(raw), tmp_path / name, icc_profile=SRGB)
    photo = load_photo(tmp_path / name)
    assert (pixels(photo.straight if bands == 4 else photo.image) == raw[..., :3]).all()
    if bands == 4:
        assert (pixels(photo.alpha) == raw[..., 3]).all()
    assert photo.icc_profile == SRGB
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg"])
def test_jpeg_is_flattened_on_white(tmp_path: Path, name: str) -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 32))
    save_image(image, str(tmp_path / name), icc_profile=SRGB)
    with Image.open(tmp_path / name) as saved:
        assert saved.format == "JPEG"
        assert saved.info["icc_profile"] == SRGB
        assert [layer[1:3] for layer in saved.layer] == [(1, 1)] * 3  # subsampling 0
        assert np.abs(pixels(saved)[:, 20:] - 255).max() <= 3  # levels, lossy
        assert np.abs(pixels(saved)[:, :12] - (0, 0, 255)).max() <= 3


def test_png_text_and_modes(tmp_path: Path) -> None:
    text = {"prompt": "a cat on a sofa", "target": "ein Kätzchen, 猫"}
    image = Image.new("P", (9, 9), 0)
    image.info["icc_profile"] = SRGB
    save_image(image, tmp_path / "a.png", text=text)
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "RGB"
        assert saved.text == text
        assert "icc_profile" not in saved.info  # only what is asked for
    save_image(image, tmp_path / "a.jpg", text=text)
    assert load_photo(tmp_path / "a.jpg").size == (9, 9)


@pytest.mark.parametrize("act", [check_writable, lambda p: save_image(Image.new("L", (8, 8)), p)])
@pytest.mark.parametrize("name", ["a.bmp", "a", "a.png.txt"])
def test_the_name_says_the_format(tmp_path: Path, act: Callable[[Path], None], name: str) -> None:
    with pytest.raises(OptionError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        act(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_the_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(Image.new("L", (16384, 8)), tmp_path / "wide.webp")  # WebP ends at 16383
    assert not list(tmp_path.iterdir())


def test_importing_does_not_load_torch() -> None:
    code = (
        "import sys, nulltext.image.images, nulltext.image.photos, nulltext.storage.files;"
        " sys.exit('torch' in sys.modules)"
    )
    source = str(Path(images.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
