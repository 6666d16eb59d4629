"""The figures of a page: which there are, what each shows in words, and what none could be made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_tprune.analysis.choice import Question
from edge_tprune.analysis.comparison import merge_unpruned
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Group, Row
from edge_tprune.errors import UserError
from edge_tprune.record.reader import read_run
from edge_tprune.report import plot
from edge_tprune.report.chart import Lines, Scatter, make_distribution, make_scatter, make_token_lines
from edge_tprune.report.facts import capitalize
from edge_tprune.report.timeline import MAX_POINTS, Timeline, make_timeline
from edge_tprune.text import printable

Picture = Scatter | Lines | Timeline

_TIMELINES = 3  # of one group: the recommended run's first
#: What accuracy is drawn against, by the name of the picture. "accuracy" takes the latency that the answer names.
_COSTS = {"p50": "p50_ms", "p95": "p95_ms", "energy": "energy_mj_per_image", "memory": "peak_memory_mb"}
_WHY_ABSENT = {"energy_mj_per_image": "the machine has no power sensor, or it was not recorded"}
#: The pictures that can be drawn for paper.
PICTURES = ("accuracy", *_COSTS, "latency", "tokens", "timeline")


@dataclass(frozen=True)
class Figure:
    """One plot of a page."""

    id: str  #: of the element that the page's script draws into
    heading: str
    caption: str
    data: Picture
    svg: str  #: the same plot for paper and for browsers without scripts
    width: str  #: "third", "half" or "wide"


def make_picture(name: str, rows: Sequence[Row], question: Question, chosen: Row | None) -> Picture:
    """The data of one of PICTURES.

    Raises:
        UserError: no row has it measured.
    """
    data: Picture | None
    cost = question.latency.name if name == "accuracy" else _COSTS.get(name)
    if cost is not None:
        data = make_scatter(merge_unpruned(rows, chosen).rows, cost, chosen)
    elif name == "latency":
        data = make_distribution(rows, chosen)
    elif name == "tokens":
        data = make_token_lines(rows, chosen)
    else:
        data = make_timeline(read_run((chosen or rows[0]).profile.path, keep=False))
    if data is None:
        raise UserError(f"nothing to draw for picture {name!r}: no budget has it measured")
    return data


def make_figures(prefix: str, group: Group, question: Question, chosen: Row | None) -> tuple[list[Figure], list[str]]:
    """The plots of a group, and in words what none could be made of."""
    rows = merge_unpruned(group.rows, chosen).rows
    scatters, absent = _make_scatters(prefix, rows, question, chosen)
    lines = _make_lines(prefix, rows, chosen)
    few = [*scatters, *lines]
    thirds = len(scatters) if len(scatters) == 3 else 3 if len(few) == 3 else 0  # so that rows are full
    figures = [replace(figure, width="third" if place < thirds else "half") for place, figure in enumerate(few)]
    profiles = {row.profile.path: row.profile for row in group.rows}
    runs = sorted(profiles.values(), key=lambda profile: chosen is None or profile is not chosen.profile)
    for index, profile in enumerate(runs[:_TIMELINES]):
        history = make_timeline(read_run(profile.path, keep=False))
        name = f" of {profile.name}" if len(runs) > 1 else ""
        caption = _describe_timeline(history)
        figures.append(_make_figure(f"{prefix}-time{index}", history, f"The run over time{name}", caption, "wide"))
    if len(runs) > _TIMELINES:
        absent.append(f"Timelines of {len(runs) - _TIMELINES} more runs are not shown.")
    return figures, absent


def describe_scatters(has_choice: bool) -> str:
    """What the marks in the plots of accuracy mean."""
    ring = "Ring: recommended. " if has_choice else ""
    return (
        "In the plots of accuracy, whiskers are 95 % intervals (of accuracy: of the change from the unpruned model, paired by image); "
        f"one that is missing on a side is open there. Hollow: unpruned. {ring}Dashed: the Pareto front."
    )


def _make_scatters(prefix: str, rows: Sequence[Row], question: Question, chosen: Row | None) -> tuple[list[Figure], list[str]]:
    figures, absent = [], []
    for cost in (question.latency.name, "energy_mj_per_image", "peak_memory_mb"):
        data = make_scatter(rows, cost, chosen)
        if data is None:
            absent.append(f"{capitalize(METRICS[cost].label)} was not measured: {_why_missing(cost, rows)}.")
            continue
        caption = "Up and left is better." if data.y.better == "higher" else ""
        heading = f"{capitalize(data.y.label)} against {data.x.label}"
        name = next(name for name, metric in _COSTS.items() if metric == cost)
        figures.append(_make_figure(f"{prefix}-{name}", data, heading, caption))
    return figures, absent


def _make_lines(prefix: str, rows: Sequence[Row], chosen: Row | None) -> list[Figure]:
    figures = []
    if (latency := make_distribution(rows, chosen)) is not None:
        caption = f"Latency of single inferences: the share that took at most this long.{_count_left_out(latency)}"
        figures.append(_make_figure(f"{prefix}-latency", latency, "Distribution of latency", caption))
    tokens = make_token_lines(rows, chosen)
    caption = f"Tokens after each block, class token included; block 0 is the input.{_count_left_out(tokens)}"
    return [*figures, _make_figure(f"{prefix}-tokens", tokens, "Tokens left after each block", caption)]


def _make_figure(name: str, data: Picture, heading: str, caption: str, width: str = "half") -> Figure:
    from markupsafe import Markup

    # Marked as safe here and nowhere else: matplotlib escapes the names it draws, inline_svg its own title.
    svg = Markup(plot.inline_svg(plot.figure(data), heading, name))
    return Figure(f"{name}-live", heading, caption, data, svg, width)


def _describe_timeline(history: Timeline) -> str:
    """What a timeline shows, how it was thinned, and what it cannot show."""
    text = "Shaded by the budget whose turn it was" + ("; grey: left idle, to measure idle power." if history.idle else ".")
    if history.every > 1:
        text += f" Of the rounds, one in {history.every} is shown."
    if history.thinned:
        text += (
            f" {history.readings} readings are drawn as means, at most {MAX_POINTS} a line; the band reaches from the lowest "
            "reading to the highest."
        )
    if left_out := sum(lane.left_out for lane in history.lanes):
        text += f" {left_out} more sensors were recorded and are not drawn."
    if history.sessions > 1:
        text += f" The run was resumed {history.sessions - 1} times; its parts are drawn one after the other."
    if history.absent:
        *most, last = history.absent
        names = f"{', '.join(most)} and {last}" if most else last
        text += f" Not recorded: {names}. The machine does not report it, or the run predates these sensors."
    return text


def _count_left_out(data: Lines) -> str:
    return f" {data.left_out} more budgets are not drawn." if data.left_out else ""


def _why_missing(metric: str, rows: Sequence[Row]) -> str:
    whys = dict.fromkeys(printable(why) for row in rows if (why := row.why_missing.get(metric)))
    return "; ".join(whys) or _WHY_ABSENT.get(metric, "this profile does not contain it")
