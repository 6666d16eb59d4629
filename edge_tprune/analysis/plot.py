"""Pictures of a comparison: accuracy against latency, tokens after each block, latency distributions.

Made with matplotlib's object interface, so that no global figure state is touched and no display is needed. Colours are Okabe
and Ito's, which people with any common colour vision tell apart; shapes and line styles repeat what colour says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.select import accuracy_metric, label, pareto_front
from edge_tprune.analysis.table import QUANTILES, Row
from edge_tprune.errors import UserError, missing_package
from edge_tprune.files import atomic_writer
from edge_tprune.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, less the two that are too pale on white or black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_LINES = ("-", "--", ":", "-.")
INK = "#24292f"  #: axes and text; the report swaps it for the colour of its theme
GRID = "#d0d7de"  #: grid lines; likewise
_SIZE_INCHES = (5.4, 3.9)  # so small that 11 point text is still read where a phone shrinks it to its width
_STYLE: Any = {  # Any here and for axes: matplotlib's own stubs change from version to version
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",  # whatever the picture lies on
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names come from files; a dollar sign is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "path",  # looks the same wherever it is shown
    "svg.hashsalt": "edge-tprune",  # the same picture gives the same bytes
}


def latency_accuracy_figure(rows: Sequence[Row], chosen: Row | None = None) -> Figure:
    """Accuracy against p50 latency of comparable rows.

    Whiskers reach to p95 (across) and over the paired 95 % interval of the change of accuracy (up and down). The line is
    the Pareto front; `chosen` gets a ring. Without labels, accuracy is the agreement with the unpruned model; where nothing is
    known about accuracy, the share of MACs takes its place.

    Raises:
        UserError: no row has a latency, or matplotlib is not installed.
    """
    x, y = METRICS["p50_ms"], accuracy_metric(rows) or METRICS["macs_share_percent"]
    known = [row for row in rows if row.value(x.name) is not None and row.value(y.name) is not None]
    if not known:
        raise UserError("nothing to draw: no budget has a measured latency")
    methods = list(dict.fromkeys(row.method for row in rows))
    with _figure(x.label_with_unit, y.label_with_unit) as (figure, axes):
        if y.name != "macs_share_percent":
            front = pareto_front(known, x, y)
            xs, ys = [row.value(x.name) for row in front], [row.value(y.name) for row in front]
            axes.plot(xs, ys, color=INK, alpha=0.45, linewidth=1.2, linestyle="--", zorder=1, label="Pareto front")
        for row in known:
            index = methods.index(row.method)
            colour = COLOURS[index % len(COLOURS)]
            px, py = _known(row, x), _known(row, y)
            p95 = row.value("p95_ms")
            axes.errorbar(
                [px], [py],
                xerr=None if p95 is None else [[0.0], [max(0.0, p95 - px)]],
                yerr=_whisker(row, y),
                fmt="none", ecolor=colour, elinewidth=1.3, capsize=3, alpha=0.8, zorder=2,
            )  # fmt: skip
            filled = "none" if row.unpruned else colour
            axes.plot(
                [px], [py],
                marker=_MARKERS[index % len(_MARKERS)], markersize=8, linestyle="none",
                markeredgecolor=colour, markerfacecolor=filled, markeredgewidth=1.8, zorder=3,
            )  # fmt: skip
            if row is chosen:
                ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
                axes.plot([px], [py], marker="o", markersize=17, **ring)
            text = f"{row.budget} (unpruned)" if row.unpruned else row.budget
            across, up = _beside(row, index, leftmost=px == min(_known(other, x) for other in known))
            axes.annotate(
                text, (px, py), xytext=(across, up), textcoords="offset points",
                ha="center" if across == 0 else "left" if across > 0 else "right", va="bottom" if up > 0 else "top",
                fontweight="bold" if row is chosen else "normal", zorder=4,
            )  # fmt: skip
        if len(methods) > 1:
            for index, method in enumerate(methods):
                colour = COLOURS[index % len(COLOURS)]
                axes.plot([], [], marker=_MARKERS[index % len(_MARKERS)], linestyle="none", color=colour, label=method)
        axes.margins(0.1, 0.14)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")
    return figure


def tokens_figure(rows: Sequence[Row]) -> Figure:
    """Tokens after each block, one line per budget; block 0 is the input."""
    with _figure("block", "tokens after the block") as (figure, axes):
        for row, colour, line in _lines(rows):
            counts = [row.tokens if row.tokens is not None else row.schedule[0], *row.schedule]
            style = {"color": colour, "linestyle": line, "linewidth": 2}
            axes.step(range(len(counts)), counts, where="post", label=label(row, rows), **style)
        blocks = max((len(row.schedule) for row in rows), default=0)
        axes.set_xticks(range(0, blocks + 1, 1 if blocks <= 14 else 2))
        axes.set_xlim(0, blocks)
        axes.set_ylim(bottom=0)
        _legend(axes, rows)
    return figure


def latency_figure(rows: Sequence[Row]) -> Figure:
    """Cumulative distribution of latency, one line per budget, up to the 99.5th percentile of the slowest.

    Raises:
        UserError: no row has a latency, or matplotlib is not installed.
    """
    timed = [row for row in rows if row.latency_quantiles_ms]
    if not timed:
        raise UserError("nothing to draw: no budget has a measured latency")
    shares = [100 * quantile for quantile in QUANTILES]
    with _figure("latency (ms)", "inferences at most this slow (%)") as (figure, axes):
        for row, colour, line in _lines(timed):
            axes.plot(row.latency_quantiles_ms, shares, color=colour, linestyle=line, linewidth=2, label=label(row, rows))
        axes.axhline(95, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate("p95", (0, 95), xycoords=("axes fraction", "data"), xytext=(3, -3), textcoords="offset points", va="top")
        low = min(row.latency_quantiles_ms[0] for row in timed)
        high = max(row.latency_quantiles_ms[-2] for row in timed)
        pad = 0.03 * (high - low) or 0.01 * high
        axes.set_xlim(low - 2 * pad, high + pad)
        axes.set_ylim(0, 101)
        _legend(axes, timed)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure to `path`, atomically, on white. The same figure gives the same SVG.

    Raises:
        UserError: the name ends in neither .svg nor .png, or the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise UserError(f"cannot draw {path.name}: the name must end in .svg or .png")
    with atomic_writer(path) as stream:
        stream.write(_drawn(figure, kind, "white"))
    return path


def inline_svg(figure: Figure, title: str, prefix: str) -> str:
    """The figure as an SVG element for an HTML page: transparent, scalable, text and grid in the page's own colours.

    Args:
        figure: what to draw.
        title: what it shows, for people who cannot see it.
        prefix: put before every id, so that several figures can share a page.
    """
    text = _drawn(figure, "svg", "none").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    themed = {INK: "ink", GRID: "grid", **{colour.lower(): f"line-{index}" for index, colour in enumerate(COLOURS)}}
    for colour, name in themed.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    quoted = escape(title, {'"': "&quot;"})
    return f'{head} role="img" aria-label="{quoted}"><title>{escape(title)}</title>{rest}'


@contextmanager
def _figure(x: str, y: str) -> Iterator[tuple[Figure, Any]]:
    """An empty figure with labelled axes, to be filled in the package's style."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "host") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield figure, axes


