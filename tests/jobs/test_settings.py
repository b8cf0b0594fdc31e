"""The settings in an edit's file make the same picture again, and an edit goes into any format."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from nulltext.errors import OptionError
from nulltext.image.metadata import settings_in
from nulltext.image.photos import load_photo
from nulltext.image.saving import Picture, encode
from nulltext.jobs.export import EXPORTS, export, result_name
from nulltext.jobs.options import arguments_of
from nulltext.jobs.settings import command_in, options_in
from nulltext.storage.files import LONGEST_NAME, safe_name
from support.pictures import SRGB, file_pixels

ASKED = {
    "by budget": ("--budget", "fast", "--full"),
    "local": (
        *("--full", "--crop", "4,2,40", "--guidance", "4", "--strength", "0.3"),
        *("--blend", "cat", "--blend", "dog", "--blend-except", "a", "--blend-threshold", "0.05"),
        *("--negative", "a cow", "--guidance-start", "0.2", "--seed", "5", "--steps", "3"),
    ),
    "weighed, by hand": (
        *("--weight", "dog=-2", "--cross-steps", "0.4", "--self-steps", "0.7", "--steps", "3"),
        *("--target-guidance", "3", "--detail", "photo", "--region", "everywhere", "--full"),
        *("--source-branch", "exact", "--hue", "model", "--align", "refine"),
    ),
    "masked": ("--mask", "mask.png", "--full", "--steps", "3"),
    "null-text": ("--method", "null-text", "--inner-steps", "2", "--steps", "3"),
    "masactrl": ("--editor", "masactrl", "--masa-start", "0.3", "--steps", "3"),
    "chain": ("--then", "a red dog", "--then-strength", "0.4", "--steps", "3", "--full"),
    "of several": ("--target", "a cow", "--weight", "dog=2", "--weight", "cow=3", "--steps", "3"),
    "half over, of equal words": ("--opacity", "0.4", "--weight", "dog#1=3", "--steps", "3"),
    "all of the photo": ("--size", "photo", "--full", "--region", "words", "--steps", "3"),
    "beside a sweep": ("--sweep", "grid.png", "--over", "strength=0.2,0.9", "--steps", "3"),
    "of another size": ("--size", "40x32", "--steps", "3", "--full"),
}


@pytest.fixture
def drawn(here: Path, photo: Image.Image) -> Path:
    """A photo and a mask in the current folder."""
    photo.save("cat.png")
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((20, 10, 50, 40), fill=255)
    mask.save("mask.png")
    return here


@pytest.mark.parametrize("name", ASKED)
def test_the_job_in_a_file_makes_the_same_picture(run, model, drawn, name) -> None:
    line = ("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model)
    code, _, err = run(*line, *ASKED[name], "-o", "out.png")
    assert code == 0, err
    for path in sorted(drawn.glob("out*.png")):
        settings = settings_in(path)
        assert settings is not None
        options = options_in(settings)
        assert options is not None
        code, _, err = run("edit", *arguments_of(options), "--model", model, "-o", "again.png")
        assert code == 0, err
        again = drawn / ("again-2.png" if options.then else "again.png")
        assert (file_pixels(again) == file_pixels(path)).all()
        assert settings_in(again) == settings
        # A batch takes it as a line.
        (drawn / "jobs.jsonl").write_text(json.dumps(settings["job"]))
        code, _, err = run("batch", "jobs.jsonl", "--dry-run", "--model", model, "-o", "batch")
        assert code == 0, err


def test_a_saved_inversion_is_made_again(run, model, drawn) -> None:
    line = ("invert", "cat.png", "--prompt", "a cat", "--model", model)
    asked = ("--method", "null-text", "--inner-steps", "2", "--steps", "3", "--crop", "4,2,40")
    code, _, err = run(*line, *asked, "-o", "cat.safetensors")
    assert code == 0, err
    line = ("edit", "cat.png", "--inversion", "cat.safetensors", "--target", "a dog", "--full")
    code, _, err = run(*line, "--model", model, "-o", "out.tif")
    assert code == 0, err
    code, out, err = run("inspect", "out.tif", "--json")
    assert code == 0, err
    job = json.loads(out)["job"]
    told = {"inner_steps": 2, "crop": "4,2,40", "size": "32x32", "method": "null-text"}
    assert told.items() <= job.items()
    options = options_in({"job": job})
    assert options is not None
    code, _, err = run("edit", *arguments_of(options), "--model", model, "-o", "again.tif")
    assert code == 0, err
    assert (file_pixels("again.tif") == file_pixels("out.tif")).all()


def test_a_photo_that_was_not_given_has_a_place_in_the_command(run, model, drawn, saved) -> None:
    line = ("edit", "--inversion", saved, "--target", "a dog", "--model", model, "-o", "out.png")
    code, _, err = run(*line)
    assert code == 0, err
    settings = settings_in(Path("out.png"))
    assert settings is not None
    program, verb, image, *rest = command_in(settings, "again.png")
    assert (program, verb, image) == ("nulltext", "edit", "PHOTO")
    code, _, err = run("edit", "cat.png", *rest, "--model", model)
    assert code == 0, err
    assert (file_pixels("again.png") == file_pixels("out.png")).all()


def test_every_setting_is_told(run, model, drawn) -> None:
    line = ("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model)
    code, _, err = run(*line, *ASKED["local"], "-o", "out.webp")
    assert code == 0, err
    settings = settings_in(Path("out.webp"))
    assert settings is not None
    told = {
        "crop": [4, 2, 40, 40],
        "photo_size": [64, 48],
        "size": [32, 32],
        "seed": 5,
        "blend": ["cat", "dog"],
        "blend_except": ["a"],
        "blend_threshold": 0.05,
        "mask": False,
        "negative": "a cow",
        "steps": 3,
    }
    assert told.items() <= settings.items()
    assert 0 <= settings["region_fraction"] <= 1
    code, out, err = run("inspect", "out.webp")
    assert code == 0, err
    assert "--blend-threshold 0.05" in out
    line = ("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model)
    code, _, err = run(*line, *ASKED["masked"], "-o", "out.png")
    assert code == 0, err
    masked = settings_in(Path("out.png"))
    assert masked is not None
    assert masked["mask"]
    assert 0 < masked["mask_fraction"] < 1
    assert masked["job"]["mask"] == "mask.png"


def test_the_command_names_the_model_and_what_was_added(tmp_path) -> None:
    settings = {
        "model": "tiny",
        "adapters": [
            {"kind": "lora", "name": "fur.safetensors", "sha256": "0", "weight": 0.5},
            {"kind": "embedding", "name": "my.safetensors", "sha256": "0", "token": "<my>"},
            {"kind": "vae", "name": "vae", "sha256": "0"},
            {"kind": "other"},
            "damaged",
        ],
        "job": {"image": "cat.png", "source": "a cat", "target": ["a dog"]},
    }
    line = shlex.join(command_in(settings, "again.png"))
    added = "--lora fur.safetensors:0.5 --embedding 'my.safetensors:<my>' --vae vae"
    assert line.endswith(f"-o again.png --model tiny {added}")
    assert "--model" not in command_in({**settings, "model": "flowers"}, "again.png")
    assert command_in({"model": "tiny"}, "again.png") == []


def test_a_picture_without_settings_is_refused(run, drawn) -> None:
    code, _, err = run("inspect", "cat.png")
    assert code == 2
    assert "holds no settings of an edit" in err
    Path("broken.jpg").write_bytes(b"\xff\xd8broken")
    code, _, err = run("inspect", "broken.jpg")
    assert code == 2
    assert "broken.jpg is not an image" in err


# --- quality and other formats ------------------------------------------------------------------


def test_quality_of_a_jpeg(run, model, drawn) -> None:
    line = ("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model)
    line = (*line, "--steps", "3", "--full")
    sizes = []
    for quality in (20, 60, 100):
        code, _, err = run(*line, "--quality", quality, "-o", "out.jpg")
        assert code == 0, err
        with Image.open("out.jpg") as image:
            sizes.append(image.quantization[0][0])  # the table's first step
    assert sizes[0] > sizes[1] > sizes[2] == 1
    code, _, err = run(*line, "--quality", 50, "-o", "other.png")
    assert (code, Path("other.png").exists()) == (2, False)
    assert "--quality is for JPEG" in err
    code, _, err = run(*line, "--quality", 0, "-o", "other.jpg")
    assert (code, Path("other.jpg").exists()) == (2, False)
    assert "choose a whole number from 1 to 100" in err


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A photo of 16 bits with opacity, profile and author."""
    values = np.random.default_rng(0).integers(0, 65536, (40, 56, 4), dtype=np.uint16)
    path = tmp_path / "deep.png"
    exif = Image.Exif()
    exif[0x8298] = "© Ana"
    image = Image.fromarray((values >> 8).astype(np.uint8), "RGBA")
    path.write_bytes(encode(Picture(image, values), path, icc_profile=SRGB, exif=exif.tobytes()))
    return path


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_edit_is_exported_with_what_the_photo_has(tmp_path: Path, deep: Path, kind: str) -> None:
    photo = load_photo(deep)
    values = photo.deep.copy()
    values[10:20, 10:20, :3] = 40_000
    result = tmp_path / "result.png"
    image = Image.fromarray((values >> 8).astype(np.uint8), "RGBA")
    text = {"nulltext": '{"target": "ü"}'}
    result.write_bytes(encode(Picture(image, values), result, text=text))
    path = tmp_path / f"out{EXPORTS[kind]}"
    path.write_bytes(export(result, photo, kind, quality=80 if kind == "jpeg" else None))
    again = load_photo(path)
    assert again.icc_profile == SRGB
    assert again.exif is not None
    assert settings_in(path) == {"target": "ü"}
    if kind in ("png", "tiff"):
        assert (again.deep == values).all()
        there = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (there[..., [2, 1, 0, 3]] == values).all()
        path.write_bytes(export(result, photo, kind, bits=8))
        assert load_photo(path).bits == 8
    if kind == "webp":
        assert (np.asarray(again.straight) == values[..., :3] >> 8).all()
        assert (np.asarray(again.alpha) == values[..., 3] >> 8).all()
    if kind == "jpeg":
        assert again.alpha is None
        shown = np.asarray(load_photo(result).image).astype(int)
        assert np.abs(np.asarray(again.image) - shown).mean() < 25  # levels; noise at quality 80
        half = export(result, photo, kind, quality=30)
        assert len(half) < len(export(result, photo, kind, quality=90))


