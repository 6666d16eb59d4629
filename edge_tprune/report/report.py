"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_tprune.analysis import wording
from edge_tprune.analysis.choice import Answer, Choice, choose_per_group
from edge_tprune.analysis.classes import ClassChange, list_class_changes
from edge_tprune.analysis.comparison import (
    Column,
    describe_group,
    describe_marks,
    describe_merged,
    list_missing,
    list_unresolved,
    make_columns,
    merge_unpruned,
)
from edge_tprune.analysis.conditions import NOT_EVALUATED
from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Group, Profile, Row, Rows, describe_differences, find_differences
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import check_own, write_text
from edge_tprune.report import page, plot
from edge_tprune.report.chart import COLOURS, DARK_COLOURS, interval_text
from edge_tprune.report.facts import list_environment, list_measurement, name_machine
from edge_tprune.report.figures import PICTURES, describe_scatters, make_figures, make_picture
from edge_tprune.report.reproduction import list_commands
from edge_tprune.text import printable

_TEMPLATE = Path(__file__).with_name("report.html")
_SCRIPT = Path(__file__).with_name("report.js")
#: Apache ECharts 6.1.0: dist/echarts.common.min.js of its npm package, unchanged.
_ECHARTS = Path(__file__).with_name("echarts")
_UNCERTAIN = re.compile(r"(\S+) (±\S+|\(.+\))")  #: a value with its interval, as `Metric.uncertain` writes it
_WORST_CLASSES = 5  # of a budget
_DRAWN_GROUPS = 8  # more would make a page that no mail takes

#: What a verdict means, from good to bad.
_VERDICTS = {
    "valid": "The measuring program found no sign that anything disturbed this run.",
    "suspect": "Something may have disturbed this run; take its numbers with care.",
    "invalid": "This run must not be used for a decision.",
}
#: The numbers in large print, beside the latency that the answer names, and those that are relative to the unpruned model already.
_TILES = (
    "speedup", "top1_change_points", "agreement_percent", "cosine_distance", "energy_mj_per_image", "mean_power_w",
    "peak_memory_mb",
)  # fmt: skip
_RELATIVE = ("speedup", "top1_change_points", "agreement_percent", "cosine_distance")


@dataclass(frozen=True)
class Request:
    """What a page is asked for."""

    constraints: Mapping[str, float | None] | None = None  #: as in `choice.choose`; what the recommendation has to keep
    objective: str | None = None  #: as in `choice.choose`
    margin: EqualityMargin = WITHIN_RUN
    samples: Sequence[Mapping[str, object]] = ()  #: images with their tokens, from `pictures.describe_explanation`
    commands: Sequence[str] | None = None  #: how to reproduce the run; derived from the profiles where None


def write_report(
    source: Rows | Path | str | Iterable[Path | str],
    out: Path,
    request: Request | None = None,
    pictures: Sequence[tuple[str, Path]] = (),
) -> Path:
    """Writes the report on `source` to `out`, atomically, and returns `out`.

    Args:
        source: rows, or paths for `load_rows`.
        out: the HTML file.
        request: what is asked.
        pictures: also draw these (a name from PICTURES, an .svg or .png file), of the first group; they are written first, so
            that the page never stands without them.

    Raises:
        UserError: profiles that cannot be read, a wrong constraint, a picture that the data cannot fill, a package that is
            missing, a place that cannot be written.
    """
    request = request or Request()
    check_own(out, page.OWN_FILES[".html"], "a report")
    for name, file in pictures:
        if name not in PICTURES:
            raise UserError(f"no picture {name!r} (there are: {', '.join(PICTURES)}).{did_you_mean(name, PICTURES)}")
        plot.check_place(file)
    rows = source if isinstance(source, Rows) else load_rows(source)
    answers = choose_per_group(rows, request.constraints, request.objective, request.margin)
    text = _render(rows, answers, request)
    group, answer = answers[0]
    data = {name: make_picture(name, group.rows, answer.question, _chosen_row(answer)) for name, _ in pictures}
    for name, file in pictures:
        plot.save(plot.figure(data[name]), file)
    check_own(out, page.OWN_FILES[".html"], "a report")  # which something else may have taken meanwhile
    write_text(out, text)
    return out


