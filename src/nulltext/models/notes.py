"""What to say of prompts before a model works on them: that they are written for another tool, are
no captions, or have words that it hardly knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nulltext.models.known_words import note_on_words
from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.syntax_notes import notes_on_syntax
from nulltext.words.captions import read_instruction
from nulltext.words.prompt_syntax import find_syntax
from nulltext.words.prompts import (
    TokenizedPrompt,
    blank_learnt_words,
    quoted,
    spelled_words,
    word_key,
)

Changes = Sequence[tuple[str, str]]

REMOVAL = (
    " Things that a caption leaves out seldom go: name what stands in their place, mark where with "
    "--mask, and raise --strength."
)


def notes_on_prompts(
    model: LatentDiffusion, prompts: Sequence[str], changes: Changes = ()
) -> list[str]:
    """`notes_on_writing`, and a sentence on words that the model hardly knows: by the list of what
    it was taught, or where there is none, by how it reads.

    Args:
        changes: see `note_on_words`.

    Raises:
        PromptError: it cannot read a prompt.
    """
    for prompt in prompts:
        model.tokenize(prompt)
    instructions = _notes_on_instructions(changes)
    plain = {prompt: find_syntax(prompt, _learnt_names(model))[1] for prompt in prompts}
    plain = {prompt: text for prompt, text in plain.items() if prompt not in instructions}
    captions = [(old, new) for old, new in changes if {old, new}.isdisjoint(instructions)]
    pairs = [(plain.get(old, old), plain[new]) for old, new in captions]
    return [
        *notes_on_writing(model, prompts, changes),
        *_notes_on_words(model, list(plain.values()), pairs),
    ]


def notes_on_writing(
    model: LatentDiffusion, prompts: Sequence[str], changes: Changes = ()
) -> list[str]:
    """A sentence for each kind of other tools' syntax in prompts, and for each target that is an
    instruction; prompts may be such as the model cannot read.

    Args:
        changes: see `note_on_words`.
    """
    syntax = notes_on_syntax(prompts, {target for _, target in changes}, _learnt_names(model))
    return [*syntax, *_notes_on_instructions(changes).values()]


def _notes_on_words(model: LatentDiffusion, prompts: Sequence[str], changes: Changes) -> list[str]:
    read = [model.tokenize(prompt, allow_empty=True) for prompt in prompts]
    if model.known_words is not None:
        # A learnt token is known, though no list of what captions said has it.
        said = [blank_learnt_words(prompt) for prompt in read]
        open_changes = [pair for pair in changes if not _changes_learnt(model, *pair)]
        note = note_on_words(model.name, model.known_words, said, open_changes)
        return [note] if note else []
    unread = dict.fromkeys(word for prompt in read for word in spelled_words(prompt))
    if not unread:
        return []
    return [
        f"Note: the model '{model.name}' has no word for {', '.join(unread)} and reads letter by "
        "letter there; it has hardly learnt what that means."
    ]


def _notes_on_instructions(changes: Changes) -> dict[str, str]:
    """By target; along a chain, each is read against what the one before it meant."""
    notes: dict[str, str] = {}
    meant: dict[str, str] = {}
    for before, target in changes:
        source = meant.get(before, before)
        found = read_instruction(source, target)
        if found is None or target in notes:
            continue
        meant[target] = found.caption or source
        instead = "say what it shows"
        if found.caption:
            instead = f"write --target {quoted(found.caption)}"
        elif source:
            instead = f"repeat {quoted(source)} with other words where the picture shall differ"
        notes[target] = (
            f"Note: {quoted(target)} is an instruction, and a target is a caption of the edited "
            f"picture; {instead}.{REMOVAL if found.removes else ''}"
        )
    return notes


def _learnt_names(model: LatentDiffusion) -> frozenset[str]:
    added = model.tokenizer.added_tokens_decoder.values()
    return frozenset(token.content.casefold() for token in added)


def _changes_learnt(model: LatentDiffusion, source: str, target: str) -> bool:
    """Whether a learnt token comes, goes or is doubled: the model knows what that means."""
    before, after = (_learnt(model.tokenize(each, allow_empty=True)) for each in (source, target))
    return before != after


def _learnt(prompt: TokenizedPrompt) -> Counter[str]:
    return Counter(word_key(word.name) for word in prompt.words if word.learnt)
