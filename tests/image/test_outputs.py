"""What the files of edits hold of a photo: its bytes, its 16 bits, its transparency, its EXIF."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, TiffImagePlugin

from nulltext.diffusion.loops import run
from nulltext.editing.loop import Edit
from nulltext.editing.placing import Canvas, Placed, place_steps
from nulltext.editing.spec import EditSpec
from nulltext.image import bands
from nulltext.image.bands import finish
from nulltext.image.compositing import (
    Weight,
    compare_bands,
    fade_bands,
    original_picture,
)
from nulltext.image.images import CropBox, to_tensor
from nulltext.image.photos import Photo, exif_of_result, load_photo
from nulltext.image.saving import Picture, encode
from nulltext.inversion.record import Inversion
from nulltext.jobs.pictures import save_steps
from support.examples import EXAMPLE
from support.pictures import composited, noise, png, png_chunk

Base, Block = ExifTags.Base, ExifTags.IFD
WIDTH, HEIGHT, BOX = 96, 80, CropBox(16, 8, 64, 64)
LOSSLESS = ["a.png", "a.tif", "a.webp"]


def deep_values(bands: int) -> np.ndarray:
    return noise(HEIGHT, WIDTH, bands, dtype=np.uint16)


def by_opencv(path: Path) -> np.ndarray:
    """What another decoder makes of a file, in the order of RGB."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return values[..., [2, 1, 0, 3][: values.shape[2]]]


def save_deep(values: np.ndarray, path: Path) -> None:
    assert cv2.imwrite(str(path), values[..., [2, 1, 0, 3][: values.shape[2]]])


def saved(
    photo: Photo | None,
    path: Path,
    inversion: Inversion,
    *,
    full: bool = True,
    gps: bool = False,
) -> Placed:
    """A square of the photo painted over, or of the inversion's, in a file."""
    canvas = Canvas.of(inversion, photo, full=False)
    if full:
        assert photo is not None
        canvas = Canvas(photo, BOX, full=True)
    model_sees = to_tensor(canvas.photo, canvas.box, (32, 32))[0]
    painted = model_sees.clone()
    painted[:, 8:20, 8:20] += 0.7
    edit = Edit(painted[None], model_sees[None], 0.0, 0, torch.ones(1, 8, 8), (None,))
    mask = torch.zeros(canvas.box.height, canvas.box.width)
    mask[16:40, 16:40] = 1
    placed = run(place_steps(canvas, edit, 0, EditSpec("a dog", mask=mask), "auto"))
    return run(save_steps(path, placed, inversion, canvas, gps=gps))


@pytest.fixture
def inversion(inversion_file: Path) -> Inversion:
    return Inversion.load(inversion_file)


def outside() -> np.ndarray:
    where = np.ones((HEIGHT, WIDTH), dtype=bool)
    where[24:48, 32:56] = False
    return where


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["photo.png", "photo.tif"])
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_kept(
    tmp_path: Path, inversion: Inversion, source: str, bands: int, name: str
) -> None:
    values = deep_values(bands)
    save_deep(values, tmp_path / source)
    photo = load_photo(tmp_path / source)
    assert photo.bits == 16
    assert (photo.deep == values).all()
    result = saved(photo, tmp_path / name, inversion)
    there = by_opencv(tmp_path / name)
    assert there.dtype == np.uint16
    assert (there[outside()] == values[outside()]).all()
    assert (there[..., 3:] == values[..., 3:]).all()
    changed = (there != values).any(axis=-1)
    assert changed[~outside()].mean() > 0.5
    assert result.changed_fraction == changed.mean()
    assert (result.psnr_outside, result.lost) == (float("inf"), ())
    # The edit itself is the same as at 8 bits, but for the levels between.
    eight = np.asarray(result.image).astype(int)[..., :3]
    assert np.abs(eight - there[..., :3] / 257)[~outside()].max() <= 1