def _render(rows: Rows, answers: Sequence[tuple[Group, Answer]], request: Request) -> str:
    profiles = list({row.profile.path: row.profile for row in rows.rows}.values())
    models = dict.fromkeys(row.model for row in rows.rows)
    started = sorted(profile.started_utc[:16].replace("T", " ") for profile in profiles)
    period = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
    groups: list[dict[str, object]] = []
    charts: dict[str, dict[str, object]] = {}
    for index, (group, answer) in enumerate(answers):
        if index < _DRAWN_GROUPS:
            figures, absent = make_figures(f"g{index}", group, answer.question, _chosen_row(answer))
        else:
            figures, absent = (
                [],
                [f"Only the first {_DRAWN_GROUPS} groups are drawn. Make a report of this one alone to see its plots."],
            )
        charts |= {figure.id: figure.data.to_json() for figure in figures}
        groups.append({**_describe_answer(group, answer), "figures": figures, "absent": absent})
    scripts = [(_ECHARTS / "echarts.common.min.js").read_text(encoding="utf-8"), _SCRIPT.read_text(encoding="utf-8")]
    return page.render(
        _TEMPLATE,
        scripts if charts else [],
        title=f"Token budgets of {', '.join(models)}",
        subtitle=f"Measured {period} UTC on {', '.join(dict.fromkeys(map(name_machine, profiles)))}",
        colours=COLOURS,
        dark_colours=DARK_COLOURS,
        groups=groups,
        charts=charts,
        marks=describe_marks(request.margin),
        samples=request.samples,
        differences=describe_differences(find_differences(rows.rows)) if len(answers) > 1 else "",
        caveats=_list_caveats(rows, answers),
        runs=[
            {
                "name": profile.name,
                "verdict": _describe_verdict([row for row in rows.rows if row.profile is profile]),
                "measured": list_measurement(profile, rows),
                "environment": list_environment(profile, rows),
            }
            for profile in profiles
        ],
        commands=_list_commands(profiles, request),
    )


def _list_commands(profiles: Sequence[Profile], request: Request) -> list[str]:
    if request.commands is not None:
        return list(request.commands)
    return list_commands(profiles, request.constraints, request.objective)


def _describe_answer(group: Group, answer: Answer) -> dict[str, object]:
    """What the page says of one group: the answer and its table."""
    chosen, margin = _chosen_row(answer), answer.question.margin
    table = merge_unpruned(group.rows, chosen)
    columns = sorted(make_columns(table, margin), key=_place)
    best = [column.best(table.rows) for column in columns]
    notes = [f"Not resolved: {text}." for text in list_unresolved(table.rows, margin)]
    return {
        "title": describe_group(group),
        "fits": chosen is not None,
        "verdict": _describe(answer),
        "tiles": _list_tiles(answer) if isinstance(answer, Choice) else [],
        "details": _list_details(answer) if isinstance(answer, Choice) else [],
        "columns": [{"label": column.label, "unit": column.unit, "is_name": column.metric is None} for column in columns],
        "rows": [
            {
                "chosen": row is chosen,
                "cells": [_make_cell(column, row, marks[place]) for column, marks in zip(columns, best)],
            }
            for place, row in enumerate(table.rows)
        ],
        "notes": [text for text in [*notes, describe_merged(table, margin)] if text],
        "classes": [
            _describe_classes(row, changes) for row in table.rows if (changes := list_class_changes(row)) and not row.unpruned
        ],
        "plot_note": describe_scatters(chosen is not None),
    }


def _describe_classes(row: Row, changes: Sequence[ClassChange]) -> dict[str, object]:
    """The classes that a budget hurts most."""
    resolved = sum(change.resolved and change.change_points.value < 0 for change in changes)
    rest = (
        f"{resolved} of {len(changes)} classes lose more than chance explains"
        if resolved
        else "no loss is resolved from chance"
    )
    return {
        "budget": row.name,
        "summary": rest,
        "rows": [
            {
                "name": change.title,
                "images": change.images,
                "unpruned": f"{change.unpruned_percent:.1f}",
                "change": METRICS["top1_change_points"].uncertain(change.change_points),
                "resolved": change.resolved,
            }
            for change in changes[:_WORST_CLASSES]
        ],
    }


def _make_cell(column: Column, row: Row, best: bool) -> dict[str, object]:
    """A cell: the value, and below it in small print how sure it is."""
    text = column.text(row)
    match = None if column.metric is None else _UNCERTAIN.fullmatch(text)
    value, reach = match.groups() if match else (text, "")
    return {"value": value, "reach": reach, "best": best, "column": column.name, "is_name": column.metric is None}


