"""What a run concluded about each budget, by the names of `metrics.METRICS`: from its typed summary to values, intervals and a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edge_tprune.errors import UserError
from edge_tprune.record.document import RunDocument
from edge_tprune.record.summary import BudgetSummary, Reason, Summary, Verdict
from edge_tprune.statistics import Interval, proportion_interval
from edge_tprune.text import printable

_OF_A_BUDGET = "budget"  #: code of the run's reasons that only repeat a budget's verdict
_RANK = {"valid": 0, "suspect": 1, "invalid": 2}
_STAGES = ("h2d", "compute", "d2h")
#: How the unit at the end of a sensor's name is written where the sensor declares it.
_UNITS = {"mw": "mW", "w": "W", "mj": "mJ", "j": "J"}
_PERCENTAGES = ("top1_percent", "top5_percent", "agreement_percent", "missed_deadlines_percent")
#: Power times latency is energy. Beyond this factor the two are in different units, not merely measured over different windows.
_UNIT_SLIP = 300.0


@dataclass(frozen=True)
class RowVerdict:
    """Whether a budget's measurement is trustworthy: the run's verdict and the budget's own together."""

    status: str  #: "valid", "suspect" or "invalid"
    reasons: tuple[str, ...] = ()  #: why not valid, in words

    @property
    def text(self) -> str:
        """'suspect: the GPU throttled in round 3'."""
        return f"{self.status}: {'; '.join(self.reasons)}" if self.reasons else self.status


@dataclass(frozen=True)
class Recorded:
    """What summary.json says about one budget, by the names of `metrics.METRICS`."""

    values: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    why_missing: dict[str, str] = field(default_factory=dict)  #: metric -> why it has no value, where the run says so
    verdict: RowVerdict | None = None  #: None where the run gave none: formats before version 2


def read_recorded(summary: Summary | None, budget: str) -> Recorded:
    """The recorded numbers of `budget`; none where there is no summary. What older versions do not have stays missing."""
    if summary is None:
        return Recorded()
    own = summary.budgets.get(budget, BudgetSummary())
    recorded = Recorded(verdict=_combine_verdicts(summary.verdict, own.verdict))
    intervals = {
        "mean_power_w": own.power.mean_w,
        "power_above_idle_w": own.power.above_idle_w,
        "energy_mj_per_image": own.energy.gross_mj_per_image,
        "energy_above_idle_mj_per_image": own.energy.above_idle_mj_per_image,
    }
    for name, interval in intervals.items():
        if interval is not None:
            recorded.intervals[name], recorded.values[name] = interval, interval.value
        elif own.energy.reason:
            recorded.why_missing[name] = printable(own.energy.reason)
        elif own.energy.status == "no_sensor":
            recorded.why_missing[name] = "no power sensor"
    stages = own.stages_ms or {}
    numbers = {
        **{f"{stage}_ms": stages[stage].p50 for stage in _STAGES if stage in stages},
        "duty_cycle_percent": None if own.fixed_rate is None else own.fixed_rate.duty_cycle_percent,
        "min_memory_available_mb": own.min_memory_available_mb,
        "load_ms": own.load_ms,
    }
    recorded.values.update({name: value for name, value in numbers.items() if value is not None})
    if (share := _share_missed(own)) is not None:
        recorded.intervals["missed_deadlines_percent"], recorded.values["missed_deadlines_percent"] = share, share.value
    return recorded


def _share_missed(budget: BudgetSummary) -> Interval | None:
    """Missed deadlines in per cent of the frames that a camera gave: those that ran and those that were dropped.

    How many frames there were follows from the time alone.
    """
    fixed, mean_ms = budget.fixed_rate, budget.latency_ms.mean
    if fixed is None or fixed.missed_deadlines is None or not mean_ms or not fixed.duty_cycle_percent:
        return None
    timed_s = budget.inferences * mean_ms / 1e3 / (fixed.duty_cycle_percent / 100)
    due = max(round(fixed.fps * timed_s), fixed.missed_deadlines)
    return proportion_interval(fixed.missed_deadlines, due).scaled(100) if due else None


def check_units(document: RunDocument, budgets: Iterable[tuple[str, Mapping[str, float | None], int]]) -> None:
    """Refuses numbers whose unit is not what their name says; a table that mixes them would be worse than none.

    Args:
        document: run.json; its settings may list sensors with the unit of each.
        budgets: per budget its name, its values by metric, and the batch.

    Raises:
        UserError: naming the number.
    """
    for metric in (metric for source in document.settings.sources for metric in source.metrics):
        expected = _UNITS.get(metric.name.rsplit("_", 1)[-1])
        if expected is not None and metric.unit != expected:
            raise UserError(
                f"mixed units: sensor {printable(metric.name)} says it counts in {printable(metric.unit)}. "
                "Measure again with one version"
            )
    for budget, values, batch in budgets:
        for name, value in values.items():
            if name in _PERCENTAGES and value is not None and not 0 <= value <= 100:
                raise UserError(f"mixed units: budget {printable(budget)} has a {name} of {value:g}, which is no percentage")
        power, energy, latency = (values.get(name) for name in ("mean_power_w", "energy_mj_per_image", "mean_ms"))
        if power and energy and latency and "duty_cycle_percent" not in values:
            factor = energy / (power * latency / batch)
            if not 1 / _UNIT_SLIP < factor < _UNIT_SLIP:
                raise UserError(
                    f"mixed units: budget {printable(budget)} has {power:g} W for {latency:g} ms, which is not {energy:g} mJ per image. "
                    "Measure again with one version"
                )


def _rank(status: str) -> int:
    return _RANK.get(status, 1)


def _combine_verdicts(run: Verdict | None, own: Verdict | None) -> RowVerdict | None:
    """The worse of the run's verdict and a budget's own, with the reasons of both; an unknown status counts as suspect.

    That some budget is in doubt is a reason about the run, but not about its other budgets.
    """
    if run is not None and own is not None and run.reasons:
        others = tuple(reason for reason in run.reasons if reason.code != _OF_A_BUDGET)
        run = Verdict(max((reason.status or run.status for reason in others), key=_rank, default="valid"), others)
    verdicts = [verdict for verdict in (run, own) if verdict is not None]
    if not verdicts:
        return None
    status = max((verdict.status for verdict in verdicts), key=_rank)
    reasons: list[Reason] = [reason for verdict in verdicts for reason in verdict.reasons]
    texts = dict.fromkeys(printable(reason.text) for reason in reasons)
    return RowVerdict(status if status in _RANK else "suspect", tuple(texts))
