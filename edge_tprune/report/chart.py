"""What the plots show, as plain data: `plot` draws it for paper and where scripts are off, the page's own script on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_tprune.analysis.choice import accuracy_metric, pareto_front
from edge_tprune.analysis.comparison import metric_text
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import QUANTILES, Row
from edge_tprune.analysis.wording import NOT_RESOLVED, name_row

#: Colours of lines and points on light and on dark grounds: at least 3:1 against both of a theme's grounds, and apart for people
#: with any common colour vision (24 or more in CIELAB, also as Machado et al. (2009) simulate protanopia and deuteranopia).
COLOURS = ("#0693ce", "#f4510c", "#174d34", "#981b76", "#5e4306", "#5905b9")
DARK_COLOURS = ("#68aaf9", "#e69371", "#d4f5f1", "#e123ab", "#f7e039", "#9651f7")
#: Beyond these, a plot of lines is a thicket.
MAX_LINES = 12

_FACTS = (
    "p50_ms", "p95_ms", "p99_ms", "speedup", "throughput_images_per_s", "top1_percent", "top1_change_points", "agreement_percent", "cosine_distance",
    "energy_mj_per_image", "mean_power_w", "peak_memory_mb", "macs_share_percent",
)  # fmt: skip

Range = tuple[float, float]
Ends = tuple[float | None, float | None]  # of an interval; None where too little was measured to tell


@dataclass(frozen=True)
class Point:
    """One budget in a plot of accuracy against a cost."""

    name: str
    x: float
    y: float
    x_range: Ends | None  #: the 95 % interval, where one is known
    y_range: Ends | None
    style: int  #: which colour and which shape
    unpruned: bool
    chosen: bool
    facts: tuple[tuple[str, str], ...]  #: what hovering tells: name and value


@dataclass(frozen=True)
class Scatter:
    """Accuracy against a cost, with the budgets that nothing beats in both."""

    x: Metric
    y: Metric
    points: tuple[Point, ...]
    front: tuple[tuple[float, float], ...]  #: from the cheapest on; empty where accuracy is unknown
    methods: tuple[str, ...]  #: named in a legend where there are several: then style says the method, else the budget

    def to_json(self) -> dict[str, object]:
        """For the page's script."""
        return {
            "kind": "scatter",
            "x": _axis(self.x),
            "y": _axis(self.y),
            "points": [
                {
                    "name": point.name, "x": point.x, "y": point.y, "xr": point.x_range, "yr": point.y_range, "style": point.style,
                    "hollow": point.unpruned, "chosen": point.chosen, "facts": point.facts,
                }
                for point in self.points
            ],
            "front": self.front,
            "methods": self.methods if len(self.methods) > 1 else (),
        }  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One budget as a line."""

    name: str
    style: int  #: which colour
    dash: int  #: which kind of line
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Lines:
    """Several budgets as lines over one axis."""

    x: tuple[str, str]  #: what is on the horizontal axis, and its unit
    y: tuple[str, str]
    lines: tuple[Line, ...]
    stepped: bool  #: whether a value holds until the next one
    window: Range  #: the part of the x axis to show at first
    mark: tuple[float, str] | None = None  #: a value of y worth a line of its own, and its name
    left_out: int = 0  #: budgets that were not drawn, for there are too many

    def to_json(self) -> dict[str, object]:
        """For the page's script."""
        return {
            "kind": "lines",
            "x": {"label": self.x[0], "unit": self.x[1]},
            "y": {"label": self.y[0], "unit": self.y[1]},
            "lines": [
                {"name": line.name, "style": line.style, "dash": line.dash, "data": list(zip(_short(line.x), _short(line.y)))}
                for line in self.lines
            ],
            "stepped": self.stepped,
            "window": self.window,
            "mark": self.mark,
        }


def make_scatter(rows: Sequence[Row], x: str, chosen: Row | None = None) -> Scatter | None:
    """Accuracy against the metric named `x`; None where no row has it.

    Without labels, accuracy is the agreement with the unpruned model; where nothing is known about it, the share of MACs
    takes its place and there is no front.
    """
    x_axis, y_axis = METRICS[x], accuracy_metric(rows) or METRICS["macs_share_percent"]
    known = [row for row in rows if row.value(x_axis.name) is not None and row.value(y_axis.name) is not None]
    if not known:
        return None
    methods = tuple(dict.fromkeys(row.method for row in rows))
    keys = _styles(rows)
    front = () if y_axis.name == "macs_share_percent" else pareto_front(known, x_axis, y_axis)
    return Scatter(
        x=x_axis,
        y=y_axis,
        points=tuple(
            Point(
                name="unpruned" if row.unpruned else row.budget,
                x=_value(row, x_axis),
                y=_value(row, y_axis),
                x_range=_range(row, x_axis),
                y_range=_range(row, y_axis),
                style=keys[row.method if len(methods) > 1 else row.budget],
                unpruned=row.unpruned,
                chosen=row is chosen,
                facts=facts(row),
            )
            for row in known
        ),
        front=tuple((_value(row, x_axis), _value(row, y_axis)) for row in front),
        methods=methods,
    )


