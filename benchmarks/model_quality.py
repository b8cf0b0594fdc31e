"""How good is a model of flowers? Its autoencoder, its samples, and whether its attention points.

    python benchmarks/model_quality.py --data DIR --model flowers --model OTHER

autoencoder  mean PSNR and SSIM of the round trip of validation photos
colour, kind share of samples that a judge (`judge.py`; trained here on the real training photos)
             calls by the word in their caption; beside it, what it scores on the real photos that
             the captions were taken from. Captions are those of validation photos.
FD           Frechet distance between Gaussians fitted to the judge's features: of real training to
             real validation photos, and of samples to real validation photos, the same number each
nearest      distance of each sample's features to the nearest training photo's, relative to what a
             real validation photo has: the median, and the share of samples that are nearer than
             99% of the validation photos are (memorised ones would be)
chance       correlation of each latent channel's mean, over samples of one prompt, with that of the
             noise that they began with: 0 where mean colours come from the words
pointing     share of the kind word's cross-attention that is inside the flower's outline on real
             validation photos, noised to a middling timestep; beside it the outline's own share of
             the picture, which is what attention that points nowhere gets

The samples of the last model go to --grid as one picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn import functional

import nulltext
from judge import Judge, load_judge
from nulltext.attention.maps import NoOpController, ProbedController, StepMaps, word_map
from nulltext.attention.processor import attach
from nulltext.attention.prompt_to_prompt import largest_self_site
from nulltext.evaluation.metrics import Undefined, inner_ssim
from nulltext.image.images import psnr, to_pil
from nulltext.image.saving import save_image
from nulltext.image.strip import Tile, tile_grid
from nulltext.training.dataset import (
    Example,
    as_floats,
    load_pixels,
    plain_caption,
    read_dataset,
    shrink,
)
from nulltext.training.denoiser import sample, sample_latents, starting_noise
from nulltext.training.views import outline
from nulltext.words.prompts import find_words

POINTING_TIMESTEPS = (200, 400, 600)
NEAREST_QUANTILE = 0.01
COLUMNS = 8
SPLITS = ("train", "validation")
SIDE = 128
"""Pixels of the photos that are compared; the judge looks at fewer."""
GRID_PICTURES = 64
CHANCE_PROMPT = "a photo of a red rose with a white background"
CHANCE_SAMPLES = 24


@dataclass(frozen=True)
class Photos:
    """The real photos, in the judge's eyes."""

    train: list[Example]
    validation: list[Example]
    train_pixels: Tensor
    """[N, 3, H, W], uint8."""
    validation_pixels: Tensor
    train_features: Tensor
    """[N, F]."""
    validation_features: Tensor

    @classmethod
    def read(cls, folder: Path, side: int, judge: Judge) -> Photos:
        """All photos of a folder with labels.jsonl."""
        everything = read_dataset(folder)
        train, validation = ([e for e in everything if e.split == s] for s in SPLITS)
        pixels = load_pixels(train, side), load_pixels(validation, side)
        features = [features_of(judge, as_floats(split)) for split in pixels]
        return cls(train, validation, *pixels, *features)


