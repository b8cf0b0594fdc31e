"""The studio in a real browser, from the first sight to the download.

Every page is watched: no error on its console, and no request to anywhere but this machine.
"""

from __future__ import annotations

import re

import pytest
from PIL import Image

import nulltext
from nulltext.constants import BUDGET, NUM_STEPS
from nulltext.inversion.budgets import BUDGETS
from nulltext.studio.addresses import check_port
from nulltext.studio.server import running
from support.browser import (
    CONTROLS,
    address,
    browser,
    chip,
    invert,
    look_at,
    opened_and_inverted,
    part,
    problem,
    proxy,
    studio,
    sync_api,
    upload,
    visit,
)
from support.pictures import file_pixels
from support.proxies import Proxy
from support.studios import studio_on

__all__ = ["address", "browser", "proxy", "studio", "visit"]  # fixtures

pytestmark = pytest.mark.slow


def test_the_whole_path(visit, file, tmp_path):
    page = visit()
    upload(page, file)
    part(page, "source").wait_for()
    assert "a photo of" in part(page, "source").get_attribute("placeholder")
    assert "my cat.png · 90 × 60" in part(page, "name").inner_text()
    usual = part(page, "steps").get_attribute
    assert usual("placeholder") == str(BUDGETS[BUDGET].num_steps)
    part(page, "step-source").locator("summary").click()
    assert part(page, "method").locator("option").first.inner_text() == "default"
    part(page, "budget").select_option("paper")
    assert usual("placeholder") == str(BUDGETS["paper"].num_steps)
    part(page, "step-source").locator("summary").click()
    invert(page)
    assert usual("placeholder") == str(NUM_STEPS)  # of ddim
    assert part(page, "budget").is_disabled()
    part(page, "source-done").wait_for()
    figures = part(page, "done-figures").inner_text()
    assert re.match(r"[\d.]+ of at most [\d.]+\sdB · ddim, 3\ssteps", figures)
    look_at(page, "cat")
    part(page, "word").fill("dog")
    part(page, "word").press("Enter")
    sync_api.expect(part(page, "target")).to_have_value("a red dog")
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    assert part(page, "history").locator(".tile", has_text="cat → dog").is_visible()
    part(page, "split").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    split = part(page, "picture").evaluate("box => box.style.getPropertyValue('--split')")
    assert split == "51%"
    with page.expect_download() as arriving:
        part(page, "download").click()
    assert arriving.value.suggested_filename == "my cat – cat to dog.png"
    arriving.value.save_as(tmp_path / "edited.png")
    with Image.open(tmp_path / "edited.png") as edited:
        assert edited.size == (90, 60)
        assert "nulltext" in edited.text
    assert (file_pixels(tmp_path / "edited.png") != file_pixels(file)).any()
    with page.expect_download() as arriving:
        part(page, "keep").click()
    arriving.value.save_as(tmp_path / "kept.safetensors")
    assert nulltext.Inversion.load(tmp_path / "kept.safetensors").header.prompt == "a red cat"
    part(page, "again").click()
    part(page, "bring").set_input_files(tmp_path / "kept.safetensors")
    sync_api.expect(part(page, "done-figures")).to_contain_text("at hand")


@pytest.mark.parametrize("plain", [False, True])
def test_below_a_path_of_a_proxy(visit, model, file, tmp_path, plain):
    port = check_port("127.0.0.1", 0)
    root_path = f"http://127.0.0.1:{port}/editor" if plain else "/editor"
    with (
        studio_on(nulltext.load(model), model) as studio,
        running(studio, "127.0.0.1", 0, root_path) as url,
        Proxy(url, "/editor", plain=plain).running(port) as proxy,
    ):
        page = visit(at=f"{proxy.address}/")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        assert part(page, "example-picture").evaluate("i => i.decode().then(() => i.naturalWidth)")
        opened_and_inverted(page, file)
        look_at(page, "cat")
        part(page, "word").fill("dog")
        part(page, "edit").click()
        part(page, "outcome").wait_for()
        assert part(page, "over").evaluate("i => i.decode().then(() => i.naturalWidth)") == 90
        with page.expect_download() as arriving:
            part(page, "download").click()
        arriving.value.save_as(tmp_path / "edited.png")
        assert file_pixels(tmp_path / "edited.png").shape == (60, 90, 3)
        page.context.close()
    sent = [url for url in asked if url.startswith("http")]
    assert sent
    assert all(url.startswith(f"{proxy.address}/") for url in sent)


