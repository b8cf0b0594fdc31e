"""Ten jobs of a photographer in the studio: by mouse, by keyboard alone, and by touch at 390 px.

    python benchmarks/studio_jobs.py --photos "dahlia.jpg=orange flower,dark" --out jobs

Needs chromium and playwright. Each photo is enlarged to the size of a camera's, 12 to 24
megapixels, opened in a studio that keeps nothing, described as "a photo of a COLOUR KIND with a
BACKGROUND background" and inverted; then the jobs are done one after the other. A control that is
covered, that cannot be reached, or that does something else than it says fails its job. After each
job a screenshot is taken, and at the end a table is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps
from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright

SHAPES = [(3000, 4000), (4400, 2750), (3500, 3500), (2848, 4288), (6000, 4000)]
"""Width and height in pixels; photos take them in turn."""
PATIENCE = 30_000
"""Milliseconds for a control."""
WORK = 240_000
"""Milliseconds for an inversion or an edit."""
SETTLED = 0.4
"""Seconds until what moves has come to rest."""
SLOW = 60
"""Milliseconds between two places of a finger; after a faster one, a browser takes no tap."""
MOST_TABS = 150
COLOURS = ("red", "purple")
KINDS = ("sunflower", "rose")
BACKGROUNDS = ("green", "blue")
"""What words are changed to: the second where the photo has the first."""
COVERED = """it => {
  const shape = it.matches("input") && it.labels && it.labels.length ? it.labels[0] : it;
  const box = shape.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  if (it.contains(top) || shape.contains(top)) return null;
  return top ? top.outerHTML.slice(0, 90) : "the window's edge";
}"""


class FaultError(Exception):
    """What a person would complain of."""


@dataclass(frozen=True)
class Photo:
    """A photo and the words that are true of it."""

    path: Path
    colour: str
    kind: str
    background: str

    def __post_init__(self) -> None:
        if self.background in (self.colour, self.kind):
            raise SystemExit(f"{self.path.name}: each word once, so that it can be found.")

    @property
    def sentence(self) -> str:
        """What is typed into the first field."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"a photo of {article} {self.colour} {self.kind} with a {self.background} background"


def other(word: str, choices: tuple[str, str]) -> str:
    """A word of the two that is not this one."""
    return choices[word == choices[0]]


def camera_sized(text: str, number: int, folder: Path) -> Photo:
    """Enlarge a photo, given as `FILE=COLOUR KIND,BACKGROUND`."""
    name, _, words = text.partition("=")
    thing, _, background = words.partition(",")
    colour, _, kind = thing.partition(" ")
    source = Path(name)
    made = folder / f"{source.stem}.jpg"
    with Image.open(source) as picture:
        size = SHAPES[number % len(SHAPES)]
        ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.BICUBIC).save(made, quality=92)
    return Photo(made, colour, kind, background)


class Mouse:
    """Everything by the mouse; texts are typed into a field that was clicked."""

    view: ClassVar[dict[str, Any]] = {"viewport": {"width": 1400, "height": 900}}

    def __init__(self, page: Page) -> None:
        self.page = page

    def press(self, control: Locator) -> None:
        """Press a button, a chip or a summary; Playwright refuses what is covered."""
        control.click()

    def write(self, control: Locator, text: str) -> None:
        """Replace the text of a field."""
        self.press(control)
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(text)

    def slide(self, control: Locator, part: float) -> None:
        """Set a range to a part of its way, 0 to 1."""
        box = self.box(control)
        control.click(position={"x": box["width"] * part, "y": box["height"] / 2})

    def paint(self, canvas: Locator) -> None:
        """Paint over the middle of the photo."""
        box = self.box(canvas)
        for row in (0.4, 0.5, 0.6):
            self.page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + row * box["height"])
            self.page.mouse.down()
            for part in (0.45, 0.55, 0.65):
                self.page.mouse.move(box["x"] + part * box["width"], box["y"] + row * box["height"])
            self.page.mouse.up()

    def divide(self, divider: Locator) -> None:
        """Move the divider to a quarter."""
        box = self.box(divider)
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] / 2, middle)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
        self.page.mouse.up()

    def box(self, control: Locator) -> Any:
        """Where a control is, in the window."""
        control.scroll_into_view_if_needed()
        return control.bounding_box()


