"""One page that holds the whole study: tables, curves, pictures; nothing to fetch or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nulltext.evaluation import galleries
from nulltext.evaluation.markup import number, page, table, text
from nulltext.evaluation.plan import EXPERIMENTS
from nulltext.evaluation.plots import figures_of, svg_for_page
from nulltext.evaluation.results import Row
from nulltext.evaluation.summary import Line, said

READINGS = {
    "reconstruction": (
        "How close the replay comes to the photo, for the same number of gradients. The bound is "
        "the autoencoder's own round trip; ddim is the pivot replayed under guidance with nothing "
        "done about it. direct and negative-prompt optimise nothing."
    ),
    "captions": (
        "Null-text inversion under four captions. The reconstruction should not mind a wrong "
        "caption; whether the edit prompt still works from there is another question."
    ),
    "guidance": (
        "DDIM inversion guided by w and replayed at the same w. In the paper, the higher w, the "
        "less Gaussian the noise that the inversion ends in, and the farther the replay from the "
        "photo; pivots are therefore inverted at w = 1."
    ),
    "attention": (
        "Where words look during the replay, against where they look in the unguided replay of "
        "the pivot (1: in the same places). Textual inversion moves the prompt's embedding "
        "itself, so its words may lose their places, which is what Prompt-to-Prompt edits with."
    ),
    "editing": (
        "The same edit by every method, from weak to strong: what was kept outside the edit "
        "(against the autoencoder's round trip of the photo) against how well the picture agrees "
        "with the edit prompt. SDEdit's strength is the noise level that it starts from."
    ),
}

TABLES: Mapping[str, Sequence[tuple[str, str, int]]] = {
    "reconstruction": [
        ("psnr", "PSNR, dB: mean and 95% interval over photos", 2),
        ("ssim", "SSIM", 3),
        ("lpips", "LPIPS (lower is closer)", 3),
        ("unet_evaluations", "UNet evaluations of the inversion, forward and backward", 0),
        ("seconds", "wall time of the inversion, seconds", 1),
    ],
    "captions": [],
    "guidance": [],
    "attention": [],
    "editing": [
        ("agreement", "agreement with the edit prompt", 2),
        ("prefers_target", "share of edits that fit the edit prompt better than the source", 2),
        ("psnr_outside", "PSNR outside the edit, dB", 2),
        ("ssim_outside", "SSIM outside the edit", 3),
        ("lpips_outside", "LPIPS outside the edit (lower is closer)", 3),
    ],
}
"""Figures with a table of their own, variant by setting; other experiments have one table."""

DIGITS = {"ssim": 3, "map_correlation": 3, "noise_mean": 3, "noise_variance": 3, "iterations": 0}
DIGITS |= {"noise_autocorrelation": 3, "noise_log_likelihood": 3, "unet_evaluations": 0}


def report(
    folder: Path, settings: Mapping[str, Any], rows: Sequence[Row], lines: Sequence[Line]
) -> str:
    """The page, as HTML.

    Args: folder: where the rows' pictures are.
    """
    figures = figures_of(lines)
    present = [name for name in EXPERIMENTS if any(line.experiment == name for line in lines)]
    sections = []
    for name in present:
        own = [line for line in lines if line.experiment == name]
        drawn = (
            f'<figure class="plot">{svg_for_page(figures[name])}</figure>'
            if name in figures
            else ""
        )
        pictures = galleries.of(name, folder, [row for row in rows if row["experiment"] == name])
        sections.append(
            f'<section id="{name}"><h2>{text(EXPERIMENTS[name])}</h2>'
            f"<p>{text(READINGS[name])}</p>{drawn}{_tables(name, own)}{pictures}</section>"
        )
    links = "".join(f'<a href="#{name}">{text(EXPERIMENTS[name])}</a>' for name in present)
    count = len({row["image"] for row in rows})
    photos = f"{count} photo{'' if count == 1 else 's'}"
    return page(
        f"nulltext study: {photos}",
        f"<h1>A study of inversions over {photos}</h1>"
        '<p class="soft">Made by <code>nulltext study</code>. Means over photos; intervals are 95% '
        "bootstrap intervals of the mean. Beneath a figure, n says where fewer photos count.</p>"
        f"{facts(settings, rows)}<nav>{links}</nav>{''.join(sections)}{failures(rows)}",
    )


def facts(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What the rows were made with, and how many there are, as HTML."""
    counts = Counter(row["status"] for row in rows)
    known = {**settings, "rows": f"{counts['ok']} measured, {counts['failed']} failed"}
    entries = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in known.items())
    return f"<dl>{entries}</dl>"