def test_words_crop_mask_and_strip(visit, file):
    page = visit()
    upload(page, file)
    part(page, "square").click()
    box = part(page, "crop").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 4000, box["y"] + 40)
    page.mouse.up()
    invert(page)
    part(page, "source-done").wait_for()
    look_at(page, "red", 60)
    part(page, "after").click()
    page.keyboard.type("black")
    page.keyboard.press("Enter")
    sync_api.expect(part(page, "target")).to_have_value("a red black cat")
    chip(page, "cat").click()
    part(page, "weight").fill("2.5")
    part(page, "step-edit").locator("summary").first.click()
    part(page, "paint-it").click()
    canvas = part(page, "paint").bounding_box()
    page.mouse.move(canvas["x"] + canvas["width"] * 0.6, canvas["y"] + canvas["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(canvas["x"] + canvas["width"] * 0.8, canvas["y"] + canvas["height"] * 0.6)
    page.mouse.up()
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    part(page, "outcome").locator("summary").click()
    command = part(page, "command").inner_text()
    assert "--crop 30,0,60" in command
    assert "--target 'a red black cat'" in command
    assert "--weight cat=2.5 --strength 0.5 --mask 'my cat-mask.png'" in command
    first = part(page, "over").get_attribute("src")
    part(page, "try").click()
    tiles = part(page, "strip").get_by_role("button")
    sync_api.expect(tiles).to_have_count(5)
    tiles.nth(4).click()
    sync_api.expect(part(page, "strength-now")).to_have_text("0.8")
    sync_api.expect(part(page, "history").locator(".tile")).to_have_count(2)
    part(page, "history").locator(".tile").nth(1).click()
    sync_api.expect(part(page, "strength-now")).to_have_text("0.5")
    assert part(page, "over").get_attribute("src") == first


def test_a_weight_is_one_words_and_a_text_written_by_hand_stays(visit, file):
    page = visit()
    upload(page, file)
    invert(page, "a red cat on a red sofa")
    part(page, "source-done").wait_for()
    part(page, "target").fill("my  red cat,\non a red sofa")
    chip(page, "red").nth(1).click()
    part(page, "weight").fill("3")
    chips = part(page, "chips").locator(".chip")
    sync_api.expect(chips.filter(has_text="×3")).to_have_count(1)
    chip(page, "sofa").click()
    part(page, "word").fill("chair")
    sync_api.expect(part(page, "target")).to_have_value("my  red cat,\non a red chair")
    sync_api.expect(chips.filter(has_text="×3")).to_have_count(1)
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    part(page, "outcome").locator("summary").click()
    command = part(page, "command").inner_text()
    assert "--target 'my  red cat, on a red chair' " in command
    assert "--weight 'red#2=3.0' " in command


def test_a_region_that_was_found_is_a_mask_to_paint_on(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    look_at(page, "cat")
    part(page, "word").fill("dog")
    part(page, "word").press("Enter")
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    part(page, "repaint").click()
    sync_api.expect(part(page, "paint")).to_be_focused()
    sync_api.expect(part(page, "mask-said")).to_have_text("A mask is painted.")
    part(page, "edit").click()
    sync_api.expect(part(page, "mask-file")).to_be_visible()
    sync_api.expect(part(page, "repaint")).to_be_hidden()
    part(page, "outcome").locator("summary").click()
    assert "--mask 'my cat-mask.png'" in part(page, "command").inner_text()


def test_nobody_sees_another(visit, file):
    page, neighbour = visit(), visit()
    opened_and_inverted(page, file)
    assert part(neighbour, "welcome").is_visible()
    assert part(neighbour, "base").get_attribute("src") is None
    neighbour.reload()
    part(neighbour, "example").wait_for()
    assert part(neighbour, "editor").is_hidden()
    assert part(neighbour, "recent-tiles").is_hidden()


def test_cancel(visit, file):
    page = visit()
    upload(page, file)
    invert(page, "a bright cat", "null-text", steps="200")
    part(page, "cancel").click()
    sync_api.expect(part(page, "said")).to_have_text("Cancelled.")
    sync_api.expect(part(page, "dock")).to_be_hidden()
    assert part(page, "invert").is_enabled()
    part(page, "steps").fill("3")
    part(page, "invert").click()
    part(page, "source-done").wait_for()


def test_each_mistake_is_one_sentence(visit, file, tmp_path):
    page = visit()
    (tmp_path / "notes.png").write_text("no picture at all")
    upload(page, tmp_path / "notes.png")
    assert problem(page).startswith("'notes.png' is not an image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    upload(page, tmp_path / "huge.png")
    sync_api.expect(part(page, "problem-text")).to_contain_text("50,000,000 pixels")
    assert part(page, "welcome").is_visible()
    upload(page, file)
    sync_api.expect(part(page, "problem")).to_be_hidden()
    part(page, "invert").click()
    assert problem(page) == "Say what the photo shows first, in a few words."
    invert(page)
    part(page, "source-done").wait_for()
    assert part(page, "problem").is_hidden()
    part(page, "target").fill("a red dog")
    part(page, "step-edit").locator("summary").first.click()
    part(page, "blend").fill("tabby")
    part(page, "edit").click()
    assert problem(page) == ("“tabby” is a word of neither prompt; the words are a, red, cat, dog.")
    part(page, "dismiss").click()
    assert part(page, "problem").is_hidden()


def focus_of(page):
    return page.evaluate(
        "() => document.activeElement.dataset.id || document.activeElement.dataset.view"
        " || document.activeElement.dataset.key || document.activeElement.textContent.trim()"
    )


def tab_to(page, name):
    for _ in range(60):
        if focus_of(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {name}")


def test_the_keyboard_alone_reaches_everything(visit, file):
    page = visit()
    tab_to(page, "choose")
    tab_to(page, "example")
    page.keyboard.press("Enter")
    part(page, "invert").wait_for()
    tab_to(page, "crop")
    for key in ("ArrowRight", "-", "ArrowDown"):
        page.keyboard.press(key)
    tab_to(page, "source")
    page.keyboard.press("Control+A")
    page.keyboard.type("a red cat")
    part(page, "step-source").locator("summary").press("Enter")
    tab_to(page, "method")
    page.keyboard.type("ddim")
    tab_to(page, "steps")
    page.keyboard.type("3")
    tab_to(page, "invert")
    page.keyboard.press("Enter")
    part(page, "source-done").wait_for()
    tab_to(page, "2")  # the chip of "cat"
    page.keyboard.press("Enter")
    sync_api.expect(part(page, "heat")).to_be_visible()
    tab_to(page, "word")
    page.keyboard.press("Control+A")
    page.keyboard.type("dog")
    page.keyboard.press("Enter")
    sync_api.expect(part(page, "target")).to_have_value("a red dog")
    tab_to(page, "edit")
    page.keyboard.press("Enter")
    part(page, "outcome").wait_for()
    for summary in page.locator("summary:visible").all():
        if not summary.evaluate("s => s.parentElement.open"):
            summary.press("Enter")
    tab_to(page, "paint")  # the button of the view
    page.keyboard.press("Enter")
    wanted = page.evaluate(
        "query => [...document.querySelectorAll(query)].filter(c => c.checkVisibility()"
        " && !c.disabled && !c.closest('[inert]') && c.tabIndex >= 0).length",
        CONTROLS,
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        mark = page.evaluate(
            "query => [...document.querySelectorAll(query)].indexOf(document.activeElement)",
            CONTROLS,
        )
        reached.add(mark)
    assert len(reached - {-1}) == wanted
