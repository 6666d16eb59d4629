"""The comparison as one HTML file that needs nothing else, and as a Markdown table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_tprune.analysis.compare import Column, columns, describe_differences, missing, title
from edge_tprune.analysis.limits import margin_text
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.select import Choice, NothingFits, choose_each, label
from edge_tprune.analysis.table import NOT_EVALUATED, UNKNOWN, Group, Profile, Row, Rows, clean, load_rows
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import write_text
from edge_tprune.record.reader import read_run
from edge_tprune.report import chart, page, plot
from edge_tprune.report.chart import COLOURS, DARK_COLOURS, Lines, Scatter
from edge_tprune.report.timeline import MAX_POINTS, Timeline, timeline
from edge_tprune.statistics import Interval

_TEMPLATE = Path(__file__).with_name("report.html")
_SCRIPT = Path(__file__).with_name("report.js")
_ECHARTS = Path(__file__).with_name(
    "echarts"
)  #: Apache ECharts 6.1.0: dist/echarts.common.min.js of its npm package, unchanged
_TIMELINES = 3  # of one group: the recommended run's first
_DRAWN_GROUPS = 8  # more would make a page that no mail takes

#: What accuracy is drawn against, by the name of the picture.
_COSTS = {"p95": "p95_ms", "energy": "energy_mj_per_image", "memory": "peak_memory_mb"}
_WHY_ABSENT = {"energy_mj_per_image": "the machine has no power sensor, or it was not recorded"}
#: Conditions that say in which state the machine was.
_STATE = ("power mode", "clocks", "device", "driver", "runtime", "precision", "input", "transfer", "CUDA graph")
#: What a verdict means, from good to bad.
_VERDICTS = {
    "valid": "The measuring program found no sign that anything disturbed this run.",
    "suspect": "Something may have disturbed this run; take its numbers with care.",
    "invalid": "This run must not be used for a decision.",
}
#: The pictures there are, in the page's order.
PICTURES = (*_COSTS, "latency", "tokens", "timeline")
#: The numbers in large print, and those of them that are already said in relation to the unpruned model.
_TILES = (
    "p95_ms",
    "speedup",
    "top1_change_points",
    "agreement_percent",
    "energy_mj_per_image",
    "mean_power_w",
    "peak_memory_mb",
)
_RELATIVE = ("speedup", "top1_change_points", "agreement_percent")


def write_report(
    source: Rows | Path | str | Iterable[Path | str],
    out: Path,
    *,
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    pictures: Sequence[tuple[str, Path]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    commands: Sequence[str] | None = None,
) -> Path:
    """Writes the report on `source` to `out`, atomically, and returns `out`.

    Args:
        source: rows, or paths for `load_rows`.
        out: the HTML file.
        constraints: as in `select.choose`; what the recommendation has to keep.
        objective: as in `select.choose`.
        pictures: also draw these (a name from PICTURES, an .svg or .png file), of the first group; they are written first, so
            that the page never stands without them.
        samples: images with their tokens, from `build.pictures.described`.
        commands: how to reproduce the run; derived from the profiles unless given.

    Raises:
        UserError: profiles that cannot be read, a wrong constraint, a picture that the data cannot fill, a package that is
            missing, a place that cannot be written.
    """
    for name, file in pictures:
        if name not in PICTURES:
            raise UserError(f"no picture {name!r} (there are: {', '.join(PICTURES)}).{did_you_mean(name, PICTURES)}")
        plot.check_suffix(file)
    rows = source if isinstance(source, Rows) else load_rows(source)
    answers = choose_each(rows, constraints, objective)
    text = _page(rows, answers, samples, commands)
    group, answer = answers[0]
    data = {name: _picture(name, group.rows, _chosen(answer)) for name, _ in pictures}
    for name, file in pictures:
        plot.save(plot.figure(data[name]), file)
    write_text(out, text)
    return out


def markdown_table(rows: Sequence[Row]) -> str:
    """The columns of `compare` as a Markdown table, best values bold. Rows of several environments give a table each."""
    groups = rows.groups if isinstance(rows, Rows) else Rows(tuple(rows)).groups
    return "\n".join(_markdown(group, with_title=len(groups) > 1) for group in groups)


def _markdown(group: Group, with_title: bool) -> str:
    shown = columns(group.rows)
    best = {column.name: column.best(group.rows) for column in shown}
    lines = [f"{_markdown_escape(title(group))}\n"] if with_title else []
    heads = [f"{column.label} ({column.unit})" if column.unit else column.label for column in shown]
    lines.append(f"| {' | '.join(map(_markdown_escape, heads))} |")
    lines.append(f"|{'|'.join('---' if column.metric is None else '---:' for column in shown)}|")
    for row in group.rows:
        texts = [(_markdown_escape(column.text(row)), column.text(row) in best[column.name]) for column in shown]
        lines.append(f"| {' | '.join(f'**{text}**' if mark else text for text, mark in texts)} |")
    return "\n".join(lines) + "\n"


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text)


def _picture(name: str, rows: Sequence[Row], chosen: Row | None) -> Scatter | Lines | Timeline:
    data: Scatter | Lines | Timeline | None
    if name in _COSTS:
        data = chart.scatter(rows, _COSTS[name], chosen)
    elif name == "latency":
        data = chart.latency(rows, chosen)
    elif name == "tokens":
        data = chart.tokens(rows, chosen)
    else:
        data = timeline(read_run((chosen or rows[0]).profile.path, keep=False))
    if data is None:
        raise UserError(f"nothing to draw for picture {name!r}: no budget has it measured")
    return data


def _page(
    rows: Rows,
    answers: Sequence[tuple[Group, Choice | NothingFits]],
    samples: Sequence[Mapping[str, Any]],
    commands: Sequence[str] | None,
) -> str:
    profiles = list({row.profile.path: row.profile for row in rows.rows}.values())
    models = dict.fromkeys(row.model for row in rows.rows)
    started = sorted(profile.started_utc[:16].replace("T", " ") for profile in profiles)
    period = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
    groups = [_group(f"g{index}", group, answer, index < _DRAWN_GROUPS) for index, (group, answer) in enumerate(answers)]
    charts = {figure["id"]: figure["chart"] for group in groups for figure in group["figures"]}
    return page.render(
        _TEMPLATE,
        [(_ECHARTS / "echarts.common.min.js").read_text(encoding="utf-8"), _SCRIPT.read_text(encoding="utf-8")]
        if charts
        else [],
        title=f"Token budgets of {', '.join(models)}",
        subtitle=f"Measured {period} UTC on {', '.join(dict.fromkeys(_machine(profile) for profile in profiles))}",
        colours=COLOURS,
        dark_colours=DARK_COLOURS,
        groups=groups,
        charts=charts,
        samples=samples,
        differences=describe_differences(rows.rows) if len(answers) > 1 else "",
        caveats=_caveats(rows, answers),
        runs=[
            {
                "name": profile.name,
                "verdict": _verdict([row for row in rows.rows if row.profile is profile]),
                "measured": _measured(profile, rows),
                "environment": _environment(profile, rows),
            }
            for profile in profiles
        ],
        commands=list(commands) if commands is not None else _commands(profiles),
    )


def _group(prefix: str, group: Group, answer: Choice | NothingFits, drawn: bool) -> dict[str, Any]:
    chosen = _chosen(answer)
    shown = sorted(columns(group.rows), key=_place)
    best = {column.name: column.best(group.rows) for column in shown}
    figures: list[dict[str, Any]] = []
    absent = [f"Only the first {_DRAWN_GROUPS} groups are drawn. Make a report of this one alone to see its plots."]
    if drawn:
        figures, absent = _figures(prefix, group, chosen)
    return {
        "title": title(group),
        "fits": chosen is not None,
        "verdict": answer.reason if isinstance(answer, Choice) else f"No recommendation: {answer}",
        "tiles": _tiles(chosen, group.rows) if chosen is not None else [],
        "details": _details(answer),
        "marks_choice": chosen is not None,
        "columns": [{"label": column.label, "unit": column.unit, "is_name": column.metric is None} for column in shown],
        "rows": [
            {
                "chosen": row is chosen,
                "cells": [
                    {"text": text, "best": text in best[column.name], "is_name": column.metric is None}
                    for column, text in ((column, column.text(row)) for column in shown)
                ],
            }
            for row in group.rows
        ],
        "figures": figures,
        "absent": absent,
    }


def _place(column: Column) -> int:
    """Where a column stands on the page: what decides comes first, for a phone shows only a few at a time."""
    order = ("run", "method", "budget", "speedup", "p50_ms", "top1_change_points", "agreement_percent", "top1_percent")
    return order.index(column.name) if column.name in order else len(order)


def _tiles(chosen: Row, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The chosen budget's numbers in large print: how sure each is, and what it is without pruning."""
    unpruned = next((row for row in rows if row.unpruned and row.profile.path == chosen.profile.path), None)
    tiles = []
    for name in _TILES:
        metric = METRICS.get(name)
        if metric is None or chosen.value(name) is None:
            continue
        if name == "agreement_percent" and chosen.value("top1_change_points") is not None:
            continue  # stands in for accuracy where there are no labels
        reach = chart.interval_text(chosen, metric)
        notes = [f"95 %: {reach}"] if reach else []
        before = None if unpruned is None or unpruned is chosen or name in _RELATIVE else unpruned.value(name)
        if before is not None:
            notes.append(f"unpruned {metric.quantity(before)}")
        tiles.append({"name": metric.label, "value": metric.quantity(chosen.value(name)), "notes": notes})
    return tiles