def main() -> None:
    """Measure, print a table, and keep the figures as JSON."""
    options = arguments()
    console = Console(stderr=True)
    judge = load_judge(options.data, options.judge)
    photos = Photos.read(options.data, SIDE, judge)
    columns = {"real photos": real_figures(judge, photos)}
    for name in options.model:
        model = nulltext.load(name)
        figures = autoencoder_figures(model, photos)
        figures |= pointing_figures(model, photos, options.samples)
        figures |= chance_figures(model)
        samples, examples = drawn(model, photos, options.samples, console)
        columns[name] = figures | sample_figures(judge, photos, samples, examples)
        if options.grid:
            save_image(grid(samples, examples), options.grid)
    show(columns)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(columns, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--model", action="append", default=[], help="may be repeated")
    parser.add_argument("--samples", type=int, default=192, help="pictures to draw")
    parser.add_argument("--judge", type=Path, default=Path("build/judge.safetensors"))
    parser.add_argument("--json", type=Path, default=Path("build/model_quality.json"))
    parser.add_argument("--grid", type=Path, help="PNG of the last model's samples")
    options = parser.parse_args()
    options.model = options.model or ["flowers"]
    return options


def real_figures(judge: Judge, photos: Photos) -> dict[str, float]:
    """What real validation photos score."""
    figures = {f"{name} accuracy": value for name, value in judge.accuracy.items()}
    count = len(photos.validation_features)
    step = max(1, len(photos.train_features) // count)
    subset = photos.train_features[::step][:count]
    figures["FD to validation"] = frechet_distance(subset, photos.validation_features)
    return figures


def autoencoder_figures(model: nulltext.LatentDiffusion, photos: Photos) -> dict[str, float]:
    """PSNR and SSIM of the round trip."""
    ratios, similarities = [], []
    images = as_floats(shrink(photos.validation_pixels, model.resolution[0]))
    for image in track(images.split(8), "Autoencoder", console=Console(stderr=True)):
        decoded = model.decode(model.encode(image)).cpu().clamp(-1, 1)
        for one, other in zip(decoded, image, strict=True):
            ratios.append(psnr(one[None], other[None]))
            similarity = inner_ssim(one, other)
            assert not isinstance(similarity, Undefined)
            similarities.append(similarity)
    return {
        "autoencoder PSNR": statistics.fmean(ratios),
        "autoencoder SSIM": statistics.fmean(similarities),
    }


def drawn(
    model: nulltext.LatentDiffusion, photos: Photos, count: int, console: Console
) -> tuple[Tensor, list[Example]]:
    """Samples [N, 3, H, W] in [-1, 1] from the captions of validation photos, evenly spread."""
    named = [e for e in photos.validation if e.kind and e.colour]
    count = min(count, len(named))
    examples = [named[i * len(named) // count] for i in range(count)]
    prompts = [plain_caption(example) for example in examples]
    pictures = [
        sample(model, prompts[first : first + 8], seed=1 + first)
        for first in track(range(0, count, 8), "Samples", console=console)
    ]
    return torch.cat(pictures).clamp(-1, 1), examples


def sample_figures(
    judge: Judge, photos: Photos, samples: Tensor, examples: list[Example]
) -> dict[str, float]:
    """What the judge says of samples, and how far they are from real photos."""
    said = {
        "colour": judge.colour((samples + 1) / 2),
        "kind": judge.kind((samples + 1) / 2),
        "background": judge.background((samples + 1) / 2),
    }
    figures = {}
    for name, words in said.items():
        right = [
            getattr(e, name) == word
            for e, word in zip(examples, words, strict=True)
            if getattr(e, name)
        ]
        figures[f"{name} accuracy"] = statistics.fmean(right)
    features = features_of(judge, samples)
    figures["FD to validation"] = frechet_distance(features, photos.validation_features)
    real = torch.cdist(photos.validation_features, photos.train_features).amin(dim=1)
    ours = torch.cdist(features, photos.train_features).amin(dim=1)
    figures["nearest, relative"] = float(ours.median() / real.median())
    close = real.quantile(NEAREST_QUANTILE)
    figures["nearer than 99% of real"] = float((ours < close).float().mean())
    return figures


@torch.no_grad()
def pointing_figures(
    model: nulltext.LatentDiffusion, photos: Photos, count: int
) -> dict[str, float]:
    """Where the kind word looks on real photos."""
    inside, area = [], []
    pairs = list(zip(photos.validation, photos.validation_pixels, strict=True))
    for number, (example, pixels) in enumerate(pairs[:: max(1, len(pairs) // count)]):
        mask = outline(pixels.permute(1, 2, 0).numpy())
        if mask is None or not example.kind:
            continue
        prompt = model.tokenize(plain_caption(example))
        tokens = find_words(prompt, example.kind)
        clean = model.encode(as_floats(shrink(pixels[None], model.resolution[0])))
        embeds = model.embed([plain_caption(example)])
        for timestep in POINTING_TIMESTEPS:
            level = model.schedule.level_at(timestep / model.schedule.train_steps)
            rng = torch.Generator().manual_seed(number)
            noise = torch.randn(clean.shape, generator=rng)
            eye = StepMaps(largest_self_site(*clean.shape[-2:]))
            with attach(model.unet, ProbedController(NoOpController(guided=False), eye)):
                model.predict(level.add_noise(clean, noise), level, embeds)
            attention = word_map(eye.token_maps()[0], tokens)
            share = functional.interpolate(
                torch.from_numpy(mask)[None, None].float(), attention.shape, mode="area"
            )[0, 0]
            inside.append(float((attention * share).sum() / attention.sum()))
            area.append(float(share.mean()))
    return {"pointing": statistics.fmean(inside), "pointing, chance": statistics.fmean(area)}


def chance_figures(model: nulltext.LatentDiffusion) -> dict[str, float]:
    """How far chance decides about mean colours."""
    noise = starting_noise(model, CHANCE_SAMPLES, seed=1)
    latents = sample_latents(model, [CHANCE_PROMPT] * CHANCE_SAMPLES, noise).cpu()
    begun, ended = (t.mean((2, 3)) - t.mean((0, 2, 3)) for t in (noise, latents))
    alike = functional.cosine_similarity(begun, ended, dim=0)
    return {"chance in mean colours": float(alike.mean())}


@torch.no_grad()
def features_of(judge: Judge, images: Tensor) -> Tensor:
    """The judge's features [N, F] of images [N, 3, H, W] in [-1, 1]."""
    return torch.cat([judge.features((part + 1) / 2) for part in images.split(128)])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N, F] (Heusel et al. 2017)."""
    first, second = a.double(), b.double()
    difference = (first.mean(0) - second.mean(0)).square().sum()
    one, other = torch.cov(first.T), torch.cov(second.T)
    root = sqrtm((one @ other).numpy()).real
    return float(difference + one.trace() + other.trace()) - 2.0 * float(root.trace())


def grid(samples: Tensor, examples: list[Example]) -> Image.Image:
    """The first samples with their captions."""
    tiles = [
        Tile(to_pil(image), plain_caption(example).removeprefix("a photo of "))
        for image, example in zip(samples, examples, strict=True)
    ]
    step = max(1, len(tiles) // GRID_PICTURES)
    tiles = tiles[::step][:GRID_PICTURES]
    return tile_grid([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])


def show(columns: dict[str, dict[str, float]]) -> None:
    """The figures side by side."""
    table = Table(title="Model quality")
    table.add_column("figure")
    for name in columns:
        table.add_column(name, justify="right")
    for row in dict.fromkeys(name for figures in columns.values() for name in figures):
        cells = (figures.get(row) for figures in columns.values())
        table.add_row(row, *("–" if cell is None else f"{cell:.3f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
