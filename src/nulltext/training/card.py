"""The model card: data, recipe, compute, limits, licence; what a user must know before use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.side_files import GUIDANCE_FILE
from nulltext.training.recipe import BETA_START, Recipe
from nulltext.training.workshop import Workshop

HEAD = """# {name}

A small text-to-image latent diffusion model in Stable Diffusion format (float16), made by
`nulltext train` to edit photographs with: {resolution} x {resolution} pixels,
{latents} latent channels at 1/{stride} of the resolution, epsilon-prediction, scaled-linear betas
from {beta_start:g} to {beta_end:g} (Stable Diffusion 1.x: 0.012).
"""

LIMITS = """## Limits
It has seen {photos} photos{kinds}, at {resolution} pixels, and nothing else: other motifs come out
as what it knows, words that are not in its captions (`words.json` lists those that are) mean little
to it, and shapes are weaker than colours. It may remember training photos. It is no general image
model.

## Licence
That of whoever trained it. The photos belong to their authors, whose own licences hold for them;
they are not part of the model's folder.
"""


def model_card(
    shop: Workshop, model: LatentDiffusion, updates: Mapping[str, int], commit: str | None
) -> str:
    """The card as Markdown, from what was really done."""
    recipe, (photos, _) = shop.recipe, shop.examples
    own = recipe.autoencoder
    kinds = Counter(example.kind for example in photos if example.kind)
    named = f" of {', '.join(f'{kind} ({n})' for kind, n in kinds.most_common())}" if kinds else ""
    head = HEAD.format(
        name=recipe.name,
        resolution=recipe.resolution,
        latents=own.latent_channels,
        beta_start=BETA_START,
        beta_end=recipe.denoiser.beta_end,
        stride=2 ** (len(own.channels) - 1),
    )
    limits = LIMITS.format(photos=len(photos), kinds=named, resolution=recipe.resolution)
    return "\n".join(
        [
            head,
            _sizes(model),
            *_suggestion(recipe),
            "## Training",
            _origin(shop, commit),
            "",
            *_table(shop, updates),
            "",
            limits,
        ]
    )


def _suggestion(recipe: Recipe) -> list[str]:
    if not recipe.guidance_scale:
        return []
    return [
        f"Inversions and edits take the guidance scale {recipe.guidance_scale:g} unless given one "
        f"(`{GUIDANCE_FILE}`): at higher ones colours may come out garish.",
        "",
    ]


def _sizes(model: LatentDiffusion) -> str:
    names = {"vae": "autoencoder", "unet": "UNet", "text_encoder": "text encoder"}
    parts = {spoken: model.components[name] for name, spoken in names.items()}
    sizes = (
        f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M"
        for name, part in parts.items()
    )
    return f"Parameters: {', '.join(sizes)}.\n"


def _origin(shop: Workshop, commit: str | None) -> str:
    begun = "All weights began from noise."
    if shop.origin is not None:
        begun = (
            f"Weights began from the model '{shop.origin.name}' (fingerprint "
            f"{shop.origin.fingerprint}), as far as names and shapes allowed."
        )
    code = f"commit {commit}" if commit else "not under version control"
    return f"{begun} Code: {code}. Every number is in `recipe.json`."


def _table(shop: Workshop, updates: Mapping[str, int]) -> list[str]:
    own, denoiser = shop.recipe.autoencoder, shop.recipe.denoiser
    crops = f"crops of {own.crop} px"
    rows = [
        ("autoencoder", own.loop, updates["autoencoder"], crops),
        ("decoder alone", own.decoder_loop, updates["decoder"], crops),
        ("UNet and text encoder", denoiser.loop, updates["denoiser"], "encoded views"),
    ]
    return [
        "| stage | updates | seen per update | optimiser | learning rate |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {done} of {loop.steps} | {loop.batch_size} {what} "
            f"| {loop.optimizer} | {loop.learning_rate:g} |"
            for name, loop, done, what in rows
        ),
    ]
