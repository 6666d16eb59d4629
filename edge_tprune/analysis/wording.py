"""A choice in words: the reason, the room it leaves, what the runner-up would trade, what to beware of; or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge_tprune.analysis.candidates import Candidates
from edge_tprune.analysis.changes import VERDICTS, Change, Changes
from edge_tprune.analysis.choice import Choice, Exclusion, NoChoice, Question, accuracy_metric
from edge_tprune.analysis.contrast import Contrast, contrast
from edge_tprune.analysis.limits import LIMITS, Headroom, Limit, option_name
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row, describe_differences

NOT_RESOLVED = "not resolved"

_SUPERLATIVES = {
    "latency": "fastest",
    "p95": "fastest at p95",
    "energy": "lowest in energy per image",
    "power": "lowest in power",
    "throughput": "highest in throughput",
    "accuracy": "most accurate",
    "divergence": "nearest to the unpruned network",
    "memory": "smallest in memory",
    "macs": "cheapest in MACs",
}
_HOW_TO_MEASURE = {
    **dict.fromkeys(
        ("top1_drop_points", "agreement_percent", "top1_percent", "kl_nats", "cosine_distance"),
        "edge-tprune eval, and profile again: a profile holds what was known when it began",
    ),
    **dict.fromkeys(("mean_power_w", "energy_mj_per_image"), "edge-tprune doctor, which lists the power sensors of a machine"),
    "missed_deadlines_percent": "edge-tprune profile --fps",
}
#: Labels that take no article.
_MASS_NOUNS = ("throughput", "agreement", "mean power", "missed", "energy", "peak memory")


def name_row(row: Row, among: Iterable[Row]) -> str:
    """What to call a row among others: its budget, with the method or the run where the budget alone does not tell."""
    others = [other for other in among if other is not row]
    text = row.name if any(other.method != row.method for other in others) else f"budget {row.budget}"
    twins = any((other.method, other.budget) == (row.method, row.budget) for other in others)
    return f"{text} of {row.profile.name}" if twins else text


def describe_choice(choice: Choice) -> str:
    """The answer in one or two sentences: which budget, why, and what else it may be."""
    question, row = choice.question, choice.row
    limits = [headroom.limit for headroom in choice.headroom]
    condition = f" with {describe_limits(limits)}" if limits else ""
    shown = [metric for metric in dict.fromkeys([question.metric, question.latency]) if row.value(metric.name) is not None]
    facts = [f"{metric.label} {metric.quantity(row.value(metric.name))}" for metric in shown]
    facts += _compare_with_unpruned(row, choice)
    name = _capital(name_row(row, choice.rows))
    text = f"{name} is the {_SUPERLATIVES[question.objective]}{condition}: {', '.join(facts)}."
    if choice.equals:
        names = ", ".join(name_row(other, choice.rows) for other in choice.equals)
        within = question.margin.text(question.metric)
        taken = "fastest" if question.objective == "divergence" else "most accurate"
        text += f" Equal within {within}: {names}. Of equal budgets the {taken} is taken."
    if choice.unresolved:
        names = ", ".join(name_row(other, choice.rows) for other, _ in choice.unresolved)
        text += f" Not resolved from it: {names} ({describe_need([each for _, each in choice.unresolved])})."
    if row.unpruned and any(not other.unpruned for other, _ in choice.unresolved):
        text += " The unpruned model is named only because the measurement cannot tell whether a pruned one is better."
    return text


def describe_no_choice(answer: NoChoice) -> str:
    """Why nothing can be chosen: what was not measured, or the nearest miss per constraint."""
    rows, question = answer.rows, answer.question
    if not answer.misses:
        absent = [metric for metric in question.metrics if all(row.value(metric.name) is None for row in rows)]
        if not absent:
            return f"no budget can be chosen: {describe_exclusions(answer.exclusions, rows)}"
        whys = dict.fromkeys(why for each in absent for row in rows if (why := row.why_missing.get(each.name)))
        hint = next((f" Run: {_HOW_TO_MEASURE[each.name]}" for each in absent if each.name in _HOW_TO_MEASURE), "")
        because = f" ({'; '.join(whys)})" if whys else ""
        return f"no budget can be chosen: {' and '.join(each.label for each in absent)} was not measured{because}.{hint}"
    parts = [
        f"nearest to {option_name(miss.limit.name)} {_bound(miss.limit.bound, miss.limit.metric)} is {name_row(miss.row, rows)} "
        f"with {_exact(miss.value, miss.limit)} ({_exact(miss.excess, miss.limit)} beyond)"
        for miss in answer.misses
    ]
    left = f" Not considered: {describe_exclusions(answer.exclusions, rows)}." if answer.exclusions else ""
    what = " and ".join(map(describe_limit, question.limits))
    return f"no budget fits ({what}): {'; '.join(parts)}.{left}"


def describe_refusals(found: Candidates) -> str:
    """Why no environment offers anything, each with its nearest misses."""
    return "; ".join(f"{found.name(group)}: {describe_no_choice(answer).rstrip('.')}" for group, answer in found.refusals)


def describe_trade(choice: Choice) -> str:
    """What taking the runner-up instead would cost and gain, in latency, accuracy and what was asked for."""
    row, runner_up, question = choice.row, choice.runner_up, choice.question
    if runner_up is None:
        return "There is no runner-up: no other budget can be chosen."
    accuracy = accuracy_metric([row, runner_up])
    shown = dict.fromkeys([question.latency, *([accuracy] if accuracy else []), *question.metrics])
    shown.pop(METRICS["top1_drop_points"], None)  # top-1 itself says it
    name = name_row(runner_up, choice.rows)
    parts = [text for metric in shown if (text := _describe_difference(row, runner_up, metric, question))]
    return f"Runner-up: {name}: {', '.join(parts)}." if parts else f"Runner-up: {name}, which reads the same."


def describe_front(choice: Choice) -> str:
    """The budgets that no other beats, in one sentence; '' where accuracy is not known."""
    front = choice.front
    if front is None or not front.rows:
        return ""
    names = ", ".join(name_row(row, front.rows).removeprefix("budget ") for row in front.rows)
    return f"Pareto front: no other budget beats these in both {front.cost.label} and {front.accuracy.label}: {names}."


def describe_headroom(headroom: Headroom) -> str:
    """One constraint, its value and the room it leaves, in words."""
    unknown = "uncertainty unknown" if headroom.interval is None else "too few rounds to tell whether it holds"
    sure = {True: "holds for the whole 95 % interval", False: "does not hold for the whole 95 % interval", None: unknown}
    metric = headroom.limit.metric
    value, room = metric.quantity(headroom.value), metric.quantity(headroom.room)
    return f"{describe_limit(headroom.limit)}: {value}, {room} to spare, {sure[headroom.sure]}"


def list_caveats(choice: Choice) -> list[str]:
    """What a person should know before acting on the choice."""
    row, rows = choice.row, choice.rows
    caveats = list(choice.warnings)
    if choice.mixed:
        caveats.append(f"forced: the rows differ in {describe_differences(choice.mixed)}")
    if row.suspect is not None:
        caveats.append(f"the measurement of {name_row(row, rows)} is suspect: {row.suspect}")
    for headroom in choice.headroom:
        if headroom.sure is False and headroom.interval is not None:
            reach = headroom.limit.metric.range(headroom.interval)
            text = f"{describe_limits([headroom.limit])} is kept, but not by the whole 95 % interval"
            caveats.append(f"{text} ({reach})" if reach else text)
    if row.rounds == 1:
        caveats.append("only one round was measured, so no interval is known: measure at least five")
    if choice.exclusions:
        caveats.append(f"not considered: {describe_exclusions(choice.exclusions, rows)}")
    return [*caveats, *row.profile.warnings]


def describe_exclusion(exclusion: Exclusion) -> str:
    """Why a row could not be considered."""
    if exclusion.unfit is not None:
        return exclusion.unfit
    whys = exclusion.row.why_missing
    return " and ".join(
        f"{metric.label} not measured" + (f" ({whys[metric.name]})" if metric.name in whys else "")
        for metric in exclusion.missing
    )


def describe_exclusions(exclusions: Sequence[Exclusion], rows: Sequence[Row]) -> str:
    """Rows that share a reason, named together."""
    reasons: dict[str, list[str]] = {}
    for exclusion in exclusions:
        reasons.setdefault(describe_exclusion(exclusion), []).append(name_row(exclusion.row, rows))
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())


def describe_need(contrasts: Sequence[Contrast | Change]) -> str:
    """How much more it takes to resolve these: 'about 40 rounds would tell; 10 were measured'."""
    unclear = next((each for each in contrasts if each.needed is None), None)
    if unclear is None:
        most = max(contrasts, key=lambda each: each.needed or 0)
        return f"about {most.needed} {most.unit} would tell; {most.count} were measured"
    if unclear.unit == "images":
        return "judge it on more images"
    known = unclear.interval.low is not None and unclear.interval.high is not None
    return "the noise is too large to say how many rounds would tell" if known else "too few rounds to know the noise"


def describe_limits(limits: Iterable[Limit]) -> str:
    """'a p95 latency of at most 8 ms and a top-1 drop of at most 1 point'."""
    texts = [describe_limit(limit) for limit in limits]
    return " and ".join(text if text.startswith(_MASS_NOUNS) else f"a {text}" for text in texts)


def describe_limit(limit: Limit) -> str:
    """'p95 latency of at most 8 ms'."""
    side = "at most" if LIMITS[limit.name][1] == "max" else "at least"
    return f"{limit.metric.label} of {side} {_bound(limit.bound, limit.metric)}"


def _compare_with_unpruned(row: Row, choice: Choice) -> list[str]:
    """Speed and accuracy against the unpruned model of the same run, with their uncertainty."""
    if row.unpruned:
        return ["nothing is pruned"]
    facts = []
    unpruned = next((other for other in choice.rows if other.unpruned and other.profile.path == row.profile.path), None)
    latency = choice.question.latency
    if unpruned is not None and unpruned.value(latency.name) and row.value(latency.name):
        facts.append(_describe_speed(contrast(unpruned, row, latency, choice.question.margin), choice.question))
    change, agreement = row.intervals.get("top1_change_points"), row.intervals.get("agreement_percent")
    points = METRICS["top1_change_points"]
    if change is not None:
        reach = points.range(change)
        facts.append(f"top-1 {points.quantity(change.value)}" + (f" (95 % interval {reach})" if reach else ""))
    elif (distance := row.intervals.get("cosine_distance")) is not None:
        metric = METRICS["cosine_distance"]
        reach = metric.range(distance)
        facts.append(f"cosine distance {metric.quantity(distance.value)}" + (f" (95 % interval {reach})" if reach else ""))
        if agreement is not None:
            facts.append(
                f"same nearest neighbour as unpruned for {METRICS['agreement_percent'].quantity(agreement.value)} of the images"
            )
    elif agreement is not None:
        facts.append(f"same class as unpruned for {METRICS['agreement_percent'].quantity(agreement.value)} of the images")
    elif row.value("top1_percent") is None:
        facts.append("accuracy not measured")
    return facts


def _describe_speed(found: Contrast, question: Question) -> str:
    """'1.42 ±0.02× as fast as unpruned', and whether that is more than noise."""
    if found.resolution == "equal":
        return f"as fast as unpruned within {question.margin.text(found.metric)}"
    text = f"{METRICS['speedup'].uncertain(found.interval)}× as fast as unpruned"
    return text if found.resolution == "different" else f"{text} ({NOT_RESOLVED}: {describe_need([found])})"


def _describe_difference(row: Row, other: Row, metric: Metric, question: Question) -> str:
    """'p50 latency 8.30 ms instead of 7.00 ms (worse)'; '' where both read the same or one is missing."""
    ours, theirs = row.value(metric.name), other.value(metric.name)
    if ours is None or theirs is None or metric.format(ours) == metric.format(theirs):
        return ""
    found = contrast(other, row, metric, question.margin)
    word = {
        "different": "better" if metric.is_better(theirs, ours) else "worse",
        "equal": f"equal within {question.margin.text(metric)}",
        "not resolved": NOT_RESOLVED,
    }[found.resolution]
    return f"{metric.label} {metric.quantity(theirs)} instead of {metric.quantity(ours)} ({word})"


def _bound(bound: float, metric: Metric) -> str:
    """A bound as the user wrote it, with the metric's unit."""
    separator = "" if metric.unit in ("×", "%") else " "
    unit = metric.unit[:-1] if bound == 1 and metric.unit == "points" else metric.unit
    return f"{bound:g}{separator}{unit}".rstrip()


