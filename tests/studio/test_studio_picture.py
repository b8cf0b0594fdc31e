"""The picture of the studio in a real browser: zoom, pan, painting, opacity, comparing."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from support.browser import (
    address,
    browser,
    chip,
    opened_and_inverted,
    part,
    proxy,
    studio,
    sync_api,
    upload,
    visit,
)
from support.pictures import file_pixels

__all__ = ["address", "browser", "proxy", "studio", "visit"]  # fixtures

pytestmark = pytest.mark.slow
expect = sync_api.expect

WIDTH, HEIGHT = 2400, 1600
"""Of a photo that the page shows reduced, to 1800 pixels at most."""
FULL = re.compile("full.jpg$")
LOST = 4
"""Levels that a JPEG of quality 92 is off, on average at most; an enlarged preview is off by 12."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A photo with detail in every pixel, as no enlarged preview has it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / WIDTH
    smooth = np.stack([x, y, 0.5 + 0.5 * np.sin(30 * x * y)], axis=-1) * 0.6 + 0.2
    noise = np.random.default_rng(0).normal(0, 0.08, (HEIGHT, WIDTH, 1))
    path = tmp_path_factory.mktemp("large") / "my cat.png"
    Image.fromarray(((smooth + noise).clip(0, 1) * 255).round().astype(np.uint8)).save(path)
    return path


def edited(page, word="dog"):
    part(page, "target").fill(f"a red {word}")
    part(page, "edit").click()
    expect(part(page, "command")).to_have_text(re.compile(f"a red {word}"))
    expect(part(page, "over")).to_be_visible()
    shown(page, "over")


def shown(page, name):
    """Wait until a picture can be seen; its width in pixels."""
    return part(page, name).evaluate("image => image.decode().then(() => image.naturalWidth)")


def box(page, name):
    return part(page, name).bounding_box()


def middle(page, name="picture"):
    at = box(page, name)
    return at["x"] + at["width"] / 2, at["y"] + at["height"] / 2


