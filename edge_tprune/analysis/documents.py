"""The comparison, the choice and the changes as JSON documents, for `--json`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge_tprune.analysis import wording
from edge_tprune.analysis.candidates import Candidates
from edge_tprune.analysis.changes import Change, Changes
from edge_tprune.analysis.choice import Answer, Choice, Exclusion, NoChoice
from edge_tprune.analysis.contrast import Contrast
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Profile, Row, Rows, find_differences

JsonObject = dict[str, object]

_COMPARISON = {"format": "edge-tprune-comparison", "version": 1}
_CHOICE = {"format": "edge-tprune-choice", "version": 3}
_CHANGES = {"format": "edge-tprune-changes", "version": 2}


def comparison_document(rows: Rows) -> JsonObject:
    """Everything that the table of a comparison shows, and more."""
    shown = {name for row in rows.rows for name in row.values}
    profiles: dict[str, Profile] = {row.profile.name: row.profile for row in rows.rows}
    return {
        **_COMPARISON,
        "metrics": {name: metric.to_json() for name, metric in METRICS.items() if name in shown},
        "groups": [
            {"conditions": dict(group.conditions), "rows": [row_document(row) for row in group.rows]} for group in rows.groups
        ],
        "differences": {label: list(values) for label, values in find_differences(rows.rows).items()},
        "profiles": [_profile_document(profile) for profile in profiles.values()],
        "warnings": list(rows.warnings),
    }


def row_document(row: Row) -> JsonObject:
    """One row: every metric with its value (null where missing) and its interval where one is known."""
    return {
        "profile": row.profile.name,
        "run_id": row.profile.document.run_id,
        "model": row.model,
        "method": row.method,
        "budget": row.budget,
        "precision": row.precision,
        "unpruned": row.unpruned,
        "tokens": row.tokens,
        "schedule": list(row.schedule),
        "inferences": row.inferences,
        "rounds": row.rounds,
        "metrics": {name: row.value(name) for name in METRICS},
        "intervals": {name: interval.to_json() for name, interval in row.intervals.items()},
        "why_missing": dict(row.why_missing),
        "verdict": None if row.verdict is None else {"status": row.verdict.status, "reasons": list(row.verdict.reasons)},
        "unfit": row.unfit,
    }


def answer_document(answer: Answer | Candidates) -> JsonObject:
    """An answer of any kind; `chosen` is null where nothing was."""
    if isinstance(answer, Candidates):
        return _candidates_document(answer)
    return _choice_document(answer) if isinstance(answer, Choice) else _no_choice_document(answer)


def changes_document(changes: Changes) -> JsonObject:
    """What changed between two points in time; `regression` is null where the measurement cannot tell."""
    regressions, undecided = wording.list_regressions(changes), wording.list_undecided(changes)
    return {
        **_CHANGES,
        "regression": True if regressions else None if undecided else False,
        "regressions": regressions,
        "undecided": undecided,
        "equal_within": {"percent": changes.margin.percent, "points": changes.margin.points},
        "differences": {label: list(values) for label, values in changes.differences.items()},
        "budgets": [
            {
                "method": budget.new.method,
                "budget": budget.new.budget,
                "old_profile": budget.old.profile.name,
                "new_profile": budget.new.profile.name,
                "unfit": budget.unfit,
                "changes": [_change_document(change) for change in budget.changes],
            }
            for budget in changes.budgets
        ],
        "gone": [{"method": row.method, "budget": row.budget} for row in changes.gone],
        "added": [{"method": row.method, "budget": row.budget} for row in changes.added],
        "remarks": list(changes.remarks),
    }


def _choice_document(choice: Choice) -> JsonObject:
    question, front = choice.question, choice.front
    runner_up = None
    if choice.runner_up is not None:
        runner_up = {**row_document(choice.runner_up), "trade": wording.describe_trade(choice)}
    return {
        **_CHOICE,
        "chosen": row_document(choice.row),
        "objective": {"name": question.objective, "metric": question.metric.name, "better": question.metric.better},
        "constraints": [headroom.to_json() for headroom in choice.headroom],
        "equal_within": {"percent": question.margin.percent, "points": question.margin.points},
        "reason": wording.describe_choice(choice),
        "equal": [row_document(row) for row in choice.equals],
        "not_resolved": [{**row_document(row), "contrast": _contrast_document(each)} for row, each in choice.unresolved],
        "runner_up": runner_up,
        "pareto_front": [row_document(row) for row in front.rows] if front else [],
        "pareto_metrics": [front.cost.name, front.accuracy.name] if front else [],
        "left_out": _exclusions_document(choice.exclusions),
        "conditions": dict(choice.row.conditions),
        "caveats": wording.list_caveats(choice),
    }


def _no_choice_document(answer: NoChoice) -> JsonObject:
    return {
        **_CHOICE,
        "chosen": None,
        "reason": wording.describe_no_choice(answer),
        "nearest_misses": [
            {
                "constraint": miss.limit.name,
                "bound": miss.limit.bound,
                "value": miss.value,
                "beyond": miss.excess,
                "row": row_document(miss.row),
            }
            for miss in answer.misses
        ],
        "left_out": _exclusions_document(answer.exclusions),
    }


def _candidates_document(found: Candidates) -> JsonObject:
    entries = [
        {"environment": found.name(group), "conditions": dict(group.conditions), **answer_document(answer)}
        for group, answer in found.answers
    ]
    offers = [entry for entry in entries if entry["chosen"] is not None]
    return {
        **_CHOICE,
        "chosen": offers[0]["chosen"] if len(offers) == 1 else None,
        "candidates": offers,
        "without": [entry for entry in entries if entry["chosen"] is None],
        "differences": {label: list(values) for label, values in found.differences.items()},
        "warnings": list(found.warnings),
    }


def _contrast_document(contrast: Contrast) -> JsonObject:
    return {
        "metric": contrast.metric.name,
        "scale": contrast.metric.scale,
        "interval": contrast.interval.to_json(),
        f"{contrast.unit}_measured": contrast.count,
        f"{contrast.unit}_needed": contrast.needed,
    }


def _change_document(change: Change) -> JsonObject:
    return {
        "metric": change.metric.name,
        "old": change.old,
        "new": change.new,
        "scale": change.metric.scale,
        "change": change.interval.to_json(),
        "verdict": change.verdict.replace(" ", "_"),
        "regression_ruled_out": change.no_worse,
        f"{change.unit}_measured": change.count,
        f"{change.unit}_needed": change.needed,
    }


def _exclusions_document(exclusions: Sequence[Exclusion]) -> list[JsonObject]:
    return [
        {"method": each.row.method, "budget": each.row.budget, "why": wording.describe_exclusion(each)} for each in exclusions
    ]


def _profile_document(profile: Profile) -> JsonObject:
    run = profile.document
    summary = {} if profile.summary is None else msgspec.to_builtins(profile.summary)
    return {
        "name": profile.name,
        "path": str(profile.path),
        "run_id": run.run_id,
        "started_utc": run.started_utc,
        "tool_version": run.tool_version,
        "environment": msgspec.to_builtins(run.environment),
        "plan": msgspec.to_builtins(run.settings),
        "notes": list(profile.notes),
        **{key: summary.get(key) for key in ("verdict", "sensor", "idle")},
    }
