"""Which attention may the paddings take where words were added or removed? Edits of photos.

    python benchmarks/added_words.py --data DIR

Forty edits of validation photos, after the default inversion: a colour, a background and the
adjective "large" added to captions that lack them, a colour and a background removed; and sixteen
that do both at once. Each is edited by Prompt-to-Prompt with every rule of
`RULES`, all in one batch beside one source.

success     added colour or background: the judge (see `judge.py`) calls the picture by the new
            word. After any other edit the photo itself still fits the target, so the best edit does
            little: success is that the judge calls kind, colour and background, but for what the
            words were about, as it calls the photo's own autoencoder round trip
PSNR, SSIM  against that round trip, as in `editing.py`: outside the foreground, or inside it where
            only a background was added or removed

Rows are appended to --rows as they are made; a rerun continues there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import nulltext
from editing import SWAPS, as_unit, fixed_tasks, foreground, kept
from judge import ATTRIBUTES, Judge, Label, load_judge
from kept_rows import KeptRows, Row
from nulltext.attention.prompt_to_prompt import Injection
from nulltext.image.images import from_uint8
from nulltext.words.captions import caption
from nulltext.words.prompts import TokenizedPrompt

ADJECTIVE = "large"

Paddings = Callable[[int, int, int], tuple[Tensor, Tensor]]
"""(L, s, t), s and t the positions of the first paddings of source and target, to the columns of M
at the target's paddings, [L, L - t], and their gate, [L - t]."""


def by_share(length: int, s: int, t: int) -> tuple[Tensor, Tensor]:
    """Both prompts' paddings cut one interval into equal parts; part takes part by overlap."""
    n, m = length - s, length - t
    rows, columns = torch.arange(n)[:, None] * m, torch.arange(m)[None, :] * n
    overlap = torch.minimum(rows + m, columns + n) - torch.maximum(rows, columns)
    return torch.cat([torch.zeros(s, m), overlap.clamp(min=0) / n]), torch.ones(m)


