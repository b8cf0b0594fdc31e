"""Lower bounds in pyproject.toml are releases that were run: `make test-lowest` installs them."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

CORE = [Requirement(text) for text in metadata.requires("nulltext") or [] if "extra ==" not in text]
HERE = [need for need in CORE if need.marker is None or need.marker.evaluate()]


def floor_of(need):
    (bound,) = need.specifier
    assert bound.operator == ">=", f"{need}: no lower bound"
    return Version(bound.version)


@pytest.mark.parametrize("need", HERE, ids=lambda need: need.name)
def test_what_is_installed_is_as_declared(need):
    found, floor = Version(metadata.version(need.name)), floor_of(need)
    assert found >= floor
    if os.environ.get("NULLTEXT_TEST_LOWEST"):
        assert found.release[: len(floor.release)] == floor.release, "the bound is too low"


def test_each_python_that_is_supported_is_in_the_classifiers():
    said = metadata.metadata("nulltext").get_all("Classifier")
    assert f"Programming Language :: Python :: 3.{sys.version_info.minor}" in said
