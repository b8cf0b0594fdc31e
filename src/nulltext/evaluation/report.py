"""The report of a study: one page with tables, plots and pictures that fetches and runs nothing.

Pages are Jinja templates, in templates/; this module makes what they show.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from nulltext.evaluation.plan import EXPERIMENTS, variant_order
from nulltext.evaluation.plots import plots_of, png_and_svg, svg_for_page
from nulltext.evaluation.summary import Line, Summary, grouped, lines_of, setting_text, to_csv
from nulltext.jobs.ledger import Row
from nulltext.storage.files import replace_file

SUMMARY, REPORT = "summary.csv", "report.html"

UNFOLDED = 2
"""Photos whose pictures are shown at once where every photo has a grid of its own."""
THUMBNAIL = 288
"""Width in pixels of pictures in the report, at most."""
MAX_PANELS = 12
"""Pictures that stand below each other in one, at most."""
JPEG_QUALITY = 88


class MetricTable(NamedTuple):
    """A table of one metric."""

    metric: str
    caption: str
    digits: int


TABLES: Mapping[str, Sequence[MetricTable]] = {
    "reconstruction": [
        MetricTable("psnr", "PSNR, dB: mean and 95% interval over photos", 2),
        MetricTable("ssim", "SSIM", 3),
        MetricTable("lpips", "LPIPS (lower is closer)", 3),
        MetricTable(
            "unet_evaluations", "UNet evaluations of the inversion, forward and backward", 0
        ),
        MetricTable("seconds", "wall time of the inversion, seconds", 1),
    ],
    "editing": [
        MetricTable("agreement", "agreement with the edit prompt", 2),
        MetricTable(
            "prefers_target", "share of edits that fit the edit prompt better than the source", 2
        ),
        MetricTable("psnr_outside", "PSNR outside the edit, dB", 2),
        MetricTable("ssim_outside", "SSIM outside the edit", 3),
        MetricTable("lpips_outside", "LPIPS outside the edit (lower is closer)", 3),
    ],
}
"""Metrics with a table of their own, variant by setting; other experiments have one table."""

DIGITS = {"ssim": 3, "map_correlation": 3, "noise_mean": 3, "noise_variance": 3, "iterations": 0}
DIGITS |= {"noise_autocorrelation": 3, "noise_log_likelihood": 3, "unet_evaluations": 0}


class Thumbnail(NamedTuple):
    """A picture inside a page."""

    source: str
    """As a data URI."""
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table with more than one text in it."""

    text: str = ""
    notes: Sequence[str] = ()
    """Small lines below the text."""
    prompt: str = ""
    """A small text below them that wraps."""
    image: Thumbnail | None = None
    """A picture above the text."""
    missing: bool = False
    """Whether the text stands for a picture that cannot be read."""


EMPTY = "–"


