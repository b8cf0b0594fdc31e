"""What one CUDA device does in ten minutes: sizes of Stable Diffusion 1.5 and XL, doctor, tests.

    python benchmarks/gpu.py --out build/gpu                     (one device, 540 seconds at most)
    python benchmarks/gpu.py --out build/gpu-small --small       (a CPU: that the script runs)

Parts run in the order of PARTS, the most telling first. Each writes OUT/PART.json as soon as it is
finished; a rerun does what is not finished. Of the two sizes weights are random, which changes no
time, as the number of iterations is fixed: the published loop in float32 with explicit attention
and the paper's budget in float16, both without an early stop, so that their figures are upper
bounds; the default budget in float16, with two evaluations per timestep, the mean that it takes of
the bundled model (random weights say nothing of how fast it converges; `seconds_per_evaluation`
gives the time of other numbers). Where fewer timesteps than the whole run's are measured,
`seconds_whole_per_photo` is extrapolated from the seconds per timestep.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nulltext
from nulltext.constants import BUDGET, NUM_STEPS, __version__
from nulltext.diffusion.loops import StepInfo, run
from nulltext.health.checkup import SOURCE, TARGET, PeakMemory, examine, gradient_norm
from nulltext.health.report import report_of
from nulltext.image.photos import load_photo
from nulltext.inversion.base import BatchInversionMethod, InversionMethod, Problem
from nulltext.inversion.budgets import BUDGETS
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.null_text import NullText
from nulltext.models.choice import ModelChoice
from nulltext.storage.files import replace_file
from random_checkpoint import random_model
from reference_loop import ReferenceLoop, with_naive_attention

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "dahlia.jpg"
PUBLISHED_CONFIGS = Path(nulltext.__path__[0]) / "models" / "published"
MEBIBYTE = 2**20
GUIDANCE = 7.5
DEFAULT_EVALUATIONS = 2
"""Of the default budget, per timestep (docs/speed.md)."""
LEAST_SECONDS = 15.0
"""A part is not begun with less time left."""

DEVICE_TESTS = ["tests", "-m", "device"]
SMALL_TESTS = ["tests/models/test_device.py", "-m", "device", "-k", "sd1"]


class TimeUpError(Exception):
    """The time for all parts is used up."""


@dataclass
class Bench:
    """What the parts share."""

    device: str
    configs: Path
    small: bool
    deadline: float
    """Of `time.monotonic`."""
    models: dict[tuple[str, torch.dtype], nulltext.LatentDiffusion] = field(default_factory=dict)
    """The one random model that was made last."""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def check(self, _: StepInfo | str | None = None) -> None:
        """Stop at the deadline; hangs on steps and parts."""
        if self.left <= 0:
            raise TimeUpError("the time for all parts is used up")

    def model(self, kind: str, dtype: torch.dtype) -> nulltext.LatentDiffusion:
        """A random model; only the last one is kept."""
        if (kind, dtype) not in self.models:
            self.models.clear()
            clear_memory(self.device)
            made = random_model(self.configs, kind, self.device, dtype, small=self.small)
            self.models[kind, dtype] = made
        return self.models[kind, dtype]


def clear_memory(device: str) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def problem_of(model: nulltext.LatentDiffusion, num_steps: int) -> Problem:
    """The example photo at the model's size, encoded."""
    inversion = nulltext.invert(model, PHOTO, SOURCE, method="ddim", num_steps=1)
    return Problem(
        latents=inversion.trajectory[:1].to(model.device),
        prompt_embeds=model.embed([SOURCE]),
        grid=model.schedule.grid(num_steps),
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
    )


