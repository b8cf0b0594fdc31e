"""The studio for keyboards, screen readers, enlarged text and fingers.

axe-core looks at each state of the page; what it cannot see (where the focus is, what lies on
top of what) is asked of the browser.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest

import nulltext
from support.browser import (
    CONTROLS,
    address,
    browser,
    chip,
    invert,
    opened_and_inverted,
    part,
    problem,
    proxy,
    sync_api,
    upload,
    visit,
)
from support.studios import TAUGHT, studio_on

__all__ = ["address", "browser", "proxy", "visit"]  # fixtures

pytestmark = pytest.mark.slow
expect = sync_api.expect

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
SIZES = [(1400, 900), (390, 844)]
PHONES = [(390, 844), (844, 390)]
ENLARGED = [(1400, 900), (700, 450), (390, 844), (844, 390)]
"""Windows in CSS pixels; the second is 1400 x 900 at 200 %."""
STATES = 12
FINGER = 44
"""Pixels that a finger needs (WCAG 2.5.5)."""
UNZOOMED = 16
"""Pixels of letters below which iOS zooms into a field."""

SHOWN = (
    "query => [...document.querySelectorAll(query)].filter(c => c.checkVisibility()"
    " && !c.disabled && !c.closest('[inert]') && c.tabIndex >= 0)"
)
COVERED = """() => {
  const it = document.activeElement;
  const shape = it.matches("input") && it.labels && it.labels.length ? it.labels[0] : it;
  const box = it.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  if (it.contains(top) || shape.contains(top)) return null;
  return `${it.outerHTML.slice(0, 90)} lies under ${top ? top.outerHTML.slice(0, 90) : "the edge"}`;
}"""
NARROW = """([query, finger]) => [...document.querySelectorAll(query)]
  .filter(c => c.checkVisibility() && !c.closest("[inert]"))
  .map(c => [c, c.matches("[type=checkbox], [type=file]") ? c.closest("label") : c])
  .map(([c, target]) => [c, target.getBoundingClientRect()])
  .filter(([c, box]) => box.height < finger - 0.5)
  .map(([c, box]) => `${c.dataset.id || c.textContent.trim()}: ${box.height}`)"""


@pytest.fixture(scope="module")
def studio(model):
    """A studio whose model knows few words: others are marked, and known ones are offered."""
    taught = replace(nulltext.load(model), known_words=TAUGHT)
    with studio_on(taught, model) as made:
        yield made


def axe(page):
    """Rules that the page breaks now, with the elements that break them."""
    page.evaluate(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", RULES
    )
    return [
        f"{one['id']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]
    ]


def sideways(page):
    """Pixels that the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def walk(page, file):
    """Go through the page's states; gives the name of each."""
    yield "welcome"
    upload(page, file)
    part(page, "crop").wait_for()
    yield "opened"
    part(page, "keys-shown").click()
    yield "keys"
    page.keyboard.press("Escape")
    invert(page, "a bright cat", "null-text", steps="200")
    part(page, "dock").wait_for()
    yield "inverting"
    part(page, "cancel").click()
    part(page, "dock").wait_for(state="hidden")
    part(page, "source").fill("a red cat")
    part(page, "method").select_option("ddim")
    part(page, "steps").fill("3")
    part(page, "invert").click()
    part(page, "source-done").wait_for()
    chip(page, "cat").click()
    expect(part(page, "heat")).to_be_visible()
    yield "attention"
    part(page, "word").fill("dog")
    page.wait_for_function("() => !typing")  # hints come in a pause, and move what is below
    for fold in part(page, "step-edit").locator("summary").all():
        fold.click()
    part(page, "paint-it").click()
    yield "painting"
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    part(page, "views").get_by_role("button", name="Before | After").click()
    yield "edited"
    for opener, dialog in (("formats", "export"), ("apply", "folder")):
        part(page, opener).click()
        yield dialog
        page.keyboard.press("Escape")
    part(page, "try").click()
    part(page, "strip-tiles").wait_for()
    part(page, "strip").get_by_role("button").nth(1).click()
    expect(part(page, "history").locator(".tile")).to_have_count(2)
    yield "strip"
    part(page, "opacity").fill("0.5")
    expect(part(page, "opacity-now")).to_have_text("50 %")
    part(page, "history").locator(".pin").nth(1).click()
    expect(part(page, "pinned")).to_be_visible()
    expect(part(page, "download")).to_have_attribute("aria-disabled", "false")
    yield "pinned"
    part(page, "blend").fill("tabby")
    part(page, "edit").click()
    problem(page)
    yield "problem"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_axe_finds_nothing_in_any_state(visit, file, size):
    page = visit(*size)
    found = {name: axe(page) for name in walk(page, file)}
    assert len(found) == STATES
    assert {name: rules for name, rules in found.items() if rules} == {}


