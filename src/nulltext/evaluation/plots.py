"""The study's curves, by matplotlib: for files (dark on white), and for the report (its colours).

Points are means over photos, bars the 95% bootstrap interval of the mean. In the report's SVG, ink
and grid are CSS colours, so that a figure follows the page into the dark.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nulltext.evaluation.bootstrap import Summary
from nulltext.evaluation.extras import require
from nulltext.evaluation.summary import Line
from nulltext.evaluation.variants import BOUND, DDIM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#0a0b0c", "#c0c1c2"
"""Stand-ins, replaced by CSS colours in the report."""


BESIDE = 0.012
"""Part of its place by which a variant's points stand beside the last one's, on a log axis."""


class Look(NamedTuple):
    """How a variant is drawn, everywhere."""

    colour: str
    marker: str
    dash: str


LOOKS: Mapping[str, Look] = {
    BOUND: Look("#8a8f98", "", "--"),
    DDIM: Look("#8a8f98", "", ":"),
    "null-text": Look("#d1495b", "o", "-"),
    "direct": Look("#3a86ff", "D", "-"),
    "negative-prompt": Look("#c9743a", "s", "-"),
    "random-pivot": Look("#d99a1c", "v", "--"),
    "global-null": Look("#2a9d8f", "^", "-"),
    "null-text-no-pivot": Look("#1f7a99", "<", "--"),
    "textual": Look("#8573e0", ">", "--"),
    "textual-pivot": Look("#c53cae", "P", "-"),
    "textual-pivot-shared": Look("#9c6b8f", "X", "-"),
    "model-tuning": Look("#5c9a3a", "h", "-"),
    "sdedit": Look("#7d8597", "*", "--"),
}


def figures_of(lines: Sequence[Line]) -> dict[str, Callable[[], Figure]]:
    """What can be drawn, by file name; each call draws anew, in the colours of the moment."""
    makers: dict[str, Callable[[Sequence[Line]], Figure]] = {
        "reconstruction": _reconstruction,
        "captions": _captions,
        "guidance": _guidance,
        "attention": _attention,
        "editing": _editing,
    }
    drawn = {line.experiment for line in lines if line.figures}
    return {
        name: _bound_to(make, [line for line in lines if line.experiment == name and line.figures])
        for name, make in makers.items()
        if name in drawn
    }


def _bound_to(
    make: Callable[[Sequence[Line]], Figure], own: Sequence[Line]
) -> Callable[[], Figure]:
    return lambda: make(own)


def png_and_svg(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """A figure as files: dark ink on white."""
    matplotlib = require("matplotlib", "study", "Plots")
    with matplotlib.rc_context(_style("#1c1e21", "#d9dce1") | {"savefig.facecolor": "white"}):
        figure = draw()
        return _saved(figure, "png"), _saved(figure, "svg")


def svg_for_page(draw: Callable[[], Figure]) -> str:
    """A figure as an SVG element that takes its ink from the page it stands in."""
    matplotlib = require("matplotlib", "study", "Plots")
    with matplotlib.rc_context(_style(INK, GRID) | {"savefig.transparent": True}):
        text = _saved(draw(), "svg").decode()
    text = text[text.index("<svg") :]
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")


def _style(ink: str, grid: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "nulltext",
        "font.size": 10,
        "text.color": ink,
        "axes.edgecolor": grid,
        "axes.labelcolor": ink,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.grid": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
        "lines.markersize": 5,
        "lines.linewidth": 1.6,
    }


def _saved(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _panels(count: int, height: float, *, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side, with room for a legend below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height + 0.28 * legend_rows), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9.5)


def _curve(
    axes: Axes, variant: str, points: Sequence[tuple[float, Summary]], *, aside: float = 1.0
) -> None:
    """Means with their intervals, joined in the given order; `aside` keeps bars apart."""
    defined = [(x * aside, s) for x, s in points if s.mean is not None]
    look = LOOKS[variant]
    means = [float(s.mean or 0.0) for _, s in defined]
    lows = [
        m - (s.low if s.low is not None else m) for m, (_, s) in zip(means, defined, strict=True)
    ]
    highs = [
        (s.high if s.high is not None else m) - m for m, (_, s) in zip(means, defined, strict=True)
    ]
    axes.errorbar(
        [x for x, _ in defined],
        means,
        yerr=[lows, highs],
        label=variant,
        color=look.colour,
        marker=look.marker or "o",
        linestyle=look.dash,
        elinewidth=0.8,
        alpha=0.95,
    )


def _reconstruction(lines: Sequence[Line]) -> Figure:
    """PSNR against gradients, and against evaluations with the wall time as a second axis."""
    figure, (left, right) = _panels(2, 4.1, legend_rows=4)
    curves: dict[str, list[Line]] = {}
    for line in lines:
        if line.setting.get("N"):
            curves.setdefault(line.variant, []).append(line)
    for line in lines:
        psnr = line.figures["psnr"].mean
        if psnr is None or line.variant in curves:
            continue
        look = LOOKS[line.variant]
        if line.variant in (BOUND, DDIM):
            for axes in (left, right):
                axes.axhline(psnr, color=look.colour, linestyle=look.dash, label=line.variant)
        else:
            cost = _mean(line, "unet_evaluations")
            left.axhline(psnr, color=look.colour, linestyle="-.", linewidth=0.8, label=line.variant)
            right.plot([cost], [psnr], color=look.colour, marker=look.marker, linestyle="")
    for order, (variant, own) in enumerate(curves.items()):
        aside = 1 + BESIDE * (order - (len(curves) - 1) / 2)
        points = [(_mean(line, "iterations"), line.figures["psnr"]) for line in own]
        _curve(left, variant, points, aside=aside)
        points = [(_mean(line, "unet_evaluations"), line.figures["psnr"]) for line in own]
        _curve(right, variant, points)
    left.set(xscale="log", xlabel="gradients taken, T N", ylabel="PSNR, dB")
    right.set(xscale="log", xlabel="UNet evaluations of the inversion")
    visited = {_mean(line, "iterations") for own in curves.values() for line in own}
    left.set_xticks(sorted(visited), [f"{x:g}" for x in sorted(visited)])
    left.minorticks_off()
    _plain_numbers(right)
    _wall_time(right, [line for own in curves.values() for line in own])
    _legend(figure, left)
    return figure


def _wall_time(axes: Axes, lines: Sequence[Line]) -> None:
    """A second axis: seconds at the mean pace of the run."""
    spent, evaluations = (sum(_mean(x, k) for x in lines) for k in ("seconds", "unet_evaluations"))
    if not lines or spent <= 0:
        return
    pace = spent / evaluations

    def seconds(taken: Any) -> Any:
        return taken * pace

    def back(seconds: Any) -> Any:
        return seconds / pace

    upper = axes.secondary_xaxis("top", functions=(seconds, back))
    _plain_numbers(upper)
    upper.set_xlabel(f"wall time in seconds, at this run's mean of {1000 * pace:.0f} ms each")


def _plain_numbers(axes: Any) -> None:
    """1, 3, 10, 30 … instead of powers on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))


