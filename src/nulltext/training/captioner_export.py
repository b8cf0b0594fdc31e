"""From the captioner's checkpoint to its folder, in half precision, with a card."""

from __future__ import annotations

from pathlib import Path

import torch

from nulltext.captioning.captioner import Captioner
from nulltext.captioning.folder import check_captioner_target, save_captioner
from nulltext.errors import OptionError
from nulltext.files import replace_file
from nulltext.training.captioner import build_captioner
from nulltext.training.loop import averaged_weights, checkpoint_path
from nulltext.training.stages import Workshop, tokenizer_of

CARD = """# {name}: a captioner

ClipCap (Mokady, Hertz and Bermano 2021): a CLIP vision model at {side} pixels, an MLP as mapping
network and GPT-2, made by `nulltext train --stage captioner` from {photos} photos, {updates} of
{total} updates, seed {seed}. {size:.1f} MB in float16; `nulltext caption IMAGE --captioner FOLDER`.

It has seen these photos and nothing else: it knows no other words than their captions', and calls
everything by them. Read what it says before you use it.

The weights are under the licence of the package; the photos belong to their authors.
"""


def export_captioner(shop: Workshop, folder: Path) -> Captioner:
    """Write the captioner as its checkpoint has it, finished or not; returns it.

    Raises:
        OptionError: there is no checkpoint yet.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_captioner_target(folder)
    path, own = checkpoint_path(shop.folder, "captioner"), shop.recipe.captioner
    if not path.is_file():
        raise OptionError(
            f"There is no captioner in '{shop.folder}' yet; train it first (--stage captioner)."
        )
    weights, updates = averaged_weights(path)
    captioner = build_captioner(
        own, tokenizer_of(shop), name=shop.recipe.name, seed=shop.recipe.seed
    )
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            weight.copy_(weights[f"model.{name}"])
    captioner.model.requires_grad_(False).eval()
    save_captioner(captioner, folder, dtype=torch.float16)
    card = CARD.format(
        name=shop.recipe.name,
        side=own.side,
        photos=len(shop.examples[0]),
        updates=updates,
        total=own.loop.steps,
        seed=shop.recipe.seed,
        size=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
    )
    replace_file(folder / "README.md", card.encode())
    return captioner
