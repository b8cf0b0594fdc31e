"""A browser on a studio: fixtures, and what a person does on the page."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest

import nulltext
from nulltext.studio.server import running
from support.proxies import Proxy
from support.studios import studio_on

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60_000
"""Milliseconds; a slow machine shall not fail a test."""
CONTROLS = "button, input, select, textarea, a[href], summary, [tabindex='0']"

if CHROMIUM is None:
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")
sync_api.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def studio(model):
    with studio_on(nulltext.load(model), model) as made:
        yield made


@pytest.fixture(scope="module")
def address(studio):
    with running(studio, "127.0.0.1", 0) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(address):
    with Proxy(address).running() as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Open pages of separate people; afterwards none may have complained or called out."""
    errors, hosts, contexts = [], set(), []

    def watch(request):
        if request.url.startswith("http"):
            hosts.add(urlsplit(request.url).hostname)

    def come(width=1400, height=900, at=address, **more):
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", watch)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(at)
        part(page, "example").wait_for()
        return page

    yield come
    for context in contexts:
        context.close()
    assert errors == []
    assert hosts == {"127.0.0.1"}


def part(page, name):
    return page.locator(f"[data-id={name}]")


def upload(page, path):
    part(page, "choose").set_input_files(path)


def invert(page, source="a red cat", method="ddim", **fields):
    part(page, "source").fill(source)
    part(page, "step-source").locator("summary").click()
    for name, value in {"steps": "3", **fields}.items():
        part(page, name).fill(value)
    part(page, "method").select_option(method)
    part(page, "invert").click()


def opened_and_inverted(page, path):
    upload(page, path)
    invert(page)
    part(page, "source-done").wait_for()


def chip(page, word):
    return part(page, "chips").get_by_role("button", name=word, exact=True)


def look_at(page, word, width=90):
    """Click a word and wait for its picture, as wide as the frame: the next takes its place."""
    chip(page, word).click()
    sync_api.expect(part(page, "note")).to_contain_text(f"Where “{word}” looks")
    sync_api.expect(part(page, "heat")).to_be_visible()
    seen = "image => image.decode().then(() => image.naturalWidth)"
    assert part(page, "heat").evaluate(seen) == width


def problem(page):
    part(page, "problem").wait_for()
    return part(page, "problem-text").inner_text()
