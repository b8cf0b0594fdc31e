"""photos.py against what is no photo: other files, other formats, and damaged bytes."""

from __future__ import annotations

import errno
import io
import os
import random
import threading
import warnings
import zlib
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from nulltext.errors import ImageError, InversionFileError
from nulltext.image import photos
from nulltext.image.photos import load_photo
from nulltext.inversion.record import Inversion
from support.pictures import noise, pixels, png, refuses


def test_paths_that_are_no_photo(tmp_path: Path) -> None:
    refuses(tmp_path / "none.png", "does not exist")
    refuses(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refuses(tmp_path / "empty.png", "is empty (0 bytes)")
    refuses(tmp_path / "empty.png" / "below.png", "does not exist")
    (tmp_path / "text.png").write_text("these are words, not pixels\n" * 9)
    refuses(tmp_path / "text.png", "not an image", "JPEG")
    refuses("nul\0byte.png")
    refuses("/dev/zero", "not a regular file")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refuses(tmp_path / "loop.png", "symbolic links")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root is not stopped by permission bits
    refuses(path, "permission denied")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    done: list[str] = []
    worker = threading.Thread(
        target=lambda: done.append(refuses(tmp_path / "pipe.png", "not a regular file")),
        daemon=True,
    )
    worker.start()
    worker.join(5)
    assert done


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("PDF", b"%PDF-1.7\n"),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("PSD", b"8BPS\0\1"),
        ("JPEG XL", b"\xff\x0a\0\0"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ],
)
def test_foreign_formats_are_named(tmp_path: Path, kind: str, head: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(head + bytes(200))
    refuses(tmp_path / "photo.jpg", f"is {kind}, which", "convert it to JPEG or PNG")


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.cr2", b"II*\0\x10\0\0\0CR\2\0", ("Canon RAW (CR2)", "export it")),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1", ("Canon RAW (CR3)", "export it")),
        ("a.raf", b"FUJIFILMCCD-RAW 0201", ("Fujifilm RAW (RAF)", "export it")),
        ("a.orf", b"IIRO\x08\0\0\0", ("Olympus RAW (ORF)", "export it")),
        ("a.rw2", b"IIU\0\x18\0\0\0", ("Panasonic RAW (RW2)", "export it")),
        ("a.mov", b"\0\0\0\x14ftypqt  \0\0\0\0", ("is a video", "frames")),
        ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0", ("is a video", "frames")),
        ("a.jpg", b"<!DOCTYPE html><html>", ("is a web page", "save the image")),
        ("a.npz", b"PK\3\4", ("is an archive", "unpack it")),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid", ("LFS pointer", "lfs pull")),
    ],
)
def test_raw_videos_and_pages_are_named_with_what_to_do(
    tmp_path: Path, name: str, head: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(head + bytes(200))
    refuses(tmp_path / name, *words)


@pytest.mark.parametrize("suffix", [".NEF", ".arw", ".dng", ".pef", ".tif"])
def test_the_preview_in_a_raw_file_is_not_taken_for_the_photo(tmp_path: Path, suffix: str) -> None:
    """A whole TIFF, which Pillow reads; with DNG's tag under any name."""
    tags = {50706: b"\1\4\0\0"} if suffix == ".tif" else {}
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(noise(16, 16, 3)).save(path, "TIFF", tiffinfo=tags)
    refuses(path, "RAW (", "export it from your camera's or RAW software as JPEG, PNG or TIFF")


@pytest.mark.parametrize("source", ["https://example.com/a.jpg", Path("jobs/http://x.org/a.png")])
def test_an_address_is_told_from_a_path(source: str | Path) -> None:
    address = str(source).removeprefix("jobs/").replace("http:/x", "http://x")
    with pytest.raises(ImageError, match=rf"^'{address}' is an address.*: download the file"):
        load_photo(source)
    with pytest.raises(InversionFileError, match=rf"^'{address}' is an address"):
        Inversion.load(Path(source))


def test_a_file_address_is_told_by_its_path_and_a_long_name_as_such() -> None:
    for source in ("file:///a/b%20c.jpg", Path("file:///a/b%20c.jpg")):
        with pytest.raises(ImageError, match=r"^'file:///a/b%20c\.jpg' is .* path, '/a/b c\.jpg'"):
            load_photo(source)
    with pytest.raises(ImageError, match=r"x… is too long a name: check the path\."):
        load_photo("x" * 300 + ".png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_in_a_general_container_is_not_taken_for_heic(tmp_path: Path) -> None:
    data = encoded("avif")
    (tmp_path / "photo.avif").write_bytes(data[:8] + b"mif1" + data[12:])
    assert load_photo(tmp_path / "photo.avif").size == (64, 64)


def test_formats_off_the_list_are_not_opened(tmp_path: Path) -> None:
    for suffix in ("ico", "tga", "pcx"):
        path = tmp_path / f"photo.{suffix}"
        Image.new("RGB", (32, 32)).save(path)
        Image.open(path).close()  # Pillow itself would open it
        refuses(path, "not an image")


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    options = {"webp": {"lossless": True}, "tiff": {"compression": "tiff_lzw"}}.get(suffix, {})
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.fromarray(noise(64, 64, 3)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "tif", "ppm", "avif"]
)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncation_is_noticed(tmp_path: Path, suffix: str, part: float) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(suffix)
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(data)
    assert load_photo(path).size == (64, 64)
    path.write_bytes(data[: int(len(data) * part)])
    refuses(path, "truncated or damaged")


def test_flipped_bytes_in_a_png_are_noticed(tmp_path: Path) -> None:
    data = bytearray(encoded("png"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "photo.png").write_bytes(data)
    refuses(tmp_path / "photo.png", "damaged")


@pytest.mark.parametrize("side", [60000, 14500])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    """Above 200 million pixels, also where Pillow raises by itself."""
    chunks = ((b"IDAT", zlib.compress(bytes(100))),)
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, *chunks))
    refuses(tmp_path / "bomb.png", "200,000,000 pixels")


