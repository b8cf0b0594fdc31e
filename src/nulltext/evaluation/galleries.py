"""The pictures of each experiment, photo by photo, to be scrolled through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nulltext.evaluation.markup import gallery, picture, text
from nulltext.evaluation.results import Row
from nulltext.evaluation.summary import said
from nulltext.evaluation.variants import BOUND, LINES

UNFOLDED = 2
"""Photos whose pictures are shown at once where every photo has a grid of its own."""


def of(experiment: str, folder: Path, rows: Sequence[Row]) -> str:
    """The gallery of an experiment's rows, as HTML; empty where there are no pictures."""
    makers: dict[str, Callable[[Path, Sequence[Row]], str]] = {
        "reconstruction": _reconstruction,
        "captions": _captions,
        "guidance": _guidance,
        "attention": _attention,
        "editing": _editing,
    }
    good = [row for row in rows if row["status"] == "ok" and row["pictures"]]
    return f"<h3>Pictures</h3>{makers[experiment](folder, good)}" if good else ""


def _reconstruction(folder: Path, rows: Sequence[Row]) -> str:
    """Photo by variant, each variant at its largest N."""
    most: dict[tuple[str, str], Row] = {}
    for row in rows:
        where = (row["image"], row["variant"])
        if where not in most or row["setting"].get("N", 0) > most[where]["setting"].get("N", 0):
            most[where] = row
    variants = sorted({variant for _, variant in most}, key=LINES.index)
    lines = []
    for image in dict.fromkeys(row["image"] for row in rows):
        bound = most.get((image, BOUND))
        cells = [_shown(folder, bound, "photo", "the photo")] if bound else ["–"]
        for variant in variants:
            cells.append(_with_psnr(folder, most.get((image, variant))))
        lines.append([_named(image), *cells])
    return gallery(["", "photo", *map(text, variants)], lines)


def _captions(folder: Path, rows: Sequence[Row]) -> str:
    """For each photo: reconstruction and edit under every caption."""
    kinds = list(dict.fromkeys(row["setting"]["caption"] for row in rows))
    lines = []
    for image, own in _by_image(rows).items():
        found = {row["setting"]["caption"]: row for row in own}
        for what, label in (("picture", "reconstruction"), ("edit", "edit")):
            cells = [_worded(folder, found.get(kind), what) for kind in kinds]
            lines.append([f"{_named(image)}<small>{label}</small>", *cells])
    return gallery(["", *map(text, kinds)], lines)


def _worded(folder: Path, row: Row | None, what: str) -> str:
    """A picture above the prompt that it was made under."""
    if row is None or what not in row["pictures"]:
        return "–"
    prompt = row["notes"]["caption" if what == "picture" else "target"]
    said_so = f"“{prompt}”" if prompt else "no words"
    return _shown(folder, row, what, said_so) + f'<small class="said">{text(said_so)}</small>'


def _guidance(folder: Path, rows: Sequence[Row]) -> str:
    scales = sorted({row["setting"]["w"] for row in rows})
    lines = []
    for image, own in _by_image(rows).items():
        found = {row["setting"]["w"]: row for row in own}
        lines.append([_named(image), *(_with_psnr(folder, found.get(w)) for w in scales)])
    return gallery(["", *(f"w = {w:g}" for w in scales)], lines)


def _attention(folder: Path, rows: Sequence[Row]) -> str:
    """For each photo, its words' maps from top to bottom: the pivot's, then each variant's."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = []
    for image, own in _by_image(rows).items():
        found = {row["variant"]: row for row in own}
        cells = [_shown(folder, own[0], "pivot's words", "word maps of the pivot")]
        for variant in variants:
            row = found.get(variant)
            if row is None:
                cells.append("–")
                continue
            figure = row["figures"]["map_correlation"]
            note = "" if figure is None else f"correlation {figure:.3f}"
            cells.append(_shown(folder, row, "words", f"word maps of {variant}", note))
        words = text(own[0]["notes"].get("words", ""))
        lines.append([f"{_named(image)}<small>{words}</small>", *cells])
    return gallery(["", "unguided pivot", *map(text, variants)], lines)


def _editing(folder: Path, rows: Sequence[Row]) -> str:
    """For each photo, method by strength."""
    grids = []
    for index, (image, own) in enumerate(_by_image(rows).items()):
        strengths = sorted({row["setting"]["strength"] for row in own})
        lines = []
        for variant in dict.fromkeys(row["variant"] for row in own):
            found = {r["setting"]["strength"]: r for r in own if r["variant"] == variant}
            cells = [_edit_cell(folder, found.get(s)) for s in strengths]
            lines.append([text(variant), *cells])
        target = own[0]["notes"].get("target", "")
        grids.append(
            f"<details{' open' if index < UNFOLDED else ''}><summary>{text(image)} → "
            f"“{text(target)}”</summary>"
            + gallery(["", *(f"strength {s:g}" for s in strengths)], lines)
            + "</details>"
        )
    return "".join(grids)


def _edit_cell(folder: Path, row: Row | None) -> str:
    if row is None:
        return "–"
    agreement = row["figures"]["agreement"]
    note = "" if agreement is None else f"agreement {agreement:.2f}"
    return _shown(folder, row, "picture", f"{row['variant']}, {said(row['setting'])}", note)


def _with_psnr(folder: Path, row: Row | None) -> str:
    if row is None:
        return "–"
    psnr = row["figures"]["psnr"]
    note = "undefined" if psnr is None else f"{psnr:.2f} dB"
    return _shown(folder, row, "picture", f"{row['image']}, {row['variant']}", note)


def _shown(folder: Path, row: Row, what: str, alt: str, note: str = "") -> str:
    name = row["pictures"].get(what)
    return picture(folder / name, alt, note) if name else "–"


def _by_image(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["image"], []).append(row)
    return found


def _named(image: str) -> str:
    """A photo's file name, short of its folder."""
    return text(image.rpartition("/")[2])
