"""From the captioner's checkpoint to its folder, in half precision, with a card."""

from __future__ import annotations

from pathlib import Path

import torch

from nulltext.captioning.captioner import Captioner
from nulltext.captioning.folder import check_captioner_target, save_captioner
from nulltext.captioning.vision import about
from nulltext.errors import OptionError
from nulltext.storage.files import replace_file
from nulltext.training.captioner import build_captioner
from nulltext.training.eyes import LICENCE
from nulltext.training.loop import averaged_weights, checkpoint_path
from nulltext.training.workshop import Workshop, tokenizer_of

CARD = """# {name}: a captioner

ClipCap (Mokady, Hertz and Bermano 2021): {vision} at {side} pixels, an MLP as mapping
network and GPT-2, made by `nulltext train --stage captioner` from {photos} photos, {updates} of
{total} updates, seed {seed}. {size:.1f} MB in float16; `nulltext caption IMAGE --captioner FOLDER`.

It knows no other words than the captions of these photos, and calls everything by them. Read what
it says before you use it.

{begun}The photos belong to their authors.
"""
BEGUN = """The vision model began with the weights of '{name}' and was changed in training: it is
under the licence that they came with{where}, the rest under that of the package.
"""
ALL_OURS = "The weights are under the licence of the package. "


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
        own,
        tokenizer_of(shop),
        name=shop.recipe.name,
        seed=shop.recipe.seed,
        sight=shop.sight,
    )
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            weight.copy_(weights[f"model.{name}"])
    captioner.model.requires_grad_(False).eval()

    def finish(fresh: Path) -> None:
        """Licence and card are there whenever the weights are."""
        card = CARD.format(
            name=shop.recipe.name,
            side=own.side,
            vision=type(captioner.model.vision).__name__,
            photos=len(shop.examples[0]),
            updates=updates,
            total=own.loop.steps,
            seed=shop.recipe.seed,
            begun=_begun(shop, fresh / about(captioner.model.vision).folder),
            size=sum(p.stat().st_size for p in fresh.rglob("*") if p.is_file()) / 1e6,
        )
        replace_file(fresh / "README.md", card.encode())

    save_captioner(captioner, folder, dtype=torch.float16, finish=finish)
    return captioner


def _begun(shop: Workshop, vision: Path) -> str:
    """What the card says of the vision model's origin, whose licence is put beside its weights."""
    if shop.sight is None:
        return ALL_OURS
    where = ""
    if shop.sight.licence is not None:
        replace_file(vision / LICENCE, shop.sight.licence.encode())
        where = f" ({vision.name}/{LICENCE})"
    return BEGUN.format(name=shop.sight.name, where=where)
