"""The screenshots of docs/studio.md, taken of a real run in a real browser.

    python benchmarks/studio_pictures.py -o docs/studio

Needs chromium and playwright. Two widths, the same path in both: the first sight, the photo with
its crop, the inversion under way, a word's attention, the edit with the strip and the history, and
what a mistake looks like.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

WIDTHS = {1400: 1200, 390: 844}
PATIENCE = 600_000
"""Milliseconds."""
SETTLED = 0.6
"""Seconds until what moves has come to rest."""


class Walk:
    """One way through the page, with a picture at each stop."""

    def __init__(self, page: Page, shoot: Callable[[str], None], seed: int) -> None:
        """Args: seed: another for each walk, so that each has to invert."""
        self.page, self.shoot, self.seed = page, shoot, seed

    def part(self, name: str) -> Locator:
        """An element by its name in the page."""
        return self.page.locator(f"[data-id={name}]")

    def go(self, steps: int | None) -> None:
        """From the first sight to the strip."""
        self.part("example").wait_for()
        self.shoot("welcome")
        self.part("example").click()
        self.part("invert").wait_for()
        self.shoot("photo")
        self.part("step-source").locator("summary").click()
        self.part("steps").fill("" if steps is None else str(steps))
        self.part("seed").fill(str(self.seed))
        self.part("step-source").locator("summary").click()
        self.part("invert").click()
        self.page.wait_for_function("() => document.querySelector('[data-id=bar]').value > 9")
        self.shoot("inverting")
        self.part("source-done").wait_for()
        self.part("chips").get_by_role("button", name="flower", exact=True).click()
        self.page.wait_for_function("() => document.querySelector('[data-id=heat]').src")
        self.shoot("attention")
        self.part("chips").get_by_role("button", name="orange", exact=True).click()
        self.part("word").fill("red")
        self.part("word").press("Enter")
        self.page.wait_for_function(
            "() => document.querySelector('[data-id=target]').value.includes('red')"
        )
        self.part("edit").click()
        self.part("outcome").wait_for()
        self.part("try").click()
        self.part("strip-tiles").wait_for()
        self.part("strip").get_by_role("button").nth(3).click()
        self.page.wait_for_function(
            "() => document.querySelectorAll('[data-id=history] .tile').length > 1"
        )
        self.shoot("edit")
        self.part("step-edit").locator("summary").first.click()
        self.part("blend").fill("tabby")
        self.part("edit").click()
        self.part("problem").wait_for()
        self.shoot("mistake")


def shooter(page: Page, folder: Path, width: int) -> Callable[[str], None]:
    """Something that takes a picture of what is seen, as JPEG."""

    def shoot(name: str) -> None:
        time.sleep(SETTLED)
        png = folder / f"{name}-{width}.png"
        page.screenshot(path=png)
        with Image.open(png) as picture:
            picture.convert("RGB").save(png.with_suffix(".jpg"), quality=86, optimize=True)
        png.unlink()

    return shoot


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/studio"))
    parser.add_argument("--steps", type=int, help="of the inversion; default: the studio's own")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nulltext.cli.main", "studio", "--port", "0"]
    command += ["--no-browser", "--forget"]
    server = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    try:
        with sync_playwright() as driver:
            where: Any = shutil.which("chromium")
            browser = driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
            for seed, (width, height) in enumerate(WIDTHS.items()):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(PATIENCE)
                page.goto(url)
                Walk(page, shooter(page, options.output, width), seed).go(options.steps)
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