def test_sixteen_bit_grey_and_turned_photos(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "grey.png"), values)
    deep = load_photo(tmp_path / "grey.png").deep
    assert deep is not None
    assert (deep == values[..., None]).all()
    save_deep(deep_values(3), tmp_path / "photo.png")
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    plain = (tmp_path / "photo.png").read_bytes()
    turned = plain[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[33:]
    (tmp_path / "photo.png").write_bytes(turned)
    assert (load_photo(tmp_path / "photo.png").deep == np.rot90(deep_values(3), -1)).all()


@pytest.mark.parametrize("name", LOSSLESS)
def test_eight_bits_and_transparency_are_kept(
    tmp_path: Path, inversion: Inversion, name: str
) -> None:
    values = noise(HEIGHT, WIDTH, 4)
    values[:8, :, 3] = 0  # colours under full transparency count as well
    Image.fromarray(values).save(tmp_path / "photo.png")
    result = saved(load_photo(tmp_path / "photo.png"), tmp_path / name, inversion)
    with Image.open(tmp_path / name) as image:
        there = np.asarray(image)
    assert (there[outside()] == values[outside()]).all()
    assert (there[..., 3] == values[..., 3]).all()
    assert result.changed_fraction == (there != values).any(axis=-1).mean()
    assert (result.psnr_outside, result.lost) == (float("inf"), ())


@pytest.mark.parametrize(
    ("name", "deep", "bands", "said"),
    [
        ("a.webp", True, 4, ["16 bits a channel"]),
        ("a.jpg", True, 3, ["16 bits a channel", "compresses every pixel anew"]),
        ("a.jpg", False, 4, ["no transparency", "compresses every pixel anew"]),
        ("a.jpg", False, 3, ["compresses every pixel anew"]),
    ],
)
def test_what_a_format_cannot_hold_is_measured_and_said(
    tmp_path: Path, inversion: Inversion, name: str, deep: bool, bands: int, said: list[str]
) -> None:
    values = noise(HEIGHT, WIDTH, bands, dtype=np.uint16 if deep else np.uint8)
    save_deep(values, tmp_path / "photo.png")
    result = saved(load_photo(tmp_path / "photo.png"), tmp_path / name, inversion)
    with Image.open(tmp_path / name) as image:
        there = np.asarray(image).astype(int) * (257 if deep else 1)
    if there.shape[2] < bands:  # over white
        values = np.asarray(load_photo(tmp_path / "photo.png").image)
    assert result.changed_fraction == (there != values).any(axis=-1).mean() > 0.5
    error = (there - values.astype(int))[outside()] / (65535 if deep else 255)
    assert result.psnr_outside == pytest.approx(-10 * np.log10(np.square(error).mean()))
    assert len(result.lost) == len(said)
    assert all(words in text for words, text in zip(said, result.lost, strict=True))
    if name == "a.jpg":
        assert f"up to {np.abs(error).max() * 255:.0f} of 255" in result.lost[-1]


@pytest.mark.parametrize(
    ("subsampling", "keep_rgb", "gain"), [(0, False, 6), (2, False, 0), (0, True, 12)]
)
def test_a_jpeg_of_full_colour_is_compressed_as_it_was(
    tmp_path: Path, inversion: Inversion, subsampling: int, keep_rgb: bool, gain: float
) -> None:
    """6 dB: half the error; 12 dB: a quarter."""
    with Image.open(EXAMPLE) as image:
        small = image.resize((WIDTH, HEIGHT))
    small.save(tmp_path / "photo.jpg", quality=85, subsampling=subsampling, keep_rgb=keep_rgb)
    photo = load_photo(tmp_path / "photo.jpg")
    alike = saved(photo, tmp_path / "a.jpg", inversion)
    anew = saved(Photo(photo.image), tmp_path / "b.jpg", inversion)
    assert alike.psnr_outside >= anew.psnr_outside + gain
    assert (alike.changed_fraction < anew.changed_fraction) == (gain > 0)


@pytest.mark.parametrize(
    ("given", "full", "said"),
    [
        ({"bits": 16, "deep": deep_values(3)}, False, "the model sees 8: add --full"),
        ({"bits": 16, "deep": deep_values(3)}, True, None),
        ({"bits": 10}, False, "10 bits a channel, and could be read at 8 alone"),
        ({"bits": 10}, True, "10 bits a channel, and could be read at 8 alone"),
        ({"alpha": Image.new("L", (WIDTH, HEIGHT), 9)}, False, "add --full to keep its transp"),
        ({}, False, None),
    ],
)
def test_what_the_model_does_not_see_is_said(
    tmp_path: Path, inversion: Inversion, given: dict, full: bool, said: str | None
) -> None:
    photo = Photo(Image.fromarray(noise(HEIGHT, WIDTH, 3)), **given)
    lost = saved(photo, tmp_path / "a.png", inversion, full=full).lost
    assert len(lost) == (said is not None)
    assert said is None or said in lost[0]


def test_tiles_of_any_size_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = noise(HEIGHT, WIDTH, 3)
    photos = [
        Photo(Image.fromarray(colours)),
        Photo(Image.fromarray(colours), bits=16, deep=deep_values(3)),
    ]
    edit, reconstruction = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = torch.zeros(32, 32)
    small[5:20, 9:30] = 1
    drawn = torch.zeros(64, 64)
    drawn[10:50, 12:60] = 1

    def everything() -> list[np.ndarray]:
        parts = [small, finish(fade_bands(drawn))]
        weight = Weight(parts, BOX, (WIDTH, HEIGHT)).rows(slice(0, BOX.height))
        found: list[np.ndarray] = [weight.numpy()]
        for photo in photos:
            for detail in ("auto", "luminance"):
                where = (photo, BOX, edit, reconstruction, weight)
                picture = composited(*where, detail)  # type: ignore[arg-type]
                found.append(np.asarray(picture.image))
                found += [] if picture.deep is None else [picture.deep]
                bands_of = compare_bands(original_picture(photo), picture, weight == 0, BOX)
                compared = finish(bands_of)
                found.append(np.array([compared.changed_fraction, compared.psnr_outside]))
        return found

    monkeypatch.setattr(bands, "TILE", 1 << 30)
    whole = everything()
    for tile in (1, 500):
        monkeypatch.setattr(bands, "TILE", tile)
        assert all((a == b).all() for a, b in zip(whole, everything(), strict=True))


# --- EXIF -----------------------------------------------------------------------------------------


IDENTIFYING = (
    *(Base.BodySerialNumber, Base.LensSerialNumber, Base.CameraOwnerName, Base.ImageUniqueID),
)
SUBJECT_AREA, UNKNOWN = 0x9214, 0xFDE8


def told() -> Image.Exif:
    """What a camera writes."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    exif[Base.Make], exif[Base.Copyright], exif[Base.Artist] = "Maker", "© somebody", "A. Person"
    exif[Base.DateTime], exif[Base.Software] = "2024:05:06 07:08:09", "camera 1.0"
    inner = exif.get_ifd(Block.Exif)
    inner[Base.DateTimeOriginal], inner[Base.LensModel] = "2024:05:06 07:08:09", "50 mm"
    inner[Base.ExposureTime] = TiffImagePlugin.IFDRational(1, 125)
    inner[Base.OffsetTimeOriginal], inner[Base.SubsecTimeOriginal] = "+02:00", "123"
    inner[Base.ExifImageWidth] = 4000
    exif[Base.ImageDescription], exif[Base.Rating] = "A. Person's garden", 5
    exif[Base.XPTitle] = exif[Base.XPComment] = "A. Person".encode("utf-16-le")
    inner[Base.MakerNote], inner[Base.UserComment] = b"offsets", b"ASCII\0\0\0A. Person"
    inner[SUBJECT_AREA], inner[UNKNOWN] = (3000, 2000, 9, 9), "A. Person"
    for tag in IDENTIFYING:
        inner[tag] = "0123456789"
    place = exif.get_ifd(Block.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (52.0, 30.0, 1.5)
    return exif


@pytest.mark.parametrize("source", ["photo.jpg", "photo.png", "photo.webp", "photo.tif"])
@pytest.mark.parametrize("name", ["a.jpg", *LOSSLESS])
def test_exif_is_carried(tmp_path: Path, inversion: Inversion, source: str, name: str) -> None:
    stored = Image.fromarray(noise(WIDTH, HEIGHT, 3))  # upright, it is HEIGHT high
    stored.save(tmp_path / source, exif=told().tobytes())
    photo = load_photo(tmp_path / source)
    for gps in (False, True):
        saved(photo, tmp_path / name, inversion, gps=gps)
        with Image.open(tmp_path / name) as image:
            exif = image.getexif()
            inner, place = exif.get_ifd(Block.Exif), exif.get_ifd(Block.GPSInfo)
        assert exif.get(Base.Orientation, 1) == 1
        assert [exif[tag] for tag in (Base.Make, Base.Artist)] == ["Maker", "A. Person"]
        assert exif[Base.DateTime] == inner[Base.DateTimeOriginal] == "2024:05:06 07:08:09"
        assert exif[Base.Software].startswith("nulltext ")
        assert inner[Base.LensModel] == "50 mm"
        assert float(inner[Base.ExposureTime]) == 1 / 125
        assert (inner[Base.ExifImageWidth], inner[Base.ExifImageHeight]) == (WIDTH, HEIGHT)
        size = {Base.ExifImageWidth, Base.ExifImageHeight}
        taken = {Base.DateTimeOriginal, Base.OffsetTimeOriginal, Base.SubsecTimeOriginal}
        assert set(inner) == {*size, *taken, Base.LensModel, Base.ExposureTime}
        described = {Base.ImageDescription, Base.Rating, Base.XPTitle, Base.XPComment}
        assert not described & set(exif)
        assert bool(place) == gps
        if gps:
            assert [float(part) for part in place[ExifTags.GPS.GPSLatitude]] == [52.0, 30.0, 1.5]


def test_exif_of_sixteen_bits(tmp_path: Path) -> None:
    block = exif_of_result(kept_exif_of(told().tobytes()), (WIDTH, HEIGHT), gps=False)
    picture = Picture(Image.fromarray(noise(HEIGHT, WIDTH, 3)), deep_values(3))
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(encode(picture, name, exif=block, text={"a": "b"}))
        assert (by_opencv(tmp_path / name) == picture.deep).all()
        with Image.open(tmp_path / name) as image:
            assert image.getexif().get_ifd(Block.Exif)[Base.LensModel] == "50 mm"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (told(), None),
        (Image.Exif(), "the photo's file has none"),
        (None, "pass that beside --inversion"),
    ],
)
def test_a_position_that_is_not_there_is_said(
    tmp_path: Path, inversion: Inversion, given: Image.Exif | None, said: str | None
) -> None:
    photo = None
    if given is not None:
        given.get_ifd(Block.GPSInfo)[ExifTags.GPS.GPSVersionID] = b"\2\3\0\0"
        exif = kept_exif_of(given.tobytes())
        photo = Photo(Image.fromarray(noise(HEIGHT, WIDTH, 3)), exif=exif)
    for gps in (False, True):
        lost = saved(photo, tmp_path / "a.png", inversion, full=False, gps=gps).lost
        assert len(lost) == (gps and said is not None)
        assert all("--keep-gps wrote no position: " in text for text in lost)
        assert said is None or all(said in text for text in lost)


def kept_exif_of(block: bytes) -> bytes | None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG", exif=block)
    with Image.open(file) as image:
        return load_photo(image).exif


def test_damaged_exif_never_breaks_an_edit(tmp_path: Path) -> None:
    block, generator = told().tobytes(), np.random.default_rng(0)
    assert kept_exif_of(b"Exif\0\0") is None
    for _ in range(300):
        damaged = bytearray(block)
        for at in generator.integers(6, len(block), 3):
            damaged[at] = generator.integers(256)
        kept = kept_exif_of(bytes(damaged[: generator.integers(8, len(block) + 1)]))
        result = exif_of_result(kept, (WIDTH, HEIGHT), gps=True)
        encode(Picture(Image.new("RGB", (16, 16))), "a.jpg", exif=result)


def test_a_long_value_is_left_out() -> None:
    exif = told()
    exif.get_ifd(Block.Exif)[Base.LensModel] = "x" * 60_000
    kept = kept_exif_of(exif.tobytes())
    assert kept is not None
    assert len(kept) < 1000
    assert exif_of_result(None, (8, 8), gps=True) is None


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_reports_its_file(here, model, run) -> None:
    colours = noise(HEIGHT, WIDTH, 4)
    Image.fromarray(colours).save("photo.png", exif=told().tobytes())
    Image.fromarray(np.uint8(255 * ~outside())).rotate(90, expand=True).save("mask.png")
    code, out, err = run(
        *("edit", "photo.png", "--source", "a cat", "--target", "a dog", "--model", model),
        *("--method", "ddim", "--steps", 2, "--mask", "mask.png", "--full", "--keep-gps"),
        *("-o", "dog.jpg", "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["changed_fraction"] > 0.9
    assert result["psnr_outside"] is not None
    assert ["no transparency" in text for text in result["remarks"]] == [True, False]
    assert all(text.split(":")[0] in err for text in result["remarks"])
    with Image.open("dog.jpg") as image:
        assert image.size == (HEIGHT, WIDTH)
        assert image.getexif().get_ifd(Block.GPSInfo)


def test_a_photo_of_200_megapixels_is_not_too_large(tmp_path: Path) -> None:
    size = noise(100_000).tobytes()  # as a photo has; its header says 200 million pixels
    (tmp_path / "a.png").write_bytes(png(16320, 12240, 8, 2, (b"IDAT", size)))
    with pytest.raises(Exception, match="truncated or damaged"):
        load_photo(tmp_path / "a.png")