def _exact(value: float, limit: Limit) -> str:
    """A value with enough digits that a miss never reads like the bound itself."""
    metric = limit.metric
    shown = float(metric.format(value))
    return _bound(float(f"{value:.3g}"), metric) if shown in (0.0, limit.bound) else metric.quantity(value)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text.startswith("budget ") else text


def describe_change(change: Change) -> str:
    """'p50 latency 7.57 ms instead of 6.77 ms (+11.8 %, 95 % interval +9.7 to +14.0 %)'."""
    metric, interval, reach = change.metric, change.interval, ""
    unit = f" {change_unit(metric)}".rstrip()
    if interval.low is not None and interval.high is not None:
        reach = f", 95 % interval {_signed(interval.low, metric)} to {_signed(interval.high, metric)}{unit}"
    amount = f"{_signed(interval.value, metric)}{unit}"
    return f"{metric.label} {metric.quantity(change.new)} instead of {metric.quantity(change.old)} ({amount}{reach})"


def abbreviate_change(change: Change) -> str:
    """The change for a cell of a table: '+11.8 % ±2.1', 'equal', 'not resolved', '-3.4 points ±1.2'."""
    if change.verdict in ("equal", NOT_RESOLVED):
        return change.verdict
    metric, low, high = change.metric, change.interval.low, change.interval.high
    half = ""
    if low is not None and high is not None:
        reach = max(high - change.interval.value, change.interval.value - low)
        half = f" ±{reach * 100 if metric.scale == 'ratio' else reach:.{_change_digits(metric)}f}"
    return f"{_signed(change.interval.value, metric)} {change_unit(metric)}".rstrip() + half


