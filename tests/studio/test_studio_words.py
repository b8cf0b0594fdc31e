"""Words beyond the model: marked while they are typed, known ones offered, doubts of the captioner.

All of it happens in the page: with late requests as with fast ones.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import nulltext
from nulltext.captioning.known_photos import KnownPhotos
from nulltext.studio.server import running
from support import captioners
from support.browser import (
    address,
    browser,
    chip,
    invert,
    opened_and_inverted,
    part,
    proxy,
    sync_api,
    upload,
    visit,
)
from support.studios import TAUGHT, studio_on

__all__ = ["address", "browser", "proxy", "visit"]  # fixtures

pytestmark = pytest.mark.slow
expect = sync_api.expect


@pytest.fixture(scope="module")
def studio(model):
    taught = dataclasses.replace(nulltext.load(model), known_words=TAUGHT)
    with studio_on(taught, model) as made:
        yield made


@pytest.fixture(params=[0.0, 0.5], ids=["0ms", "500ms"])
def page(visit, proxy, request):
    opened = visit(at=f"{proxy.address}/")
    proxy.latency = request.param
    yield opened
    proxy.latency = 0.0


def unknown(page, name):
    """The sentence on unknown words that is shown now, without waiting; None where none is."""
    shown = part(page, name)
    return shown.inner_text() if shown.is_visible() else None


def marked(page):
    """The chips that are marked now, in words."""
    return page.evaluate(
        "[...document.querySelectorAll('.chip')].filter(c => c.innerText.includes('not learnt'))"
        ".map(c => c.querySelector('span').innerText)"
    )


def test_unknown_words_are_marked_as_they_are_typed(page, file):
    upload(page, file)
    source = part(page, "source")
    source.wait_for()
    source.press_sequentially("a red flo")
    assert unknown(page, "source-unknown") is None  # it may become a flower
    expect(part(page, "source-unknown")).to_contain_text("“flo”")  # after a pause
    source.press_sequentially("wer")
    assert unknown(page, "source-unknown") is None
    source.fill("a red dog")
    assert unknown(page, "source-unknown") == (
        "The model has not learnt “dog”, so it will do little. "
        "It knows cat, flower, red, white, dark."
    )
    expect(part(page, "heard")).to_have_text(
        "The model has not learnt “dog”, so it will do little."
    )
    assert part(page, "dock").is_hidden()  # nothing was computed for that
    invert(page, "a red dog")
    part(page, "source-done").wait_for()
    assert marked(page) == ["dog"]
    part(page, "chips").get_by_role("button", name="dog not learnt").click()
    assert "“dog”" in unknown(page, "word-unknown")
    part(page, "word").fill("cat")
    assert (marked(page), unknown(page, "word-unknown")) == ([], None)
    part(page, "target").fill("a mauve cat")
    assert marked(page) == ["mauve"]


def suggestions(page):
    return page.evaluate(
        "[...document.querySelectorAll('.suggested')].filter(row => row.checkVisibility())"
        ".map(row => [row.firstChild, ...row.querySelectorAll('button')].map(c => c.innerText))"
    )


def test_known_words_are_offered_in_place_of_a_word(page, file):
    opened_and_inverted(page, file)
    chip(page, "red").click()
    assert suggestions(page) == [["Colours", "red", "white"]]
    offered = part(page, "suggestions")
    white = offered.get_by_role("button", name="white")
    colour = "b => getComputedStyle(b.querySelector('.swatch')).backgroundColor"
    assert white.evaluate(colour) == "rgb(255, 255, 255)"
    white.click()
    assert part(page, "target").input_value() == "a white cat"
    assert part(page, "word").input_value() == "white"
    assert suggestions(page) == [
        ["Colours", "red", "white"],
        ["Backgrounds", "dark", "white"],
    ]
    offered.get_by_role("button", name="dark").focus()
    page.keyboard.press("Enter")
    assert part(page, "target").input_value() == "a dark cat"
    expect(offered.get_by_role("button", name="dark")).to_be_focused()
    expect(offered.get_by_role("button", name="dark")).to_have_attribute("aria-pressed", "true")
    part(page, "word").fill("purple")  # of no group; the word that it replaces is of one
    assert suggestions(page) == [["Colours", "red", "white"]]
    part(page, "after").click()
    assert [row[0] for row in suggestions(page)] == ["Kinds", "Colours", "Backgrounds"]
    offered.get_by_role("button", name="flower").click()
    assert part(page, "target").input_value() == "a purple flower cat"
    part(page, "edit").click()
    part(page, "outcome").wait_for()
    assert "--target 'a purple flower cat'" in part(page, "command").text_content()


@pytest.mark.parametrize(
    ("known", "farthest", "said"),
    [
        (False, None, "Proposed by the captioner; correct what is wrong."),
        (True, 0.0, "which was trained on no photos like this one; correct what is wrong."),
        (True, 9.0, "the captioner, which is not sure of “"),
    ],
)
def test_doubts_of_the_captioner_are_below_its_words(visit, model, file, known, farthest, said):
    writer = captioners.captioner(seed=3)  # random weights, so sure of nothing
    if known:
        mean, directions = torch.zeros(captioners.FEATURES), torch.eye(captioners.FEATURES)[:1]
        writer = dataclasses.replace(writer, known_photos=KnownPhotos(mean, directions, farthest))
    with (
        studio_on(nulltext.load(model), model, captioner=writer) as studio,
        running(studio, "127.0.0.1", 0) as url,
    ):
        page = visit(at=url)
        upload(page, file)
        expect(part(page, "source-hint")).to_contain_text("Proposed by the captioner")
        expect(part(page, "source-hint")).to_contain_text(said)
        page.context.close()


def test_a_model_without_a_list_of_words_marks_and_offers_nothing(visit, model, file):
    with (
        studio_on(nulltext.load(model), model) as studio,
        running(studio, "127.0.0.1", 0) as url,
    ):
        page = visit(at=url)
        opened_and_inverted(page, file)
        chip(page, "cat").click()
        part(page, "word").fill("zebra")
        assert (marked(page), suggestions(page)) == ([], [])
        assert unknown(page, "source-unknown") is unknown(page, "word-unknown") is None
        page.context.close()
