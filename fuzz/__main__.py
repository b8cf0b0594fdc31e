"""python -m fuzz [--count 12000] [--seed 0] [--only READER]: damaged files against every reader.

Each reader runs in a process of its own, whose memory is limited; an input that ends the process or
stops it is a finding, too. The corpus is read unchanged at the start of every run. Hypothesis
damages its files and reduces what breaks a reader; the result is added to the corpus.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import hypothesis.errors
from hypothesis import strategies as st

from fuzz.check import Harness, Verdict, limit_memory
from fuzz.damage import damaged
from fuzz.readers import BROKE, CORPUS, READERS, corpus_of

PATIENCE = 600.0
"""Seconds without a new input before a process is ended: its start takes some of them, and code
that no signal interrupts may take them all."""
POLL = 0.2
WARM_UP = 3
MAX_DETAIL = 300
"""Last characters of a traceback that are shown."""


def main() -> int:
    """Run the command line; returns 1 if an input broke a reader."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split(":")[0])
    parser.add_argument("what", nargs="?", choices=["run"], default="run")
    parser.add_argument("--count", type=int, default=12_000, help="inputs over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS), help="one reader alone")
    parser.add_argument("--current", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.current:
        _work(options.only, options.count, options.seed, options.current)
        return 0
    names = [options.only] if options.only else list(READERS)
    shares = sum(READERS[name].share for name in names)
    total: Counter[str] = Counter()
    started = time.monotonic()
    for name in names:
        count = -(-options.count * READERS[name].share // shares)
        outcomes = _run_process(name, count, options.seed)
        print(f"{name:<12}{_counts_text(outcomes)}", flush=True)
        total += outcomes
    print(f"{'all':<12}{_counts_text(total)}  {time.monotonic() - started:.0f} s")
    return int(total.total() > total["read"] + total["refused"])


def _counts_text(outcomes: Counter[str]) -> str:
    listed = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    return f"{outcomes.total():>7}  {listed}"


def _run_process(name: str, count: int, seed: int) -> Counter[str]:
    """Fuzz a reader in a process of its own, print and keep its findings, count the outcomes."""
    with tempfile.TemporaryDirectory(prefix="nulltext-fuzz-") as folder:
        current, hung = Path(folder) / "input", False
        current.touch()
        options = ("--only", name, "--count", str(count), "--seed", str(seed))
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzz", *options, "--current", str(current)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while process.poll() is None:
            if time.time() - current.stat().st_mtime > PATIENCE:
                process.kill()
                hung = True
            time.sleep(POLL)
        if process.returncode == 0 and process.stdout:
            report = json.loads(process.stdout.read())
        else:
            file, _, data = current.read_bytes().partition(b"\n")
            outcome, detail = (
                "hang" if hung else "crash",
                f"the process ended: {process.returncode}",
            )
            report = {"outcomes": {outcome: 1}, "findings": [[outcome, detail]]}
            if file:
                keep(name, file.decode(), data)
    for outcome, detail in report["findings"]:
        print(f"{name}: {outcome} {detail}")
    return Counter(report["outcomes"])


def _work(name: str, count: int, seed: int, current: Path) -> None:
    """Fuzz a reader in this process and print a report; what libraries print goes elsewhere."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with Harness.prepared(READERS[name]) as harness:
        warm_up(harness, name)
        limit_memory()

        def check(file: str, data: bytes) -> Verdict:
            current.write_bytes(file.encode() + b"\n" + data)
            return harness.check(file, data)

        found = fuzz(name, check, count, seed)
    findings = []
    for finding in found.findings:
        keep(name, finding.file, finding.data)
        findings.append([finding.verdict.outcome, finding.verdict.detail[-MAX_DETAIL:]])
    report = {"outcomes": found.outcomes, "findings": findings}
    print(json.dumps(report), file=out, flush=True)


@dataclass(frozen=True)
class Finding:
    """An input that broke a reader."""

    file: str
    """Name of the file in the corpus that it was made of."""
    data: bytes
    verdict: Verdict


@dataclass
class Result:
    """What a run found."""

    outcomes: Counter[str]
    """Number of inputs by outcome."""
    findings: list[Finding]


def fuzz(name: str, check: Callable[[str, bytes], Verdict], count: int, seed: int) -> Result:
    """Check the corpus of a reader, and files that Hypothesis makes of its valid ones.

    Args:
        check: checks the content of a file of the corpus.
        count: damaged files, at most; the run ends at the first finding, reduced.
    """
    corpus = [(path.name, path.read_bytes()) for path in corpus_of(name)]
    valid = [(file, data) for file, data in corpus if not file.startswith(BROKE)]
    result = Result(Counter(), [])

    def record(file: str, data: bytes) -> Finding | None:
        verdict = check(file, data)
        if verdict.is_finding:
            return Finding(file, data, verdict)
        result.outcomes[verdict.outcome] += 1
        return None

    result.findings += filter(None, itertools.starmap(record, corpus))
    smallest: list[Finding] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def run(drawn: st.DataObject) -> None:
        file, data = drawn.draw(st.sampled_from(valid))
        found = record(file, drawn.draw(damaged(data)))
        if found:
            smallest[:] = [found]  # Hypothesis ends with its smallest
            raise AssertionError(found.verdict.detail)

    if count:
        with contextlib.suppress(AssertionError, hypothesis.errors.Flaky):
            run()
    result.findings += smallest
    result.outcomes.update(finding.verdict.outcome for finding in result.findings)
    return result


def warm_up(harness: Harness, name: str) -> None:
    """Read a few files of the corpus: what is imported then is no input's time or memory."""
    for path in corpus_of(name)[:WARM_UP]:
        harness.check(path.name, path.read_bytes(), seconds=0)


def keep(name: str, file: str, data: bytes) -> None:
    """Add what broke a reader to its corpus, unless it is there."""
    if any(path.read_bytes() == data for path in corpus_of(name)):
        return
    digest = hashlib.sha256(data).hexdigest()[:8]
    (CORPUS / name / f"{BROKE}{digest}--{file.split('--')[-1]}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
