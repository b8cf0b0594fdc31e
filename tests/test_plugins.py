"""Methods and editors of other packages: by a decorator, or by an entry point."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

import nulltext
from nulltext import plugins
from nulltext.editing.editors import EDITORS, MasaCtrl
from nulltext.errors import OptionError
from nulltext.inversion.ddim import DDIM
from nulltext.inversion.registry import METHODS, method_named
from support.examples import EXAMPLE

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from nulltext.editing.editors import PromptToPrompt
from nulltext.inversion.ddim import DDIM


@dataclass(frozen=True)
class Guided(DDIM):
    name: ClassVar[str] = "guided-ddim"
    inversion_guidance: float = 2.0


@dataclass(frozen=True)
class Loose(PromptToPrompt):
    name: ClassVar[str] = "loose"
    cross_steps: float = 0.1
"""

ENTRY_POINTS = """
[nulltext.methods]
guided-ddim = other_package:Guided
misnamed = other_package:Guided
gone = other_package:Gone
ddim = other_package:Guided

[nulltext.editors]
loose = other_package:Loose
"""


@pytest.fixture
def forget(monkeypatch):
    """Registries are as before after the test."""
    for registry in (METHODS, EDITORS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    plugins.installed_entry_points.cache_clear()
    yield
    plugins.installed_entry_points.cache_clear()


@pytest.fixture
def other_package(tmp_path, monkeypatch, forget):
    """An installed package with a method and an editor."""
    (tmp_path / "other_package.py").write_text(MODULE, encoding="utf-8")
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: other_package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_methods_and_editors_of_an_installed_package_work_by_name(other_package, tiny_sd1, photo):
    assert "guided-ddim" in list(METHODS)
    assert "loose" in list(EDITORS)
    made = nulltext.invert(tiny_sd1, photo, "a cat", method="guided-ddim", num_steps=2)
    assert made.header.method == "guided-ddim"
    assert made.header.method_config == {"inversion_guidance": 2.0}
    assert EDITORS["loose"]().cross_steps == 0.1


def test_names_of_an_installed_package_are_read_without_importing_it(other_package):
    sys.modules.pop("other_package", None)
    assert "guided-ddim" in list(METHODS)
    assert "other_package" not in sys.modules


def run_nulltext(folder, *words):
    """Run the command line where the other package is installed."""
    own = str(Path(nulltext.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), own])}
    return subprocess.run(
        [sys.executable, "-m", "nulltext.cli.entry", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_line_offers_and_runs_them(other_package, tmp_path):
    said = run_nulltext(tmp_path, "invert", "--help")
    assert "guided-ddim" in said.stdout
    made = run_nulltext(
        tmp_path,
        *("edit", EXAMPLE, "--source", "a red flower", "--target", "a blue flower"),
        *("--method", "guided-ddim", "--editor", "loose", "--steps", "2", "-o", "out.png"),
    )
    assert made.returncode == 0, made.stderr
    with Image.open(tmp_path / "out.png") as picture:
        settings = json.loads(picture.text["nulltext"])
    assert (settings["method"], settings["editor"]) == ("guided-ddim", "loose")
    assert settings["cross_steps"] == 0.1


def test_built_in_names_stay_ours(other_package):
    assert METHODS["ddim"] is DDIM


def test_a_package_that_does_not_fit_is_refused_by_name(other_package):
    with pytest.raises(OptionError, match=r"'gone' cannot be imported from other_package:Gone"):
        method_named("gone")
    with pytest.raises(OptionError, match=r"'misnamed' .* has the name 'guided-ddim'"):
        method_named("misnamed")
    with pytest.raises(OptionError, match=r"no inversion method 'other'; .*, guided-ddim"):
        method_named("other")


def test_a_decorator_registers_a_class_and_a_cell_may_run_again(forget):
    for _ in range(2):

        @METHODS.register
        @dataclasses.dataclass(frozen=True)
        class Mine(DDIM):
            name: ClassVar[str] = "mine"

    assert method_named("mine") == Mine()


def test_names_of_others_and_classes_that_lack_something_are_refused(forget):
    class Taken(DDIM):
        pass

    class Empty:
        name = "empty"

    class Plain:
        name = "plain"
        differentiates = draws = check = steps = False

    @dataclasses.dataclass(frozen=True)
    class Nameless(DDIM):
        name: ClassVar[str] = ""

    for kind in (Plain, Nameless):
        with pytest.raises(OptionError, match="must be a dataclass whose name is a text"):
            METHODS.register(kind)
    with pytest.raises(OptionError, match="it is no class"):
        METHODS.register(DDIM())
    with pytest.raises(OptionError, match=r"'ddim' is that of nulltext\.inversion\.ddim\.DDIM"):
        METHODS.register(Taken)
    with pytest.raises(OptionError, match="registered as editor: it has no plan, at_strength"):
        EDITORS.register(Empty)
    assert EDITORS["masactrl"] is MasaCtrl
