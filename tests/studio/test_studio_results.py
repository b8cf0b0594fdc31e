"""What comes after an edit, in a real browser: settings, downloads, chains, frames, batches."""

from __future__ import annotations

import pytest
from PIL import Image

from nulltext.jobs.job_files import Job, read_jobs
from nulltext.studio.forms import EDITING, INVERTING, fields_of
from support.browser import (
    address,
    browser,
    invert,
    opened_and_inverted,
    part,
    proxy,
    studio,
    sync_api,
    upload,
    visit,
)

__all__ = ["address", "browser", "proxy", "studio", "visit"]  # fixtures

pytestmark = pytest.mark.slow
expect = sync_api.expect

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}
SIZES = pytest.mark.parametrize("size", [{}, PHONE], ids=["mouse", "touch"])


def press(page, name):
    """Tap where there are fingers, else click."""
    if page.evaluate("matchMedia('(pointer: coarse)').matches"):
        part(page, name).tap()
    else:
        part(page, name).click()


def edited(page, target="a red dog"):
    """Make an edit; its command."""
    before = part(page, "command").text_content()
    part(page, "target").fill(target)
    press(page, "edit")
    expect(part(page, "command")).not_to_have_text(before)
    return part(page, "command").text_content()


def advanced(page):
    """Open the advanced settings of the edit."""
    part(page, "step-edit").locator("summary").nth(1).click()


def wrong(page, name):
    return page.locator(f"#wrong-{name}")


@SIZES
def test_settings_are_sent_and_come_back(visit, file, size):
    page = visit(**size)
    opened_and_inverted(page, file)
    advanced(page)
    part(page, "hue").select_option("model")
    part(page, "negative").fill("a cow")
    part(page, "guidance-start").fill("0.25")
    assert part(page, "masa-start").is_hidden()
    assert part(page, "cross-steps").is_disabled()
    command = edited(page)
    for said in ("--hue model", "--negative 'a cow'", "--guidance-start 0.25"):
        assert said in command
    part(page, "editor-name").select_option("masactrl")
    assert part(page, "cross-steps").is_hidden()
    assert part(page, "masa-start").is_disabled()
    part(page, "by-hand").check()
    part(page, "masa-start").fill("0.3")
    part(page, "masa-word").fill("cat, dog")
    part(page, "hue").select_option("named")
    command = edited(page, "a black dog")
    for said in ("--editor masactrl", "--masa-start 0.3 --masa-word cat --masa-word dog"):
        assert said in command
    assert "--hue" not in command
    assert "--strength" not in command
    part(page, "history").locator(".tile").nth(1).click()
    expect(part(page, "hue")).to_have_value("model")
    expect(part(page, "editor-name")).to_have_value("prompt-to-prompt")
    expect(part(page, "by-hand")).not_to_be_checked()
    part(page, "history").locator(".tile").nth(0).click()
    expect(part(page, "masa-word")).to_have_value("cat, dog")
    expect(part(page, "masa-start")).to_be_enabled()


@SIZES
def test_a_wrong_value_is_said_beside_its_field(visit, file, size):
    page = visit(**size)
    upload(page, file)
    part(page, "source").fill("a red cat")
    part(page, "step-source").locator("summary").click()
    part(page, "steps").fill("9999")
    part(page, "step-source").locator("summary").click()  # folded again
    press(page, "invert")
    expect(wrong(page, "steps")).to_have_text(
        "“Steps” is no whole number from 1 to 200; change it, or leave it empty."
    )
    expect(wrong(page, "steps")).to_be_in_viewport()
    assert part(page, "problem").is_hidden()
    assert part(page, "steps").get_attribute("aria-invalid") == "true"
    part(page, "steps").fill("3")
    expect(wrong(page, "steps")).to_have_text("")
    assert part(page, "steps").get_attribute("aria-invalid") == "false"
    part(page, "method").select_option("ddim")
    press(page, "invert")
    part(page, "source-done").wait_for()
    advanced(page)
    part(page, "target-guidance").fill("-1")
    part(page, "target").fill("a red dog")
    press(page, "edit")
    expect(wrong(page, "target_guidance")).to_have_text(
        "“Target guidance” is -1; choose a number from 0 up."
    )
    part(page, "target-guidance").fill("2")
    edited(page)