class Keyboard(Mouse):
    """Everything by keys: Tab until the control has the focus, then its keys."""

    def reach(self, control: Locator) -> None:
        """Go to a control by Tab, and see that it is seen."""
        control.wait_for()
        handle = control.element_handle()
        for _ in range(MOST_TABS):
            if handle.evaluate("it => it === document.activeElement"):
                break
            self.page.keyboard.press("Tab")
        else:
            raise FaultError(f"Tab does not reach {name_of(control)}")
        covering = handle.evaluate(COVERED)
        if covering:
            raise FaultError(f"{name_of(control)} has the focus below {covering}")

    def press(self, control: Locator) -> None:
        """Press what has the focus; a link takes Enter, a button Space, too."""
        self.reach(control)
        self.page.keyboard.press(
            "Space" if control.evaluate("it => it.matches('input')") else "Enter"
        )

    def write(self, control: Locator, text: str) -> None:
        """Replace the text of a field."""
        self.reach(control)
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(text)

    def slide(self, control: Locator, part: float) -> None:
        """Set a range by Home and arrows."""
        self.reach(control)
        self.page.keyboard.press("Home")
        low, high, step = control.evaluate("it => [it.min, it.max, it.step || 1].map(Number)")
        for _ in range(round((high - low) * part / step)):
            self.page.keyboard.press("ArrowRight")

    def paint(self, canvas: Locator) -> None:
        """Paint with Space and arrows, from the middle."""
        self.reach(canvas)
        for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"):
            self.page.keyboard.press("Space")
            self.page.keyboard.press(f"Shift+{key}")
        self.page.keyboard.press("Space")

    def divide(self, divider: Locator) -> None:
        """Move the divider to a quarter."""
        self.slide(divider, 0.25)


