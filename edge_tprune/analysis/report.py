"""The comparison as one HTML file that needs nothing else, and as a Markdown table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_tprune import __version__
from edge_tprune.analysis import plot
from edge_tprune.analysis.compare import Column, columns, describe_differences, missing, title
from edge_tprune.analysis.select import Choice, NothingFits, choose_each, label, margin_text
from edge_tprune.analysis.table import NOT_EVALUATED, Group, Profile, Row, Rows, clean, load_rows
from edge_tprune.errors import missing_package
from edge_tprune.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    source: Rows | Path | str | Iterable[Path | str],
    out: Path,
    *,
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    picture: bool = False,
    commands: Sequence[str] | None = None,
) -> Path:
    """Writes the report on `source` to `out`, atomically, and returns `out`.

    Args:
        source: rows, or paths for `load_rows`.
        out: the HTML file.
        constraints: as in `select.choose`; what the recommendation has to keep.
        objective: as in `select.choose`.
        picture: also draw accuracy against latency as `<out without suffix>.svg`, of the first group; that file first, so that
            the page never stands without it.
        commands: how to reproduce the run; derived from the profiles unless given.

    Raises:
        UserError: profiles that cannot be read, a wrong constraint, a package that is missing, a place that cannot be written.
    """
    rows = source if isinstance(source, Rows) else load_rows(source)
    answers = choose_each(rows, constraints, objective)
    page = _page(rows, answers, commands)
    if picture:
        group, answer = answers[0]
        plot.save(plot.latency_accuracy_figure(group.rows, _chosen(answer)), out.with_suffix(".svg"))
    write_text(out, page)
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


def _page(rows: Rows, answers: Sequence[tuple[Group, Choice | NothingFits]], commands: Sequence[str] | None) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_package("jinja2", "host") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    profiles = list({row.profile.path: row.profile for row in rows.rows}.values())
    models = dict.fromkeys(row.model for row in rows.rows)
    started = sorted(profile.started_utc[:16].replace("T", " ") for profile in profiles)
    period = started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}"
    page: str = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Token budgets of {', '.join(models)}",
        subtitle=f"Measured {period} UTC on {', '.join(dict.fromkeys(_machine(profile) for profile in profiles))}",
        version=__version__,
        groups=[_group(index, group, answer) for index, (group, answer) in enumerate(answers)],
        differences=describe_differences(rows.rows) if len(answers) > 1 else "",
        caveats=_caveats(rows, answers),
        runs=[
            {"name": profile.name, "measured": _measured(profile, rows), "environment": _environment(profile)}
            for profile in profiles
        ],
        commands=list(commands) if commands is not None else _commands(profiles),
    )
    return page


def _group(index: int, group: Group, answer: Choice | NothingFits) -> dict[str, Any]:
    chosen = _chosen(answer)
    shown = sorted(columns(group.rows), key=_place)
    best = {column.name: column.best(group.rows) for column in shown}
    return {
        "title": title(group),
        "fits": chosen is not None,
        "verdict": answer.reason if isinstance(answer, Choice) else f"No recommendation: {answer}",
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
        "figures": _figures(f"g{index}", group, chosen),
    }


def _place(column: Column) -> int:
    """Where a column stands on the page: what decides comes first, for a phone shows only a few at a time."""
    order = ("run", "method", "budget", "speedup", "p50_ms", "top1_change_points", "agreement_percent", "top1_percent")
    return order.index(column.name) if column.name in order else len(order)


def _details(answer: Choice | NothingFits) -> list[str]:
    if isinstance(answer, NothingFits):
        return []
    details = [margin_text(margin) for margin in answer.margins]
    details.append(f"Runner-up: {answer.trade}" if answer.runner_up is not None else answer.trade)
    if answer.pareto:
        names = ", ".join(label(row, answer.pareto).removeprefix("budget ") for row in answer.pareto)
        details.append(f"No other budget beats these in both latency and accuracy: {names}.")
    return details


def _figures(prefix: str, group: Group, chosen: Row | None) -> list[dict[str, Any]]:
    """The pictures of a group: what was not measured has none."""
    from markupsafe import Markup

    figures: list[dict[str, Any]] = []

    def add(name: str, figure: Figure, alt: str, caption: str, wide: bool = False) -> None:
        # Marked as safe here and nowhere else: matplotlib escapes the names it draws, inline_svg its own title.
        svg = Markup(plot.inline_svg(figure, alt, f"{prefix}-{name}"))
        figures.append({"svg": svg, "caption": caption, "wide": wide})

    timed = any(row.value("p50_ms") is not None for row in group.rows)
    if timed:
        add(
            "trade",
            plot.latency_accuracy_figure(group.rows, chosen),
            "Accuracy against p50 latency, one point per budget",
            "Up and left is better. Whiskers: to the right the p95 latency; up and down the 95 % interval of the change from "
            "the unpruned model, paired by image. Hollow: unpruned. Ring: recommended. Dashed: the Pareto front.",
            wide=True,
        )
    add(
        "tokens",
        plot.tokens_figure(group.rows),
        "Tokens left after each block, one line per budget",
        "Tokens after each block, class token included.",
    )
    if timed:
        add(
            "latency",
            plot.latency_figure(group.rows),
            "Cumulative distribution of latency, one line per budget",
            "Latency of single inferences: the share that took at most so long.",
        )
    return figures


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
        ("Timed", f"{plan['seconds_per_round']:g} s per budget and round after {plan['warmup_seconds']:g} s of warming up"),
        ("Inferences", f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} per budget" if counts else "none"),
        ("Isolation", plan["isolation"]),
        ("Latency", "wall-clock time of one synchronous inference, input in host memory to logits in host memory"),
        ("Peak memory", "growth of a fresh process from before the engine is loaded to after its first inferences"),
        *(("Note", note) for note in profile.notes),
    ]
    return [(name, clean(value)) for name, value in facts]


def _environment(profile: Profile) -> list[tuple[str, str]]:
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
    return [(name, clean(value)) for name, value in facts if value is not None]


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
        build += ["--method", method.get("name", "METHOD"), "--budgets", budgets, "--out", where]
        settings = [word for name in ("rounds", "threads", "seed") for word in (f"--{name}", plan[name])]
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
