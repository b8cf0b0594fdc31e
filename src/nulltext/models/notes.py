"""What to say of prompts before a model works on them: that it hardly knows their words."""

from __future__ import annotations

from collections.abc import Sequence

from nulltext.models.known_words import note_on_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.prompts import spelled_out


def note_on_prompts(
    model: LatentDiffusion, prompts: Sequence[str], changes: Sequence[tuple[str, str]] = ()
) -> str | None:
    """By the list of what the model was taught, or where there is none, by how it reads; None where
    there is nothing to say.

    Args:
        changes: see `note_on_words`.

    Raises:
        PromptError: it cannot read a prompt.
    """
    unread: dict[str, None] = {}
    for prompt in prompts:
        unread |= dict.fromkeys(spelled_out(model.tokenize(prompt)))
    if model.known_words is not None:
        return note_on_words(model.name, model.known_words, prompts, changes)
    if not unread:
        return None
    return (
        f"Note: the model '{model.name}' has no word for {', '.join(unread)} and reads letter by "
        "letter there; it has hardly learnt what that means."
    )
