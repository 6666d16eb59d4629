"""Pictures of a comparison for paper, and for pages where scripts are off: what `chart` and `timeline` hold, drawn with matplotlib.

Made with matplotlib's object interface, so that no global figure state is touched and no display is needed. Shapes and line
styles repeat what colour says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from edge_tprune.errors import UserError
from edge_tprune.files import atomic_writer, check_own
from edge_tprune.report.chart import COLOURS, Ends, Lines, Point, Scatter
from edge_tprune.report.drawing import matplotlib_style
from edge_tprune.report.page import MADE_BY, OWN_FILES
from edge_tprune.report.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#24292f"  #: axes and text; a page swaps it for the colour of its theme
GRID = "#d0d7de"  #: grid lines; likewise
_MARKERS = ("o", "s", "D", "^", "v", "P")
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
_SIZE_INCHES = (5.4, 3.9)  # so small that 11 point text is still read where a phone shrinks it to its width
_LANE_INCHES = 1.35
_SHADED_TURNS = 400  # more are thinner than a printed line
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


def figure(data: Scatter | Lines | Timeline) -> Figure:
    """The picture of any of them.

    Raises:
        UserError: matplotlib is not installed.
    """
    if isinstance(data, Scatter):
        return scatter_figure(data)
    return lines_figure(data) if isinstance(data, Lines) else timeline_figure(data)


def scatter_figure(data: Scatter) -> Figure:
    """Accuracy against a cost: whiskers over the 95 % intervals, the Pareto front dashed, the chosen budget in a ring."""
    with _empty() as drawing:
        from edge_tprune.report.labels import Label, place_labels

        axes = drawing.add_subplot()
        axes.set_xlabel(data.x.label_with_unit)
        axes.set_ylabel(data.y.label_with_unit)
        if data.front:
            xs, ys = zip(*data.front)
            axes.plot(xs, ys, color=INK, alpha=0.45, linewidth=1.2, linestyle="--", zorder=1, label="Pareto front")
        for point in data.points:
            _draw_point(axes, point)
        if len(data.methods) > 1:
            for index, method in enumerate(data.methods):
                colour = COLOURS[index % len(COLOURS)]
                axes.plot([], [], marker=_MARKERS[index % len(_MARKERS)], linestyle="none", color=colour, label=method)
        axes.margins(0.12, 0.16)
        _add_legend(drawing)
        labels = [Label(point.name, point.x, point.y, point.chosen) for point in data.points]
        place_labels(axes, labels, [line for point in data.points for line in _whiskers(point)])
    return drawing


def _draw_point(axes: Any, point: Point) -> None:
    """A budget with its whiskers, in a ring where it is the recommended one."""
    colour = COLOURS[point.style % len(COLOURS)]
    for x0, y0, x1, y1 in _whiskers(point):
        cap = "|" if y0 == y1 else "_"
        axes.plot([x0, x1], [y0, y1], marker=cap, markevery=[1], color=colour, linewidth=1.3, alpha=0.8, markersize=6, zorder=2)
    axes.plot(
        [point.x], [point.y],
        marker=_MARKERS[point.style % len(_MARKERS)], markersize=8, linestyle="none",
        markeredgecolor=colour, markerfacecolor="none" if point.unpruned else colour, markeredgewidth=1.8, zorder=3,
    )  # fmt: skip
    if point.chosen:
        ring: Any = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
        axes.plot([point.x], [point.y], marker="o", markersize=17, **ring)


def _whiskers(point: Point) -> list[tuple[float, float, float, float]]:
    """(x0, y0, x1, y1) from the point to each end of its intervals that is known."""
    horizontal = [(point.x, point.y, end, point.y) for end in _known(point.x_range)]
    return horizontal + [(point.x, point.y, point.x, end) for end in _known(point.y_range)]


def _add_legend(drawing: Any, columns: int = 4, size: float = 9) -> None:
    """The legend above the axes, where it covers nothing."""
    handles, names = drawing.axes[0].get_legend_handles_labels()
    if handles:
        drawing.legend(
            handles, names, loc="outside upper left", ncols=columns, fontsize=size, handlelength=1.8, columnspacing=1.2
        )


def lines_figure(data: Lines) -> Figure:
    """Budgets as lines: tokens after each block, or the distribution of latency."""
    with _empty() as drawing:
        axes = drawing.add_subplot()
        axes.set_xlabel(_with_unit(data.x))
        axes.set_ylabel(_with_unit(data.y))
        for line in data.lines:
            style = {"color": COLOURS[line.style % len(COLOURS)], "linestyle": _LINES[line.dash % len(_LINES)], "linewidth": 2}
            if data.stepped:
                axes.step(line.x, line.y, where="post", label=line.name, **style)
            else:
                axes.plot(line.x, line.y, label=line.name, **style)
        if data.stepped:
            axes.set_xticks(range(0, int(data.window[1]) + 1, 1 if data.window[1] <= 14 else 2))
        if data.mark:
            axes.axhline(data.mark[0], color=INK, linewidth=0.8, linestyle=":")
            place: Any = {"xycoords": ("axes fraction", "data"), "xytext": (3, -3), "textcoords": "offset points", "va": "top"}
            axes.annotate(data.mark[1], (0, data.mark[0]), **place)
        axes.set_xlim(*data.window)
        axes.set_ylim(bottom=0)
        _add_legend(drawing, 4 if max((len(line.name) for line in data.lines), default=0) > 8 else 6)
    return drawing


def timeline_figure(data: Timeline) -> Figure:
    """Latency of each turn, then a lane per kind of sensor, shaded by the budget whose turn it was."""
    scale, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if data.seconds > 3 * s), (1, "s"))
    with _empty((7.2, 0.9 + _LANE_INCHES * (1 + len(data.lanes)))) as drawing:
        every = drawing.subplots(1 + len(data.lanes), 1, sharex=True, squeeze=False)[:, 0]
        for axes in every:
            axes.grid(axis="x", visible=False)
            for begin, end in data.idle:
                axes.axvspan(begin / scale, end / scale, color=INK, alpha=0.12, linewidth=0)
            for turn in data.turns if len(data.turns) <= _SHADED_TURNS else ():
                colour = COLOURS[data.budgets.index(turn.budget) % len(COLOURS)]
                axes.axvspan(turn.begin_s / scale, turn.end_s / scale, color=colour, alpha=0.16, linewidth=0)
        for index, budget in enumerate(data.budgets):
            own = [turn for turn in data.turns if turn.budget == budget]
            middle = [(turn.begin_s + turn.end_s) / 2 / scale for turn in own]
            style: Any = {
                "marker": _MARKERS[index % len(_MARKERS)],
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": "none",
            }
            if own:
                every[0].plot(middle, [turn.p50_ms for turn in own], markersize=4, label=budget, **style)
        every[0].set_ylabel("p50 (ms)")
        if data.turns:
            every[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=9, handletextpad=0.2, columnspacing=1.2)
        for axes, lane in zip(every[1:], data.lanes):
            axes.set_ylabel(f"{lane.title}\n({lane.unit})")
            for index, trace in enumerate(lane.traces):
                colour, line = (INK, *COLOURS)[index], _LINES[index % len(_LINES)]
                axes.plot(trace.seconds / scale, trace.mean, color=colour, linestyle=line, linewidth=1.2, label=trace.name)
                if trace.low is not None:
                    axes.fill_between(trace.seconds / scale, trace.low, trace.high, color=colour, alpha=0.2, linewidth=0)
            axes.legend(loc="upper right", fontsize=8, ncols=3)
            axes.margins(y=0.25)
        every[-1].set_xlabel(f"time ({unit})")
        drawing.align_ylabels()
    return drawing


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure to `path`, atomically, on white. The same figure gives the same SVG.

    Raises:
        UserError: the name ends in neither .svg nor .png, or the file cannot be written.
    """
    check_place(path)
    with atomic_writer(path) as stream:
        stream.write(_drawn(figure, path.suffix.lower()[1:], "white"))
    return path


