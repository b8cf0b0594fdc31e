"""Notes on prompts before a model works on them.

A note says that a prompt is written in another tool's syntax, that a target is an instruction
rather than a caption, or that a prompt has words that the model hardly knows.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from nulltext.models.latent_diffusion import LatentDiffusion
from nulltext.models.side_files import KnownWords
from nulltext.words.captions import read_instruction
from nulltext.words.prompt_syntax import Found, find_syntax
from nulltext.words.prompts import (
    SHOWN_WORDS,
    blank_learnt_words,
    listed,
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
    """Write `notes_on_writing`, and a sentence on words that the model hardly knows.

    Those are known by the list of what it was taught, or where there is none, by how it reads.

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
    """Write a sentence for each kind of other tools' syntax in prompts, and for each target that
    is an instruction; prompts may be such as the model cannot read.
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
    before, after = (
        Counter(word_key(word.name) for word in prompt.words if word.learnt)
        for prompt in (model.tokenize(each, allow_empty=True) for each in (source, target))
    )
    return before != after


def note_on_words(
    name: str,
    known: KnownWords,
    prompts: Sequence[str],
    changes: Sequence[tuple[str, str]] = (),
) -> str | None:
    """Write a sentence on words that a model does not know; None where there is nothing to say.

    Args:
        name: the model's.
        changes: pairs of prompts, of which the second is what an edit makes of the first.
    """
    missing = known.missing(prompts)
    if not missing:
        return None
    words = listed([f'"{word}"' for word in missing])
    follows = "which will do little"
    blind = [pair for pair in changes if known.blind_to(*pair)]
    if blind:
        source, target = map(quoted, blind[0])
        follows = f"and {source} and {target} differ in nothing else: what changes is chance"
    return (
        f"Note: the model '{name}' has not learnt {words}, {follows}. "
        f"It knows {listed(known.named or known.others)}."
    )


MARKS = "whose marks are read here as text"
HERE = "write what the photo shows"


class SyntaxKind(NamedTuple):
    """One thing that other tools' syntax asks for."""

    is_what: str
    instead: str | Callable[[Sequence[Found], bool], str]
    """What to do here; a function is told those found, and whether they are of a target."""


def notes_on_syntax(
    prompts: Sequence[str], targets: Collection[str], learnt: Collection[str]
) -> list[str]:
    """Write a sentence for each kind of other tools' syntax in prompts.

    Args:
        targets: those of the prompts that are edited to, which alone have weights.
        learnt: see `find_syntax`.
    """
    by_kind: dict[str, dict[Found, bool]] = {}
    for prompt in dict.fromkeys(prompts):
        for found in find_syntax(prompt, learnt)[0]:
            seen = by_kind.setdefault(found.kind, {})
            seen[found] = seen.get(found, False) or prompt in targets
    notes = []
    for name, (is_what, instead) in SYNTAX_KINDS.items():
        if name not in by_kind:
            continue
        seen = by_kind[name]
        shown = listed([quoted(found.text).replace("\\\\", "\\") for found in seen])
        in_targets = [found for found, is_target in seen.items() if is_target]
        if not isinstance(instead, str):
            instead = instead((in_targets or list(seen))[:SHOWN_WORDS], bool(in_targets))
        notes.append(f"Note: {shown}: {is_what}; {instead}.")
    return notes


def _weigh(found: Sequence[Found], in_target: bool) -> str:
    if not in_target:
        return "leave the marks out; only the words of a target are weighed (--weight)"
    options = [f"--weight {shlex.quote(f'{each.word}={each.figure:.3g}')}" for each in found]
    return f"leave them out, and pass {' '.join(dict.fromkeys(options))}"


def _choose(found: Sequence[Found], in_target: bool) -> str:
    if not in_target:
        return HERE
    return f"pass one --target for each ({'; '.join(each.word for each in found)})"


def _later_words(found: Sequence[Found], in_target: bool) -> str:
    if not in_target:
        return HERE
    words = " or ".join(quoted(each.word) for each in found if each.word)
    return f"write {words or 'nothing'} in its place; --cross-steps sets when"


def _options(option: str, values: Sequence[str]) -> str:
    return " ".join(f"{option} {shlex.quote(value)}" for value in dict.fromkeys(values))


def _file(found: Found) -> str:
    return f"{found.word.removesuffix('.safetensors')}.safetensors"


def _loras(found: Sequence[Found], _: bool) -> str:
    files = [_file(each) + ("" if each.figure == 1 else f":{each.figure:g}") for each in found]
    return f"leave it out, and pass {_options('--lora', files)}"


def _embeddings(found: Sequence[Found], _: bool) -> str:
    files = _options("--embedding", [f"{_file(each)}:{each.word}" for each in found])
    return f"write {', '.join(each.word for each in found)}, and pass {files}"


def _tokens(found: Sequence[Found], _: bool) -> str:
    return f"bring it with {_options('--embedding', [f'FILE:{each.word}' for each in found])}"


def _in_words(found: Sequence[Found], _: bool) -> str:
    words = listed([quoted(each.word) for each in found if each.word])
    return "write it in words" + (f", such as {words}" if words else "")


SYNTAX_KINDS = {
    "weight": SyntaxKind(f"another tool's emphasis, {MARKS}", _weigh),
    "choice": SyntaxKind(f"another tool's choice of words, {MARKS}", _choose),
    "wildcard": SyntaxKind(
        f"another tool's wildcard, {MARKS}", "write one of the words that it stands for"
    ),
    "steps": SyntaxKind(f"another tool's change of words between steps, {MARKS}", _later_words),
    "join": SyntaxKind(
        "another tool's way to join prompts, read here as text", "write one sentence without it"
    ),
    "lora": SyntaxKind("another tool's way to add a LoRA, read here as text", _loras),
    "hypernet": SyntaxKind(
        "another tool's way to add a hypernetwork, read here as text",
        "leave it out; hypernetworks cannot be added, LoRAs can (--lora)",
    ),
    "embedding": SyntaxKind(
        "another tool's way to add a learnt token, read here as text", _embeddings
    ),
    "token": SyntaxKind("no learnt token of this model, so read as text", _tokens),
    "negative": SyntaxKind(
        "another tool's negative prompt, read here as text, so it asks for what it names",
        "leave it out",
    ),
    "option": SyntaxKind(
        "another tool's option, read here as text",
        "leave it out; sizes, for example, are set by --size or --crop",
    ),
    "escape": SyntaxKind("another tool's escape, read here as text", "leave the backslash out"),
    "emoji": SyntaxKind("emoji, of which the model reads little", _in_words),
}
"""By name, in the order of the notes."""