def seen(page):
    """The picture on the screen: [height, width, 3] in device pixels; the tags hidden."""
    hide = """() => {
      const style = new CSSStyleSheet();  // the page's policy takes no <style>
      style.replaceSync(".tag, .line { opacity: 0 }");
      document.adoptedStyleSheets = [style];
    }"""
    page.evaluate(hide)
    page.evaluate("scrollTo(0, 0)")  # from under the bar
    data = page.screenshot(clip=box(page, "picture"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def part_seen(page, pixels, ratio=1):
    """What of a file's pixels the picture should show at 100 %."""
    sheet, frame = box(page, "sheet"), box(page, "picture")
    x, y = (round(ratio * (frame[axis] - sheet[axis])) for axis in "xy")
    wide, high = (round(ratio * frame[side]) for side in ("width", "height"))
    return pixels[y : y + high, x : x + wide].astype(int)


@pytest.mark.parametrize("size", [(1400, 900), (390, 844)], ids=str)
def test_a_photo_keeps_its_proportions(visit, large, size):
    page = visit(*size)
    upload(page, large)
    part(page, "crop").wait_for()
    for name in ("sheet", "base", "crop"):  # the whole photo is the frame
        assert box(page, name) == pytest.approx(box(page, "picture"), abs=1), name
    at = box(page, "picture")
    assert at["width"] / at["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.01)


def test_every_pixel_of_photo_and_edit_is_shown(visit, large, tmp_path):
    page = visit()
    opened_and_inverted(page, large)
    edited(page)
    with page.expect_download() as arriving:
        part(page, "download").click()
    arriving.value.save_as(tmp_path / "edited.png")
    assert part(page, "zoom-fit").get_attribute("aria-pressed") == "true"
    assert shown(page, "base") == 1800
    part(page, "zoom-full").click()
    expect(part(page, "zoom-now")).to_have_text("100 %")
    for name in ("base", "over"):
        expect(part(page, name)).to_have_attribute("src", FULL)
        assert shown(page, name) == WIDTH
    assert box(page, "sheet")["width"] == WIDTH
    screen = seen(page)
    half = screen.shape[1] // 2
    photo = part_seen(page, file_pixels(large))
    after = part_seen(page, file_pixels(tmp_path / "edited.png"))
    assert np.abs(after - photo)[:, half:].mean() > 5
    assert np.abs(screen - after)[:, half + 5 :].mean() < LOST
    assert np.abs(screen - photo)[:, : half - 5].mean() < LOST


def test_one_pixel_of_the_photo_is_one_of_a_fine_screen(visit, large):
    page = visit(device_scale_factor=2)
    upload(page, large)
    part(page, "zoom-full").click()
    expect(part(page, "base")).to_have_attribute("src", FULL)
    assert shown(page, "base") == WIDTH
    assert box(page, "sheet")["width"] == WIDTH / 2
    part(page, "crop").evaluate("crop => crop.style.opacity = 0")
    photo = part_seen(page, file_pixels(large), 2)
    assert np.abs(seen(page) - photo).mean() < LOST


def place_of(page, x, y):
    """Which point of the photo is at a point of the window, in parts of its sides."""
    sheet = box(page, "sheet")
    return (x - sheet["x"]) / sheet["width"], (y - sheet["y"]) / sheet["height"]


def split(page):
    return part(page, "picture").evaluate("box => box.style.getPropertyValue('--split')")


def test_zoom_and_pan_by_mouse_keep_the_divider(visit, large):
    page = visit()
    opened_and_inverted(page, large)
    edited(page)
    frame = box(page, "picture")
    x, y = frame["x"] + 0.2 * frame["width"], frame["y"] + 0.7 * frame["height"]
    page.mouse.move(x, y)
    at = place_of(page, x, y)
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    expect(part(page, "zoom-now")).not_to_have_text("39 %")
    assert place_of(page, x, y) == pytest.approx(at, abs=2e-3)
    page.mouse.down()
    page.mouse.move(x + 100, y - 50)
    page.mouse.up()
    assert place_of(page, x + 100, y - 50) == pytest.approx(at, abs=2e-3)
    assert split(page) in ("", "50%")
    page.mouse.wheel(30, 40)  # without the key it moves the picture, not the page
    assert place_of(page, x + 70, y - 90) == pytest.approx(at, abs=2e-3)
    assert page.evaluate("scrollY") == 0
    middle_x, middle_y = middle(page)
    page.mouse.move(middle_x + 3, middle_y)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.25 * frame["width"], middle_y)
    page.mouse.up()
    assert split(page) == "25%"
    edge = part(page, "over").evaluate(
        "o => parseFloat(getComputedStyle(o).clipPath.split(' ')[3])"
    )
    sheet = box(page, "sheet")
    cut = sheet["x"] + edge / 100 * sheet["width"]
    assert cut == pytest.approx(frame["x"] + 0.25 * frame["width"], abs=1)
    page.mouse.dblclick(x, y)
    expect(part(page, "zoom-fit")).to_have_attribute("aria-pressed", "true")
    assert box(page, "sheet") == box(page, "picture")
    at = place_of(page, x, y)
    page.mouse.dblclick(x, y)
    expect(part(page, "zoom-full")).to_have_attribute("aria-pressed", "true")
    assert place_of(page, x, y) == pytest.approx(at, abs=2e-3)


def test_zoom_and_pan_by_keys(visit, large):
    page = visit()
    upload(page, large)
    scale = part(page, "zoom-now")
    expect(scale).to_have_text("36 %")
    part(page, "picture").focus()
    page.keyboard.press("+")
    expect(scale).to_have_text("54 %")
    page.keyboard.press("-")
    expect(scale).to_have_text("36 %")
    page.keyboard.press("1")
    expect(scale).to_have_text("100 %")
    before = box(page, "sheet")
    frame = box(page, "picture")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = box(page, "sheet")
    assert before["x"] - after["x"] == pytest.approx(0.1 * frame["width"], abs=1)
    assert before["y"] - after["y"] == pytest.approx(0.1 * frame["width"], abs=1)
    for _ in range(30):
        page.keyboard.press("Shift+ArrowRight")
    assert box(page, "sheet")["x"] + WIDTH == pytest.approx(frame["x"] + frame["width"], abs=1)
    page.keyboard.press("0")
    assert box(page, "sheet") == frame
    part(page, "crop").focus()
    page.keyboard.press("-")  # resizes the crop
    expect(scale).to_have_text("36 %")


def test_two_fingers_zoom_and_move(visit, large):
    page = visit(390, 844, has_touch=True, is_mobile=True)
    opened_and_inverted(page, large)
    part(page, "step-edit").locator("summary").first.click()
    part(page, "paint-it").click()
    frame = box(page, "picture")
    x, y = middle(page)
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    at = place_of(page, x, y)
    for step in range(1, 11):
        touch("touchMove", (x - 20 - 4 * step, y), (x + 20 + 4 * step, y))
    touch("touchEnd")
    assert box(page, "sheet")["width"] / frame["width"] == pytest.approx(3, abs=0.1)
    assert place_of(page, x, y) == pytest.approx(at, abs=5e-3)
    expect(part(page, "mask-said")).to_have_text("")  # the first finger has painted nothing
    part(page, "views").get_by_role("button", name="Photo").click()
    x, y = middle(page)  # the page may have been scrolled
    at = place_of(page, x, y)
    touch("touchStart", (x, y))
    touch("touchMove", (x + 30, y + 20))
    touch("touchEnd")
    assert place_of(page, x + 30, y + 20) == pytest.approx(at, abs=5e-3)
    part(page, "zoom-fit").click()
    assert box(page, "sheet") == box(page, "picture")


def alpha(page):
    """The mask on the page: [height, width], 0 to 255."""
    address = part(page, "paint").evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image.getchannel("A")).astype(int)


def paint_line(page, *stops):
    """Drag the brush over points in parts of the picture's sides."""
    frame = box(page, "paint")
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in stops]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def start_painting(page, path):
    opened_and_inverted(page, path)
    part(page, "step-edit").locator("summary").first.click()
    part(page, "paint-it").click()
    part(page, "brush").fill("30")


