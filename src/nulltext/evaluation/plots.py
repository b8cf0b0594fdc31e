"""The plots of a study, by matplotlib: for files (dark on white), and for the report's page.

Points are means over photos, bars the 95% bootstrap interval of the mean. In the page's SVG, ink
and grid are CSS colours, so that a plot follows the page into dark mode.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nulltext.errors import require
from nulltext.evaluation.plan import BOUND, DDIM, NULL_TEXT, SDEDIT, VARIANTS
from nulltext.evaluation.summary import Line, Summary, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).parent / "templates" / "plots.mplstyle"

INK, GRID = "#0a0b0c", "#c0c1c2"
"""Placeholders for the page's CSS colours."""

STAGGER = 0.012
"""Relative distance between the points of two variants at one place of a logarithmic axis."""


class Look(NamedTuple):
    """How a variant is drawn in all plots."""

    colour: str
    marker: str
    dash: str


PALETTE = (
    Look("#d1495b", "o", "-"),
    Look("#e07b91", "d", "-."),
    Look("#3a86ff", "D", "-"),
    Look("#c9743a", "s", "-"),
    Look("#d99a1c", "v", "--"),
    Look("#2a9d8f", "^", "-"),
    Look("#1f7a99", "<", "--"),
    Look("#8573e0", ">", "--"),
    Look("#c53cae", "P", "-"),
    Look("#9c6b8f", "X", "-"),
    Look("#5c9a3a", "h", "-"),
    Look("#b07d2b", "p", "--"),
    Look("#4a6fa5", "1", "--"),
    Look("#7a4f9a", "H", "-"),
    Look("#2f8f5b", "8", "--"),
)
"""For inversion methods in the registry's order."""

UNKNOWN = Look("#8a8f98", "x", "-.")
"""For variants of older rows that the registry has no more."""

LOOKS: Mapping[str, Look] = {
    BOUND: Look("#8a8f98", "", "--"),
    DDIM: Look("#8a8f98", "", ":"),
    SDEDIT: Look("#7d8597", "*", "--"),
    **dict(zip([name for name in VARIANTS if name != DDIM], cycle(PALETTE), strict=False)),
}


def plots_of(lines: Sequence[Line]) -> dict[str, Callable[[], Figure]]:
    """Choose the plots that lines have data for, by experiment.

    Each call draws anew, with matplotlib's settings at that moment.
    """
    makers: dict[str, Callable[[Sequence[Line]], Figure]] = {
        "reconstruction": _plot_reconstruction,
        "captions": _plot_captions,
        "guidance": _plot_guidance,
        "attention": _plot_attention,
        "editing": _plot_editing,
    }
    measured = grouped([line for line in lines if line.figures], lambda line: line.experiment)
    return {
        name: partial(make, measured[name]) for name, make in makers.items() if name in measured
    }


def png_and_svg(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    with _style("#1c1e21", "#d9dce1"):
        figure = draw()
        return _saved(figure, "png"), _saved(figure, "svg")


def svg_for_page(draw: Callable[[], Figure]) -> str:
    """Draw a plot as an SVG element that takes its ink from the page it stands in."""
    with _style(INK, GRID):
        text = _saved(draw(), "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")


def _style(ink: str, grid: str) -> AbstractContextManager[None]:
    matplotlib = require("matplotlib", "study", "Plots")
    style = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    lines = ("axes.edgecolor", "grid.color")
    colours = dict.fromkeys(inked, ink) | dict.fromkeys(lines, grid)
    return matplotlib.rc_context({**style, **colours})


def _saved(figure: Figure, kind: str, *, transparent: bool = False) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(stream, format=kind, metadata=metadata, transparent=transparent)
    return stream.getvalue()


def _panels(count: int, height: float, *, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height + 0.28 * legend_rows), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9.5)


def _mean(line: Line, name: str) -> float:
    return line.figures.get(name, Summary()).mean or 0.0


def _draw_curve(
    axes: Axes, variant: str, points: Sequence[tuple[float, Summary]], *, stagger: float = 1.0
) -> None:
    """Draw means with their intervals, joined in the given order; `stagger` scales x."""
    xs, means, below, above = [], [], [], []
    for x, summary in points:
        if summary.mean is None:
            continue
        xs.append(x * stagger)
        means.append(summary.mean)
        below.append(0.0 if summary.low is None else summary.mean - summary.low)
        above.append(0.0 if summary.high is None else summary.high - summary.mean)
    look = LOOKS.get(variant, UNKNOWN)
    axes.errorbar(
        xs,
        means,
        yerr=[below, above],
        label=variant,
        color=look.colour,
        marker=look.marker or "o",
        linestyle=look.dash,
        elinewidth=0.8,
        alpha=0.95,
    )