def test_every_setting_has_a_label_and_its_text(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    advanced(page)
    fields = page.locator("[data-id=step-edit] .option, [data-id=step-source] .option")
    wanted = fields_of({**INVERTING, **EDITING})
    said = fields.evaluate_all(
        "all => all.map((one) => [one.querySelector('label span'), one.querySelector('.hint')]"
        ".map((part) => part.textContent))"
    )
    assert said == [[one["label"], one["help"]] for one in wanted]
    labelled = fields.evaluate_all(
        "all => all.map((one) => one.querySelector('select, input')).every((field) =>"
        " field.labels.length === 1 && field.ariaDescribedByElements.length === 2)"
    )
    assert labelled


@SIZES
def test_a_result_is_downloaded_in_another_format(visit, file, tmp_path, size):
    page = visit(**size)
    opened_and_inverted(page, file)
    edited(page)
    press(page, "formats")
    assert part(page, "gps-field").is_hidden()  # the photo says no position
    part(page, "kind").select_option("jpeg")
    assert part(page, "bits-field").is_hidden()
    part(page, "quality").fill("500")
    press(page, "export-make")
    expect(wrong(page, "quality")).to_contain_text("give a number from 1 to 100")
    part(page, "quality").fill("40")
    for kind, suffix, bits in (("jpeg", "jpg", ""), ("tiff", "tif", "16")):
        if not part(page, "export").is_visible():
            press(page, "formats")
        part(page, "kind").select_option(kind)
        if bits:
            part(page, "bits").select_option(bits)
        with page.expect_download() as arriving:
            press(page, "export-make")
        expect(part(page, "export")).to_be_hidden()
        assert arriving.value.suggested_filename == f"my cat – cat to dog.{suffix}"
        arriving.value.save_as(tmp_path / f"result.{suffix}")
        with Image.open(tmp_path / f"result.{suffix}") as image:
            assert (image.format, image.size) == (kind.upper(), (90, 60))


def test_downloads_by_keyboard(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    edited(page)
    part(page, "formats").focus()
    page.keyboard.press("Enter")
    expect(part(page, "kind")).to_be_focused()
    page.keyboard.type("JPEG")
    page.keyboard.press("Tab")
    page.keyboard.type("70")
    page.keyboard.press("Tab")
    with page.expect_download() as arriving:
        page.keyboard.press("Enter")
    assert arriving.value.suggested_filename == "my cat – cat to dog.jpg"
    expect(part(page, "formats")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(part(page, "export")).to_be_hidden()


@SIZES
def test_an_edit_goes_on_from_a_result(visit, file, size):
    page = visit(**size)
    opened_and_inverted(page, file)
    edited(page)
    press(page, "go-on")
    words = part(page, "chips").locator(".chip > span")
    expect(part(page, "chain-said")).to_contain_text("Goes on from “cat → dog”.")
    expect(words).to_have_text(["a", "red", "dog"])
    command = edited(page, "a black dog")
    assert "--target 'a red dog' --then 'a black dog'" in command
    tiles = part(page, "history").locator(".tile")
    expect(tiles.first).to_contain_text("cat → dog, then red → black")
    press(page, "from-photo")
    expect(part(page, "chain")).to_be_hidden()
    expect(words).to_have_text(["a", "red", "cat"])
    assert "--then" not in edited(page, "a bright cat")
    tiles.nth(1).click()
    expect(part(page, "chain")).to_be_visible()
    expect(part(page, "target")).to_have_value("a black dog")


@SIZES
def test_a_frame_that_cuts_an_edit_is_widened(visit, file, size):
    page = visit(**size)
    upload(page, file)
    press(page, "square")
    invert(page)
    part(page, "source-done").wait_for()
    command = edited(page)
    assert "--crop 15,0,60" in command
    expect(part(page, "note")).to_contain_text("stops inside the photo, at the crop's left and")
    press(page, "widen")
    expect(part(page, "invert")).to_be_focused()
    press(page, "invert")
    part(page, "source-done").wait_for()
    expect(part(page, "target")).to_have_value("a red dog")  # the words stay
    press(page, "edit")
    expect(part(page, "command")).to_contain_text("--crop 0,0,90,60")
    assert part(page, "widen").is_hidden()


@SIZES
def test_an_edit_is_applied_to_a_folder(visit, file, tmp_path, size):
    page = visit(**size)
    opened_and_inverted(page, file)
    edited(page)
    press(page, "apply")
    expect(part(page, "folder-words")).to_have_text("“a red cat”")
    assert part(page, "folder-file").get_attribute("aria-disabled") == "true"
    names = ["a.png", "two words.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(file.read_bytes())
    part(page, "folder-choose").set_input_files([tmp_path / name for name in names])
    expect(part(page, "folder-said")).to_have_text("2 photos chosen.")
    with page.expect_download() as arriving:
        press(page, "folder-file")
    name = arriving.value.suggested_filename
    assert part(page, "folder-command").text_content().startswith(f"nulltext batch '{name}' -o ")
    arriving.value.save_as(tmp_path / name)
    jobs = [*read_jobs(tmp_path / name)]
    assert all(isinstance(job, Job) for job in jobs)
    assert [job.options["image"] for job in jobs] == names
    assert {*jobs[0].options["target"], jobs[0].options["size"]} == {"a red dog", "photo"}
    page.keyboard.press("Escape")
    expect(part(page, "folder")).to_be_hidden()