def _details(answer: Choice | NothingFits) -> list[str]:
    if isinstance(answer, NothingFits):
        return []
    details = [margin_text(margin) for margin in answer.margins]
    details.append(f"Runner-up: {answer.trade}" if answer.runner_up is not None else answer.trade)
    if answer.pareto:
        names = ", ".join(label(row, answer.pareto).removeprefix("budget ") for row in answer.pareto)
        details.append(f"No other budget beats these in both latency and accuracy: {names}.")
    return details


def _figures(prefix: str, group: Group, chosen: Row | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The plots of a group, and in words what none could be made of."""
    from markupsafe import Markup

    figures: list[dict[str, Any]] = []
    absent: list[str] = []

    def add(name: str, data: Scatter | Lines | Timeline, heading: str, caption: str, wide: bool = False) -> None:
        # Marked as safe here and nowhere else: matplotlib escapes the names it draws, inline_svg its own title.
        svg = Markup(plot.inline_svg(plot.figure(data), heading, f"{prefix}-{name}"))
        place = {"id": f"{prefix}-{name}-live", "heading": heading, "alt": heading, "width": "wide" if wide else "half"}
        figures.append({**place, "svg": svg, "chart": data.to_json(), "caption": caption})

    for name, cost in _COSTS.items():
        data = chart.scatter(group.rows, cost, chosen)
        if data is None:
            absent.append(f"{_capital(METRICS[cost].label)} was not measured: {_why_missing(cost, group.rows)}.")
            continue
        better = "Up and left is better. " if data.y.better == "higher" else ""
        whiskers = (
            "Whiskers: 95 % intervals, of accuracy those of the change from the unpruned model, paired by image; one that is "
            "missing on one side is open there. "
        )
        marks = f"Hollow: unpruned. {'Ring: recommended. ' if chosen is not None else ''}Dashed: the Pareto front."
        add(name, data, f"{_capital(data.y.label)} against {data.x.label}", better + whiskers + marks)
    tokens = chart.tokens(group.rows, chosen)
    latency = chart.latency(group.rows, chosen)
    if latency is not None:
        caption = f"Latency of single inferences: the share that took at most so long.{_left_out(latency)}"
        add("latency", latency, "Distribution of latency", caption)
    caption = f"Tokens after each block, class token included; block 0 is the input.{_left_out(tokens)}"
    add("tokens", tokens, "Tokens left after each block", caption)
    scatters = len(figures) - (2 if latency is not None else 1)
    for figure in figures[: scatters if scatters == 3 else 3 if len(figures) == 3 else 0]:
        figure["width"] = "third"  # so that rows are full
    runs = sorted(
        {row.profile.path: row.profile for row in group.rows}.values(), key=lambda p: chosen is None or p is not chosen.profile
    )
    for index, profile in enumerate(runs[:_TIMELINES]):
        history = timeline(read_run(profile.path, keep=False))
        of = f" of {profile.name}" if len(runs) > 1 else ""
        add(f"time{index}", history, f"The run over time{of}", _told(history), wide=True)
    if len(runs) > _TIMELINES:
        absent.append(f"Timelines of {len(runs) - _TIMELINES} more runs are not shown.")
    return figures, absent


def _told(history: Timeline) -> str:
    """What a timeline shows, how it was thinned, and what it cannot show."""
    text = "Shaded by the budget whose turn it was" + (
        "; grey: left alone, to measure what idling takes." if history.idle else "."
    )
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
        text += f" The run was resumed {history.sessions - 1} times; its parts are set one after the other."
    if history.absent:
        *most, last = history.absent
        names = f"{', '.join(most)} and {last}" if most else last
        text += f" Not recorded: {names}. The machine does not tell, or the run is older than the sensors."
    return text


def _left_out(data: Lines) -> str:
    return f" {data.left_out} more budgets are not drawn." if data.left_out else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _why_missing(metric: str, rows: Sequence[Row]) -> str:
    whys = dict.fromkeys(clean(why) for row in rows if (why := row.why_missing.get(metric)))
    return "; ".join(whys) or _WHY_ABSENT.get(metric, "this profile does not hold it")


def _verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """What the measuring program said of a run (all rows are of it): the worst of its budgets' verdicts, with every reason."""
    given = [(row, row.verdict) for row in rows if row.verdict is not None]
    if not given:
        text = "This run was recorded without a verdict on it: whether something disturbed it was not looked at."
        return {"status": "unjudged", "label": "not judged", "text": text, "reasons": []}
    status = max((verdict.status for _, verdict in given), key=list(_VERDICTS).index)
    of_run = rows[0].profile.summary.get("verdict") or {}
    pointers = {clean(reason["text"]) for reason in of_run.get("reasons") or () if reason.get("code") == "budget"}
    reasons: dict[str, list[str]] = {}
    for row, verdict in given:
        for reason in verdict.reasons:
            if reason not in pointers:  # "budget 0.8 is suspect": its own reasons follow
                reasons.setdefault(reason, []).append(row.budget)
    told = [
        reason if len(budgets) == len(rows) else f"budget{'s' if len(budgets) > 1 else ''} {', '.join(budgets)}: {reason}"
        for reason, budgets in reasons.items()
    ]
    return {"status": status, "label": f"data {status}", "text": _VERDICTS[status], "reasons": [clean(text) for text in told]}


def _caveats(rows: Rows, answers: Sequence[tuple[Group, Choice | NothingFits]]) -> list[str]:
    """What a reader has to know, worst first, each once."""
    found: list[str] = [*rows.warnings]
    for group, answer in answers:
        if isinstance(answer, Choice):
            found += [text for text in answer.caveats if not any(text in warning for warning in rows.warnings)]
        absent = missing(group.rows)
        if absent:
            found.append(f"not measured: {', '.join(absent)}")
        found += [f"{row.name} is not to be used: {row.unfit}" for row in group.rows if row.unfit]
        data = group.conditions.get("eval data", NOT_EVALUATED)
        if data != NOT_EVALUATED:
            found.append(f"Accuracy was measured on {data}. Its interval covers the choice of images, not other kinds.")
    found.append(
        "Latency intervals cover what changed from round to round within a run. Another machine, power mode or temperature is "
        "another measurement."
    )
    return list(dict.fromkeys(found))


def _measured(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    plan, bundle = profile.info["plan"], profile.info["bundle"]
    own = [row for row in rows.rows if row.profile is profile]
    counts = sorted({row.inferences for row in own if row.inferences})
    facts = [
        ("Model", f"{own[0].model}, {bundle['model'].get('weights', 'unknown')} weights, batch {bundle['batch']}"),
        ("Method", own[0].method),
        ("Rounds", f"{plan['rounds']}, each budget once per round in an order drawn anew (seed {plan['seed']})"),
        ("Timed", f"{plan['seconds_per_round']:.3g} s per budget and round after {plan['warmup_seconds']:.3g} s of warming up"),
        ("Load", _load(plan)),
        ("Inferences", f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} per budget" if counts else "none"),
        ("Isolation", plan["isolation"]),
        ("Latency", "wall-clock time of one synchronous inference, input in host memory to logits in host memory"),
        ("Peak memory", "growth of a fresh process from before the engine is loaded to after its first inferences"),
        *_power(profile.summary),
        *(("Note", note) for note in profile.notes),
    ]
    return [(name, clean(value)) for name, value in facts]


def _load(plan: Mapping[str, Any]) -> str:
    if plan.get("mode") != "fixed_rate":
        return "inferences back to back"
    return f"{plan['fps']:g} images per second, each due at its own time"


def _power(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How power was measured, where it was, and what measuring cost."""
    watts = METRICS["mean_power_w"]
    sensor, observer = summary.get("sensor"), summary.get("observer") or {}
    if sensor:
        parts = [f"{sensor['metric']} of {sensor['source']}"]
        for key, words in (
            ("made_of", "made of {}"),
            ("interval_s", "a new value every {:g} s"),
            ("step_w", "in steps of {:g} W"),
        ):
            if sensor.get(key) is not None:
                parts.append(words.format(sensor[key]))
        if sensor.get("coverage") is not None:
            parts.append(f"{100 * sensor['coverage']:.0f} % of the expected readings came")
        yield "Power sensor", ", ".join(parts)
    idle = summary.get("idle") or {}
    interval = Interval.from_json(idle.get("power_w"))
    if interval is not None:
        reach = watts.range(interval)
        drift = f", {idle['drift_w']:+.2f} W from before to after" if idle.get("drift_w") is not None else ""
        yield "Idle power", f"{watts.quantity(interval.value)}{f' ({reach})' if reach else ''}{drift}"
    if observer.get("cpu_percent") is not None:
        yield "Cost of measuring", f"{observer['cpu_percent']:.1f} % of one core read the sensors"


def _environment(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    environment, plan = profile.info["environment"], profile.info["plan"]
    memory = environment.get("memory_total_bytes")
    versions = environment.get("versions") or {}
    facts = [
        ("Host", environment.get("hostname")),
        ("Board", environment.get("board_model")),
        ("CPU", environment.get("cpu_model")),
        ("CPUs", environment.get("cpu_count")),
        ("CPU governor", environment.get("cpu_governor")),
        ("Memory", None if memory is None else f"{memory / 1e9:.1f} GB"),
        ("Threads", plan["threads"]),
        ("System", ", ".join(str(text) for text in (environment.get("os"), environment.get("kernel")) if text) or None),
        ("L4T", environment.get("l4t_release")),
        ("Python", environment.get("python")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None),
        ("Profile", profile.name),
    ]
    told = [(name, clean(value)) for name, value in facts if value is not None]
    own = next(row for row in rows.rows if row.profile is profile)
    known = {label: value for label in _STATE if (value := own.conditions.get(label, UNKNOWN)) != UNKNOWN}
    return [*told, *((_capital(label), value) for label, value in known.items())]


def _commands(profiles: Sequence[Profile]) -> list[str]:
    """Command lines that make the same bundle, profile and report, as far as the profiles tell."""
    lines = []
    for profile in profiles:
        bundle, plan = profile.info["bundle"], profile.info["plan"]
        model, method = bundle["model"], bundle["method"]
        where = f"bundles/{bundle['name']}"
        build = ["edge-tprune", "build", model.get("name", "MODEL")]
        weights = str(model.get("weights", ""))
        if "." in weights:  # a file's name; otherwise a word for where they came from
            build += ["--weights", weights]
        budgets = ",".join(str(budget["name"]) for budget in profile.info["budgets"])
        build += ["--method", method.get("name", "METHOD"), "--budgets", budgets]
        build += [word for name, value in (method.get("options") or {}).items() for word in ("--option", f"{name}={value}")]
        build += ["--out", where]
        chosen = {
            "runtime": plan["runtime"] if plan["runtime"] != "onnxruntime" else None,
            "precision": plan.get("precision") if plan.get("precision") != "fp32" else None,
            **{name: plan[name] for name in ("rounds", "threads", "seed")},
            "fps": plan.get("fps"),
        }
        settings = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", value)]
        lines += [_shell(build), _shell(["edge-tprune", "profile", where, *settings, "--out", "profiles"])]
    names = [f"profiles/{profile.name}" for profile in profiles]
    return [*lines, _shell(["edge-tprune", "report", *names, "--out", "report.html"])]


def _shell(words: Iterable[Any]) -> str:
    return " ".join(shlex.quote(clean(word)) for word in words)


def _machine(profile: Profile) -> str:
    environment = profile.info["environment"]
    names = (environment.get("board_model") or environment.get("cpu_model"), environment.get("hostname"))
    return clean(" · ".join(str(name) for name in names if name)) or "an unknown machine"


def _chosen(answer: Choice | NothingFits) -> Row | None:
    return answer.row if isinstance(answer, Choice) else None
