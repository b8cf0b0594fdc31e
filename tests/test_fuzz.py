"""A short slice of the fuzzing (the whole of it: `python -m fuzz`), and that it would notice."""

from __future__ import annotations

import time

import pytest

from fuzz import judge
from fuzz.readers import READERS, Reader
from nulltext.errors import DataError

SLOW = ("captioner", "model", "adapter")
"""Read whole networks: a few inputs do here."""


@pytest.mark.parametrize("name", READERS)
def test_no_input_of_the_corpus_or_of_a_short_run_breaks_a_reader(name):
    count = 3 if name in SLOW else 40
    broke = [p for p in judge.corpus_of(name) if p.name.startswith(judge.BROKE)]
    corpus = broke if name in SLOW else judge.corpus_of(name)
    inputs = [(path.name, path.read_bytes()) for path in corpus]
    inputs += [judge.fuzzed(name, number, seed=1) for number in range(count)]
    with judge.Bench.of(READERS[name]) as bench:
        judge.warm_up(bench, name)
        verdicts = [bench.judge(*one) for one in inputs]
    assert [v for v in verdicts if v.broken] == []
    if name not in SLOW:
        assert {v.outcome for v in verdicts} == {"read", "refused"}


def test_seeds_are_read():
    """But masks that are white or black everywhere: else mutations of them reach no depth."""
    for name in ("inversion", "image", "mask", "recipe"):
        seeds = [p for p in judge.corpus_of(name) if not p.name.startswith(judge.BROKE)]
        with judge.Bench.of(READERS[name]) as bench:
            judge.warm_up(bench, name)
            outcomes = {path.name: bench.judge(path.name, path.read_bytes()) for path in seeds}
        read = [path for path, verdict in outcomes.items() if verdict.outcome == "read"]
        assert len(read) >= len(seeds) / 2, outcomes


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
    monkeypatch.setattr(judge, "STALLED", 2)
    with judge.Bench.of(Reader(read)) as bench:
        limit = 0.2 if outcome == "hang" else judge.SECONDS
        verdict = bench.judge("broke-1--a.json", b"{}", seconds=limit)
    assert verdict.outcome == outcome
    assert verdict.broken == (outcome not in ("read", "refused"))
