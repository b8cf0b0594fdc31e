"""What is on screen when a button is pressed is what is sent, however late the answers are.

A proxy makes every request late; then the page is used as fast as a driver can.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

import nulltext
from nulltext.captioning.captioner import Caption, CaptionWord
from nulltext.models.side_files import KnownWords
from nulltext.studio.page import FRONT
from nulltext.studio.server import running
from nulltext.words.alignment import ARTICLES
from support.browser import (
    PATIENCE,
    address,
    browser,
    chip,
    part,
    proxy,
    studio,
    sync_api,
    upload,
    visit,
)
from support.proxies import Proxy
from support.studios import Gate, studio_on

__all__ = ["address", "browser", "proxy", "studio", "visit"]  # fixtures

pytestmark = pytest.mark.slow

LATENCIES = [0.0, 0.1, 0.5]
"""Seconds."""
expect = sync_api.expect


@pytest.fixture(params=LATENCIES, ids=lambda seconds: f"{1000 * seconds:.0f}ms")
def page(visit, proxy, request):
    """A page whose every request is late, with all its folds open."""
    opened = visit(at=f"{proxy.address}/")
    opened.evaluate("() => document.querySelectorAll('details').forEach((d) => (d.open = true))")
    proxy.latency = request.param
    yield opened
    proxy.latency = 0.0


def invert(page, source="a red cat", **fields):
    for name, value in {"steps": "2", **fields}.items():
        part(page, name).fill(value)
    part(page, "method").select_option("ddim")
    part(page, "source").fill(source)
    part(page, "invert").click()
    part(page, "source-done").wait_for()


def edited(page, button="edit"):
    """Press a button; the command of the edit that comes of it."""
    before = part(page, "command").text_content()
    part(page, button).click()
    expect(part(page, "command")).not_to_have_text(before)
    return part(page, "command").text_content()


def tiles(page, row="history"):
    return part(page, row).locator(".tile")


def drag(page, name, start, end):
    box = part(page, name).bounding_box()
    (x, y), (to_x, to_y) = (
        (box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in (start, end)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y)
    page.mouse.up()


def assert_says(command, *options):
    """All options are in a command, in any order."""
    assert [option for option in options if option not in command] == []


def test_every_control_is_sent_as_it_stands(page, file):
    upload(page, file)
    part(page, "source").wait_for()
    part(page, "whole").click()
    invert(page, seed="7", guidance="3.5")
    chip(page, "cat").click()
    for word in ("dog", "white", "purple"):
        part(page, "word").fill(word)
        assert f"--target 'a red {word}'" in edited(page)
    command = part(page, "command").text_content()
    assert_says(
        command, "--method ddim", "--steps 2", "--guidance 3.5", "--crop 0,0,90,60", "--seed 7"
    )
    part(page, "weight").fill("2.5")
    assert "--weight purple=2.5" in edited(page)
    part(page, "target").fill("a red dog in snow")
    command = edited(page)
    assert_says(command, "--target 'a red dog in snow'", "--strength 0.5")
    assert "--weight" not in command
    chip(page, "red").click()
    part(page, "word").fill("orange")
    expect(part(page, "target")).to_have_value("an orange dog in snow")
    assert "--target 'an orange dog in snow'" in edited(page)
    part(page, "after").click()
    page.keyboard.type("big")
    assert "--target 'an orange big dog in snow'" in edited(page)
    part(page, "remove").click()
    part(page, "strength").fill("0.8")
    part(page, "blend").fill("dog")
    part(page, "threshold").fill("0.05")
    part(page, "target-guidance").fill("4")
    part(page, "detail").select_option("photo")
    command = edited(page)
    assert_says(
        command, "--target 'an orange dog in snow'", "--strength 0.8", "--target-guidance 4.0"
    )
    assert_says(command, "--blend dog", "--blend-threshold 0.05", "--detail photo")
    part(page, "by-hand").check()
    part(page, "cross-steps").fill("0.6")
    part(page, "self-steps").fill("0.3")
    assert_says(edited(page), "--cross-steps 0.6", "--self-steps 0.3", "--target-guidance")
    part(page, "paint-it").click()
    drag(page, "paint", (0.4, 0.4), (0.6, 0.6))
    assert "--mask 'my cat-mask.png'" in edited(page)
    part(page, "paint-it").click()
    part(page, "clear").click()
    assert "--mask" not in edited(page)
    tiles(page).nth(1).click()  # with the mask; pressed as soon as it is there
    expect(part(page, "mask-said")).to_have_text("A mask is painted.")
    part(page, "target").fill("a dog")
    assert "--mask 'my cat-mask.png'" in edited(page)


def test_what_a_restored_edit_brings_never_comes_over_what_was_written(page, file):
    upload(page, file)
    part(page, "source").wait_for()
    invert(page)
    part(page, "target").fill("a red dog")
    part(page, "strength").fill("0.7")
    edited(page)
    part(page, "target").fill("a black dog")
    part(page, "strength").fill("0.6")
    edited(page)
    tiles(page).nth(1).click()
    part(page, "target").fill("a white dog")
    expect(part(page, "strength-now")).to_have_text("0.7")
    assert part(page, "target").input_value() == "a white dog"
    assert part(page, "chips").inner_text().split() == [
        "a",
        "red",
        "white",
        "cat",
        "dog",
        "+",
        "word",
    ]
    assert_says(edited(page), "--target 'a white dog'", "--strength 0.7")
    part(page, "target").fill("a bright dog")
    part(page, "try").dblclick()
    expect(tiles(page, "strip")).to_have_count(5)
    assert part(page, "problem").is_hidden()
    tiles(page, "strip").nth(4).click()
    expect(part(page, "strength-now")).to_have_text("0.8")
    assert part(page, "target").input_value() == "a bright dog"
    command = part(page, "command").text_content()
    assert_says(command, "--target 'a bright dog'", "--strength 0.8")


def test_what_is_selected_to_be_written_over_stays_so(page, file):
    upload(page, file)
    part(page, "source").wait_for()
    invert(page)
    for target in ("a red dog", "a black dog"):
        part(page, "target").fill(target)
        edited(page)
    tiles(page).nth(1).click()
    part(page, "target").select_text()
    expect(part(page, "target")).to_have_value("a red dog")
    page.keyboard.type("a white dog")
    assert part(page, "target").input_value() == "a white dog"


def test_the_crop_and_the_words_of_the_moment_are_inverted(page, file, studio):
    upload(page, file)
    part(page, "source").wait_for()
    part(page, "crop").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    invert(page, "a red cat")
    part(page, "again").click()
    part(page, "source").fill("a black dog")
    part(page, "square").click()
    gate = Gate()
    studio.resources.worker.submit(gate.steps)
    part(page, "invert").click()
    part(page, "source").fill("a black dog, larger")  # while the other words wait to be inverted
    gate.open.set()
    expect(part(page, "done-source")).to_have_text("“a black dog”")
    part(page, "target").fill("a white dog")
    assert_says(edited(page), "--source 'a black dog'", "--crop 15,0,60")
    part(page, "again").click()
    assert part(page, "source").input_value() == "a black dog, larger"


class Waiting:
    """A captioner that says one sentence after another, each when it is let."""

    def __init__(self):
        self.let, self.asked, self.crops = threading.Semaphore(0), threading.Semaphore(0), []

    def describe(self, photo, *, crop):
        self.crops.append(crop.as_list())
        self.asked.release()
        assert self.let.acquire(timeout=PATIENCE / 1000)
        return Caption(
            (CaptionWord("sentence", 1.0), CaptionWord(str(len(self.crops)), 1.0)), "waiting"
        )


@pytest.mark.parametrize("latency", LATENCIES)
def test_a_proposal_touches_nothing_that_was_written(visit, model, file, tmp_path, latency):
    captioner = Waiting()
    with (
        studio_on(nulltext.load(model), model, captioner=captioner) as studio,
        running(studio, "127.0.0.1", 0) as url,
        Proxy(url).running() as proxy,
    ):
        page = visit(at=f"{proxy.address}/")
        proxy.latency = latency
        source, hint = part(page, "source"), part(page, "source-hint")
        upload(page, file)
        source.fill("an orange tul")
        assert captioner.asked.acquire(timeout=PATIENCE / 1000)
        captioner.let.release()
        expect(hint).to_have_text("The captioner proposes “sentence 1”.")
        page.keyboard.type("ip")
        assert source.input_value() == "an orange tulip"
        part(page, "whole").click()
        part(page, "propose").click()
        assert captioner.asked.acquire(timeout=PATIENCE / 1000)
        captioner.let.release()
        expect(source).to_have_value("sentence 2")
        expect(hint).to_contain_text("Proposed by the captioner")
        part(page, "propose").click()
        assert captioner.asked.acquire(timeout=PATIENCE / 1000)
        Image.effect_noise((80, 64), 80).save(tmp_path / "other.png")
        upload(page, tmp_path / "other.png")
        expect(part(page, "name")).to_contain_text("other.png")
        captioner.let.release()  # of the photo before
        assert captioner.asked.acquire(timeout=PATIENCE / 1000)
        captioner.let.release()
        expect(source).to_have_value("sentence 4")
        assert captioner.crops[1:] == [[0, 0, 90, 60], [0, 0, 90, 60], [0, 0, 80, 64]]
        part(page, "propose").click()
        assert captioner.asked.acquire(timeout=PATIENCE / 1000)
        part(page, "steps").evaluate("field => (field.value = 2)")
        part(page, "method").evaluate("field => (field.value = 'ddim')")
        source.fill("a cat")
        part(page, "invert").click()  # the proposal gives way
        captioner.let.release()
        expect(part(page, "done-source")).to_have_text("“a cat”")
        page.context.close()


def test_a_number_that_is_none_is_not_taken_for_empty(visit, file):
    page = visit()
    upload(page, file)
    part(page, "step-source").locator("summary").click()
    part(page, "steps").press_sequentially("1e")
    part(page, "source").fill("a cat")
    part(page, "invert").click()
    wrong = page.locator("#wrong-steps")
    expect(wrong).to_have_text(
        "“Steps” is no whole number from 1 to 200; change it, or leave it empty."
    )


def test_a_request_that_fails_lets_go_of_the_buttons(browser, address, file):
    page = browser.new_page()
    page.goto(address)
    upload(page, file)
    part(page, "source").fill("a cat")
    page.route("**/ask/invert", lambda route: route.fulfill(status=500, body="{}"), times=1)
    part(page, "invert").click()
    expect(part(page, "invert")).to_be_enabled()
    with page.expect_request("**/ask/invert"):
        part(page, "invert").click()
    page.close()


SPELL = """([words, text, before]) => {
  const chips = chipsOf(words, text, before || []);
  return [chips.map((c) => [c.source, c.text, c.weight]), targetOf(chips, text)];
}"""
RETYPE = """([words, text, index, said]) => {
  const chips = chipsOf(words, text, []);
  const own = chips[index].text;
  const retyped = [said, "", own].map((one) => {
    chips[index].text = one;
    fitArticle(words, chips, index);
    return (text = targetOf(chips, text));
  });
  return [chips.map((chip) => chip.text), retyped];
}"""
SOURCE = ["a", "photo", "of", "an", "orange", "flower", ",", "on", "a", "sofa"]


@pytest.fixture(scope="module")
def speller(browser):
    page = browser.new_page()
    page.add_script_tag(path=FRONT / "spelling.js")
    yield page
    page.close()


def spaced(rng, words):
    gaps = [str(rng.choice(["", " ", "\n"])), *rng.choice([" ", "  ", " \n"], len(words))]
    return gaps[0] + "".join(
        str(word) + str(gap) for word, gap in zip(words, gaps[1:], strict=True)
    )


def test_the_page_and_the_library_miss_the_same_words(speller):
    """Texts of random pieces; the words that may be said as `rules_of` gives them."""
    known = KnownWords(("rose", "strasse", "été", "mañana", "10"), ("a", "of", "without"))
    words = sorted(known.words | ARTICLES)
    rng = np.random.default_rng(1)
    pool = [
        "a",
        "The",
        "Rose",
        "rose's",
        "STRASSE",
        "e\u0301te\u0301",
        "cat-like",
        "“red”",
        "10",
        "2nd",
    ]
    pool += [
        "without",
        "in",
        "...",
        "<my-cat>",
        "MAN\u0303ANA",
        "Σοφος",
        "ΣΟΦΟΣ",
        "字",
        "🙂",
        "’",
        "2nd",
    ]
    for _ in range(300):
        text = spaced(rng, list(rng.choice(pool, rng.integers(1, 7))))
        plain = text.replace("<my-cat>", " ")
        got = speller.evaluate(
            "([text, words]) => missingWords(text, {words, learnt: ['<my-cat>']})", [text, words]
        )
        assert got == known.missing([plain]), text


def test_a_text_as_chips_is_the_text_again(speller):
    rng = np.random.default_rng(0)
    pool = ["a", "an", "red", "orange", "Cat", ",", "it's", "...", "ü", "<my-cat>", "字"]
    for _ in range(200):
        source, target = (list(rng.choice(pool, rng.integers(1, 9))) for _ in range(2))
        text = spaced(rng, target)
        chips, again = speller.evaluate(SPELL, [list(map(str, source)), text])
        assert again == text
        kept = [chip[0] for chip in chips if chip[0] is not None]
        assert kept == list(range(len(source)))
        if source == target:
            assert [chip[1] for chip in chips] == source


def test_a_word_that_is_retyped_changes_nothing_else(speller):
    rng = np.random.default_rng(1)
    pool = ["Red", "orange", "Cat", ",", "it's", "...", "ü", "<my-cat>", "字"]
    for _ in range(100):
        source, target = (list(map(str, rng.choice(pool, rng.integers(2, 9)))) for _ in range(2))
        text = spaced(rng, target)
        chips, _ = speller.evaluate(SPELL, [source, text])
        index = int(rng.choice([at for at, chip in enumerate(chips) if chip[1]]))
        end = 0
        for _, said, _ in chips[: index + 1]:
            start = text.index(said, end)
            end = start + len(said)
        said = str(rng.choice(["blue", "dark blue", "a"]))
        _, (other, none, again) = speller.evaluate(RETYPE, [source, text, index, said])
        assert other == text[:start] + said + text[end:]
        if none.strip():
            assert again == text


@pytest.mark.parametrize(
    ("text", "index", "said", "expected"),
    [
        ("dog", 0, "photo", "photo dog"),  # a word that was left out comes in front of the others
        ("An  orange\ndog ", 3, "red", "A  red\ndog "),
        ("my orange dog, an old one", 4, "cat", "my orange cat, an old one"),
    ],
)
def test_a_target_written_by_hand_is_kept(speller, text, index, said, expected):
    words = ["photo", "of", "an", "orange", "dog"]
    retyped = speller.evaluate(
        """([words, text, source, said]) => {
          const chips = chipsOf(words, text, []);
          const index = chips.findIndex((chip) => chip.source === source);
          chips[index].text = said;
          fitArticle(words, chips, index);
          return targetOf(chips, text);
        }""",
        [words, text, index, said],
    )
    assert retyped == expected


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("a photo of an orange flower, on a sofa", {}),
        ("a photo of a red flower, on a chair", {3: "a", 4: "red", 9: "chair"}),
        ("a photo of a flower, on a sofa", {3: "", 4: "a"}),
        ("a photo of an orange flower, in deep snow, on a sofa", {None: ", in deep snow"}),
        ("", dict.fromkeys(range(10), "")),
    ],
)
def test_a_target_is_read_as_chips(speller, text, changed):
    chips, again = speller.evaluate(SPELL, [SOURCE, text])
    found = {source: said for source, said, _ in chips if source is None or said != SOURCE[source]}
    assert (found, again) == (changed, text)


def test_weights_stay_with_their_words(speller):
    before = [
        {"source": 5, "text": "flower", "weight": 2},
        {"source": 4, "text": "red", "weight": 3},
    ]
    chips, _ = speller.evaluate(SPELL, [SOURCE, "a photo of a white flower", before])
    assert [weight for *_, weight in chips] == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_equal_words_have_weights_of_their_own(speller):
    before = [{"source": None, "text": "red", "weight": weight} for weight in (1, 3)]
    chips, _ = speller.evaluate(SPELL, [["a", "b"], "red a red b red", before])
    assert [weight for *_, weight in chips] == [1, 1, 3, 1, 1]


FIT = """([words, texts, index]) => {
  const chips = texts.map((text, source) => ({ source, text, weight: 1, gap: source ? " " : "" }));
  fitArticle(words, chips, index);
  return targetOf(chips);
}"""


@pytest.mark.parametrize(
    ("index", "text", "target"),
    [
        (4, "red", "a photo of a red flower , on a sofa"),
        (4, "", "a photo of a flower , on a sofa"),
        (4, "orange", "a photo of an orange flower , on a sofa"),
        (9, "armchair", "a photo of an orange flower , on an armchair"),
        (3, "a", "a photo of a orange flower , on a sofa"),  # written by hand: it stays
    ],
)
def test_an_article_suits_the_word_behind_it(speller, index, text, target):
    texts = [text if k == index else word for k, word in enumerate(SOURCE)]
    assert speller.evaluate(FIT, [SOURCE, texts, index]) == target