def test_eight_bits_become_sixteen_on_request(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "result.png")
    data = export(tmp_path / "result.png", load_photo(photo), "tiff", bits=16)
    (tmp_path / "a.tif").write_bytes(data)
    again = load_photo(tmp_path / "a.tif")
    assert (again.deep == np.asarray(photo).astype(int) * 257).all()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gif", {}),
        ("png", {"quality": 80}),
        ("jpeg", {"quality": 101}),
        ("jpeg", {"bits": 16}),
        ("webp", {"bits": 16}),
        ("tiff", {"bits": 12}),
    ],
)
def test_exports_that_cannot_be(tmp_path: Path, photo: Image.Image, kind: str, more: dict) -> None:
    photo.save(tmp_path / "result.png")
    with pytest.raises(OptionError, match="choose"):
        export(tmp_path / "result.png", load_photo(photo), kind, **more)


def test_a_jpeg_is_compressed_as_the_photo_was(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "photo.jpg", quality=61, subsampling=0)
    photo.save(tmp_path / "result.png")
    data = export(tmp_path / "result.png", load_photo(tmp_path / "photo.jpg"), "jpeg")
    with Image.open(io.BytesIO(data)) as one, Image.open(tmp_path / "photo.jpg") as other:
        assert [one.quantization[i] for i in (0, 1)] == [other.quantization[i] for i in (0, 1)]