def test_a_caller_may_allow_fewer_pixels(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    path.write_bytes(png(4000, 3000, 1, 0))  # a header alone: decoding would fail differently
    with pytest.raises(ImageError, match=r"more than 10,000,000 pixels"):
        load_photo(path, max_pixels=10_000_000)


def test_large_but_allowed_photos_do_not_warn(tmp_path: Path) -> None:
    Image.new("1", (10000, 9500)).save(tmp_path / "large.png")  # above Pillow's own 89 million
    with (
        warnings.catch_warnings(),
        mock.patch.object(photos, "_to_rgb", return_value=(Image.new("RGB", (9, 9)), None)),
    ):
        warnings.simplefilter("error")
        load_photo(tmp_path / "large.png")
        with pytest.raises(Image.DecompressionBombWarning):  # silenced only inside
            Image.open(tmp_path / "large.png")


def test_smallest_side(tmp_path: Path) -> None:
    Image.new("RGB", (100, 7)).save(tmp_path / "thin.png")
    refuses(tmp_path / "thin.png", "100 x 7 px", "8 px")
    assert load_photo(Image.new("RGB", (8, 8))).size == (8, 8)


def test_an_image_in_memory(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 8, 3))
    photo = load_photo(image)
    before = pixels(image)
    image.paste("black", (0, 0, 8, 9))
    assert photo.path is None
    assert (pixels(photo.image) == before).all()
    (tmp_path / "cut.png").write_bytes(encoded("png")[:5000])
    with Image.open(tmp_path / "cut.png") as lazy:
        refuses(lazy, "given image", "truncated")


PREFIXES = {
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    "png": png(64, 64, 8, 2)[:33],
    "gif": b"GIF89a\x40\0\x40\0\xf0\0\0",
    "webp": b"RIFF\0\1\0\0WEBPVP8L",
    "bmp": b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    "tiff": b"II*\0\x08\0\0\0",
    "ppm": b"P6\n64 64\n255\n",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
}


def only_image_errors(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with mock.patch.object(photos, "MAX_PIXELS", 1_000_000):  # keep the machine's memory out of it
        try:
            photo = load_photo(path)
        except ImageError as error:
            message = str(error)
        else:
            message = str(path)
            assert photo.image.mode == "RGB"
            assert min(photo.size) >= 8
    assert str(path) in message
    assert "\n" not in message


@settings(max_examples=100, deadline=None)
@given(suffix=st.sampled_from(sorted(PREFIXES)), tail=st.binary(max_size=400))
def test_random_bytes_behind_a_magic(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    only_image_errors(PREFIXES[suffix] + tail, path)


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(sorted({*PREFIXES, "tif"})), seed=st.integers(0, 2**32 - 1))
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int) -> None:
    if suffix == "avif" and not features.check("avif"):
        return
    rng = random.Random(seed)
    data = bytearray(encoded(suffix))
    for _ in range(rng.randint(1, 12)):
        reach = min(len(data), rng.choice((40, 400, len(data))))  # headers are the fragile part
        data[rng.randrange(reach)] = rng.randrange(256)
    only_image_errors(bytes(data), tmp_path_factory.getbasetemp() / f"fuzz.{suffix}")
