"""Examples of the documents, run as they are written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from conftest import EXAMPLE

DOCS = Path(__file__).parent.parent / "docs"


def examples(document):
    """Python code of a document, block by block."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def beside_the_photo(tmp_path, monkeypatch):
    shutil.copy(EXAMPLE, tmp_path / "dahlia.jpg")
    monkeypatch.chdir(tmp_path)


def test_the_diffusers_pipeline_edits_a_photo(beside_the_photo):
    names = {}
    exec(compile(examples("diffusers.md")[0], "diffusers.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(128, 128)] * 2
    assert Path("red.png").is_file()
    assert Path("dahlia.safetensors").is_file()