# --- names --------------------------------------------------------------------------------------


def test_names_say_photo_and_change_and_never_collide() -> None:
    first = result_name("my cat.png", "cat → dog, + snow", ".jpg")
    assert first == "my cat – cat to dog, + snow.jpg"
    second = result_name("my cat.png", "cat → dog, + snow", ".jpg", [first.upper()])
    assert second == "my cat – cat to dog, + snow 2.jpg"
    assert result_name("a.b.jpg", "", ".tif") == "a.b-edited.tif"
    assert result_name("v1.2 cat.jpg", "x → y", "") == "v1.2 cat – x to y"


@pytest.mark.parametrize("letter", ["a", "猫", "🐈"])
def test_names_of_long_photos_differ_and_say_the_change(letter: str) -> None:
    taken: list[str] = []
    for change in ("cat → dog", "cat → dog", "cat → dog", letter * 300, letter * 300):
        taken.append(result_name(f"{letter * 250}.png", change, ".jpg", taken))
    assert len({*taken}) == 5
    assert all(len(name.encode()) <= LONGEST_NAME for name in taken)
    assert all(name.startswith(letter * 20) for name in taken)
    assert [name.partition(" – ")[2] for name in taken[:3]] == [
        "cat to dog.jpg",
        "cat to dog 2.jpg",
        "cat to dog 3.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cat.jpg", "cat.jpg"),
        ("Ka\u0308tzchen 猫🐈.jpg", "K\u00e4tzchen 猫🐈.jpg"),
        ("-rf.png", "rf.png"),
        ("..hidden", "hidden"),
        ('a<b>c:"d/e\\f|g?h*.png', "a_b_c__d_e_f_g_h_.png"),
        ("line\nbreak\u202egpj.exe", "linebreakgpj.exe"),
        ("e\u200e\u0301\u061c\ufeff.png", "\u00e9.png"),
        ("👩\u200d🌾.png", "👩\u200d🌾.png"),
        ("con.jpg", "_con.jpg"),
        ("COM¹.png", "_COM¹.png"),
        ("NUL", "_NUL"),
        ("dot. .", "dot"),
        ("", "picture"),
        ("...", "picture"),
        ("\ud800.png", "_.png"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


def test_long_names_are_cut_between_letters() -> None:
    name = safe_name("猫" * 300 + ".jpeg")
    assert len(name.encode()) <= LONGEST_NAME
    assert name.endswith("猫.jpeg")
    name.encode()


AWKWARD = ["o'cat.png", "a&b #1;$(x).png", "-o.png", "🐈 cat.png", 'q"`!\\n.png', "two\nlines.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="these names and bash are POSIX")
@pytest.mark.parametrize("name", AWKWARD)
def test_names_go_through_a_real_shell(name: str) -> None:
    from nulltext.jobs.options import EditOptions

    options = EditOptions(image=Path(name), mask=Path(f"-m{name}"), output=Path(f"-{name}"))
    line = shlex.join(["printf", "%s\\0", *arguments_of(options)])
    out = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout.decode()
    image, *rest = out.split("\0")[:-1]
    assert Path(image) == Path(name)
    assert not image.startswith("-")
    paths = [word for word in rest if word not in ("-o", "--mask")]
    assert {*map(Path, paths)} == {Path(f"-m{name}"), Path(f"-{name}")}
    assert not any(path.startswith("-") for path in paths)