def change_unit(metric: Metric) -> str:
    """Of a change: per cent of the old value, points where the metric itself is a percentage, else the metric's own."""
    if metric.scale == "ratio":
        return "%"
    return "points" if metric.unit in ("%", "points") else metric.unit


def _change_digits(metric: Metric) -> int:
    return 1 if change_unit(metric) in ("%", "points") else metric.digits


def describe_changes(changes: Changes) -> str:
    """How many measures became what, in one sentence."""
    total = sum(len(budget.changes) for budget in changes.budgets)
    counts = {verdict: len(changes.select(verdict)) for verdict in VERDICTS}
    margins = [f"{changes.margin.percent:g} %", f"{changes.margin.points:g} points"]
    judged = {change.metric for budget in changes.budgets for change in budget.changes}
    margins += sorted({f"{changes.margin.text(m)} ({m.header})" for m in judged if change_unit(m) not in ("%", "points")})
    margin = f"{', '.join(margins[:-1])} or {margins[-1]}"
    return (
        f"{counts['worse']} of {total} measures got worse, {counts['better']} better, {counts['equal']} are equal within {margin}, "
        f"{counts['not resolved']} are not resolved (95 % intervals for all of them together)."
    )


def list_regressions(changes: Changes) -> list[str]:
    """Why this is a regression; empty where none was found."""
    found = [f"{budget.new.name}: {describe_change(change)}" for budget, change in changes.select("worse")]
    return found + [f"{budget.new.name}: {budget.unfit}" for budget in changes.budgets if budget.broken]


def list_undecided(changes: Changes) -> list[str]:
    """What may be a regression as far as was measured, and what it would take to know."""
    found = [f"{budget.new.name}: {describe_change(change)}, {describe_need([change])}" for budget, change in changes.undecided]
    unjudged = [budget for budget in changes.budgets if budget.unfit and not budget.broken]
    found += [f"{budget.new.name} cannot be judged: {budget.unfit}" for budget in unjudged]
    return found + [f"{row.name} was not measured again" for row in changes.gone]


def _signed(value: float, metric: Metric) -> str:
    return f"{(value - 1) * 100 if metric.scale == 'ratio' else value:+.{_change_digits(metric)}f}"