def test_a_soft_mask_is_sent_as_it_is_shown(visit, file, tmp_path):
    page = visit()
    start_painting(page, file)
    part(page, "soft").fill("0")
    paint_line(page, (0.3, 0.5), (0.7, 0.5))
    hard = alpha(page)
    part(page, "undo").click()
    part(page, "soft").fill("100")
    paint_line(page, (0.3, 0.5), (0.7, 0.5))
    soft = alpha(page)
    # A Gaussian of 0.4 radii: at the stroke's edge (9 pixels from its middle) half.
    column = soft[:, 45]
    assert hard[:, 45].tolist()[20:41] == [0] + [255] * 18 + [0, 0]
    assert column[30] > 250
    assert column[21:23].mean() == pytest.approx(128, abs=30)
    assert (np.diff(column[10:30]) >= 0).all()
    assert len(np.unique(soft)) > 20
    part(page, "undo").click()
    paint_line(page, (0.3, 0.5), (0.7, 0.5), (0.3, 0.5))
    assert np.abs(alpha(page) - soft).max() <= 5  # it does not grow where it goes over itself
    shown = alpha(page)
    chip(page, "cat").click()
    part(page, "word").fill("dog")
    part(page, "edit").click()
    with page.expect_download() as arriving:
        part(page, "mask-file").click()
    arriving.value.save_as(tmp_path / "mask.png")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == shown).all()


def test_painting_can_be_undone_inverted_and_cleared(visit, file):
    page = visit()
    start_painting(page, file)
    said = part(page, "mask-said")
    expect(part(page, "undo")).to_have_attribute("aria-disabled", "true")
    steps = [alpha(page)]
    paint_line(page, (0.3, 0.3), (0.5, 0.3))
    steps.append(alpha(page))
    part(page, "erase").click()
    paint_line(page, (0.4, 0.3), (0.45, 0.3))
    part(page, "erase").click()
    steps.append(alpha(page))
    part(page, "invert-mask").click()
    steps.append(alpha(page))
    part(page, "clear").click()
    expect(said).to_have_text("")
    steps.append(alpha(page))
    assert (steps[1] >= steps[2]).all()
    assert (steps[1] > steps[2]).any()
    assert (steps[3] == 255 - steps[2]).all()
    assert steps[4].max() == 0
    part(page, "paint").focus()
    for step in reversed(steps[:-1]):
        page.keyboard.press("Control+z")
        assert (alpha(page) == step).all()
    expect(said).to_have_text("")
    expect(part(page, "undo")).to_have_attribute("aria-disabled", "true")
    for step in steps[1:4]:
        page.keyboard.press("Control+Shift+Z")
        assert (alpha(page) == step).all()
    expect(said).to_have_text("A mask is painted.")
    page.keyboard.press("Space")  # a new step: what was undone is gone
    expect(part(page, "redo")).to_have_attribute("aria-disabled", "true")
    part(page, "erase").click()
    part(page, "soft").fill("0")
    part(page, "brush").fill("40")
    for y in np.linspace(0, 1, 6):
        paint_line(page, (0, y), (1, y))
    expect(said).to_have_text("")  # all of it was erased