@dataclass(frozen=True)
class Table:
    """A table or a grid of pictures; the first cell of each row is its header."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""


def publish(folder: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write summary, plots and report of a study into its folder; return them, the report first.

    Raises:
        ExtraError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    lines = lines_of(rows)
    plots = plots_of(lines)
    sections = []
    for name, own in grouped(lines, lambda line: line.experiment).items():
        shown = [r for r in rows if r["experiment"] == name and r["status"] == "ok"]
        shown = [row for row in shown if row["pictures"]]
        tables = [_variant_table(own, each) for each in TABLES.get(name, ())]
        sections.append(
            {
                "name": name,
                "title": EXPERIMENTS[name],
                "plot": svg_for_page(plots[name]) if name in plots else "",
                "side_by_side": name in TABLES,
                "tables": [t for t in tables if t] if name in TABLES else [_metrics_table(own)],
                "undefined": _undefined_text(own),
                "galleries": _galleries(name, folder, shown) if shown else [],
            }
        )
    count = len({row["image"] for row in rows})
    photos = f"{count} photo{'' if count == 1 else 's'}"
    page = render(
        "study.html.j2",
        title=f"nulltext study: {photos}",
        photos=photos,
        settings=with_row_counts(settings, rows),
        sections=sections,
        unfolded=UNFOLDED,
        failed=failures_table(rows),
    )
    content = {REPORT: page.encode(), SUMMARY: to_csv(lines).encode()}
    for name, draw in plots.items():
        content[f"{name}.png"], content[f"{name}.svg"] = png_and_svg(draw)
    return write_files(folder, content)


def write_files(folder: Path, content: Mapping[str, bytes]) -> list[Path]:
    """Write files by name, each whole or not at all, and return their paths."""
    for name, data in content.items():
        replace_file(folder / name, data)
    return [folder / name for name in content]


def render(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def with_row_counts(settings: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    return {**settings, "rows": f"{counts['ok']} measured, {counts['failed']} failed"}


def failures_table(rows: Sequence[Row]) -> Table:
    failed = [row for row in rows if row["status"] == "failed"]
    head = ["photo", "experiment", "variant", "reason"]
    cells = [[r["image"], r["experiment"], r["variant"], r["reason"]] for r in failed]
    return Table(head, cells, f"{len(failed)} rows; they count nowhere above.")


def number_cell(summary: Summary | None, digits: int, factor: float = 1) -> Cell | str:
    """Show a mean with its interval below, in units of 1 / factor."""
    if summary is None:
        return EMPTY
    missing = sum(summary.undefined.values())
    if summary.mean is None:
        return Cell("undefined", [f"{missing} rows"])
    notes = []
    if summary.low is not None and summary.high is not None and summary.low < summary.high:
        notes.append(f"{factor * summary.low:,.{digits}f} – {factor * summary.high:,.{digits}f}")
    if missing:
        notes.append(f"n = {summary.n}, {missing} undefined")
    return Cell(f"{factor * summary.mean:,.{digits}f}", notes)


def picture_cell(
    folder: Path, row: Row | None, shown: str, alt: str, note: str = "", prompt: str = ""
) -> Cell | str:
    name = row["pictures"].get(shown) if row else None
    if name is None:
        return EMPTY
    try:
        with Image.open(folder / name) as image:
            small = image.convert("RGB")
    except OSError:
        return Cell("picture missing", missing=True, prompt=prompt)
    tall = small.height > small.width
    small.thumbnail((THUMBNAIL, THUMBNAIL * MAX_PANELS if tall else THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Cell(
        notes=[note] if note else [],
        prompt=prompt,
        image=Thumbnail(source, small.width, small.height, alt),
    )


# Tables


def _variant_table(lines: Sequence[Line], wanted: MetricTable) -> Table | None:
    held = [line for line in lines if wanted.metric in line.figures]
    if not any(line.figures[wanted.metric].n for line in held):
        return None
    columns = sorted({_setting_number(line) for line in held})
    key = next((name for line in held for name, value in line.setting.items() if value), "")
    rows: list[list[Cell | str]] = []
    for variant, own in grouped(held, lambda line: line.variant).items():
        found = {_setting_number(line): line.figures[wanted.metric] for line in own}
        rows.append([variant, *(number_cell(found.get(c), wanted.digits) for c in columns)])
    head = ["", *(f"{key} = {c:g}" if c else "no gradients" for c in columns)]
    return Table(head, rows, wanted.caption)


def _setting_number(line: Line) -> float:
    return float(next(iter(line.setting.values()), 0))


def _metrics_table(lines: Sequence[Line]) -> Table:
    def has_content(line: Line, name: str) -> bool:
        summary = line.figures.get(name, Summary())
        return summary.n > 0 and not (name == "iterations" and summary.mean == 0)

    metrics = dict.fromkeys(name for line in lines for name in line.figures)
    names = [name for name in metrics if any(has_content(line, name) for line in lines)]
    rows = [
        [
            setting_text(line.setting) or line.variant,
            *(number_cell(line.figures.get(name), DIGITS.get(name, 2)) for name in names),
        ]
        for line in lines
    ]
    head = ["", *(name.replace("_", " ") for name in names)]
    return Table(head, rows, "Mean and 95% interval over photos")


def _undefined_text(lines: Sequence[Line]) -> str:
    reasons: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for name, summary in line.figures.items():
            for reason, count in summary.undefined.items():
                reasons[name.replace("_", " "), reason] += count
    return "; ".join(f"{name} in {n} rows ({why})" for (name, why), n in reasons.items())


# Galleries


class GalleryLayout(NamedTuple):
    """Layout of an experiment's pictures: photos down, settings across."""

    across: Callable[[Row], Any]
    heading: str
    """Format of a column's heading."""
    metric: str
    """Shown below each picture."""
    form: str
    shown: str = "picture"
    first: str = ""
    """Picture of the first column, which all rows of a photo share."""
    first_heading: str = ""


