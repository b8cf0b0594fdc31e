"""What answers at once imports no heavy library: help, `inspect`, and most mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "starlette",
    "uvicorn",
    "matplotlib",
    "ray",
    "scipy",
    "pandas",
)

SCRIPT = f"""
import sys
from nulltext.cli.main import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print("ended", code or 0, sorted({set(HEAVY)} & set(sys.modules)))
"""

EDIT = ("edit", "--source", "a cat", "--target", "a dog")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["edit", "--help"], 0),
        (["study", "--help"], 0),
        (["studio", "--help"], 0),
        (["inspect", "{saved}"], 0),
        (["inspect", "none.safetensors"], 2),
        (["inspect", "cat.png"], 2),
        ([*EDIT, "none.jpg"], 2),
        ([*EDIT, "cat.png", "-o", "dog.xyz"], 2),
        ([*EDIT, "cat.png", "--crop", "1,2"], 2),
        ([*EDIT, "cat.png", "--strength", "7"], 2),
        ([*EDIT, "cat.png", "--steps", "0"], 2),
        ([*EDIT, "cat.png", "--guidance", "inf"], 2),
        ([*EDIT, "cat.png", "--solver", "adam"], 2),
        ([*EDIT, "cat.png", "--editor", "magic"], 2),
        ([*EDIT, "cat.png", "--weight", "dog"], 2),
        ([*EDIT, "cat.png", "--sweep", "g.png", "--over", "size=1,2"], 2),
        (["edit", "cat.png", "--source", "a cat"], 2),
        (["invert", "none.jpg", "--prompt", "a cat"], 2),
        (["invert", "cat.png", "--prompt", "a cat", "--inner-steps", "-1"], 2),
        (["invert", "cat.png", "--prompt", "a cat", "-o", "a.png"], 2),
        (["batch", "none.jsonl", "-o", "out"], 2),
        (["replay", "none.safetensors"], 2),
    ],
)
def test_heavy_libraries_are_not_imported(here, saved, arguments, code):
    filled = [str(saved) if word == "{saved}" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *filled], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"ended {code} []", done.stderr
