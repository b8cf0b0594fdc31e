"""A person's mask: read as it comes, laid on photo or crop, and refused where it means nothing."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nulltext.errors import ImageError
from nulltext.image.images import CropBox
from nulltext.image.masks import crop_around, load_mask, mask_on_crop, mask_tensor, read_mask


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


HALF = np.zeros((16, 24), bool)
HALF[4:12, 6:12] = True


def painted(*colours, kind=HALF):
    """An RGB picture: the first colour where `kind` is 0, the second where it is 1, …"""
    return np.array(colours, np.uint8)[kind.astype(int)]


def palette(labels, *colours):
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


@pytest.mark.parametrize("suffix", ["png", "tif", "npy", ""])
@pytest.mark.parametrize(
    ("white", "kind", "noted"),
    [
        *((1, kind, False) for kind in (bool, np.uint8, np.uint16, np.int32, np.float32)),
        *((2, np.uint8, True), (128, np.uint8, True), (255, np.uint8, False)),
        *((255, np.uint16, False), (300, np.uint16, True), (65535, np.uint16, False)),
        (255, np.int32, False),
    ],
)
def test_two_values_are_black_and_white_in_every_type(tmp_path, suffix, white, kind, noted):
    """In memory, and in every file that holds the type."""
    raw = HALF.astype(kind) * kind(white)
    source = raw
    if suffix == "npy":
        np.save(tmp_path / "m.npy", raw)
    elif suffix and (suffix == "tif" or kind not in (np.int32, np.float32)):
        Image.fromarray(raw).save(tmp_path / f"m.{suffix}")
    if suffix and list(tmp_path.iterdir()):
        source = tmp_path / f"m.{suffix}"
    mask, note = read_mask(source)
    assert (np.asarray(mask) == HALF * 255).all()
    assert (f"the values 0 and {white} alone" in (note or "")) == noted


@pytest.mark.parametrize(
    "source",
    [
        torch.from_numpy(HALF),
        torch.from_numpy(HALF)[None, None],
        torch.from_numpy(HALF).long(),
        torch.from_numpy(HALF).to(torch.bfloat16),
        HALF[..., None],
        painted((0, 0, 0), (255, 0, 0)),
        painted((0, 0, 0), (0, 0, 90)),
        painted((255, 255, 255, 0), (30, 144, 255, 153)),
        palette(HALF, (0, 0, 0), (128, 0, 0)),
        palette(~HALF, (255, 255, 255), (0, 0, 0)),
    ],
    ids=lambda source: str(getattr(source, "shape", "palette")),
)
def test_one_colour_on_black_or_nothing_is_a_hard_mask(source):
    assert (np.asarray(load_mask(source)) == HALF * 255).all()
    assert (mask_tensor(source).numpy() == HALF).all()


def test_a_red_jpeg_is_soft_at_its_edges_and_red_all_the_same(tmp_path):
    red = Image.fromarray(painted((0, 0, 0), (255, 0, 0))).resize((480, 320), Image.Resampling.BOX)
    red.save(tmp_path / "m.jpg", quality=60)
    grey = np.asarray(load_mask(tmp_path / "m.jpg"))
    assert grey[100:220, 140:220].min() > 240  # the luminance of red would be 76
    assert grey[:60].max() < 15


AREAS = np.kron(np.arange(64).reshape(8, 8), np.ones((8, 8), int))
"""Sixty-four squares of 8 px, numbered."""


def areas(*values):
    """The values in turn, each over squares; with 255 last, that is a line 2 px wide only."""
    if values[-1] != 255 or len(values) < 3:
        return np.array(values)[AREAS % len(values)]
    inner = np.array(values[:-1])[AREAS % (len(values) - 1)]
    inner[:, 30:32] = 255
    return inner


@pytest.mark.parametrize("kind", ["L", "P", np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize(
    "values",
    [
        (0, 15, 255),  # VOC: a cat, and its border
        (0, 17, 63, 182),  # COCO
        (0, 17, 63, 182, 255),
        (0, 12, 150),  # ADE
        (*range(19), 255),  # Cityscapes
        tuple(range(60)),
    ],
    ids=lambda values: str(len(values)) if isinstance(values, tuple) else str(values),
)
def test_label_maps_are_no_shades(values, kind):
    source = areas(*values)
    if isinstance(kind, str):
        source = Image.fromarray(source.astype(np.uint8), mode="L")
        if kind == "P":
            source.putpalette([level for level in range(256) for _ in range(3)])
    else:
        source = source.astype(kind)
    label = max(value for value in values if value < 255)
    with pytest.raises(ImageError, match=rf"as images of labels do: .*mask == {label}\."):
        read_mask(source)


def disc(side, over):
    """A disc drawn at `over` times the size and shrunk: shades along its edge."""
    far = np.hypot(*(np.mgrid[: side * over, : side * over] + 0.5 - side * over / 2))
    large = Image.fromarray((far < side * over / 3).astype(np.uint8) * np.uint8(255))
    return np.asarray(large.resize((side, side), Image.Resampling.BOX))


def jpeg(values, quality):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def edge(deviation):
    """White on the left, fading to black in the shape of a Gaussian's integral."""
    at = (np.arange(96) - 30) / (deviation * 2**0.5)
    row = np.array([127.5 * (1 - math.erf(x)) for x in at])
    return np.tile(np.rint(row).astype(np.uint8), (64, 1))


