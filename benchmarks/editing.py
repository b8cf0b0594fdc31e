"""Do edits succeed, and what do they leave alone? 60 edits of validation photos, by method.

    python benchmarks/editing.py --data DIR --limit 60

Four kinds of edit in turn (another colour, another kind, another background, a stressed colour) on
photos spread over the validation split, each by every inversion method and source branch, with
Prompt-to-Prompt at its defaults.

success     a classifier of colours, kinds and backgrounds, trained here on real training photos,
            finds the new value more likely than the old one in the edited picture, and more likely
            than it did in the photo; for a stressed colour, more likely than in the photo
PSNR, SSIM  of the edited picture against the photo's own autoencoder round trip, outside the
            foreground (for a background edit: inside it); the foreground is a centred disc of half
            the area for want of segmented photos, the same for all methods

Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import nulltext
from captions import caption
from nulltext.images import from_uint8, largest_centred_square, to_tensor
from nulltext.photos import load_photo

METHODS = ("ddim", "null-text", "negative-prompt", "direct")
BRANCHES = {"replay": nulltext.source_step, "exact": nulltext.exact_source_step}
ATTRIBUTES = {
    "colour": ("yellow", "white", "orange", "red", "pink", "purple"),
    "kind": ("dandelion", "tulip", "rose", "daisy", "sunflower"),
    "background": ("dark", "green", "grey", "white", "blue"),
}
SWAPS = {
    "colour": {
        "yellow": "red",
        "white": "pink",
        "orange": "white",
        "red": "yellow",
        "pink": "yellow",
        "purple": "white",
    },
    "kind": {
        "dandelion": "daisy",
        "tulip": "rose",
        "rose": "tulip",
        "daisy": "sunflower",
        "sunflower": "daisy",
    },
    "background": {
        "dark": "green",
        "green": "dark",
        "grey": "dark",
        "white": "dark",
        "blue": "green",
    },
}
STRESS = 2.0
TASKS = ("colour", "kind", "background", "reweight")
SIDE = 64
"""Side in pixels at which the classifier looks."""
DISC = math.sqrt(0.5 / math.pi)
"""Radius of the foreground in sides."""

Label = dict[str, str | None]


@dataclass(frozen=True)
class Task:
    """One edit of one photo."""

    kind: str
    path: Path
    label: dict[str, str | None]

    @property
    def attribute(self) -> str:
        """What the edit is about."""
        return "colour" if self.kind == "reweight" else self.kind

    @property
    def old(self) -> str:
        """Its value in the photo."""
        return str(self.label[self.attribute])

    @property
    def new(self) -> str:
        """Its value in the edit."""
        return self.old if self.kind == "reweight" else SWAPS[self.attribute][self.old]

    @property
    def spec(self) -> nulltext.EditSpec:
        """The edit, in words."""
        target = caption({**self.label, self.attribute: self.new})
        weights = {self.old: STRESS} if self.kind == "reweight" else {}
        return nulltext.EditSpec(target, weights=weights)


def read_labels(folder: Path, split: str) -> list[Label]:
    """The labels of a split."""
    path = folder / "labels.jsonl"
    if not path.is_file():
        raise SystemExit(f"There is no {path}; pass --data a folder of photos with labels.jsonl.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def fixed_tasks(folder: Path, limit: int) -> list[Task]:
    """The first `limit` edits of a fixed list: kinds of edit in turn, photos evenly spread."""
    whole = [r for r in read_labels(folder, "validation") if all(r[a] for a in ATTRIBUTES)]
    tasks = [
        Task(TASKS[i % len(TASKS)], folder / str(row["file"]), row) for i, row in enumerate(whole)
    ]
    # A stride that has no factor in common with the number of kinds keeps them in turn.
    count = len(tasks)
    return [tasks[(i * 37) % count] for i in range(min(limit, count))]


def pixels(path: Path, side: int) -> Tensor:
    """A photo's centred square, [1, 3, side, side] in [-1, 1]."""
    photo = load_photo(path)
    return to_tensor(photo, largest_centred_square(*photo.size), (side, side))


