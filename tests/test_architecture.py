"""Architecture: imports point one way, the public names are complete, importing is cheap."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nulltext
from nulltext.constants import EditorName, Method
from nulltext.editing.editors import EDITORS
from nulltext.inversion.registry import METHODS

PACKAGE = Path(nulltext.__path__[0])

# A module imports only from rows above its own, and from its own package.
ROWS = [
    ["errors", "logs", "reprs"],
    ["plugins"],
    ["constants"],
    ["storage", "words"],
    ["image"],
    ["attention"],
    ["diffusion"],
    ["models"],
    ["inversion", "captioning"],
    ["editing", "training"],
    ["health"],
    ["jobs"],
    ["evaluation"],
    ["studio"],
    ["cli", "integrations"],
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def unit_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path):
    """Own units that a file imports, anywhere in it, type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "nulltext":
                names = [f"nulltext.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("nulltext."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    own = unit_of(path)
    assert own in LEVEL, f"give {own} a row"
    for unit in imported_units(path):
        assert unit == own or LEVEL[unit] < LEVEL[own], f"{own} imports {unit}"


@pytest.mark.parametrize("package", ["", *nulltext.PACKAGES])
def test_public_names_exist_and_are_documented(package):
    module = importlib.import_module(f"nulltext.{package}".rstrip("."))
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert thing.__doc__, name
    with pytest.raises(AttributeError, match=r"attribute '?inverse"):
        module.inverse  # noqa: B018


def test_the_root_has_few_names_and_all_packages_with_public_names():
    stubs = {path.parent.name for path in PACKAGE.glob("*/__init__.pyi")}
    assert {*nulltext.PACKAGES} == stubs
    assert {*dir(nulltext)} == {*nulltext.__all__, *nulltext.PACKAGES}
    assert len(nulltext.__all__) <= 30


def test_names_that_moved_still_work_and_say_where_they_are():
    for package, names in nulltext._MOVED.items():
        module = importlib.import_module(f"nulltext.{package}")
        for name in names:
            with pytest.warns(DeprecationWarning, match=f"use nulltext.{package}.{name}"):
                assert getattr(nulltext, name) is getattr(module, name)
            assert name in module.__all__


def test_the_command_line_names_every_method():
    assert {m.value for m in Method} == set(METHODS)
    assert {e.value for e in EditorName} == set(EDITORS)


@pytest.mark.parametrize(
    "start",
    [
        "import nulltext",
        f"from nulltext import {', '.join(nulltext.PACKAGES)}",
        "import nulltext.cli.main",
    ],
)
def test_importing_does_not_import_torch(start):
    script = f"{start}; import sys; heavy = {{'torch', 'diffusers', 'transformers', 'numpy'}}; "
    script += "print(sorted(heavy & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_pickle_is_ever_read():
    """But by the converter of published captioners, which takes tensors and nothing else."""
    converter = PACKAGE / "captioning" / "convert.py"
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in text.replace("allow_pickle=False", ""), path
        loads = text.replace("safetensors.torch.load", "")
        assert ("torch.load" in loads) == (path == converter), path
    calls = [
        node
        for node in ast.walk(ast.parse(converter.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) == 1
    named = {word.arg: ast.unparse(word.value) for word in calls[0].keywords}
    assert named["weights_only"] == "True"
