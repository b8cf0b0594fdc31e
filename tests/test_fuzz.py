"""A short slice of the fuzzing (the whole of it: `python -m fuzz`), and that it would notice."""

from __future__ import annotations

import time

import pytest
from hypothesis import find

from fuzz import check
from fuzz.__main__ import fuzz, warm_up
from fuzz.check import Harness, Verdict
from fuzz.damage import damaged
from fuzz.readers import BROKE, READERS, Reader, corpus_of
from nulltext.errors import DataError

SLOW = ("captioner", "model", "adapter")
"""Read whole networks: a few inputs do here."""


@pytest.mark.parametrize("name", READERS)
def test_no_input_of_the_corpus_or_of_a_short_run_breaks_a_reader(name):
    with Harness.prepared(READERS[name]) as harness:
        warm_up(harness, name)

        def checked(file, data):
            if name in SLOW and not file.startswith(BROKE) and data in whole:
                return Verdict("read")
            return harness.check(file, data)

        whole = {path.read_bytes() for path in corpus_of(name)}
        result = fuzz(name, checked, count=3 if name in SLOW else 40, seed=1)
    assert result.findings == []
    if name not in SLOW:
        assert result.outcomes.keys() == {"read", "refused"}


def test_seeds_are_read():
    """But masks that are white or black everywhere: else mutations of them reach no depth."""
    for name in ("inversion", "image", "mask", "recipe"):
        seeds = [p for p in corpus_of(name) if not p.name.startswith(BROKE)]
        with Harness.prepared(READERS[name]) as harness:
            warm_up(harness, name)
            outcomes = {path.name: harness.check(path.name, path.read_bytes()) for path in seeds}
        read = [path for path, verdict in outcomes.items() if verdict.outcome == "read"]
        assert len(read) >= len(seeds) / 2, outcomes


def test_a_finding_is_reduced():
    def picky(file, data):
        return Verdict("crash", "b") if b"\xff" in data else Verdict("read")

    (finding,) = fuzz("recipe", picky, count=500, seed=0).findings
    assert finding.verdict.outcome == "crash"
    assert b"\xff" in finding.data


@pytest.mark.parametrize("data", [b'{"a": [1, {"b": "c"}], "d": null}', b"abc", b"", b"{}\n{}\n"])
def test_damage_changes_a_file(data):
    assert find(damaged(data), lambda found: found != data) != data


def raising(error):
    def read(path):
        raise error

    return read


def compute_for_ever(path):
    while True:
        pass


def out_of_memory(path):
    try:
        raise MemoryError
    except MemoryError as error:
        raise DataError("It cannot be read.") from error


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path: None, "read"),
        (raising(DataError("It is empty.")), "refused"),
        (raising(DataError("two\nlines.")), "unclear"),
        (raising(DataError("a" * 2000 + ".")), "unclear"),
        (raising(ValueError("no error of ours")), "crash"),
        (raising(SystemExit(0)), "crash"),
        (out_of_memory, "memory"),
        (compute_for_ever, "hang"),
        (lambda path: time.sleep(99), "hang"),
    ],
)
def test_whatever_is_no_clear_refusal_is_a_finding(monkeypatch, read, outcome):
    monkeypatch.setattr(check, "STALLED", 2)
    with Harness.prepared(Reader(read)) as harness:
        limit = 0.2 if outcome == "hang" else check.SECONDS
        verdict = harness.check("broke-1--a.json", b"{}", seconds=limit)
    assert verdict.outcome == outcome
    assert verdict.is_finding == (outcome not in ("read", "refused"))