@pytest.mark.parametrize(
    "shades",
    [
        areas(0, 128, 255),
        areas(0, 128, 255)[:, :28] // 128 * 127,  # a trimap without its white
        np.array([0, 128, 255])[AREAS % 3],
        np.array([0, 51, 255])[AREAS % 3],
        np.array([0, 90, 255])[AREAS % 3],
        np.array([0, 64, 128, 191])[AREAS % 4],
        np.array([16, 128, 235])[AREAS % 3],
        np.rint(np.arange(11) * 25.5).astype(int)[AREAS % 11],
        *(disc(side, over) for side in (12, 64, 200) for over in (2, 3, 4, 16)),
        *(jpeg(disc(200, 1), quality) for quality in (30, 60, 75, 95)),
        *(edge(deviation) for deviation in (0.5, 1, 2, 4, 8)),
    ],
    ids=lambda shades: f"{len(np.unique(shades))}",
)
def test_soft_masks_are_no_labels(shades):
    shades = shades.astype(np.uint8)
    mask = np.asarray(load_mask(shades))
    two = len(np.unique(shades)) == 2
    assert (mask == ((shades != 0) * 255 if two else shades)).all()


def test_floats_keep_their_shades(tmp_path):
    """In memory and from a file, of any width and order of bytes, as shades and not as labels."""
    wanted = np.where(HALF, 0.5, 0.2 * (np.arange(24) > 18))
    np.save(tmp_path / "m.npy", wanted)
    Image.fromarray(wanted.astype(np.float32)).save(tmp_path / "m.tif")
    kinds = (np.float16, np.float32, ">f4", np.float64, np.longdouble)
    sources = [tmp_path / "m.npy", tmp_path / "m.tif", *(wanted.astype(kind) for kind in kinds)]
    for source in [*sources, torch.from_numpy(wanted), wanted[..., None]]:
        mask, note = read_mask(source)
        assert (np.asarray(mask) == np.rint(wanted * 255)).all()
        assert "is 0.5 of 1, so no pixel may change by more than 50 %" in note
        held = mask_tensor(source)
        assert torch.allclose(held, torch.from_numpy(wanted).float(), atol=1 / 500)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((16, 16), [("a", "u1")]), "numbers are expected"),
        (np.zeros((16, 16), complex), "numbers are expected"),
        (np.full((16, 16), "a"), "numbers are expected"),
        (np.stack([HALF] * 3, axis=-1), r"holds 3 masks, .*masks\[\.\.\., 0\]"),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_arrays_of_no_mask_are_refused_as_such(source, words):
    for read in (read_mask, mask_tensor):
        with pytest.raises(ImageError, match=words):
            read(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HALF + 2 * (np.arange(24) > 18), ["values 0, 1, 2", "labels", "mask == 2"]),
        (np.where(HALF, 15, np.arange(24) > 20) + 255 * (np.arange(24) < 1), ["0, 1, 15, 255"]),
        (np.minimum(np.arange(24) // 2, 9) + np.zeros((16, 1), int), ["0, 1, 2, 3, 4, 5, 6, 7, …"]),
        (np.where(HALF, 255, 1 + np.arange(24) // 4) + 0, ["labels"]),
        (
            palette(HALF + 2 * (np.arange(24) > 18), (0, 0, 0), (128, 0, 0), (0, 128, 0)),
            ["label 0: #000000, label 1: #800000, label 2: #008000"],
        ),
        (
            palette(HALF + 2 * (np.arange(24) > 18), (0, 0, 0), (128, 0, 0), (64, 0, 0)),
            ["label 1: #800000, label 2: #400000"],  # shades of one colour, yet labels
        ),
        (palette(HALF, (68, 1, 84), (253, 231, 37)), ["label 0: #440154, label 1: #fde725"]),
        (painted((255, 255, 255), (255, 0, 0)), ["#ffffff, #ff0000"]),
        (HALF * 20.0 - 10, ["from -10 to 10", "float from 0 to 1"]),
        (HALF * 255.0, ["divide it by 255"]),
        (HALF.astype(int) - 1, ["from -1 to 0"]),
        (np.stack([HALF] * 3), ["holds 3 masks", "masks[0]"]),
        (np.ones((16, 16), np.uint8), ["white everywhere"]),
        (np.full((16, 16), 9, np.uint8), ["one shade (9 of 255) everywhere"]),
    ],
)
def test_labels_colours_and_other_ranges_are_refused_by_name(source, words):
    with pytest.raises(ImageError) as caught:
        load_mask(source)
    message = str(caught.value)
    assert message.endswith(".")
    for word in words:
        assert word in message


def test_a_soft_mask_keeps_its_shades_and_a_dim_one_is_pointed_out():
    ramp = np.tile(np.linspace(0, 255, 60).round().astype(np.uint8), (16, 1))
    mask, note = read_mask(ramp)
    assert (np.asarray(mask) == ramp).all()
    assert note is None
    deep = np.tile(np.linspace(0, 65535, 60).round().astype(np.uint16), (16, 1))
    assert (np.asarray(read_mask(deep)[0]) == np.rint(deep / 257)).all()
    dim, note = read_mask(ramp // 2)
    assert (np.asarray(dim) == ramp // 2).all()
    assert "127 of 255" in note
    assert "50 %" in note
    three = np.where(HALF, 255, 51 * (np.arange(24) > 18)).astype(np.uint8)
    assert (np.asarray(load_mask(three)) == three).all()
    half = torch.rand(16, 24)
    assert torch.equal(mask_tensor(half), half)


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