def _mean(line: Line, name: str) -> float:
    summary = line.figures.get(name)
    return 0.0 if summary is None or summary.mean is None else summary.mean


def _captions(lines: Sequence[Line]) -> Figure:
    return _dots(
        lines, {"psnr": "PSNR, dB", "agreement": "agreement with the edit prompt"}, "caption"
    )


def _attention(lines: Sequence[Line]) -> Figure:
    wanted = {"map_correlation": "correlation of word maps with the pivot's", "psnr": "PSNR, dB"}
    return _dots(lines, wanted, None)


def _dots(lines: Sequence[Line], wanted: Mapping[str, str], setting: str | None) -> Figure:
    """One row per line, one panel per figure."""
    figure, panels = _panels(len(wanted), 0.9 + 0.36 * len(lines), legend_rows=0)
    names = [str(line.setting[setting]) if setting else line.variant for line in lines]
    for axes, (name, label) in zip(panels, wanted.items(), strict=True):
        for row, line in enumerate(lines):
            summary, look = line.figures.get(name), LOOKS[line.variant]
            if summary is None or summary.mean is None:
                continue
            if summary.low is not None and summary.high is not None:
                axes.plot([summary.low, summary.high], [row, row], color=look.colour, linewidth=1.2)
            axes.plot([summary.mean], [row], color=look.colour, marker="o", linestyle="")
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    return figure


def _guidance(lines: Sequence[Line]) -> Figure:
    wanted = {
        "psnr": "PSNR of the replay, dB",
        "noise_variance": "variance of z_T (noise: 1)",
        "noise_autocorrelation": "neighbours' correlation (noise: 0)",
    }
    figure, panels = _panels(3, 2.9, legend_rows=0)
    for axes, (name, title) in zip(panels, wanted.items(), strict=True):
        _curve(
            axes, "null-text", [(float(line.setting["w"]), line.figures[name]) for line in lines]
        )
        axes.set_title(title)
        axes.set_xlabel("w of the inversion")
    return figure


def _editing(lines: Sequence[Line]) -> Figure:
    """Each method's path from weak to strong edits: content kept against text agreement."""
    figure, (left, right) = _panels(2, 4.0, legend_rows=3)
    paths: dict[str, list[Line]] = {}
    for line in lines:
        paths.setdefault(line.variant, []).append(line)
    for axes, name in ((left, "psnr_outside"), (right, "ssim_outside")):
        for variant, own in paths.items():
            pairs = [(line.figures["agreement"], line.figures[name]) for line in own]
            points = [(a.mean, s) for a, s in pairs if a.mean is not None]
            _curve(axes, variant, points)
    left.set(xlabel="agreement with the edit prompt", ylabel="PSNR outside the edit, dB")
    right.set(xlabel="agreement with the edit prompt", ylabel="SSIM outside the edit")
    left.set_title("Up and to the right is better; along a line, strength rises")
    _legend(figure, left)
    return figure