class Judge(nn.Module):
    """A small convolutional network with one head per attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 48), (48, 96)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({k: nn.Linear(192, len(v)) for k, v in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute of images [B, 3, SIDE, SIDE]."""
        features = self.body(images)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def probabilities(self, image: Tensor, attribute: str) -> dict[str, float]:
        """What an image [1, 3, H, W] shows."""
        small = functional.interpolate(
            image, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        shares = self(small)[attribute][0].softmax(dim=0).tolist()
        return dict(zip(ATTRIBUTES[attribute], shares, strict=True))


def loss_of(judge: Judge, images: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropy over the attributes that are labelled (-100: not)."""
    logits = judge(images)
    return torch.stack(
        [functional.cross_entropy(logits[name], targets[name]) for name in ATTRIBUTES]
    ).sum()


def load_split(folder: Path, split: str) -> tuple[Tensor, dict[str, Tensor]]:
    """All photos of a split, small, with their labels."""
    rows = read_labels(folder, split)
    images = torch.cat([pixels(folder / str(row["file"]), SIDE) for row in rows])
    targets = {
        name: torch.tensor([v.index(r[name]) if r[name] in v else -100 for r in rows])
        for name, v in ATTRIBUTES.items()
    }
    return images, targets


def train_judge(folder: Path, cache: Path, epochs: int) -> Judge:
    """Train on the training photos, or take the judge of an earlier run."""
    from safetensors.torch import load_model, save_model

    torch.manual_seed(0)
    judge = Judge()
    if cache.is_file():
        load_model(judge, cache)
        return judge.eval()
    images, targets = load_split(folder, "train")
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in track(range(epochs), "Training the judge", console=Console(stderr=True)):
        order = torch.randperm(len(images))
        for batch in order[: len(order) // 64 * 64].split(64):
            shown = images[batch]
            if torch.rand(()) < 0.5:
                shown = shown.flip(-1)
            loss = loss_of(judge, shown, {k: v[batch] for k, v in targets.items()})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    save_model(judge.eval(), str(cache))
    return judge


def accuracy(judge: Judge, folder: Path) -> dict[str, float]:
    """Share of labelled validation photos that the judge gets right."""
    images, targets = load_split(folder, "validation")
    with torch.no_grad():
        logits = judge(images)
    result = {}
    for name in ATTRIBUTES:
        known = targets[name] >= 0
        right = logits[name].argmax(dim=1)[known] == targets[name][known]
        result[name] = float(right.float().mean())
    return result


def kept_region(task: Task, height: int, width: int) -> Tensor:
    """Where an edit should leave the picture alone, [H, W] bool."""
    y = (torch.arange(height) + 0.5)[:, None] / height - 0.5
    x = (torch.arange(width) + 0.5)[None, :] / width - 0.5
    foreground = (x**2 + y**2).sqrt() < DISC
    return foreground if task.kind == "background" else ~foreground


def kept(edited: Tensor, reference: Tensor, region: Tensor) -> dict[str, float]:
    """PSNR and SSIM (Wang et al. 2004, 7 x 7 windows) over a region; images [1, 3, H, W]."""
    a, b = edited.clamp(-1, 1) / 2 + 0.5, reference.clamp(-1, 1) / 2 + 0.5
    error = float((a - b).square()[..., region].mean())

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 7, stride=1, padding=3, count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    spread = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    ssim = ssim / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return {
        "psnr_outside": -10 * math.log10(max(error, 1e-10)),
        "ssim_outside": float(ssim[..., region].mean()),
    }


def measure(
    model: nulltext.LatentDiffusion, judge: Judge, task: Task, method: str, steps: int
) -> dict[str, dict[str, float]]:
    """Figures of one edit by one method, per source branch."""
    inversion = nulltext.invert(
        model, task.path, caption(task.label), method=method, num_steps=steps
    )
    reference = model.decode(inversion.trajectory[:1]).cpu()
    before = judge.probabilities(from_uint8(inversion.photo), task.attribute)
    region = kept_region(task, *reference.shape[-2:])
    rows = {}
    for name, branch in BRANCHES.items():
        if method == "direct" and name == "exact":
            continue  # its replay is the exact trajectory
        started = time.perf_counter()
        edit = nulltext.edit(model, inversion, task.spec, source_branch=branch)
        seconds = time.perf_counter() - started
        after = judge.probabilities(edit.images, task.attribute)
        success = after[task.new] > before[task.new]
        if task.kind != "reweight":
            success = success and after[task.new] > after[task.old]
        rows[name] = {
            "success": float(success),
            **kept(edit.images, reference, region),
            "psnr_replay": inversion.header.psnr_reconstruction,
            "psnr_reconstruction": edit.psnr_reconstruction,
            "psnr_bound": inversion.header.psnr_bound,
            "seconds": inversion.header.seconds + seconds,
        }
    return rows


def print_table(console: Console, title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """One line per method and source branch."""
    columns = {
        "success": ("success %", 100.0, 0),
        "psnr_outside": ("PSNR outside dB", 1.0, 2),
        "ssim_outside": ("SSIM outside", 1.0, 3),
        "psnr_replay": ("PSNR replay dB", 1.0, 2),
        "psnr_reconstruction": ("PSNR beside dB", 1.0, 2),
        "seconds": ("seconds", 1.0, 1),
    }
    table = Table(title=title)
    for name in ("method", *(column[0] for column in columns.values())):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, figures in rows.items():
        values = (
            f"{scale * statistics.mean(f[key] for f in figures):.{digits}f}"
            for key, (_, scale, digits) in columns.items()
        )
        table.add_row(name, *values)
    console.print(table)


def grouped(
    tasks: Sequence[Task], known: dict[str, dict[str, dict[str, float]]], prefix: str
) -> dict[str, list[dict[str, float]]]:
    """Figures by "method, branch", over the tasks that all methods have done."""
    result: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        rows = {m: known.get(f"{prefix} {m} {task.kind} {task.path.name}") for m in METHODS}
        if None in rows.values():
            continue
        for method, branches in rows.items():
            for branch, figures in (branches or {}).items():
                result.setdefault(f"{method}, {branch}", []).append(figures)
    return result


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=60, help="number of edits")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=8, help="of the judge")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=Path, default=Path("build/editing.jsonl"))
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    judge = train_judge(options.data, options.rows.parent / "judge.safetensors", options.epochs)
    console = Console()
    right = accuracy(judge, options.data)
    console.print("Judge, validation:", {k: round(v, 3) for k, v in right.items()})
    tasks = fixed_tasks(options.data, options.limit)
    model = nulltext.load(options.model, device=options.device)
    known: dict[str, dict[str, dict[str, float]]] = {}
    if options.rows.is_file():
        for line in options.rows.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["rows"]
    prefix = f"{model.fingerprint} {options.steps}"
    for task in track(tasks, "Edits", console=Console(stderr=True)):
        for method in METHODS:
            key = f"{prefix} {method} {task.kind} {task.path.name}"
            if key not in known:
                known[key] = measure(model, judge, task, method, options.steps)
                with options.rows.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"key": key, "rows": known[key]}) + "\n")
    for kind in (None, *TASKS):
        some = [task for task in tasks if kind in (None, task.kind)]
        rows = grouped(some, known, prefix)
        if rows:
            print_table(console, f"{kind or 'all'}: {len(some)} edits", rows)


if __name__ == "__main__":
    main()
