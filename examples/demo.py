"""One real photograph, inverted once and edited four ways; what `make demo` runs.

    python examples/demo.py [FOLDER]

Writes the saved inversion, the edited pictures and a comparison strip into FOLDER (default: demo).
It is nothing but two command lines, which it prints, so that they can be copied and changed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from nulltext.cli.report import open_streams

PHOTO = Path(__file__).parent / "dahlia.jpg"
SOURCE = "a photo of an orange flower with a dark background"
TARGETS = (
    "a photo of a red flower with a dark background",
    "a photo of a yellow flower with a dark background",
    "a photo of a white daisy with a dark background",
    "a photo of a yellow sunflower with a dark background",
)


def run(*arguments: str) -> None:
    """Show a command line, and run it with this very Python."""
    print(f"\n$ nulltext {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "nulltext.cli.main", *arguments]
    if (code := subprocess.run(command, check=False).returncode) != 0:
        raise SystemExit(code)


def main() -> None:
    """Invert, edit, and say where the pictures are."""
    open_streams()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    photo = PHOTO.relative_to(Path.cwd()) if PHOTO.is_relative_to(Path.cwd()) else PHOTO
    inversion, strip = folder / "dahlia.safetensors", folder / "strip.png"
    started = time.perf_counter()
    run("invert", str(photo), "--prompt", SOURCE, "-o", str(inversion))
    targets = [word for target in TARGETS for word in ("--target", target)]
    run(
        *("edit", str(photo), "--inversion", str(inversion), *targets, "--full"),
        *("-o", str(folder / "dahlia.png"), "--strip", str(strip)),
    )
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {strip.resolve()} to see it all.")


if __name__ == "__main__":
    main()