def _drawn(figure: Figure, kind: str, background: str) -> bytes:
    import matplotlib as mpl

    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(_STYLE):
        figure.savefig(stream, format=kind, dpi=160, facecolor=background, metadata=metadata)
    return stream.getvalue()


def _lines(rows: Sequence[Row]) -> Iterator[tuple[Row, str, str]]:
    """Rows with the colour of their budget and the line style of their method."""
    budgets = list(dict.fromkeys(row.budget for row in rows))
    methods = list(dict.fromkeys((row.profile.path, row.method) for row in rows))
    for row in rows:
        index = budgets.index(row.budget)
        style = methods.index((row.profile.path, row.method)) + index // len(COLOURS)
        yield row, COLOURS[index % len(COLOURS)], _LINES[style % len(_LINES)]


def _legend(axes: Any, rows: Sequence[Row]) -> None:
    axes.legend(loc="best", fontsize=10 if len(rows) <= 8 else 7, ncols=1 if len(rows) <= 8 else 2)


def _beside(row: Row, method: int, leftmost: bool) -> tuple[int, int]:
    """Where a point's name goes, in typographic points from it: off the front, the whiskers and the other methods' names."""
    if row.unpruned:
        return 0, -14 - 12 * method
    return (8, -6) if leftmost or method else (-8, 6)


def _known(row: Row, metric: Metric) -> float:
    value = row.value(metric.name)
    if value is None:
        raise ValueError(f"{row.name} has no {metric.name}")
    return value


def _whisker(row: Row, metric: Metric) -> list[list[float]] | None:
    """Distances down and up from the point. Top-1 is as uncertain as its change from the unpruned model, image by image."""
    interval: Interval | None = row.intervals.get("top1_change_points" if metric.name == "top1_percent" else metric.name)
    if interval is None or interval.low is None or interval.high is None or interval.low == interval.high:
        return None
    return [[max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]]
