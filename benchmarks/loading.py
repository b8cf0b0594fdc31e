"""How long a model takes to load, and how much memory: each in a process of its own.

    python benchmarks/loading.py MODEL [MODEL ...] [--dtype float32 float16]

Imports are not counted. Private memory is what the process holds for itself; mapped memory is pages
of the model's files, which the system takes back when it needs them. Peaks are the process's, less
what it had before loading; sampled every few milliseconds (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVERY = 0.005
"""Seconds between two looks at the process."""
MEGABYTE = 2**20


def main() -> None:
    """Print a row for each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(asked.models[0], asked.dtype[0])))
        return
    print(f"{'model':<28}{'dtype':<10}{'seconds':>8}{'weights':>9}{'private':>9}{'mapped':>9}  MB")
    for model in asked.models:
        for dtype in asked.dtype:
            command = [sys.executable, __file__, "--one", model, "--dtype", dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            figures = f"{row['seconds']:8.2f}{row['weights']:9,.0f}"
            figures += f"{row['private']:9,.0f}{row['mapped']:9,.0f}"
            print(f"{Path(model).name:<28}{dtype:<10}{figures}", flush=True)


def measured(model: str, dtype: Any) -> dict[str, float]:
    """Seconds, and megabytes: the weights as they are used, and peaks of the process."""
    import diffusers
    import transformers

    import nulltext

    # What loading imports at its first use.
    _ = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, nulltext.load)
    _ = (transformers.CLIPTextModel, transformers.CLIPTokenizer)
    before, peak, over = _held(), {"RssAnon": 0.0, "RssFile": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            for name, held in _held().items():
                peak[name] = max(peak[name], held - before[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    loaded = nulltext.load(model, dtype=dtype)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    weights = sum(p.nbytes for m in loaded.components.values() for p in m.parameters())
    return {
        "seconds": seconds,
        "weights": weights / MEGABYTE,
        "private": peak["RssAnon"],
        "mapped": peak["RssFile"],
    }


def _held() -> dict[str, float]:
    """Megabytes of this process, private and mapped."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(said[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