def by_position(length: int, s: int, t: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Position j takes position j, whatever the source has there: the published code."""
    return torch.eye(length)[:, t:], torch.ones(length - t)


def by_nearest(length: int, s: int, t: int) -> tuple[Tensor, Tensor]:
    """Position j takes position j, or the source's first padding where the source has a word."""
    nearest = torch.arange(t, length).clamp(min=s)
    return (torch.arange(length)[:, None] == nearest).float(), torch.ones(length - t)


def by_half(length: int, s: int, t: int) -> tuple[Tensor, Tensor]:
    """The mean of `by_share` and `by_position`; the share alone where the source has a word."""
    (share, gate), (position, _) = by_share(length, s, t), by_position(length, s, t)
    return torch.where(torch.arange(t, length) >= s, (share + position) / 2, share), gate


def own(length: int, s: int, t: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """All keep their own attention."""
    return torch.zeros(length, length - t), torch.zeros(length - t)


RULES: dict[str, Paddings] = {
    "share": by_share,
    "position": by_position,
    "nearest": by_nearest,
    "half": by_half,
    "own": own,
}
"""`share` was the library's rule, `nearest` is its present one, `position` the published code's."""


@dataclass(frozen=True)
class Ruled(nulltext.PromptToPrompt):
    """Prompt-to-Prompt with a rule for the paddings."""

    rule: str = "nearest"

    def plan(
        self,
        model: nulltext.LatentDiffusion,
        line: Sequence[TokenizedPrompt],
        num_steps: int,
        size: tuple[int, int],
    ) -> Injection:
        """The editor's plan, with other columns at the paddings."""
        plan = super().plan(model, line, num_steps, size)
        s, t = (prompt.end_of_text + 1 for prompt in line[-2:])
        mapping, gate = plan.mapping.clone(), plan.gate.clone()
        columns, gates = RULES[self.rule](len(gate), s, t)
        mapping[:, t:], gate[t:] = columns.to(mapping), gates.to(gate)
        return replace(plan, mapping=mapping, gate=gate)


@dataclass(frozen=True)
class Words:
    """Which words an edit adds and removes."""

    added: str | None = None
    """The attribute that only the target names, of another value than the photo's."""
    removed: str | None = None
    """The attribute that only the source names."""
    adjective: bool = False
    """Whether `ADJECTIVE` is added."""


KINDS = {
    "+ colour": Words(added="colour"),
    "+ background": Words(added="background"),
    f"+ {ADJECTIVE}": Words(adjective=True),
    "- colour": Words(removed="colour"),
    "- background": Words(removed="background"),
    "+ colour - background": Words(added="colour", removed="background"),
    "+ background - colour": Words(added="background", removed="colour"),
}


@dataclass(frozen=True)
class Task:
    """One edit of one photo."""

    kind: str
    path: Path
    label: Label

    @property
    def words(self) -> Words:
        """What it adds and removes."""
        return KINDS[self.kind]

    @property
    def new(self) -> str | None:
        """The word that is added, where the judge knows it."""
        added = self.words.added
        return None if added is None else SWAPS[added][str(self.label[added])]

    @property
    def source(self) -> str:
        """The caption of the photo."""
        return caption(_without(self.label, self.words.added))

    @property
    def target(self) -> str:
        """The caption of the edit."""
        label = _without(self.label, self.words.removed)
        if self.words.added is not None:
            label = {**label, self.words.added: self.new}
        text = caption(label)
        if self.words.adjective:
            before, article, thing = text.partition(" of a")
            text = f"{before}{article} {ADJECTIVE} {thing.removeprefix('n').lstrip()}"
        return text

    @property
    def about(self) -> set[str]:
        """The attributes that may change."""
        return {a for a in (self.words.added, self.words.removed) if a is not None}


def _without(label: Label, attribute: str | None) -> Label:
    return label if attribute is None else {**label, attribute: None}


def tasks_of(folder: Path, limit: int) -> list[Task]:
    """The first `limit` edits of a fixed list: kinds of edit in turn, photos of `editing.py`."""
    kinds = list(KINDS)
    return [
        Task(kinds[i % len(kinds)], photo.path, photo.label)
        for i, photo in enumerate(fixed_tasks(folder, limit))
    ]


def called(judge: Judge, picture: Tensor) -> Label:
    """What the judge calls a picture [1, 3, H, W] in [0, 1], by attribute."""
    [kind], [colour], [background] = (
        judge.kind(picture),
        judge.colour(picture),
        judge.background(picture),
    )
    return {"kind": kind, "colour": colour, "background": background}


def measure(
    model: nulltext.LatentDiffusion, judge: Judge, task: Task, rules: Sequence[str]
) -> dict[str, Row]:
    """Figures of one edit, by rule."""
    inversion = nulltext.invert(model, task.path, task.source)
    reference = as_unit(model.decode(inversion.trajectory[:1].to(model.device)).cpu())
    flower = foreground(as_unit(from_uint8(inversion.photo)))
    region = flower if task.about == {"background"} else ~flower
    before = called(judge, reference)
    specs = [nulltext.EditSpec(task.target, editor=Ruled(rule=rule)) for rule in rules]
    rows = {}
    for rule, image in zip(rules, nulltext.edit(model, inversion, specs).images, strict=True):
        edited = as_unit(image[None])
        after = called(judge, edited)
        rows[rule] = {
            **({} if task.new is None else {"seen": float(task.new in after.values())}),
            "stays": float(all(after[a] == before[a] for a in set(ATTRIBUTES) - task.about)),
            **kept(edited, reference, region),
        }
    return rows


def print_table(
    console: Console, tasks: Sequence[Task], known: dict[str, Row], prefix: str
) -> None:
    """One line per kind of edit and rule."""
    table = Table(title=f"{len(tasks)} edits")
    for name in ("words", "rule", "edits", "seen", "stays", "PSNR dB: mean", "median", "SSIM"):
        table.add_column(name, justify="left" if name in ("words", "rule") else "right")
    groups = {
        **{kind: [t for t in tasks if t.kind == kind] for kind in KINDS},
        "added only": [t for t in tasks if t.words.removed is None],
        "removed only": [t for t in tasks if t.words.removed and not t.words.added],
        "both": [t for t in tasks if t.words.removed and t.words.added],
        "all": list(tasks),
    }
    for name, members in groups.items():
        for rule in RULES:
            found = [known[key_of(prefix, task, rule)] for task in members]
            if not found:
                continue
            seen = [row["seen"] for row in found if "seen" in row]
            psnr = [row["psnr_outside"] for row in found]
            table.add_row(
                name,
                rule,
                str(len(found)),
                f"{sum(seen):.0f} of {len(seen)}" if seen else "",
                f"{sum(row['stays'] for row in found):.0f}",
                f"{statistics.mean(psnr):.1f}",
                f"{statistics.median(psnr):.1f}",
                f"{statistics.mean(row['ssim_outside'] for row in found):.3f}",
            )
        table.add_section()
    console.print(table)


def key_of(prefix: str, task: Task, rule: str) -> str:
    """The name of a row in the file of rows."""
    return f"{prefix} {task.kind} {task.path.name} {rule}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.jsonl")
    parser.add_argument("--limit", type=int, default=56, help="number of edits")
    parser.add_argument("--model", default="flowers")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=Path, default=Path("build/added-words.jsonl"))
    options = parser.parse_args()
    stored = KeptRows(options.rows)
    tasks = tasks_of(options.data, options.limit)
    judge = load_judge(options.data, options.rows.parent / "judge.safetensors")
    console = Console(width=150)
    console.print("Judge, validation:", {k: round(v, 3) for k, v in judge.accuracy.items()})
    model = nulltext.load(options.model, device=options.device)
    for task in track(tasks, "Edits", console=Console(stderr=True)):
        keys = {rule: key_of(model.fingerprint, task, rule) for rule in RULES}
        missing = [rule for rule, key in keys.items() if key not in stored.by_key]
        if missing:
            rows = measure(model, judge, task, missing)
            for rule in missing:
                stored.get(keys[rule], partial(rows.__getitem__, rule))
    print_table(console, tasks, stored.by_key, model.fingerprint)


if __name__ == "__main__":
    main()
