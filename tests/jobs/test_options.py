"""The option schema: what is made from it agrees with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.options_tables import TABLE_BEGIN, TABLE_END, options_table, short_table
from nulltext.constants import EditorName, Method
from nulltext.jobs.options import (
    KNOBS,
    OPTIONS,
    EditOptions,
    Kind,
    arguments_of,
)


def test_every_option_says_what_it_does():
    for option in OPTIONS.values():
        assert option.help.endswith((".", ", …")), option.name
        assert "{" not in option.help, option.name


def test_kinds_follow_from_the_types_of_fields():
    assert OPTIONS["image"].kind is Kind.FILE
    assert OPTIONS["strip"].kind is Kind.OUTPUT
    assert OPTIONS["target"].kind is Kind.TEXTS
    assert OPTIONS["steps"].kind is Kind.INTEGER
    assert OPTIONS["method"].choices[0] == "fixed-point"
    assert OPTIONS["detail"].choices == ("auto", "photo", "luminance", "model")


def test_knobs_of_a_sweep_are_numbers():
    assert set(KNOBS) == {
        *("strength", "cross", "self", "masa-start", "masa-layer"),
        *("target-guidance", "guidance-start", "source-guidance", "n-max", "n-min"),
        *("eta", "eta-stop", "uni-alpha", "uni-omega"),
    }
    assert {option.kind for option in KNOBS.values()} == {Kind.NUMBER}


def test_plain_values_become_typed_options():
    options = EditOptions.of(
        {"target": ["a\u00a0dog\u200b"], "method": "direct", "editor": "masactrl", "mask": None}
    )
    assert options.target == ("a dog",)
    assert options.method is Method.DIRECT
    assert options.editor is EditorName.MASACTRL
    assert options.mask is None
    assert options.prompts == ("a dog",)


def test_arguments_are_the_options_that_differ_from_their_defaults():
    options = EditOptions.of(
        {"image": "-a.jpg", "target": ["a dog", "a cow"], "full": True, "strength": 0.3}
    )
    assert arguments_of(options) == [
        *("./-a.jpg", "--target", "a dog", "--target", "a cow"),
        *("--full", "--strength", "0.3"),
    ]
    assert arguments_of(EditOptions()) == []


def test_an_unknown_option_is_no_option():
    with pytest.raises(KeyError):
        EditOptions.of({"magic": 1})


@pytest.mark.parametrize(
    ("name", "table"), [("README.md", short_table()), ("docs/options.md", options_table())]
)
def test_the_tables_of_the_docs_are_those_of_the_schema(name, table):
    """`make options` writes them."""
    page = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    assert page.split(TABLE_BEGIN)[1].split(TABLE_END)[0].strip() == table.strip()