def make_token_lines(rows: Sequence[Row], chosen: Row | None = None) -> Lines:
    """Tokens after each block; block 0 is the input."""
    shown = _select_lines(rows, chosen)
    lines = []
    for row, style, dash in _style_lines(shown, rows):
        counts = (row.tokens if row.tokens is not None else row.schedule[0], *row.schedule)
        lines.append(
            Line(
                _line_name(row, rows),
                style,
                dash,
                tuple(map(float, range(len(counts)))),
                tuple(map(float, counts)),
            )
        )
    blocks = max((len(row.schedule) for row in shown), default=0)
    return Lines(
        ("block", ""), ("tokens after the block", ""), tuple(lines), True, (0.0, float(blocks)), left_out=len(rows) - len(shown)
    )


def make_distribution(rows: Sequence[Row], chosen: Row | None = None) -> Lines | None:
    """The cumulative distribution of latency, shown at first up to the 99.5th percentile; None where nothing was timed."""
    timed = [row for row in rows if row.latency_quantiles_ms]
    if not timed:
        return None
    shown = _select_lines(timed, chosen)
    shares = tuple(100 * quantile for quantile in QUANTILES)
    lines = tuple(
        Line(_line_name(row, rows), style, dash, row.latency_quantiles_ms, shares)
        for row, style, dash in _style_lines(shown, rows)
    )
    low = min(row.latency_quantiles_ms[0] for row in shown)
    high = max(row.latency_quantiles_ms[-2] for row in shown)
    pad = 0.03 * (high - low) or 0.01 * high
    x_axis, y_axis = ("latency", "ms"), ("inferences at most this slow", "%")
    return Lines(x_axis, y_axis, lines, False, (low - 2 * pad, high + pad), (95.0, "p95"), len(timed) - len(shown))


def facts(row: Row) -> tuple[tuple[str, str], ...]:
    """What there is to know about a row in a few lines, with units and uncertainty."""
    lines = [("method", row.method), ("budget", row.budget), ("tokens", row.tokens_text)]
    for name in _FACTS:
        metric = METRICS.get(name)
        if metric is not None and row.value(name) is not None:
            lines.append((metric.label, quantity_text(row, metric)))
    return tuple(lines)


def quantity_text(row: Row, metric: Metric) -> str:
    """A row's value with unit and, where it is known, its 95 % interval: '7.12 ms (7.01 to 7.30 ms)'."""
    text = metric_text(row, metric)
    if text in ("equal", NOT_RESOLVED):
        return f"{text} to unpruned" if text == "equal" else f"{text} from unpruned"
    reach = interval_text(row, metric)
    return metric.quantity(row.value(metric.name)) + (f" ({reach})" if reach else "")


def interval_text(row: Row, metric: Metric) -> str:
    """The 95 % interval of a row's value in words; '' where there is nothing to say."""
    interval = row.intervals.get(metric.name)
    if interval is None or interval.low == interval.high:
        return ""
    if interval.low is None or interval.high is None:  # too little was measured to tell where it ends
        return (
            f"{metric.quantity(interval.low)} or more" if interval.high is None else f"{metric.quantity(interval.high)} or less"
        )
    return metric.range(interval)


def _line_name(row: Row, rows: Sequence[Row]) -> str:
    """What a line is called in a legend: the unpruned model has no method."""
    return (
        "unpruned"
        if row.unpruned and sum(other.unpruned for other in rows) == 1
        else name_row(row, rows).removeprefix("budget ")
    )


def _axis(metric: Metric) -> dict[str, object]:
    return {"label": metric.label, "unit": metric.unit, "digits": metric.digits}


def _styles(rows: Sequence[Row]) -> dict[str, int]:
    """A number for each method where there are several, else for each budget."""
    methods = dict.fromkeys(row.method for row in rows)
    names = methods if len(methods) > 1 else dict.fromkeys(row.budget for row in rows)
    return {name: index for index, name in enumerate(names)}


def _style_lines(shown: Sequence[Row], among: Sequence[Row]) -> list[tuple[Row, int, int]]:
    """Rows with the colour of their budget and the kind of line of their method."""
    budgets = list(dict.fromkeys(row.budget for row in among))
    series = list(dict.fromkeys((row.profile.path, row.method) for row in shown))
    one = len(series) == 1
    styled = []
    for row in shown:
        budget = budgets.index(row.budget)
        # One method: the line's kind repeats what its colour says. Several: it tells them apart.
        styled.append((row, budget, budget if one else series.index((row.profile.path, row.method))))
    return styled


def _select_lines(rows: Sequence[Row], chosen: Row | None) -> list[Row]:
    """At most MAX_LINES of the rows, in their order: the chosen one, unpruned ones and the fastest before others."""
    if len(rows) <= MAX_LINES:
        return list(rows)
    p50 = METRICS["p50_ms"]
    ranked = sorted(rows, key=lambda row: (row is not chosen, not row.unpruned, p50.cost(row.value("p50_ms"))))[:MAX_LINES]
    return [row for row in rows if any(row is other for other in ranked)]


def _range(row: Row, metric: Metric) -> Ends | None:
    """The ends of the interval. Top-1 is as uncertain as its change from the unpruned model, image by image."""
    change = metric.name == "top1_percent"
    interval = row.intervals.get("top1_change_points" if change else metric.name)
    if interval is None or interval.low == interval.high:
        return None
    offset = _value(row, metric) - interval.value if change else 0.0
    low, high = (None if end is None else end + offset for end in (interval.low, interval.high))
    return low, high


def _value(row: Row, metric: Metric) -> float:
    value = row.value(metric.name)
    if value is None:
        raise ValueError(f"{row.name} has no {metric.name}")
    return value


def _short(values: Sequence[float]) -> list[float]:
    """Five digits are more than a screen can show."""
    return [float(f"{value:.5g}") for value in values]