def _draw_dots(lines: Sequence[Line], names: Sequence[str], labels: Mapping[str, str]) -> Figure:
    figure, panels = _panels(len(labels), 0.9 + 0.36 * len(lines))
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        for row, line in enumerate(lines):
            summary, look = line.figures.get(metric, Summary()), LOOKS.get(line.variant, UNKNOWN)
            if summary.mean is None:
                continue
            if summary.low is not None and summary.high is not None:
                axes.plot([summary.low, summary.high], [row, row], color=look.colour, linewidth=1.2)
            axes.plot([summary.mean], [row], color=look.colour, marker="o", linestyle="")
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    return figure


def _plot_reconstruction(lines: Sequence[Line]) -> Figure:
    figure, (left, right) = _panels(2, 4.1, legend_rows=4)
    optimised = [line for line in lines if line.setting.get("N")]
    curves = grouped(optimised, lambda line: line.variant)
    for line in lines:
        psnr, look = line.figures["psnr"].mean, LOOKS.get(line.variant, UNKNOWN)
        if psnr is None or line.variant in curves:
            continue
        if line.variant in (BOUND, DDIM):
            for axes in (left, right):
                axes.axhline(psnr, color=look.colour, linestyle=look.dash, label=line.variant)
        else:
            cost = _mean(line, "unet_evaluations")
            left.axhline(psnr, color=look.colour, linestyle="-.", linewidth=0.8, label=line.variant)
            right.plot([cost], [psnr], color=look.colour, marker=look.marker, linestyle="")
    for order, (variant, own) in enumerate(curves.items()):
        stagger = 1 + STAGGER * (order - (len(curves) - 1) / 2)
        points = [(_mean(line, "iterations"), line.figures["psnr"]) for line in own]
        _draw_curve(left, variant, points, stagger=stagger)
        points = [(_mean(line, "unet_evaluations"), line.figures["psnr"]) for line in own]
        _draw_curve(right, variant, points)
    left.set(xscale="log", xlabel="gradients taken, T N", ylabel="PSNR, dB")
    right.set(xscale="log", xlabel="UNet evaluations of the inversion")
    ticks = sorted({_mean(line, "iterations") for line in optimised})
    left.set_xticks(ticks, [f"{x:g}" for x in ticks])
    left.minorticks_off()
    _use_plain_numbers(right)
    _add_wall_time(right, optimised)
    _add_legend(figure, left)
    return figure


def _add_wall_time(axes: Axes, lines: Sequence[Line]) -> None:
    seconds = sum(_mean(line, "seconds") for line in lines)
    if seconds <= 0:
        return
    pace = seconds / sum(_mean(line, "unet_evaluations") for line in lines)
    functions = (lambda n: np.multiply(n, pace), lambda s: np.divide(s, pace))
    upper = axes.secondary_xaxis("top", functions=functions)
    _use_plain_numbers(upper)
    upper.set_xlabel(f"wall time in seconds, at this run's mean of {1000 * pace:.0f} ms each")


def _use_plain_numbers(axes: Any) -> None:
    """Label a logarithmic axis with 1, 3, 10, 30 … instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))


def _plot_captions(lines: Sequence[Line]) -> Figure:
    labels = {"psnr": "PSNR, dB", "agreement": "agreement with the edit prompt"}
    return _draw_dots(lines, [str(line.setting["caption"]) for line in lines], labels)


def _plot_attention(lines: Sequence[Line]) -> Figure:
    labels = {"map_correlation": "correlation of word maps with the pivot's", "psnr": "PSNR, dB"}
    return _draw_dots(lines, [line.variant for line in lines], labels)


def _plot_guidance(lines: Sequence[Line]) -> Figure:
    titles = {
        "psnr": "PSNR of the replay, dB",
        "noise_variance": "variance of z_T (noise: 1)",
        "noise_autocorrelation": "neighbours' correlation (noise: 0)",
    }
    figure, panels = _panels(len(titles), 2.9)
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        points = [(float(line.setting["w"]), line.figures[metric]) for line in lines]
        _draw_curve(axes, NULL_TEXT, points)
        axes.set_title(title)
        axes.set_xlabel("w of the inversion")
    return figure


def _plot_editing(lines: Sequence[Line]) -> Figure:
    figure, (left, right) = _panels(2, 4.0, legend_rows=3)
    for variant, own in grouped(lines, lambda line: line.variant).items():
        for axes, metric in ((left, "psnr_outside"), (right, "ssim_outside")):
            pairs = [(line.figures["agreement"].mean, line.figures[metric]) for line in own]
            _draw_curve(axes, variant, [(x, summary) for x, summary in pairs if x is not None])
    left.set(xlabel="agreement with the edit prompt", ylabel="PSNR outside the edit, dB")
    right.set(xlabel="agreement with the edit prompt", ylabel="SSIM outside the edit")
    left.set_title("Up and to the right is better; along a line, strength rises")
    _add_legend(figure, left)
    return figure