def check_place(path: Path) -> None:
    """Refuses a file that no figure can be drawn to.

    Raises:
        UserError: a name that ends otherwise, or a file there that is no figure.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise UserError(f"cannot draw {path.name}: the name must end in .svg or .png")
    check_own(path, OWN_FILES[path.suffix.lower()], "a picture")


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
    text = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)  # finer than any screen
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    themed = {INK: "ink", GRID: "grid", **{colour.lower(): f"line-{index}" for index, colour in enumerate(COLOURS)}}
    for colour, name in themed.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    quoted = escape(title, {'"': "&quot;"})
    return f'{head} role="img" aria-label="{quoted}"><title>{escape(title)}</title>{rest}'


@contextmanager
def _empty(size: tuple[float, float] = _SIZE_INCHES) -> Iterator[Figure]:
    """An empty figure, to be filled in the package's style."""
    with matplotlib_style(_STYLE):
        from matplotlib.figure import Figure

        yield Figure(figsize=size, layout="constrained")


def _drawn(figure: Figure, kind: str, background: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": MADE_BY} if kind == "svg" else {"Software": MADE_BY}
    with matplotlib_style(_STYLE):
        figure.savefig(stream, format=kind, dpi=160, facecolor=background, metadata=metadata)
    return stream.getvalue()


def _known(ends: Ends | None) -> list[float]:
    return [end for end in ends or () if end is not None]


def _with_unit(axis: Sequence[str]) -> str:
    return f"{axis[0]} ({axis[1]})" if axis[1] else axis[0]
