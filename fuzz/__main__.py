"""python -m fuzz [--count 12000] [--seed 0] [--only READER]: damaged files against every reader.

Each reader runs in a process of its own, whose memory is limited; an input that ends the process
or outlives the patience of this one is a finding, too. Findings are added to the corpus, which is
read unchanged at the start of every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fuzz import judge
from fuzz.readers import READERS

PATIENCE = 600.0
"""Seconds without a sign of life before a process is ended: its start takes some of them, and code
that no signal interrupts may take them all."""


def main() -> int:
    """0: nothing broke."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split(":")[0])
    parser.add_argument("what", nargs="?", choices=["run", "seeds", "work"], default="run")
    parser.add_argument("--count", type=int, default=12_000, help="inputs over all readers")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS), help="one reader alone")
    options = parser.parse_args()
    if options.what == "seeds":
        from fuzz.seeds import write

        print(f"{write(judge.CORPUS)} seeds in {judge.CORPUS}")
        return 0
    if options.what == "work":
        _work(options.only, options.first, options.count, options.seed)
        return 0
    return _run([options.only] if options.only else list(READERS), options.count, options.seed)


def _run(names: list[str], count: int, seed: int) -> int:
    shares = sum(READERS[name].share for name in names)
    total: Counter[str] = Counter()
    started = time.monotonic()
    for name in names:
        wanted = -(-count * READERS[name].share // shares)
        outcomes: Counter[str] = Counter()
        for report in _reports(name, wanted, seed):
            outcomes[report["outcome"]] += 1
            if report["outcome"] not in ("read", "refused"):
                print(f"{name} {report['number']}: {report['outcome']} {report['detail'][-300:]}")
                _keep(name, report["number"], seed)
        print(f"{name:<12}{sum(outcomes.values()):>7}  {_said(outcomes)}", flush=True)
        total += outcomes
    print(f"{'all':<12}{total.total():>7}  {_said(total)}  {time.monotonic() - started:.0f} s")
    return int(total.total() > total["read"] + total["refused"])


def _said(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))


def _reports(name: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """A report for each input; the corpus itself has the numbers below 0."""
    number = -len(judge.corpus_of(name))
    while number < count:
        options = ("--only", name, "--first", str(number), "--count", str(count))
        command = [sys.executable, "-m", "fuzz", "work", *options, "--seed", str(seed)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        while number < count:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                process.kill()
                line = ""
            if not line:
                outcome = "hang" if process.wait() == -9 else "crash"
                detail = f"the process ended with {process.returncode}"
                yield {"number": number, "outcome": outcome, "detail": detail}
                number += 1
                break
            yield json.loads(line)
            number += 1
        process.wait()


def _pump(stream: Any, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _work(name: str, first: int, count: int, seed: int) -> None:
    """Judge inputs of one reader and print a line for each; what libraries print goes elsewhere."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with judge.Bench.of(READERS[name]) as bench:
        judge.warm_up(bench, name)
        judge.limit_memory()
        for number in range(first, count):
            verdict = bench.judge(*_input(name, number, seed))
            report = {"number": number, "outcome": verdict.outcome}
            report["detail"] = verdict.detail if verdict.broken else ""
            print(json.dumps(report), file=out, flush=True)


def _input(name: str, number: int, seed: int) -> tuple[str, bytes]:
    if number < 0:
        path = judge.corpus_of(name)[number]
        return path.name, path.read_bytes()
    return judge.fuzzed(name, number, seed)


def _keep(name: str, number: int, seed: int) -> None:
    """Add what broke something to the corpus, once."""
    if number < 0:
        return
    origin, data = _input(name, number, seed)
    digest = hashlib.sha256(data).hexdigest()[:8]
    place = judge.CORPUS / name / f"{judge.BROKE}{digest}--{origin.split('--')[-1]}"
    place.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
