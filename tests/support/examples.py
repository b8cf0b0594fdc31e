"""The example photo and its prompt, the device under test, and a small disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVICE = os.environ.get("NULLTEXT_TEST_DEVICE", "cpu")
"""Of the tests marked `device`, which compare it with the CPU."""


EXAMPLE = Path(__file__).parents[2] / "examples" / "dahlia.jpg"


DAHLIA_PROMPT = "a photo of an orange flower with a dark background"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a size such as "200k" at a new folder; skips where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


EDIT = ("edit", "cat.png", "--source", "a cat", "--target", "a dog")
