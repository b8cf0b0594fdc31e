"""The page and its server when the link breaks, the server is killed, or the page is left.

Nothing that was made or written is lost, and the page says in one sentence what is the matter.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

import nulltext
from nulltext.studio.addresses import check_port
from nulltext.studio.resources import Limits
from nulltext.studio.server import running
from support.browser import (
    PATIENCE,
    address,
    browser,
    chip,
    invert,
    opened_and_inverted,
    part,
    problem,
    proxy,
    studio,
    sync_api,
    upload,
    visit,
)
from support.studios import Gate, Visitor, studio_on

__all__ = ["address", "browser", "proxy", "studio", "visit"]  # fixtures

pytestmark = pytest.mark.slow
expect = sync_api.expect
LOST = "The studio does not answer. What was made is kept"
AGAIN = "The studio was stopped and runs again"


class Server:
    """A studio in a process of its own, which can be killed."""

    def __init__(self, model, folder, *options):
        self.port = check_port("127.0.0.1", 0)
        self.command = [sys.executable, "-m", "nulltext.cli.entry", "studio", "--json"]
        self.command += ["--no-browser", "--port", str(self.port), "--model", model, *options]
        self.command += ["--folder", str(folder)] if folder else ["--forget"]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert json.loads(self.process.stdout.readline())["url"] == self.address

    def stop(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait()


@pytest.fixture
def server(model, tmp_path):
    made = Server(model, tmp_path / "state")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def lonely(browser):
    """Open a page whose server may be away, so that its console may say so."""
    contexts = []

    def come(at):
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.failures = []
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto(at)
        part(page, "example").wait_for()
        return page

    yield come
    for context in contexts:
        assert [page.failures for page in context.pages] == [[]] * len(context.pages)
        context.close()


def edited(page, word="dog"):
    chip(page, "cat").click()
    part(page, "word").fill(word)
    part(page, "edit").click()
    part(page, "outcome").wait_for()


def tiles(page):
    return part(page, "history").locator(".tile")


def test_a_killed_server_is_said_and_waited_for(lonely, server, file):
    page = lonely(server.address)
    upload(page, file)
    invert(page, "a red cat", "null-text", steps="200")
    expect(part(page, "dock")).to_be_visible()
    server.stop()
    expect(part(page, "lost")).to_contain_text(LOST)
    expect(part(page, "dock")).to_be_hidden()  # nothing counts down any more
    part(page, "source").fill("a red cat, as it was")
    server.start()
    expect(part(page, "lost")).to_be_hidden()
    assert problem(page).startswith(AGAIN)
    assert part(page, "source").input_value() == "a red cat, as it was"
    part(page, "source").fill("a red cat")
    part(page, "method").select_option("ddim")
    part(page, "steps").fill("3")
    part(page, "invert").click()
    part(page, "source-done").wait_for()
    expect(part(page, "problem")).to_be_hidden()
    server.stop()
    part(page, "target").fill("a red dog")
    part(page, "edit").click()
    expect(part(page, "lost")).to_be_visible()
    expect(part(page, "edit")).to_have_attribute("aria-disabled", "true")
    server.start()
    part(page, "outcome").wait_for()  # what was pressed meanwhile is done
    expect(part(page, "lost")).to_be_hidden()
    assert part(page, "problem").is_hidden()
    expect(tiles(page)).to_have_count(1)
    server.stop()
    server.start()
    page.reload()
    expect(tiles(page)).to_have_count(1)
    assert part(page, "over").evaluate("i => i.decode().then(() => i.naturalWidth)") == 90
    tiles(page).first.click()
    part(page, "target").fill("a black dog")
    part(page, "edit").click()
    expect(tiles(page)).to_have_count(2)


def test_forgotten_sessions_are_said_to_be_gone(lonely, model, file):
    server = Server(model, None)
    server.start()
    page = lonely(server.address)
    opened_and_inverted(page, file)
    server.stop(signal.SIGTERM)
    expect(part(page, "lost")).to_be_visible()
    server.start()
    assert problem(page) == "The studio has not kept this photo; open it again."
    expect(part(page, "welcome")).to_be_visible()
    upload(page, file)
    part(page, "crop").wait_for()
    assert part(page, "problem").is_hidden()
    page.go_back()
    page.go_back()
    expect(part(page, "welcome")).to_be_visible()
    assert part(page, "recent-tiles").is_hidden()
    server.stop(signal.SIGTERM)


def test_an_answer_that_is_lost_is_asked_for_again(lonely, address, file):
    page = lonely(address)
    opened_and_inverted(page, file)
    edited(page)

    def swallow(route):
        route.fetch()  # the server gets it
        route.abort()

    page.route("**/ask/edit", swallow, times=1)
    part(page, "target").fill("a black dog")
    part(page, "edit").click()
    expect(tiles(page)).to_have_count(2)
    expect(part(page, "edit")).to_have_attribute("aria-disabled", "false")
    expect(part(page, "lost")).to_be_hidden()
    part(page, "target").fill("a white dog")
    part(page, "edit").click()
    expect(tiles(page)).to_have_count(3)


def test_a_photo_that_does_not_arrive_is_one_sentence(lonely, address, file):
    page = lonely(address)
    page.route("**/files?**", lambda route: route.abort(), times=1)
    upload(page, file)
    assert problem(page) == "'my cat.png' did not arrive; is the studio still running?"
    upload(page, file)
    part(page, "crop").wait_for()
    assert part(page, "problem").is_hidden()


def test_what_is_chosen_before_the_scripts_are_there_is_opened(browser, address, file):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    held = []
    page.route("**/front/page.js*", lambda route: held.append(route))
    page.goto(address, wait_until="commit")
    upload(page, file)
    assert part(page, "root").get_attribute("inert") is not None  # nothing can be pressed in vain
    page.wait_for_timeout(500)
    held.pop().continue_()
    part(page, "crop").wait_for()
    assert part(page, "root").get_attribute("inert") is None
    page.context.close()


def test_a_reload_changes_nothing(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    edited(page)
    part(page, "strength").fill("0.8")
    part(page, "target").fill("a red dog in snow")
    part(page, "chips").get_by_role("button").filter(has_text="dog").click()
    part(page, "weight").fill("2")
    part(page, "negative").evaluate("field => (field.value = 'orange')")
    part(page, "step-edit").locator("summary").first.click()
    part(page, "paint-it").click()
    part(page, "paint").focus()
    page.keyboard.press("Space")
    before = page.evaluate("() => [JSON.stringify(editForm()), maskUrl()]")
    page.reload()
    expect(part(page, "mask-said")).to_have_text("A mask is painted.")
    page.wait_for_function("() => loading === null")
    after = page.evaluate("() => [JSON.stringify(editForm()), maskUrl()]")
    first, second = (json.loads(one) for one, _ in (before, after))
    assert first.pop("mask")
    assert second.pop("mask")
    assert first == second
    assert part(page, "picture").get_attribute("data-view") == "paint"
    part(page, "edit").click()
    expect(tiles(page)).to_have_count(2)
    part(page, "outcome").locator("summary").click()
    command = part(page, "command").inner_text()
    for said in ("--target 'a red dog in snow'", "=2.0", "--strength 0.8", "--mask"):
        assert said in command


def test_a_reload_while_something_is_made_shows_it_going_on(visit, file, studio):
    page = visit()
    upload(page, file)
    gate = Gate()
    studio.resources.worker.submit(gate.steps)
    invert(page, "a red cat and more")
    expect(part(page, "doing")).to_have_text("Waiting for the model")
    page.reload()
    expect(part(page, "doing")).to_have_text("Waiting for the model")
    expect(part(page, "invert")).to_have_attribute("aria-disabled", "true")
    gate.open.set()
    part(page, "source-done").wait_for()


def test_another_photo_keeps_the_first_and_back_returns_to_it(visit, file, tmp_path):
    page = visit()
    opened_and_inverted(page, file)
    edited(page)
    part(page, "target").fill("a dog that is not made yet")
    Image.effect_noise((80, 64), 80).save(tmp_path / "other.png")
    upload(page, tmp_path / "other.png")
    expect(part(page, "name")).to_contain_text("other.png")
    assert tiles(page).count() == 0
    part(page, "source").fill("a noise")
    page.go_back()
    expect(part(page, "name")).to_contain_text("my cat.png")
    expect(tiles(page)).to_have_count(1)
    assert part(page, "target").input_value() == "a dog that is not made yet"
    page.go_back()
    expect(part(page, "welcome")).to_be_visible()
    recent = part(page, "recent").locator(".tile")
    expect(recent).to_have_count(2)
    assert [one.inner_text() for one in recent.all()] == [
        "my cat.png · 1 edit",
        "other.png · 0 edits",
    ]
    page.go_forward()
    page.go_forward()
    expect(part(page, "source")).to_have_value("a noise")
    page.go_back()
    page.go_back()
    recent.first.click()
    expect(tiles(page)).to_have_count(1)
    page.go_back()
    page.on("dialog", lambda dialog: dialog.accept())
    part(page, "recent").get_by_role("button", name="Remove my cat.png").click()
    expect(recent).to_have_count(1)
    page.go_forward()
    assert problem(page) == "The studio has not kept this photo; open it again."


def test_another_photo_is_opened_while_one_is_inverted(visit, file, tmp_path):
    page = visit()
    upload(page, file)
    invert(page, "a bright cat", "null-text", steps="200")
    expect(part(page, "dock")).to_be_visible()
    Image.effect_noise((80, 64), 80).save(tmp_path / "other.png")
    upload(page, tmp_path / "other.png")
    expect(part(page, "name")).to_contain_text("other.png")
    expect(part(page, "dock")).to_be_hidden()
    (tmp_path / "notes.png").write_text("no picture at all")
    upload(page, tmp_path / "notes.png")
    assert problem(page).startswith("'notes.png' is not an image")
    assert "other.png" in part(page, "name").inner_text()
    page.go_back()
    expect(part(page, "dock")).to_be_visible()
    assert part(page, "problem").is_hidden()
    part(page, "cancel").click()
    expect(part(page, "said")).to_have_text("Cancelled.")


def test_two_tabs_show_the_same(visit, file):
    page = visit()
    opened_and_inverted(page, file)
    other = page.context.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(page.url)
    part(other, "recent").locator(".tile").first.click()
    part(other, "source-done").wait_for()
    part(other, "target").fill("a red dog")
    part(page, "target").fill("a red cow")
    part(other, "edit").click()
    expect(tiles(page)).to_have_count(1)
    expect(tiles(other)).to_have_count(1)
    assert part(page, "target").input_value() == "a red cow"
    part(page, "edit").click()
    expect(tiles(other)).to_have_count(2)
    part(other, "strength").fill("0.8")
    tiles(other).nth(0).click()
    expect(part(other, "target")).to_have_value("a red cow")
    for each in (page, other):
        expect(tiles(each).nth(0)).to_have_attribute("aria-pressed", "true")


def test_new_sessions_take_nothing_from_a_page(visit, model, file):
    limits = Limits(sessions=4)
    with (
        studio_on(nulltext.load(model), model, limits=limits) as studio,
        running(studio, "127.0.0.1", 0) as url,
    ):
        page = visit(at=url)
        opened_and_inverted(page, file)
        edited(page)
        for _ in range(34):
            Visitor(studio).open(file)
        page.reload()
        expect(tiles(page)).to_have_count(1)
        part(page, "target").fill("a black dog")
        part(page, "edit").click()
        expect(tiles(page)).to_have_count(2)
        assert part(page, "over").evaluate("i => i.decode().then(() => i.naturalWidth)") == 90
        page.context.close()


ATTACK = """async (url) => {
  const said = [];
  for (const mode of ["cors", "no-cors"]) {
    const body = new Blob(["{}"], { type: "text/plain" });
    const sent = fetch(url + "/ask/cancel", { method: "POST", body, mode, credentials: "include" });
    said.push(await sent.then((answer) => answer.type, () => "failed"));
  }
  const frame = document.createElement("iframe");
  frame.src = url;
  document.body.append(frame);
  await new Promise((resolve) => (frame.onload = resolve));
  let shown = "foreign";
  try { shown = frame.contentDocument.body.innerHTML; } catch (error) { shown = "foreign"; }
  return [...said, shown];
}"""


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.localhost"])
def test_a_page_of_another_site_reaches_nothing(browser, model, file, host, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>other</title>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with (
        studio_on(nulltext.load(model), model) as studio,
        running(studio, "127.0.0.1", 0) as url,
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as site,
    ):
        threading.Thread(target=site.serve_forever, daemon=True).start()
        page, asked = browser.new_page(), []
        page.on("response", lambda answer: asked.append((answer.url, answer.status)))
        page.goto(f"http://{host}:{site.server_port}/")
        said = page.evaluate(ATTACK, url)
        assert said[0] == "failed"
        assert said[1] in ("failed", "opaque")
        assert said[2] == "foreign"
        reached = [status for at, status in asked if at.startswith(url)]
        assert set(reached) <= {403}
        assert not any(frame.title() == "nulltext studio" for frame in page.frames)
        page.close()
        site.shutdown()


def test_a_foreign_name_for_this_machine_reaches_nothing(browser, address):
    page = browser.new_page()
    answer = page.goto(address.replace("127.0.0.1", "evil.localhost"))  # DNS rebinding
    assert answer.status == 421
    assert "The studio is not served as 'evil.localhost'" in page.content()
    page.close()


def test_the_password_is_asked_for_in_the_page(browser, model, file):
    with (
        studio_on(nulltext.load(model), model) as studio,
        running(studio, "127.0.0.1", 0, password="rose") as url,
    ):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.get_by_label("Password").fill("tulip")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not the password.")
        page.get_by_label("Password").fill("rose")
        page.keyboard.press("Enter")
        opened_and_inverted(page, file)
        page.context.clear_cookies()
        part(page, "target").fill("a red dog")
        part(page, "edit").click()
        page.get_by_label("Password").fill("rose")
        page.keyboard.press("Enter")
        expect(part(page, "target")).to_have_value("a red dog")
        page.context.close()