LAYOUTS = {
    "reconstruction": GalleryLayout(
        lambda row: row["variant"], "{}", "psnr", "{:.2f} dB", first="photo", first_heading="photo"
    ),
    "guidance": GalleryLayout(lambda row: row["setting"]["w"], "w = {:g}", "psnr", "{:.2f} dB"),
    "attention": GalleryLayout(
        lambda row: row["variant"],
        "{}",
        "map_correlation",
        "correlation {:.3f}",
        shown="words",
        first="pivot's words",
        first_heading="unguided pivot",
    ),
    "editing": GalleryLayout(
        lambda row: row["setting"]["strength"], "strength {:g}", "agreement", "agreement {:.2f}"
    ),
}


def _galleries(experiment: str, folder: Path, rows: Sequence[Row]) -> list[Table]:
    photos = grouped(rows, lambda row: str(row["image"]))
    if experiment == "captions":
        return [_captions_grid(folder, photos)]
    layout = LAYOUTS[experiment]
    if experiment != "editing":
        return [_grid(folder, layout, photos)]
    grids = []
    for image, own in photos.items():  # a grid for each photo, method by strength
        grid = _grid(folder, layout, grouped(own, lambda row: str(row["variant"])))
        target = own[0]["notes"].get("target", "")
        grids.append(replace(grid, caption=f"{image} → “{target}”"))
    return grids


def _grid(folder: Path, layout: GalleryLayout, rows_down: Mapping[str, Sequence[Row]]) -> Table:
    """Show rows in a grid; of several in one cell, that with the largest N."""
    columns = {layout.across(row): None for own in rows_down.values() for row in own}
    lines = []
    for name, own in rows_down.items():
        found = {layout.across(r): r for r in sorted(own, key=lambda r: r["setting"].get("N", 0))}
        words = own[0]["notes"].get("words")
        cells: list[Cell | str] = [Cell(_file_name(name), [words] if words else [])]
        if layout.first:
            holder = next((row for row in own if layout.first in row["pictures"]), None)
            cells.append(picture_cell(folder, holder, layout.first, f"{layout.first} of {name}"))
        for column in sorted(columns, key=_column_order):
            row = found.get(column)
            value = row["figures"][layout.metric] if row else None
            alt = f"{name}, {layout.heading.format(column)}"
            note = "undefined" if value is None else layout.form.format(value)
            cells.append(picture_cell(folder, row, layout.shown, alt, note))
        lines.append(cells)
    first = [layout.first_heading] if layout.first else []
    headings = [layout.heading.format(column) for column in sorted(columns, key=_column_order)]
    return Table(["", *first, *headings], lines)


def _column_order(column: str | float) -> float:
    return variant_order(column) if isinstance(column, str) else column


def _captions_grid(folder: Path, photos: Mapping[str, Sequence[Row]]) -> Table:
    kinds = list({row["setting"]["caption"]: None for own in photos.values() for row in own})
    lines: list[list[Cell | str]] = []
    for image, own in photos.items():
        found = {row["setting"]["caption"]: row for row in own}
        picture, edit = ("picture", "reconstruction", "caption"), ("edit", "edit", "target")
        for shown, label, key in (picture, edit):
            cells: list[Cell | str] = [Cell(_file_name(image), [label])]
            for kind in kinds:
                prompt = found[kind]["notes"].get(key) if kind in found else None
                text = f"“{prompt}”" if prompt else "no words"
                cells.append(picture_cell(folder, found.get(kind), shown, text, prompt=text))
            lines.append(cells)
    return Table(["", *kinds], lines)


def _file_name(image: str) -> str:
    return image.rpartition("/")[2]
