"""What to say of other tools' prompt syntax: what it is, and what stands for it here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from nulltext.words.prompt_syntax import Found, find_syntax
from nulltext.words.prompts import SHOWN_WORDS, listed, quoted

MARKS = "whose marks are read here as text"


@dataclass(frozen=True)
class Kind:
    """One thing that other tools' syntax asks for."""

    is_what: str
    """What it is, and how it is read here."""
    instead: Callable[[Sequence[Found], bool], str]
    """What to do here about those found, the second argument saying whether in a target."""


def notes_on_syntax(
    prompts: Sequence[str], targets: Collection[str], learnt: Collection[str]
) -> list[str]:
    """A sentence for each kind of other tools' syntax in prompts.

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
    for name, kind in KINDS.items():
        if name not in by_kind:
            continue
        seen = by_kind[name]
        shown = listed([quoted(found.text).replace("\\\\", "\\") for found in seen])
        in_targets = [found for found, is_target in seen.items() if is_target]
        instead = kind.instead((in_targets or list(seen))[:SHOWN_WORDS], bool(in_targets))
        notes.append(f"Note: {shown}: {kind.is_what}; {instead}.")
    return notes


def _weigh(found: Sequence[Found], in_target: bool) -> str:
    if not in_target:
        return "leave the marks out; only the words of a target are weighed (--weight)"
    options = [f"--weight {shlex.quote(f'{each.word}={each.figure:.3g}')}" for each in found]
    return f"leave them out, and pass {' '.join(dict.fromkeys(options))}"


def _choose(found: Sequence[Found], in_target: bool) -> str:
    if in_target:
        return f"pass one --target for each ({'; '.join(each.word for each in found)})"
    return "write what the photo shows"


def _files(option: str, found: Sequence[Found], ending: Callable[[Found], str]) -> str:
    files = [f"{each.word.removesuffix('.safetensors')}.safetensors" for each in found]
    given = [f"{file}{ending(each)}" for file, each in zip(files, found, strict=True)]
    return " ".join(f"{option} {shlex.quote(text)}" for text in dict.fromkeys(given))


def _loras(found: Sequence[Found], in_target: bool) -> str:  # noqa: ARG001
    ask = _files("--lora", found, lambda each: "" if each.figure == 1 else f":{each.figure:g}")
    return f"leave it out, and pass {ask}"


def _embeddings(found: Sequence[Found], in_target: bool) -> str:  # noqa: ARG001
    ask = _files("--embedding", found, lambda each: f":{each.word}")
    return f"write {', '.join(each.word for each in found)}, and pass {ask}"


def _tokens(found: Sequence[Found], in_target: bool) -> str:  # noqa: ARG001
    asked = (shlex.quote(f"FILE:{each.word}") for each in found)
    return f"bring it with {' '.join(f'--embedding {one}' for one in asked)}"


def _later_words(found: Sequence[Found], in_target: bool) -> str:
    if not in_target:
        return "write what the photo shows"
    words = " or ".join(quoted(each.word) for each in found if each.word)
    return f"write {words or 'nothing'} in its place; --cross-steps sets when"


def _spoken(found: Sequence[Found], in_target: bool) -> str:  # noqa: ARG001
    words = listed([quoted(each.word) for each in found if each.word])
    return "write it in words" + (f", such as {words}" if words else "")


def _always(text: str) -> Callable[[Sequence[Found], bool], str]:
    return lambda found, in_target: text  # noqa: ARG005


KINDS = {
    "weight": Kind(f"another tool's emphasis, {MARKS}", _weigh),
    "choice": Kind(f"another tool's choice of words, {MARKS}", _choose),
    "wildcard": Kind(
        f"another tool's wildcard, {MARKS}", _always("write one of the words that it stands for")
    ),
    "steps": Kind(f"another tool's change of words between steps, {MARKS}", _later_words),
    "join": Kind(
        "another tool's way to join prompts, read here as text",
        _always("write one sentence without it"),
    ),
    "lora": Kind("another tool's way to add a LoRA, read here as text", _loras),
    "hypernet": Kind(
        "another tool's way to add a hypernetwork, read here as text",
        _always("leave it out; hypernetworks cannot be added, LoRAs can (--lora)"),
    ),
    "embedding": Kind("another tool's way to add a learnt token, read here as text", _embeddings),
    "token": Kind("no learnt token of this model, so read as text", _tokens),
    "negative": Kind(
        "another tool's negative prompt, read here as text, so it asks for what it names",
        _always("leave it out"),
    ),
    "option": Kind(
        "another tool's option, read here as text",
        _always("leave it out; sizes, for example, are set by --size or --crop"),
    ),
    "escape": Kind("another tool's escape, read here as text", _always("leave the backslash out")),
    "emoji": Kind("emoji, of which the model reads little", _spoken),
}
"""By name, in the order of the notes."""