def loop_part(
    bench: Bench, kind: str, dtype: torch.dtype, loop: str, steps: int, batch: int
) -> dict[str, Any]:
    """Time an inversion loop over `steps` timesteps of a random model of some size."""
    steps, batch = (min(steps, 2), min(batch, 2)) if bench.small else (steps, batch)
    method, whole = method_of(loop)
    model = bench.model(kind, dtype)
    if loop == "published":
        model = with_naive_attention(model)
        bench.models.clear()  # the one that it is a copy of
    problem = problem_of(model, steps)
    gradient_norm(model, problem.latents, problem.prompt_embeds)  # kernels are chosen now
    model = model.counted(batch)
    peak, started = PeakMemory(model.device), time.perf_counter()
    if batch == 1:
        run(method.steps(model, problem), bench.check)
    else:
        assert isinstance(method, BatchInversionMethod)
        run(method.batch_steps(model, [problem] * batch), bench.check)
    peak_bytes, seconds = peak.read(), time.perf_counter() - started
    evaluations = model.passes.total // batch
    return {
        "loop": loop,
        "method": repr(method),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "pixels": list(model.resolution),
        "timesteps": steps,
        "timesteps_whole": whole,
        "seconds": round(seconds, 3),
        "seconds_per_timestep": round(seconds / steps, 4),
        "seconds_per_evaluation": round(seconds / batch / evaluations, 5),
        "seconds_whole_per_photo": round(seconds / steps * whole / batch, 2),
        "evaluations_per_photo": evaluations,
        "evaluations_whole_per_photo": round(evaluations / steps * whole),
        "peak_mib": None if peak_bytes is None else round(peak_bytes / MEBIBYTE),
    }


def method_of(loop: str) -> tuple[InversionMethod, int]:
    """(a loop with a fixed number of evaluations, its number of timesteps)."""
    if loop == "published":
        return ReferenceLoop(tolerance=-1.0), NUM_STEPS
    if loop == "paper":
        return NullText(loss_tolerance=-1.0, loss_tolerance_slope=0.0), NUM_STEPS
    method = FixedPoint(tolerance=0.0, most_evaluations=DEFAULT_EVALUATIONS)
    return method, BUDGETS[BUDGET].num_steps


def edit_part(bench: Bench, kind: str) -> dict[str, Any]:
    """Time an edit to one target and to four at a random model's size, beside DDIM inversion."""
    model, steps = bench.model(kind, torch.float16), 2 if bench.small else 20
    found: dict[str, Any] = {"timesteps": steps}
    inversion = nulltext.invert(
        model, PHOTO, SOURCE, method="ddim", num_steps=steps, on_step=bench.check
    )
    found["seconds_ddim"] = round(inversion.header.seconds, 3)
    for count in (1, 4):
        peak, started = PeakMemory(model.device), time.perf_counter()
        made = nulltext.edit(model, inversion, [TARGET] * count, on_step=bench.check)
        peak_bytes = peak.read()
        found[f"targets_{count}"] = {
            "seconds": round(time.perf_counter() - started, 3),
            "evaluations": made.unet_evaluations,
            "peak_mib": None if peak_bytes is None else round(peak_bytes / MEBIBYTE),
        }
    return found


def doctor_part(bench: Bench, dtype: Any) -> dict[str, Any]:
    """The doctor's check-up of the bundled model."""
    bench.models.clear()
    clear_memory(bench.device)
    health = examine(
        ModelChoice(device=bench.device, dtype=dtype),
        num_steps=2 if bench.small else 20,
        on_part=bench.check,
    )
    return report_of(health, nulltext.constants.MODEL)


def tests_part(bench: Bench) -> dict[str, Any]:
    """The suite's device tests, in a process of their own."""
    bench.models.clear()
    clear_memory(bench.device)
    chosen = SMALL_TESTS if bench.small else DEVICE_TESTS
    command = [sys.executable, "-m", "pytest", *chosen, "-p", "no:cacheprovider"]
    environment = os.environ | {"NULLTEXT_TEST_DEVICE": bench.device}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(bench.left, 1.0),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeUpError("the tests did not end in time") from error
    tail = done.stdout.splitlines()[-40:]
    passed = done.returncode == 0
    return {"passed": passed, "tail": tail, "errors": done.stderr.splitlines()[-10:]}