def _describe(answer: Answer) -> str:
    if isinstance(answer, Choice):
        return wording.describe_choice(answer)
    return f"No recommendation: {wording.describe_no_choice(answer)}"


def _place(column: Column) -> int:
    """Where a column stands on the page: what decides comes first, for a phone shows only a few at a time."""
    order = ("run", "method", "budget", "speedup", "p50_ms", "top1_change_points", "agreement_percent", "top1_percent")
    return order.index(column.name) if column.name in order else len(order)


def _list_tiles(choice: Choice) -> list[dict[str, object]]:
    """The chosen budget's numbers in large print: how sure each is, and what it is without pruning."""
    chosen = choice.row
    unpruned = next((row for row in choice.rows if row.unpruned and row.profile.path == chosen.profile.path), None)
    tiles: list[dict[str, object]] = []
    for metric in (choice.question.latency, *(METRICS[name] for name in _TILES)):
        if chosen.value(metric.name) is None:
            continue
        if metric.name == "agreement_percent" and chosen.value("top1_change_points") is not None:
            continue  # stands in for accuracy where there are no labels
        reach = interval_text(chosen, metric)
        notes = [f"95 %: {reach}"] if reach else []
        before = None if unpruned is None or unpruned is chosen or metric.name in _RELATIVE else unpruned.value(metric.name)
        if before is not None:
            notes.append(f"unpruned {metric.quantity(before)}")
        tiles.append({"name": metric.label, "value": metric.quantity(chosen.value(metric.name)), "notes": notes})
    return tiles


def _list_details(choice: Choice) -> list[str]:
    details = [wording.describe_headroom(headroom) for headroom in choice.headroom]
    return [text for text in [*details, wording.describe_trade(choice), wording.describe_front(choice)] if text]


def _describe_verdict(rows: Sequence[Row]) -> dict[str, object]:
    """What the measuring program said of a run (all rows are of it): the worst of its budgets' verdicts, with every reason."""
    given = [(row, row.verdict) for row in rows if row.verdict is not None]
    if not given:
        text = "This run was recorded without a verdict: it was not checked for disturbances."
        return {"status": "unjudged", "label": "not judged", "text": text, "reasons": []}
    status = max((verdict.status for _, verdict in given), key=list(_VERDICTS).index)
    summary = rows[0].profile.summary
    of_run = () if summary is None or summary.verdict is None else summary.verdict.reasons
    pointers = {printable(reason.text) for reason in of_run if reason.code == "budget"}
    reasons: dict[str, list[str]] = {}
    for row, verdict in given:
        for reason in verdict.reasons:
            if reason not in pointers:  # "budget 0.8 is suspect": its own reasons follow
                reasons.setdefault(reason, []).append(row.budget)
    texts = [
        reason if len(budgets) == len(rows) else f"budget{'s' if len(budgets) > 1 else ''} {', '.join(budgets)}: {reason}"
        for reason, budgets in reasons.items()
    ]
    return {
        "status": status,
        "label": f"data {status}",
        "text": _VERDICTS[status],
        "reasons": [printable(text) for text in texts],
    }


def _list_caveats(rows: Rows, answers: Sequence[tuple[Group, Answer]]) -> list[str]:
    """What a reader has to know, worst first, each once."""
    found: list[str] = [*rows.warnings]
    for group, answer in answers:
        if isinstance(answer, Choice):
            found += [text for text in wording.list_caveats(answer) if not any(text in warning for warning in rows.warnings)]
        absent = list_missing(group.rows)
        if absent:
            found.append(f"not measured: {', '.join(absent)}")
        found += [f"{row.name} is not to be used: {row.unfit}" for row in group.rows if row.unfit]
        data = group.conditions.get("eval data", NOT_EVALUATED)
        if data != NOT_EVALUATED:
            found.append(
                f"Accuracy was measured on {data}. Its interval covers the choice of images, not images of another kind."
            )
    found.append(
        "Latency intervals cover what changed from round to round within a run. Another machine, power mode or temperature is "
        "another measurement."
    )
    return list(dict.fromkeys(map(printable, found)))


def _chosen_row(answer: Answer) -> Row | None:
    return answer.row if isinstance(answer, Choice) else None