@pytest.mark.parametrize("size", ENLARGED, ids=str)
def test_no_bar_covers_the_control_that_has_the_focus(visit, file, size):
    page = visit(*size)
    found = []
    for name in walk(page, file):
        found += [(name, "wider than its window")] * (sideways(page) > 0)
        if name in ("keys", "inverting", "export", "folder"):
            continue
        count = page.evaluate(f"query => ({SHOWN})(query).length", CONTROLS)
        for key in ("Tab", "Shift+Tab"):
            page.evaluate("document.activeElement.blur()")
            for _ in range(count):
                page.keyboard.press(key)
                if page.evaluate("document.activeElement !== document.body"):
                    covered = page.evaluate(COVERED)
                    found += [(name, key, covered)] * bool(covered)
    assert found == []


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_edit_can_be_made_wherever_a_word_is_changed(visit, file, size):
    page = visit(*size)
    opened_and_inverted(page, file)
    chip(page, "cat").click()
    part(page, "suggestions").wait_for()
    expect(part(page, "heat")).to_be_visible()
    page.evaluate("document.querySelector('.panel').scrollTo(0, 0)")
    part(page, "word").scroll_into_view_if_needed()
    for button in ("edit", "try"):
        expect(part(page, button)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", PHONES, ids=str)
def test_fingers_reach_everything_on_a_phone(visit, file, size):
    page = visit(*size, has_touch=True, is_mobile=True)
    for name in walk(page, file):
        assert page.evaluate(NARROW, [f"{CONTROLS}, .button", FINGER]) == [], name
        small = page.evaluate(
            "least => [...document.querySelectorAll('textarea, select, input[type=text],"
            " input[type=number]')].filter(f => parseFloat(getComputedStyle(f).fontSize) < least)"
            ".map(f => f.dataset.id)",
            UNZOOMED,
        )
        assert small == [], name
        if name == "painting":
            for tool in ("paint", "brush", "erase", "clear"):
                expect(part(page, tool)).to_be_in_viewport(ratio=0.6)
        if name in ("edited", "strip"):
            part(page, "download").click(trial=True)  # not under anything


def test_what_is_pressed_on_a_phone_stays_under_the_finger(visit, file):
    page = visit(*PHONES[0], has_touch=True, is_mobile=True)
    opened_and_inverted(page, file)
    part(page, "step-words").evaluate("step => step.scrollIntoView()")

    def tap(control, seen):
        control.scroll_into_view_if_needed()
        assert page.evaluate("scrollY") > 0
        before = part(page, "chips").bounding_box()["y"]
        box = control.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(part(page, seen)).to_be_visible()
        assert part(page, "chips").bounding_box()["y"] == pytest.approx(before, abs=2)

    tap(chip(page, "cat"), "heat")
    part(page, "word").fill("dog")
    tap(part(page, "edit"), "over")
    part(page, "word").fill("cat")
    tap(part(page, "edit"), "problem")


def focused(page):
    return page.evaluate(
        "() => document.activeElement.dataset.id || document.activeElement.dataset.key"
        " || document.activeElement.dataset.view || document.activeElement.tagName"
    )


def test_the_focus_is_where_the_next_step_is(visit, file):
    page = visit()
    assert page.title() == "nulltext studio"
    assert page.evaluate("document.documentElement.lang") == "en"
    part(page, "example").focus()
    page.keyboard.press("Enter")
    expect(part(page, "source")).to_be_focused()
    upload(page, file)
    expect(part(page, "name")).to_contain_text("my cat.png")
    assert page.title() == "my cat.png · nulltext studio"
    part(page, "source").fill("a red cat")
    part(page, "step-source").locator("summary").click()
    part(page, "method").select_option("null-text")
    part(page, "steps").fill("200")
    part(page, "source").focus()
    page.keyboard.press("Control+Enter")
    part(page, "dock").wait_for()
    assert focused(page) == "source"  # nothing vanished
    part(page, "cancel").focus()
    page.keyboard.press("Enter")
    part(page, "dock").wait_for(state="hidden")
    assert focused(page) == "source"
    part(page, "method").select_option("ddim")
    part(page, "steps").fill("3")
    part(page, "invert").focus()
    page.keyboard.press("Enter")
    part(page, "source-done").wait_for()
    assert focused(page) == "0"  # the first word
    expect(part(page, "heard")).to_contain_text("Inverted: ")


def test_escape_and_results_leave_the_focus_in_place(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    chip(page, "cat").click()
    part(page, "word").fill("dog")
    page.keyboard.press("Escape")
    expect(part(page, "chip-editor")).to_be_hidden()
    assert focused(page) == "2"
    page.keyboard.press("Control+Enter")
    part(page, "outcome").wait_for()
    assert focused(page) == "2"
    part(page, "edit").focus()
    page.keyboard.press("Enter")
    history = part(page, "history").locator(".tile")
    expect(history).to_have_count(2)
    assert focused(page) == "edit"
    history.nth(1).focus()
    number = focused(page)
    page.keyboard.press("Enter")
    expect(history.nth(1)).to_have_attribute("aria-pressed", "true")
    assert focused(page) == number
    assert history.nth(1).evaluate("t => t.textContent") == "cat → dog · strength 0.5"
    part(page, "views").get_by_role("button", name="Mask").click()
    page.keyboard.press("Escape")
    assert focused(page) == "compare"
    part(page, "target").fill("")
    page.keyboard.press("Control+Enter")
    problem(page)
    assert focused(page) == "target"
    part(page, "dismiss").focus()
    page.keyboard.press("Escape")
    assert part(page, "problem").is_hidden()
    assert focused(page) == "target"


def test_what_is_typed_is_never_interrupted(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    part(page, "target").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a red dog")
    page.keyboard.press("Control+Enter")
    page.keyboard.type(" in snow")
    part(page, "outcome").wait_for()
    assert focused(page) == "target"
    assert part(page, "target").input_value() == "a red dog in snow"


def test_live_regions_are_there_before_they_are_filled(visit):
    page = visit()
    for name in ("alerts", "said", "heard"):
        role = part(page, name).get_attribute("role")
        assert role == ("alert" if name == "alerts" else "status")
        assert part(page, name).evaluate("e => e.checkVisibility()")
        assert part(page, name).inner_text() == ""


def test_a_pressed_button_shows_in_forced_colours(visit, file):
    page = visit(forced_colors="active")
    opened_and_inverted(page, file)
    ground = "button => getComputedStyle(button).backgroundColor"
    pressed, other = (
        part(page, "views").locator(f"[aria-pressed={state}]").first for state in ("true", "false")
    )
    assert pressed.evaluate(ground) != other.evaluate(ground)