def edits_part(bench: Bench, loop: str) -> dict[str, Any]:
    """Invert the example photo with the bundled model, and swap the flower's colour."""
    from speed import figures

    model = nulltext.load(device=bench.device)
    if loop == "published":
        method: InversionMethod = ReferenceLoop()
        steps, own = NUM_STEPS, with_naive_attention(model)
    else:
        method, steps, own = BUDGETS[BUDGET].method, BUDGETS[BUDGET].num_steps, model
    peak, started = PeakMemory(model.device), time.perf_counter()
    inversion = nulltext.invert(
        own,
        load_photo(PHOTO),
        SOURCE,
        method=method,
        num_steps=2 if bench.small else steps,
        on_step=bench.check,
    )
    peak_bytes, seconds = peak.read(), time.perf_counter() - started
    size = None if peak_bytes is None else round(peak_bytes / MEBIBYTE)
    return {"seconds": round(seconds, 3), "peak_mib": size} | figures(model, inversion)


Part = Callable[[Bench], Mapping[str, Any]]


def _sized(kind: str, published: int, paper: int, default: int) -> dict[str, Part]:
    """The loops of one size, each over so many timesteps."""
    half, full = torch.float16, torch.float32

    def loop(name: str, dtype: torch.dtype, steps: int, batch: int) -> Part:
        return partial(loop_part, kind=kind, dtype=dtype, loop=name, steps=steps, batch=batch)

    return {
        f"{kind}-default-1": loop("default", half, default, 1),
        f"{kind}-default-8": loop("default", half, max(2, default // 3), 8),
        f"{kind}-paper-1": loop("paper", half, paper, 1),
        f"{kind}-edit": partial(edit_part, kind=kind),
        f"{kind}-published-1": loop("published", full, published, 1),
    }


PARTS: dict[str, Part] = {
    **_sized("sd15", published=4, paper=6, default=BUDGETS[BUDGET].num_steps),
    **_sized("sdxl", published=2, paper=3, default=10),
    "doctor-float32": partial(doctor_part, dtype="float32"),
    "doctor-float16": partial(doctor_part, dtype="float16"),
    "tests": tests_part,
    "edits-default": partial(edits_part, loop="default"),
    "edits-published": partial(edits_part, loop="published"),
}
"""By name, in the order in which they run."""


def finished(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a part's file holds a result under the same settings."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(said.get("outcome") == "ok" and said.get("settings") == dict(settings))


def measure(bench: Bench, name: str, path: Path, settings: Mapping[str, Any]) -> str:
    """Run one part, write its file, and return its outcome."""
    said: dict[str, Any] = {"part": name, "outcome": "ok", "settings": dict(settings)}
    started = time.perf_counter()
    try:
        if bench.left < (0 if bench.small else LEAST_SECONDS):
            raise TimeUpError("too little time was left to begin it")
        said["result"] = PARTS[name](bench)
        bench.check()
    except TimeUpError as error:
        said |= {"outcome": "out of time", "reason": str(error)}
    except Exception as error:  # the other parts go on
        trace = traceback.format_exc().splitlines()[-12:]
        said |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}", "trace": trace}
    said["seconds_all"] = round(time.perf_counter() - started, 2)
    text = json.dumps(said, indent=1, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode())
    return str(said["outcome"])


def main() -> None:
    """Run what is not finished, and print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts' files")
    parser.add_argument("--device", default=None, help="default: cuda, with --small cpu")
    parser.add_argument("--configs", type=Path, default=PUBLISHED_CONFIGS, help="published configs")
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="for all parts")
    parser.add_argument("--small", action="store_true", help="narrow widths and few steps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    device = options.device or ("cpu" if options.small else "cuda")
    if device == "cpu" and not options.small:
        raise SystemExit("These sizes need a GPU; pass --small to try the script on the CPU.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; pass --small to try the script on the CPU.")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "nulltext": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "small": options.small,
    }
    bench = Bench(device, options.configs, options.small, time.monotonic() + options.budget_seconds)
    for name in options.parts:
        path = options.out / f"{name}.json"
        outcome = "finished before"
        if not finished(path, settings):
            outcome = measure(bench, name, path, settings)
        print(f"{name:<18} {outcome:<16} {options.budget_seconds - bench.left:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
