"""HEIC, the default of phones: read with the extra `heif`, and named without it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pictures import SRGB, pixels, refuses


def picture() -> np.ndarray:
    """No two of its quarters alike, so that a wrong orientation shows."""
    raw = np.zeros((64, 128, 3), np.uint8)
    raw[:32, :64], raw[:32, 64:], raw[32:, :64] = 200, (200, 40, 40), (30, 60, 220)
    return raw


def write(path: Path, raw: np.ndarray, orientation: int = 1) -> Path:
    pytest.importorskip("pillow_heif").register_heif_opener()  # to write; reading needs it not
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(raw).save(path, quality=-1, exif=exif.tobytes(), icc_profile=SRGB)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photo_is_upright_and_in_its_colours(tmp_path, orientation):
    from nulltext.image.photos import load_photo
    from support.pictures import STORED

    upright = picture()
    stored = np.ascontiguousarray(STORED[orientation](upright))
    photo = load_photo(write(tmp_path / "photo.heic", stored, orientation))
    assert photo.size == (128, 64)
    assert np.abs(pixels(photo.image) - upright).mean() < 3  # levels; lossless, but for chroma
    assert photo.icc_profile == SRGB
    assert "exif" not in photo.image.info


def test_opacity_and_damage(tmp_path):
    from nulltext.image.photos import load_photo

    raw = np.dstack([picture(), np.full((64, 128), 255, np.uint8)])
    raw[:, :20, 3] = 0
    path = write(tmp_path / "photo.heic", raw)
    assert (pixels(load_photo(path).alpha) == raw[..., 3]).all()
    for part in (0.1, 0.5, 0.9):
        (tmp_path / "cut.heic").write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        refuses(tmp_path / "cut.heic", "truncated or damaged")


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_bits_that_are_lost_are_known(tmp_path, bits):
    from nulltext.image.photos import load_photo

    heif = pytest.importorskip("pillow_heif")
    values = picture() if bits == 8 else picture() * np.uint16(257)
    mode = "RGB" if bits == 8 else "RGB;16"
    made = heif.from_bytes(mode=mode, size=(128, 64), data=values.tobytes())
    made.save(tmp_path / "photo.heic", quality=-1, bit_depth=bits)
    photo = load_photo(tmp_path / "photo.heic")
    assert (photo.bits, photo.deep) == (bits, None)
    assert np.abs(pixels(photo.image) - picture()).mean() < 3  # levels; lossless, but for chroma


@pytest.mark.parametrize("brand", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"])
def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(200))
    refuses(tmp_path / "photo.jpg", "is HEIC", "pip install 'nulltext[heif]'", "convert it")
