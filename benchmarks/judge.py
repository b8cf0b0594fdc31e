"""A judge of edits: a small classifier of kinds, colours and backgrounds, trained on real photos.

    judge = load_judge(Path("DIR"), Path("build/judge.safetensors"))
    judge.colour(images)          # ["red", "white", …]

It is trained once on the training photos of a folder with `labels.jsonl` and kept; what share of
the validation photos it gets right is kept with it. It never sees the photos that are edited.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from torch.nn import functional

from nulltext.image.images import largest_centred, to_tensor
from nulltext.image.photos import load_photo

ATTRIBUTES = {
    "colour": ("yellow", "white", "orange", "red", "pink", "purple"),
    "kind": ("dandelion", "tulip", "rose", "daisy", "sunflower"),
    "background": ("dark", "green", "grey", "white", "blue"),
}
SIDE = 64
"""Side in pixels at which the classifier looks."""
EPOCHS = 8
BATCH = 64
UNLABELLED = -100

Label = dict[str, str | None]


class Judge(nn.Module):
    """A convolutional network with one head per attribute."""

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
        self.accuracy: dict[str, float] = {}
        """Share of the labelled validation photos that it gets right, by attribute."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute of images [B, 3, SIDE, SIDE] in [-1, 1]."""
        pooled = self._pooled(images)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the heads read, [B, 192], of images [B, 3, H, W] in [0, 1]."""
        return self._pooled(_small(images))

    def kind(self, images: Tensor) -> list[str]:
        """The kind of flower in each image, [B, 3, H, W] in [0, 1]."""
        return self._named("kind", images)

    def colour(self, images: Tensor) -> list[str]:
        """Its colour."""
        return self._named("colour", images)

    def background(self, images: Tensor) -> list[str]:
        """What is behind it."""
        return self._named("background", images)

    def _pooled(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)

    @torch.no_grad()
    def _named(self, attribute: str, images: Tensor) -> list[str]:
        names = ATTRIBUTES[attribute]
        return [names[int(index)] for index in self(_small(images))[attribute].argmax(dim=1)]


def _small(images: Tensor) -> Tensor:
    return functional.interpolate(
        2 * images - 1, size=(SIDE, SIDE), mode="bilinear", antialias=True
    )


def load_judge(data_dir: Path, cache_path: Path) -> Judge:
    """The judge of a folder of photos: that of an earlier run, or a new one."""
    torch.manual_seed(0)
    judge = Judge()
    if cache_path.is_file():
        load_model(judge, cache_path)
        with safe_open(cache_path, "pt") as file:
            judge.accuracy = json.loads(file.metadata()["accuracy"])
        return judge.eval()
    _train(judge, *_load_split(data_dir, "train"))
    judge.accuracy = _accuracy(judge.eval(), *_load_split(data_dir, "validation"))
    save_file(judge.state_dict(), cache_path, {"accuracy": json.dumps(judge.accuracy)})
    return judge


def read_labels(folder: Path, split: str) -> list[Label]:
    """The labels of a split."""
    path = folder / "labels.jsonl"
    if not path.is_file():
        raise SystemExit(f"There is no {path}; pass --data a folder of photos with labels.jsonl.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def _load_split(folder: Path, split: str) -> tuple[Tensor, dict[str, Tensor]]:
    """All photos of a split, [N, 3, SIDE, SIDE] in [-1, 1], with their labels."""
    rows = read_labels(folder, split)
    images = []
    for row in track(rows, f"Reading {split} photos", console=Console(stderr=True)):
        photo = load_photo(folder / str(row["file"]))
        images.append(to_tensor(photo, largest_centred(*photo.size), (SIDE, SIDE)))
    targets = {
        name: torch.tensor([v.index(r[name]) if r[name] in v else UNLABELLED for r in rows])
        for name, v in ATTRIBUTES.items()
    }
    return torch.cat(images), targets


def _train(judge: Judge, images: Tensor, targets: dict[str, Tensor]) -> None:
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in track(range(EPOCHS), "Training the judge", console=Console(stderr=True)):
        order = torch.randperm(len(images))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            shown = images[batch]
            if torch.rand(()) < 0.5:
                shown = shown.flip(-1)
            logits = judge(shown)
            losses = [functional.cross_entropy(logits[k], v[batch]) for k, v in targets.items()]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def _accuracy(judge: Judge, images: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
    logits, result = judge(images), {}
    for name, wanted in targets.items():
        known = wanted != UNLABELLED
        right = logits[name].argmax(dim=1)[known] == wanted[known]
        result[name] = float(right.float().mean())
    return result