def test_the_brush_keeps_its_size_on_the_screen_and_move_moves(visit, large):
    page = visit()
    start_painting(page, large)
    part(page, "zoom-full").click()
    paint_line(page, (0.5, 0.5), (0.5, 0.51))
    painted = alpha(page)
    # 30 % of the picture's height (567 pixels at 100 %), in a mask of 1024 pixels.
    across = (painted[painted.shape[0] // 2] > 127).sum()
    height = box(page, "picture")["height"]
    assert across == pytest.approx(0.3 * height * 1024 / WIDTH, abs=2)
    part(page, "move").click()
    before, (x, y) = box(page, "sheet"), middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 80, y - 60)
    page.mouse.up()
    after = box(page, "sheet")
    assert (after["x"] - before["x"], after["y"] - before["y"]) == (-80, -60)
    assert (alpha(page) == painted).all()


def test_the_opacity_of_an_edit_is_seen_at_once_and_in_its_file(visit, file, tmp_path):
    page = visit()
    opened_and_inverted(page, file)
    edited(page)
    slider, download = part(page, "opacity"), part(page, "download")
    slider.evaluate("s => { s.value = 0.5; s.dispatchEvent(new Event('input', {bubbles: true})) }")
    assert part(page, "over").evaluate("over => over.style.opacity") == "0.5"
    expect(part(page, "opacity-now")).to_have_text("50 %")
    expect(download).to_have_attribute("aria-disabled", "true")  # the file is not that yet
    slider.evaluate("s => s.dispatchEvent(new Event('change', {bubbles: true}))")
    expect(download).to_have_attribute("aria-disabled", "false")
    assert "--opacity 0.5" in part(page, "command").text_content()
    with page.expect_download() as arriving:
        download.click()
    arriving.value.save_as(tmp_path / "faded.png")
    screen, frame = seen(page), box(page, "picture")
    faded = Image.open(tmp_path / "faded.png").convert("RGB")
    size = (round(frame["width"]), round(frame["height"]))
    expected = np.asarray(faded.resize(size, Image.Resampling.BILINEAR)).astype(int)
    photo = np.asarray(Image.open(file).resize(size, Image.Resampling.BILINEAR)).astype(int)
    height, width = min(len(screen), size[1]), min(screen.shape[1], size[0])
    half = slice(width // 2 + 5, width - 20)
    rows = slice(20, height - 20)
    error = np.abs(screen[:height, :width] - expected[:height, :width])[rows, half].mean()
    assert error < np.abs(expected - photo)[rows, half].mean() / 4
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(part(page, "opacity-now")).to_have_text("40 %")
    expect(part(page, "command")).to_contain_text("--opacity 0.4")
    expect(slider).to_be_focused()
    edited(page, "cow")
    tiles = part(page, "history").locator(".tile")
    expect(tiles).to_have_count(2)
    expect(part(page, "opacity-now")).to_have_text("100 %")
    expect(tiles.nth(1)).to_contain_text("cat → dog · strength 0.5 · 40 %")
    tiles.nth(1).click()
    expect(part(page, "opacity-now")).to_have_text("40 %")
    assert part(page, "over").evaluate("over => over.style.opacity") == "0.4"


def test_any_edit_is_pinned_and_compared_with_any_other(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    edited(page, "dog")
    edited(page, "cow")
    entries = part(page, "history").locator(".entry")
    expect(entries).to_have_count(2)
    addresses = [entry.get_attribute("src") for entry in entries.locator("img").all()]
    assert part(page, "history").locator("button button").count() == 0
    pin = entries.nth(1).get_by_role("button", name="Pin “cat → dog · 0.5”")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    expect(pin).to_be_focused()
    expect(part(page, "tag-before")).to_have_text("cat → dog · 0.5")
    expect(part(page, "tag-after")).to_have_text("cat → cow · 0.5")
    expect(part(page, "views").locator("[data-view=compare]")).to_have_text("Pinned | Selected")
    expect(part(page, "note")).to_have_text(
        "On the left “cat → dog · 0.5”, on the right “cat → cow · 0.5”."
    )
    assert [part(page, name).get_attribute("src") for name in ("over", "pinned")] == addresses
    shown(page, "pinned")
    edges = [
        part(page, name).evaluate("image => getComputedStyle(image).clipPath")
        for name in ("pinned", "over")
    ]
    assert edges == ["inset(0px 50% 0px 0px)", "inset(0px 0px 0px 50%)"]
    both = seen(page)
    part(page, "unpin").click()
    expect(pin).to_be_focused()
    expect(part(page, "pinned")).to_be_hidden()
    expect(part(page, "tag-before")).to_have_text("Before")
    alone = seen(page)
    half = both.shape[1] // 2
    assert (both[:, half + 5 :] == alone[:, half + 5 :]).all()
    assert (both[:, : half - 5] != alone[:, : half - 5]).any()
    pin.press("Enter")
    entries.nth(1).locator(".tile").click()  # the pinned one itself
    expect(part(page, "note")).to_have_text(
        "This edit is pinned: choose another to compare it with."
    )
    part(page, "again").click()  # no result to compare with, after another inversion
    part(page, "invert").click()
    expect(part(page, "outcome")).to_be_hidden()
    expect(part(page, "pinned")).to_be_hidden()
    entries.nth(0).locator(".tile").click()
    expect(part(page, "tag-before")).to_have_text("cat → dog · 0.5")
