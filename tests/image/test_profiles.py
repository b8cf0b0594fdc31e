"""A photo with a colour profile: seen in sRGB, changed in its own colours."""

from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from skimage.color import deltaE_ciede2000, rgb2lab

from nulltext.editing.placing import Canvas, check_same_photo
from nulltext.errors import ImageError
from nulltext.image.compositing import composite
from nulltext.image.images import CropBox, from_uint8, to_tensor, to_uint8
from nulltext.image.photos import Photo, load_photo
from nulltext.image.profiles import as_srgb, from_srgb, is_srgb
from nulltext.inversion.record import Inversion
from support.examples import EXAMPLE
from support.pictures import SRGB, composited, noise

BOX, MODEL_SIDE = CropBox(8, 4, 96, 96), 48


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def matrix_profile(red: tuple, green: tuple, blue: tuple, gamma: float) -> bytes:
    """An ICC v2 display profile (ICC.1:2001, 6.3.1.2): colorants in XYZ under D50, and a gamma."""
    colours = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue}
    tags = {key: b"XYZ \0\0\0\0" + fixed(*value) for key, value in colours.items()}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_curve(gamma))
    return built_profile(b"RGB ", tags | curves)


def grey_profile(gamma: float, connection: bytes = b"XYZ ") -> bytes:
    """An ICC v2 profile of grey (ICC.1:2001, 6.3.1.1)."""
    return built_profile(b"GRAY", {b"kTRC": gamma_curve(gamma)}, connection)


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))


def built_profile(space: bytes, own: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {b"desc": name + b"\0" * (-len(name) % 4), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    tags |= {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249), **own}
    start, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, data in tags.items():
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    head = struct.pack(">I4xI4s4s4s", size, 0x02100000, b"mntr", space, connection)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + body


PROFILES = {
    # ISO 22028-2, Adobe RGB (1998), and SMPTE EG 432-1, all under D50.
    "prophoto": matrix_profile(
        (0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249), 1.8
    ),
    "adobe": matrix_profile(
        (0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446), 2.2
    ),
    "display-p3": matrix_profile(
        (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841), 2.2
    ),
}


def converted(image: Image.Image, source: bytes, target: bytes) -> Image.Image:
    """By LittleCMS alone, at its full size."""
    return ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(source)),
        ImageCms.ImageCmsProfile(io.BytesIO(target)),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        outputMode="RGB",
    )


def delta_e(a: Image.Image, b: Image.Image) -> float:
    """Mean CIEDE2000 of two pictures in sRGB."""
    return float(deltaE_ciede2000(rgb2lab(np.asarray(a)), rgb2lab(np.asarray(b))).mean())


@pytest.fixture(scope="module")
def flower() -> Image.Image:
    with Image.open(EXAMPLE) as image:
        return image.convert("RGB").resize((128, 112), Image.Resampling.LANCZOS)


def recoloured(photo: Photo) -> Image.Image:
    """The crop with red and green exchanged in part, drawn at the model's size in sRGB."""
    r = to_tensor(photo, BOX, (MODEL_SIDE, MODEL_SIDE))[0]
    e = torch.stack([0.4 * r[0] + 0.6 * r[1], 0.7 * r[1] + 0.3 * r[0], r[2]])
    return composite(photo, BOX, e, r, torch.ones(BOX.height, BOX.width))


@pytest.mark.parametrize("name", PROFILES)
def test_a_managed_photo_is_edited_like_its_srgb_version(flower: Image.Image, name: str) -> None:
    profile = PROFILES[name]
    photo = Photo(converted(flower, SRGB, profile), icc_profile=profile)
    plain = Photo(as_srgb(photo.image, profile))  # the same photo, as far as 8 bits say
    seen, expected = (to_tensor(one, BOX, (MODEL_SIDE, MODEL_SIDE)) for one in (photo, plain))
    # Levels: resized in one space or the other, and 8 bits of the photo's space.
    assert float((seen - expected).abs().mean()) * 127.5 < 1.5
    shown = converted(recoloured(photo), profile, SRGB)
    error = delta_e(shown, recoloured(plain))
    assert error < 1
    # Taken for sRGB, it is another picture.
    unmanaged = converted(recoloured(Photo(photo.image)), profile, SRGB)
    assert delta_e(unmanaged, recoloured(plain)) > 2 * error


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_not_edited_keeps_its_bytes_inside_and_outside_of_srgb(name: str) -> None:
    deep = noise(112, 128, 3, dtype=np.uint16)  # saturated colours of the whole space
    image = Image.fromarray((deep >> 8).astype(np.uint8))
    photo = Photo(image, icc_profile=PROFILES[name], bits=16, deep=deep)
    r = to_tensor(photo, BOX, (MODEL_SIDE, MODEL_SIDE))[0]
    everywhere = torch.ones(BOX.height, BOX.width)
    same = composited(photo, BOX, r, r, everywhere)
    assert same.deep is not None
    assert (same.deep == deep).all()
    edited = composited(photo, BOX, -r, r, everywhere)
    changed = (np.asarray(edited.deep) != deep).any(axis=2)
    assert changed[BOX.y : BOX.y + BOX.height, BOX.x : BOX.x + BOX.width].mean() > 0.99
    changed[BOX.y : BOX.y + BOX.height, BOX.x : BOX.x + BOX.width] = False
    assert not changed.any()