class Touch(Mouse):
    """A phone: taps and fingers."""

    view: ClassVar[dict[str, Any]] = {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    }

    def press(self, control: Locator) -> None:
        """Tap."""
        control.tap()

    def slide(self, control: Locator, part: float) -> None:
        """Draw a range's thumb to its place."""
        box = self.box(control)
        middle = box["y"] + box["height"] / 2
        self.draw([(box["x"] + box["width"] * at, middle) for at in (0.4, (part + 0.4) / 2, part)])

    def paint(self, canvas: Locator) -> None:
        """Paint with a finger."""
        box = self.box(canvas)
        for row in (0.4, 0.5, 0.6):
            y = box["y"] + row * box["height"]
            self.draw([(box["x"] + part * box["width"], y) for part in (0.35, 0.45, 0.55, 0.65)])

    def divide(self, divider: Locator) -> None:
        """Draw the divider to a quarter."""
        box = self.box(divider)
        middle = box["y"] + box["height"] / 2
        self.draw([(box["x"] + box["width"] * part, middle) for part in (0.5, 0.4, 0.3, 0.25)])

    def draw(self, points: list[tuple[float, float]]) -> None:
        """One finger from the first point to the last."""
        session = self.page.context.new_cdp_session(self.page)
        kinds = ["touchStart", *["touchMove"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            session.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            )
            self.page.wait_for_timeout(SLOW)
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        session.detach()


WAYS: dict[str, type[Mouse]] = {"mouse": Mouse, "keyboard": Keyboard, "touch": Touch}


def name_of(control: Locator) -> str:
    """How a fault names a control."""
    return str(control.evaluate("it => it.dataset.id || it.textContent.trim()"))


@dataclass
class Walk:
    """One photo by one way."""

    page: Page
    hand: Mouse
    photo: Photo
    steps: int
    complaints: list[str] = field(default_factory=list)

    def part(self, name: str) -> Locator:
        """An element by its name in the page."""
        return self.page.locator(f"[data-id={name}]")

    def view(self, path: str) -> Any:
        """A value of the view that is on screen."""
        return self.page.evaluate(f"state.view.{path}")

    def made(self) -> None:
        """Wait until nothing is asked and nothing is made; a message is a fault."""
        self.page.wait_for_function(
            "() => !state.view.progress && !state.view.running.length"
            " && !Object.values(state.waiting).some(Boolean)"
            " || !document.querySelector('[data-id=problem]').hidden",
            timeout=WORK,
        )
        if self.part("problem").is_visible():
            said = self.part("problem-text").inner_text()
            self.hand.press(self.part("dismiss"))
            raise FaultError(f"The page says: {said}")

    def expect(self, holds: bool, otherwise: str) -> None:
        """Complain unless something holds."""
        if not holds:
            raise FaultError(otherwise)

    def open(self) -> None:
        """Open, describe and invert the photo."""
        with self.page.expect_file_chooser() as chosen:
            self.hand.press(self.part("choose"))
        chosen.value.set_files(self.photo.path)
        self.part("source").wait_for(timeout=WORK)
        self.made()
        self.hand.write(self.part("source"), self.photo.sentence)
        self.hand.press(self.part("step-source").locator("summary"))
        self.hand.write(self.part("steps"), str(self.steps))
        self.hand.press(self.part("invert"))
        self.part("source-done").wait_for(timeout=WORK)
        self.made()

    def chip(self, word: str) -> Locator:
        """The chip whose word in the photo's sentence is this."""
        index = self.view("words").index(word)
        return self.part("chips").locator(".chip").nth(index)

    def pick(self, word: str) -> None:
        """Open the editor of a chip."""
        if self.chip(word).get_attribute("aria-pressed") != "true":
            self.hand.press(self.chip(word))
        self.part("chip-editor").wait_for()

    def retype(self, word: str, new: str) -> None:
        """Write another word over one."""
        self.pick(word)
        self.hand.write(self.part("word"), new)

    def edit(self, target: str) -> None:
        """Make the edit, and see that it is the one of these words."""
        before = self.view("result?.number")
        shown = self.part("target").input_value()
        self.expect(target in shown, f"The target prompt is '{shown}' instead of '{target}'")
        self.hand.press(self.part("edit"))
        self.made()
        self.expect(self.view("result?.number") != before, "No edit was made")
        self.expect(
            self.view("history.at(-1).target") == shown or self.view("history[0].target") == shown,
            "The history has other words",
        )
        self.expect(bool(self.view("result.changed")), "Nothing changed")
        self.expect(self.page.evaluate("state.mode") == "compare", "The result is not shown")

    def recolour(self) -> None:
        """Another colour, from those that are offered."""
        new = other(self.photo.colour, COLOURS)
        self.pick(self.photo.colour)
        self.hand.press(self.part("suggestions").get_by_role("button", name=new, exact=True).first)
        self.edit(f"{new} {self.photo.kind}")
        self.retype(self.photo.colour, self.photo.colour)

    def kind(self) -> None:
        """Another thing, typed."""
        new = other(self.photo.kind, KINDS)
        self.retype(self.photo.kind, new)
        self.edit(f"{self.photo.colour} {new}")
        self.retype(self.photo.kind, self.photo.kind)

    def background(self) -> None:
        """Another background, typed."""
        new = other(self.photo.background, BACKGROUNDS)
        self.retype(self.photo.background, new)
        self.edit(f"{new} background")
        self.retype(self.photo.background, self.photo.background)

    def remove(self) -> None:
        """Without the colour's word, which is typed again afterwards."""
        self.pick(self.photo.colour)
        self.hand.press(self.part("remove"))
        self.edit(f"of a {self.photo.kind}")
        self.retype(self.photo.colour, self.photo.colour)

    def weigh(self) -> None:
        """The colour's word, three times as strong."""
        self.pick(self.photo.colour)
        self.hand.slide(self.part("weight"), 5 / 6)
        said = self.part("weight-now").inner_text()
        self.expect(2.5 <= float(said.removeprefix("×")) <= 3.5, f"The weight is {said}")
        self.edit(self.photo.sentence)
        self.hand.slide(self.part("weight"), 0.5)

    def mask(self) -> None:
        """Recoloured where it is painted."""
        fold = self.part("step-edit").locator("details").first
        if not fold.evaluate("it => it.open"):
            self.hand.press(fold.locator("summary"))
        self.hand.press(self.part("paint-it"))
        self.hand.paint(self.part("paint"))
        self.expect(self.part("mask-said").inner_text() != "", "Nothing was painted")
        self.retype(self.photo.colour, other(self.photo.colour, COLOURS))
        self.edit(other(self.photo.colour, COLOURS))
        self.expect(bool(self.view("result.mask")), "The edit has no mask")

    def strengths(self) -> None:
        """Five strengths, of which the fourth is picked."""
        self.hand.press(self.part("try"))
        self.made()
        self.page.wait_for_function("() => state.view.strip.length === 5", timeout=WORK)
        tile = self.part("strip").locator(".tile").nth(3)
        self.hand.press(tile)
        self.made()
        self.expect(tile.get_attribute("aria-pressed") == "true", "The tile is not marked")

    def history(self) -> None:
        """Back to the first edit."""
        tile = self.part("history").locator(".tile").last
        target = tile.get_attribute("title")
        self.hand.press(tile)
        self.made()
        self.expect(tile.get_attribute("aria-pressed") == "true", "The edit is not marked")
        shown = self.part("target").input_value()
        self.expect(shown == target, f"The target prompt is '{shown}' instead of '{target}'")

    def compare(self) -> None:
        """The divider at a quarter, then every pixel, then all of it."""
        self.hand.press(self.part("views").locator("[data-view=compare]"))
        self.hand.divide(self.part("split"))
        at = float(self.part("split").input_value())
        self.expect(20 <= at <= 30, f"The divider stands at {at}")
        self.hand.press(self.part("zoom-full"))
        self.made()
        self.expect(self.part("zoom-now").inner_text() == "100 %", "It is not shown at 100 %")
        self.hand.press(self.part("zoom-fit"))

    def download(self) -> None:
        """The PNG at the photo's own size."""
        with self.page.expect_download(timeout=WORK) as coming:
            self.hand.press(self.part("download"))
        with Image.open(coming.value.path()) as made, Image.open(self.photo.path) as photo:
            self.expect(made.format == "PNG", f"A {made.format} came")
            self.expect(made.size == photo.size, f"It has {made.size} pixels")

    def jobs(self) -> dict[str, Callable[[], None]]:
        """What is done, in order; the first is needed by the others."""
        return {
            "open": self.open,
            "recolour": self.recolour,
            "kind": self.kind,
            "background": self.background,
            "remove": self.remove,
            "weigh": self.weigh,
            "mask": self.mask,
            "strengths": self.strengths,
            "history": self.history,
            "compare": self.compare,
            "download": self.download,
        }

    def go(self, out: Path, label: str) -> dict[str, str]:
        """Do all jobs; gives for each its seconds, or what is wrong."""
        found = {}
        for number, (name, job) in enumerate(self.jobs().items()):
            begun = time.monotonic()
            try:
                job()
                found[name] = f"{time.monotonic() - begun:.1f}"
            except (FaultError, Error) as fault:
                found[name] = f"FAILED: {str(fault)[:400]}"
            if self.complaints:
                found[name] = f"FAILED: console: {self.complaints.pop()}"
            time.sleep(SETTLED)
            self.page.screenshot(path=out / f"{label}-{number:02}-{name}.png")
            if name == "open" and found[name].startswith("FAILED"):
                break
        return found


def walk(
    browser: Browser, url: str, photo: Photo, way: str, steps: int, out: Path
) -> dict[str, str]:
    """One photo by one way, in a browser of its own."""
    hand = WAYS[way]
    context = browser.new_context(accept_downloads=True, **hand.view)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    made = Walk(page, hand(page), photo, steps)
    page.on("console", lambda m: made.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    try:
        return made.go(out, f"{photo.path.stem}-{way}")
    finally:
        context.close()


def main() -> None:
    """Do the jobs, and print what succeeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", nargs="+", required=True, metavar="FILE=COLOUR KIND,BACKGROUND")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--in-turn", action="store_true", help="each photo by one of the ways")
    parser.add_argument("--steps", type=int, default=4, help="of the inversion")
    parser.add_argument("--out", type=Path, required=True, help="folder of the screenshots")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nulltext.cli.entry", "studio", "--port", "0", "--no-browser"]
    server = subprocess.Popen([*command, "--forget", "--json"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    failed = 0
    try:
        url = json.loads(server.stdout.readline())["url"]
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            print("| photo | way | succeeded | seconds |\n|---|---|---|---|")
            for number, text in enumerate(options.photos):
                photo = camera_sized(text, number, Path(folder))
                ways = options.ways
                for way in [ways[number % len(ways)]] if options.in_turn else ways:
                    found = walk(browser, url, photo, way, options.steps, options.out)
                    wrong = {
                        name: said for name, said in found.items() if said.startswith("FAILED")
                    }
                    failed += len(wrong)
                    times = ", ".join(
                        f"{name} {said}" for name, said in found.items() if name not in wrong
                    )
                    done = len([name for name in found if name != "open"]) - len(wrong)
                    print(f"| {photo.path.stem} | {way} | {done} of 10 | {times} |", flush=True)
                    for name, said in wrong.items():
                        print(f"  {photo.path.stem}, {way}, {name}: {said}", flush=True)
                photo.path.unlink()
            browser.close()
    finally:
        server.terminate()
        server.wait()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