def _tables(name: str, lines: Sequence[Line]) -> str:
    wanted = TABLES[name]
    if not wanted:
        return _one_table(lines)
    tables = "".join(_by_setting(lines, *which) for which in wanted)
    return f'<div class="tables">{tables}</div>{_undefined(lines)}'


def _by_setting(lines: Sequence[Line], figure: str, caption: str, digits: int) -> str:
    """Variants down, settings across, one figure; left out where no row has it."""
    held = [line for line in lines if figure in line.figures]
    if not any(line.figures[figure].n for line in held):
        return ""
    columns = sorted({_number_of(line) for line in held if _number_of(line)})
    key = next((next(iter(line.setting)) for line in held if _number_of(line)), "")
    cells: dict[str, dict[float, Line]] = {}
    for line in held:
        cells.setdefault(line.variant, {})[_number_of(line)] = line
    alone = any(0 in by_column for by_column in cells.values())
    heads = ["", *(["no gradients"] if alone else []), *(f"{key} = {c:g}" for c in columns)]
    rows = []
    for variant, by_column in cells.items():
        shown = [*([0.0] if alone else []), *columns]
        found = [by_column.get(column) for column in shown]
        rows.append(
            [text(variant), *(number(x.figures[figure] if x else None, digits) for x in found)]
        )
    return table(caption, heads, rows)


def _number_of(line: Line) -> float:
    """The setting's number; 0 for a variant that has no setting."""
    value = next(iter(line.setting.values()), 0)
    return float(value)


def _one_table(lines: Sequence[Line]) -> str:
    """Lines down, all figures across."""
    names = list(dict.fromkeys(name for line in lines for name in line.figures))
    names = [name for name in names if any(_says(line, name) for line in lines)]
    rows = [
        [
            text(said(line.setting) or line.variant),
            *(number(line.figures.get(name), DIGITS.get(name, 2)) for name in names),
        ]
        for line in lines
    ]
    heads = ["", *(text(name.replace("_", " ")) for name in names)]
    return table("Mean and 95% interval over photos", heads, rows) + _undefined(lines)


def _says(line: Line, name: str) -> bool:
    """Whether a line has anything to tell of a figure; no gradients are not worth a column."""
    summary = line.figures.get(name)
    return summary is not None and summary.n > 0 and (name != "iterations" or summary.mean != 0)


def _undefined(lines: Sequence[Line]) -> str:
    """Why figures are missing, counted."""
    reasons: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for name, summary in line.figures.items():
            for reason, count in summary.undefined.items():
                reasons[name.replace("_", " "), reason] += count
    if not reasons:
        return ""
    listed = "; ".join(f"{n} in {count} rows ({why})" for (n, why), count in reasons.items())
    return f'<p class="soft">Undefined: {text(listed)}.</p>'


def failures(rows: Sequence[Row]) -> str:
    """Rows that failed, with their reasons, as HTML; empty where none did."""
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return ""
    listed = [
        [text(r["image"]), *(text(r[k]) for k in ("experiment", "variant", "reason"))]
        for r in failed
    ]
    return (
        '<section id="failed"><h2>Rows that failed</h2>'
        + table(
            f"{len(failed)} rows; they count nowhere above.",
            ["photo", "experiment", "variant", "reason"],
            listed,
        )
        + "</section>"
    )