@pytest.mark.parametrize("name", PROFILES)
def test_the_way_back_is_that_of_the_profile(name: str) -> None:
    profile = PROFILES[name]
    colours = Image.fromarray(noise(64, 64, 3))
    expected = np.asarray(converted(colours, SRGB, profile)).astype(float)
    pixels = from_uint8(torch.from_numpy(np.array(colours)).permute(2, 0, 1))[0]
    found = (from_srgb(pixels, profile) + 1).mul(127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).mean() < 0.5  # levels; LittleCMS rounds to whole ones
    assert np.abs(found - expected).max() < 5  # near black, where a curve bends within a cell


def test_srgb_and_unusable_profiles_change_nothing(flower: Image.Image) -> None:
    pixels = torch.rand(3, 8, 8) * 2 - 1
    for profile in (None, SRGB, SRGB[:200], b"RGB " * 50):
        assert is_srgb(profile)
        assert as_srgb(flower, profile) is flower
        assert from_srgb(pixels, profile) is pixels
        assert Photo(flower, icc_profile=profile).colours is None
    assert len({Photo(flower, icc_profile=profile).colours for profile in PROFILES.values()}) == 3


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_grey_photo_keeps_its_numbers_and_its_look(
    tmp_path: Path, gamma: float, kind: type
) -> None:
    profile, levels = grey_profile(gamma), np.iinfo(kind).max // 255
    values = np.tile(np.arange(256, dtype=kind) * kind(levels), (16, 1))
    Image.fromarray(values).save(tmp_path / "grey.png", icc_profile=profile)
    photo = load_photo(tmp_path / "grey.png")
    assert photo.icc_profile is not None
    assert (np.asarray(photo.image)[..., 0] == values // levels).all()
    light = (np.arange(256) / 255) ** gamma
    bright = 1.055 * light ** (1 / 2.4) - 0.055
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, bright)  # IEC 61966-2-1
    shown = as_srgb(photo.image, photo.icc_profile)
    assert np.abs(np.asarray(shown)[0] - expected[:, None]).max() <= 1  # level, of rounding


def test_profiles_of_grey_that_have_no_such_curve_are_left_out(tmp_path: Path) -> None:
    good, grey = grey_profile(1.0), Image.new("L", (16, 16), 99)
    for profile in (grey_profile(1.0, b"Lab "), good[:132], good[:140], good[:-200]):
        grey.save(tmp_path / "grey.png", icc_profile=profile)
        photo = load_photo(tmp_path / "grey.png")
        assert photo.colours is None
        assert np.asarray(as_srgb(photo.image, photo.icc_profile))[0, 0].tolist() == [99] * 3


def test_opacity_stays(flower: Image.Image) -> None:
    opacity = flower.convert("L")
    flower = flower.copy()
    flower.putalpha(opacity)
    shown = as_srgb(flower, PROFILES["adobe"])
    assert (np.asarray(shown.getchannel("A")) == np.asarray(opacity)).all()


def space_in(block: bytes | None) -> int | None:
    """EXIF's ColorSpace."""
    assert block is not None
    exif = Image.Exif()
    exif.load(block)
    return exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)


def test_cmyk_becomes_srgb_and_says_so(tmp_path: Path, flower: Image.Image) -> None:
    told = Image.Exif()
    told.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 0xFFFF
    flower.convert("CMYK").save(tmp_path / "photo.jpg", exif=told.tobytes())
    photo = load_photo(tmp_path / "photo.jpg")
    assert photo.colours is None
    assert space_in(photo.exif) == 1


def test_inversions_know_the_colours_that_they_were_made_of(
    flower: Image.Image, inversion_file: Path
) -> None:
    profile = PROFILES["prophoto"]
    managed, plain = Photo(flower, icc_profile=profile), Photo(flower)
    saved = Inversion.load(inversion_file)
    size = tuple(saved.photo.shape[-2:])

    def inversion_of(photo: Photo) -> Inversion:
        header = dataclasses.replace(
            saved.header,
            image_sha256=photo.sha256,
            image_size=[*photo.size],
            crop=BOX.as_list(),
        )
        pixels = to_uint8(to_tensor(photo, BOX, size))
        return dataclasses.replace(saved, header=header, photo=pixels)

    check_same_photo(inversion_of(managed), managed)
    check_same_photo(inversion_of(plain), plain)
    with pytest.raises(ImageError, match="took the photo's colours for sRGB"):
        check_same_photo(inversion_of(plain), managed)
    crop = Canvas.of(inversion_of(managed), managed, full=False)
    assert crop.photo.icc_profile is None  # it holds sRGB
    told = Image.Exif()
    told.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 0xFFFF  # another than sRGB
    exact = dataclasses.replace(managed, exif=told.tobytes())
    crop = Canvas.of(inversion_of(exact), exact, full=False)
    assert space_in(crop.photo.exif) == 1
    assert space_in(Canvas.of(inversion_of(exact), exact, full=True).photo.exif) == 0xFFFF
    tagged = Photo(flower, icc_profile=SRGB)
    assert Canvas.of(inversion_of(tagged), tagged, full=False).photo.icc_profile == SRGB
