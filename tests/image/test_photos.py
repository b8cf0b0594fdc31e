"""photos.py against real files and an independent numpy construction of each case."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from nulltext.errors import ImageError
from nulltext.image.masks import read_mask
from nulltext.image.photos import load_photo
from support.pictures import SRGB, STORED, noise, pixels, png, refuses


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return colour * opacity + 255 * (1 - opacity)


# --- modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True}),
        ("bmp", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("ppm", {}),
    ],
)
def test_lossless_rgb_is_exact(tmp_path: Path, suffix: str, options: dict) -> None:
    expected = noise(21, 34, 3)
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(expected).save(path, **options)
    photo = load_photo(str(path))
    assert photo.image.mode == "RGB"
    assert photo.size == (34, 21)
    assert (pixels(photo.image) == expected).all()
    assert photo.alpha is None
    assert photo.straight is None
    assert photo.icc_profile is None
    assert photo.path == path


@pytest.mark.parametrize("suffix", ["jpg", "mpo", "avif"])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    expected = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], ramp[None, ::-1]), -1)
    path = tmp_path / f"photo.{suffix}"
    extra = {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]}
    Image.fromarray(expected).save(path, quality=95, **(extra if suffix == "mpo" else {}))
    with Image.open(path) as image:
        assert image.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
    error = np.abs(pixels(load_photo(path).image) - expected).mean()
    assert error < 3  # levels; lossy at quality 95, a wrong channel order would give about 85


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white_and_kept(tmp_path: Path, mode: str) -> None:
    raw = noise(16, 16, len(mode))
    raw[0, :, -1], raw[1, :, -1] = 0, 255
    path = tmp_path / "photo.png"
    Image.fromarray(raw, mode=mode).save(path)
    photo = load_photo(path)
    colour = np.broadcast_to(raw[..., :1], (16, 16, 3)) if mode == "LA" else raw[..., :3]
    assert np.abs(pixels(photo.image) - over_white(colour, raw[..., -1])).max() <= 1  # rounding
    assert (pixels(photo.image)[0] == 255).all()
    assert (pixels(photo.image)[1] == colour[1]).all()
    assert (pixels(photo.alpha) == raw[..., -1]).all()
    assert (pixels(photo.straight) == colour).all()


def test_premultiplied_grey_alpha_in_memory() -> None:
    raw = noise(8, 8, 2)
    premultiplied = Image.fromarray(raw, mode="LA").convert("La")
    assert (pixels(load_photo(premultiplied).alpha) == raw[..., 1]).all()


@pytest.mark.parametrize("kind", ["png-table", "gif-index"])
def test_palette_transparency(tmp_path: Path, kind: str) -> None:
    index = noise(12, 10) % 4
    colours = np.array([[250, 10, 20], [10, 240, 30], [0, 0, 0], [90, 80, 70]], np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(colours.tobytes())
    table = [255, 0, 255, 255] if kind == "gif-index" else [255, 0, 128, 255]
    path = tmp_path / ("photo.gif" if kind == "gif-index" else "photo.png")
    image.save(path, transparency=1 if kind == "gif-index" else bytes(table))
    photo = load_photo(path)
    alpha = np.array(table)[index]
    assert (pixels(photo.alpha) == alpha).all()
    assert np.abs(pixels(photo.image) - over_white(colours[index], alpha)).max() <= 1  # rounding


def test_palette_with_its_own_alpha_band() -> None:
    index, alpha = noise(8, 8) % 2, noise(8, 8, seed=1)
    image = Image.fromarray(index, mode="P")
    image.putpalette([200, 100, 50, 0, 10, 20])
    merged = image.convert("PA")
    merged.putalpha(Image.fromarray(alpha))
    photo = load_photo(merged)
    assert merged.mode == "PA"
    assert (pixels(photo.alpha) == alpha).all()
    assert (pixels(photo.straight) == np.array([[200, 100, 50], [0, 10, 20]])[index]).all()


@pytest.mark.parametrize("in_memory", [False, True])
def test_colour_key_of_sixteen_bits(tmp_path: Path, in_memory: bool) -> None:
    """Every bit counts, but in an image that is given decoded: there, the high byte of each."""
    raw = noise(9, 9, 3, dtype=np.uint16)
    raw[2, 3], raw[4, 5] = (0x1234, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in raw)
    chunks = ((b"tRNS", struct.pack(">3H", *raw[2, 3])), (b"IDAT", zlib.compress(rows)))
    (tmp_path / "photo.png").write_bytes(png(9, 9, 16, 2, *chunks))
    with Image.open(tmp_path / "photo.png") as image:
        photo = load_photo(image if in_memory else tmp_path / "photo.png")
        assert image.info["transparency"] == (0x1234, 0x5678, 0x9ABC)
    expected = np.full((9, 9), 255)
    expected[2, 3] = 0
    expected[4, 5] = 0 if in_memory else 255
    assert (pixels(photo.alpha) == expected).all()
    assert (pixels(photo.straight) == raw >> 8).all()
    assert (pixels(photo.image)[2, 3] == 255).all()
    if not in_memory:
        assert photo.deep is not None
        assert (photo.deep == np.dstack([raw, expected * 257])).all()


def test_colour_key_transparency(tmp_path: Path) -> None:
    raw = noise(9, 9, 3)
    raw[2, 3] = (1, 2, 3)
    Image.fromarray(raw).save(tmp_path / "photo.png", transparency=(1, 2, 3))
    photo = load_photo(tmp_path / "photo.png")
    expected = np.full((9, 9), 255)
    expected[2, 3] = 0
    assert (pixels(photo.alpha) == expected).all()
    assert (pixels(photo.image)[2, 3] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_is_repeated(tmp_path: Path, mode: str) -> None:
    raw = noise(11, 13) if mode == "L" else (noise(11, 13) % 2) * 255
    Image.fromarray(raw).convert(mode).save(tmp_path / "photo.png")
    image = load_photo(tmp_path / "photo.png").image
    assert (pixels(image) == raw[..., None]).all()


@pytest.mark.parametrize("kind", ["png", "tiff-little", "tiff-big", "pgm", "int32"])
def test_sixteen_bit_grey_is_exact(tmp_path: Path, kind: str) -> None:
    raw = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # every value there is
    expected = np.array([(2 * v + 257) // 514 for v in range(65536)]).reshape(256, 256)
    source: Path | Image.Image = tmp_path / f"photo.{kind.split('-')[0]}"
    if kind == "int32":
        source = Image.fromarray(raw.astype(np.int32))
    elif kind == "tiff-big":
        source.write_bytes(big_endian_tiff(raw))  # type: ignore[union-attr]
    else:
        Image.fromarray(raw).save(source)
    photo = load_photo(source)
    assert (pixels(photo.image) == expected[..., None]).all()
    assert photo.alpha is None


@pytest.mark.parametrize(("colour", "bands"), [(2, 3), (6, 4), (4, 2)], ids=["rgb", "rgba", "la"])
def test_sixteen_bit_colour_is_scaled_and_never_clipped(
    tmp_path: Path, colour: int, bands: int
) -> None:
    """Its high byte: less than a level below v / 257, and at 65535 equal to it."""
    n = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # every value there is, in each band
    raw = np.stack([n, n[::-1], n.T, n[:, ::-1]][:bands], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in raw)
    path = tmp_path / "deep.png"
    path.write_bytes(png(256, 256, 16, colour, (b"IDAT", zlib.compress(rows))))
    photo = load_photo(path)
    got = pixels(photo.straight or photo.image)
    colours = raw[..., :3] if bands > 2 else raw[..., :1]
    assert (got == colours >> 8).all()
    assert np.abs(got - colours / 257).max() < 1
    assert (got.min(), got.max()) == (0, 255)
    if bands in (2, 4):
        assert (pixels(photo.alpha) == raw[..., -1] >> 8).all()


def big_endian_tiff(grey: np.ndarray) -> bytes:
    """A minimal TIFF 6.0 file, 16 bits a sample, most significant byte first, one strip."""
    height, width = grey.shape
    fields = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    fields[279] = grey.size * 2
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    head = b"MM\0*" + struct.pack(">IH", 8, len(fields)) + entries + b"\0" * 4
    return head.ljust(200, b"\0") + grey.astype(">u2").tobytes()


def planar_tiff(values: np.ndarray, packed: bool) -> bytes:
    """TIFF 6.0, little-endian, one strip for each channel of [H, W, bands]."""
    height, width, bands = values.shape
    planes = [np.ascontiguousarray(values[..., band]).tobytes() for band in range(bands)]
    planes = [zlib.compress(plane) if packed else plane for plane in planes]
    sizes = [len(plane) for plane in planes]
    starts = [400 + sum(sizes[:band]) for band in range(bands)]
    fields = {256: [width], 257: [height], 258: [8 * values.itemsize] * bands}
    fields |= {259: [8 if packed else 1], 262: [2 if bands == 3 else 1], 273: starts, 277: [bands]}
    fields |= {278: [height], 279: sizes, 284: [2]}
    entries, further = b"", b""
    for tag, numbers in fields.items():
        data = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(data) > 4:
            data, further = struct.pack("<I", 200 + len(further)), further + data
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + data
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + b"\0" * 4
    return (head.ljust(200, b"\0") + further).ljust(400, b"\0") + b"".join(planes)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("packed", [False, True])
def test_planes_are_read_right_or_refused(
    tmp_path: Path, bands: int, dtype: type, packed: bool
) -> None:
    raw, path = noise(9, 16, bands, dtype=dtype), tmp_path / "photo.tif"
    path.write_bytes(planar_tiff(raw, packed))
    if dtype is np.uint16 and not packed:
        words = "a TIFF of uncompressed planes of 16 bits"
        with Image.open(path) as image:
            for source in (path, image):
                refuses(source, words, "save it with interleaved channels, or compressed")
        with pytest.raises(ImageError, match=words):
            read_mask(path)
        return
    photo = load_photo(path)
    assert photo.bits == 8 * raw.itemsize
    eight = raw
    if dtype is np.uint16:
        eight = raw >> 8 if bands == 3 else np.rint(raw / 257)
        assert photo.deep is None if bands == 3 else (photo.deep == raw).all()
    assert (pixels(photo.image) == eight).all()


def test_sixteen_bit_transparent_value(tmp_path: Path) -> None:
    raw = noise(8, 8, dtype=np.uint16)
    raw[5, 5] = 4242
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in raw)
    chunks = ((b"tRNS", struct.pack(">H", 4242)), (b"IDAT", zlib.compress(rows)))
    (tmp_path / "photo.png").write_bytes(png(8, 8, 16, 0, *chunks))
    alpha = pixels(load_photo(tmp_path / "photo.png").alpha)
    assert (alpha == np.where(raw == 4242, 0, 255)).all()


def test_numbers_outside_sixteen_bits_and_floats_are_refused(tmp_path: Path) -> None:
    raw = np.full((8, 8), 7, np.int32)
    raw[3, 3] = 70000
    Image.fromarray(raw).save(tmp_path / "deep.tiff")
    refuses(tmp_path / "deep.tiff", "7 to 70000", "0 to 65535", "16-bit PNG")
    refuses(Image.fromarray(-raw), "-70000")
    Image.fromarray(raw.astype(np.float32)).save(tmp_path / "float.tiff")
    refuses(tmp_path / "float.tiff", "mode F", "floating-point", "PNG")


# --- colour ------------------------------------------------------------------------------------


def key_only_profile() -> bytes:
    """An ICC v2 CMYK profile of the colours L* = 100 (1 - K), a* = b* = 0, whatever C, M, Y."""
    clut = bytes(v for i in range(16) for v in (0 if i % 2 else 255, 128, 128))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity
    table += bytes(range(256)) * 4 + clut + bytes(range(256)) * 3
    table += b"\0" * (-len(table) % 4)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I4xI4s4s4s", 144 + len(table), 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + d50
    return head.ljust(128, b"\0") + tags + table


def cmyk_photo() -> tuple[Image.Image, np.ndarray]:
    raw = noise(10, 256, 4)
    raw[..., 3] = np.arange(256)
    return Image.fromarray(raw, mode="CMYK"), raw.astype(int)


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    image, raw = cmyk_photo()
    image.save(tmp_path / "photo.tiff", icc_profile=key_only_profile())
    photo = load_photo(tmp_path / "photo.tiff")
    lightness = 100 * (1 - raw[..., 3] / 255)
    f = (lightness + 16) / 116  # CIE 15: L* to Y, then IEC 61966-2-1: Y to sRGB
    y = np.where(lightness > 8, f**3, lightness / 903.3)
    srgb = np.where(y <= 0.0031308, 12.92 * y, 1.055 * np.maximum(y, 1e-9) ** (1 / 2.4) - 0.055)
    # Levels: 8-bit lookup tables in the profile.
    assert np.abs(pixels(photo.image) - 255 * srgb[..., None]).max() <= 2
    assert photo.icc_profile is None


@pytest.mark.parametrize("profile", [None, SRGB, key_only_profile()[:300], b"CMYK" * 50])
def test_cmyk_without_a_usable_profile(tmp_path: Path, profile: bytes | None) -> None:
    image, raw = cmyk_photo()
    image.save(tmp_path / "photo.tiff", icc_profile=profile)
    expected = (255 - raw[..., :3]) * (255 - raw[..., 3:]) / 255
    assert (
        np.abs(pixels(load_photo(tmp_path / "photo.tiff").image) - expected).max() <= 1
    )  # rounding


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    colour = pixels(load_photo(tmp_path / "red.jpg").image).mean((0, 1))
    assert np.abs(colour - (255, 0, 0)).max() < 4  # levels, lossy


def test_rgb_profile_is_carried_and_a_broken_grey_one_is_not(tmp_path: Path) -> None:
    raw = noise(8, 8, 3)
    Image.fromarray(raw).save(tmp_path / "rgb.png", icc_profile=SRGB)
    photo = load_photo(tmp_path / "rgb.png")
    assert photo.icc_profile == SRGB
    assert (pixels(photo.image) == raw).all()
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    Image.fromarray(raw[..., 0]).save(tmp_path / "grey.png", icc_profile=grey)
    assert load_photo(tmp_path / "grey.png").icc_profile is None


# --- orientation and frames ---------------------------------------------------------------------

# Stored pixels for an upright array u, from the words of EXIF 2.32 ("the 0th row is ...").


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "png16", "rgba", "palette"])
def test_exif_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = noise(10, 16, 4 if kind == "rgba" else 3)
    if kind in ("png16", "palette"):
        upright = upright[..., 0] if kind == "palette" else noise(10, 16, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    if kind == "palette":
        stored.putpalette([v for i in range(256) for v in (i, i, i)])
    path = tmp_path / f"photo.{kind if kind in ('webp', 'tiff') else 'png'}"
    stored.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    photo = load_photo(path)
    assert photo.size == (16, 10)
    if kind == "rgba":
        assert (pixels(photo.straight) == upright[..., :3]).all()
        assert (pixels(photo.alpha) == upright[..., 3]).all()
    else:
        value = np.rint(upright / 257) if kind == "png16" else upright
        assert (pixels(photo.image) == (value if value.ndim == 3 else value[..., None])).all()
    assert "exif" not in photo.image.info  # else a viewer would turn an output twice


def test_jpeg_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((16, 48, 3), np.uint8)
    stored[:, :16] = 255  # the stored left is the upright top
    Image.fromarray(stored).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    image = pixels(load_photo(tmp_path / "photo.jpg").image)
    assert image.shape == (48, 16, 3)
    assert image[:14].min() > 240
    assert image[18:].max() < 15


@pytest.mark.parametrize(
    "block", [b"Exif\0\0II*\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path, block: bytes) -> None:
    raw = noise(8, 12, 3)
    Image.fromarray(raw).save(tmp_path / "photo.png", exif=block)
    assert (pixels(load_photo(tmp_path / "photo.png").image) == raw).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_many(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"photo.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert (pixels(load_photo(path).image) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_first_picture_of_a_multi_picture_jpeg(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((16, 48, 3), np.uint8)
    stored[:, :16] = 255
    path = tmp_path / "photo.jpg"
    Image.fromarray(stored).save(
        path, "MPO", save_all=True, append_images=[Image.new("RGB", (48, 16), "red")], exif=exif
    )
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    expected = stored if orientation == 1 else np.rot90(stored, -1)
    off = pixels(load_photo(path).image).astype(int) - expected
    assert np.abs(off).max() < 16  # JPEG


@pytest.mark.parametrize(
    "name",
    [
        "K\u00e4tzchen.png",
        "Ka\u0308tzchen.png",
        "\u732b \u306e \u5199\u771f.png",
        "a  cat\U0001f408.png",
        "-cat.png",
    ],
)
def test_names_of_files_in_any_script(tmp_path: Path, name: str) -> None:
    raw = noise(8, 12, 3)
    Image.fromarray(raw).save(tmp_path / name)
    photo = load_photo(tmp_path / name)
    assert (pixels(photo.image) == raw).all()
    assert photo.path == tmp_path / name


# --- identity -------------------------------------------------------------------------------------


def test_sha256_depends_on_pixels_and_size_alone(tmp_path: Path) -> None:
    raw = noise(8, 16, 3)
    Image.fromarray(raw).save(tmp_path / "a.png", icc_profile=SRGB)
    digest = load_photo(tmp_path / "a.png").sha256
    assert digest == hashlib.sha256(b"16x8:" + raw.tobytes()).hexdigest()
    assert digest != load_photo(Image.fromarray(raw.reshape(16, 8, 3))).sha256
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_photo(Image.fromarray(raw)).path = tmp_path  # type: ignore[misc]
