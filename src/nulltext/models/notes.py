"""What to say of prompts before a model works on them: that it hardly knows their words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nulltext.models.known_words import note_on_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.prompts import TokenizedPrompt, spelled_out, without_learnt, word_key


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
    read = [model.tokenize(prompt) for prompt in prompts]
    if model.known_words is not None:
        # A learnt token is known, though no list of what captions said has it.
        said = [without_learnt(prompt) for prompt in read]
        open_changes = [pair for pair in changes if not _changes_learnt(model, *pair)]
        return note_on_words(model.name, model.known_words, said, open_changes)
    unread = dict.fromkeys(word for prompt in read for word in spelled_out(prompt))
    if not unread:
        return None
    return (
        f"Note: the model '{model.name}' has no word for {', '.join(unread)} and reads letter by "
        "letter there; it has hardly learnt what that means."
    )


def _changes_learnt(model: LatentDiffusion, source: str, target: str) -> bool:
    """Whether a learnt token comes, goes or is doubled: the model knows what that means."""
    before, after = (_learnt(model.tokenize(each, allow_empty=True)) for each in (source, target))
    return before != after


def _learnt(prompt: TokenizedPrompt) -> Counter[str]:
    return Counter(word_key(word.name) for word in prompt.words if word.learnt)
