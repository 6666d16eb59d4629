"""What the agent concluded from a run, read from summary.json: verdict, power, energy, stages, deadlines, memory.

Read with a guard at every step: a profile of an older format has none of this, and what is missing stays missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval, proportion_interval
from edge_tprune.text import printable

_OF_A_BUDGET = "budget"  #: code of the run's reasons that only repeat a budget's verdict
_RANK = {"valid": 0, "suspect": 1, "invalid": 2}
#: How the unit at the end of a sensor's name is written where the sensor declares it.
_UNITS = {"mw": "mW", "w": "W", "mj": "mJ", "j": "J"}
_PERCENTAGES = ("top1_percent", "top5_percent", "agreement_percent", "missed_deadlines_percent")
#: Power times latency is energy. Beyond this factor the two are in different units, not merely measured over different windows.
_UNIT_SLIP = 300.0


@dataclass(frozen=True)
class Verdict:
    """Whether a measurement may be believed."""

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
    verdict: Verdict | None = None  #: None where the run gave none: formats before version 2


def read_recorded(summary: Mapping[str, Any], budget: str) -> Recorded:
    """The recorded numbers of `budget`.

    Raises:
        ValueError, TypeError: a value is not what the format says.
    """
    own = summary.get("budgets", {}).get(budget) or {}
    recorded = Recorded(verdict=_worst(summary.get("verdict"), own.get("verdict")))
    power, energy, stages = (own.get(key) or {} for key in ("power", "energy", "stages_ms"))
    intervals = {
        "mean_power_w": power.get("mean_w"),
        "power_above_idle_w": power.get("above_idle_w"),
        "energy_mj_per_image": energy.get("gross_mj_per_image"),
        "energy_above_idle_mj_per_image": energy.get("above_idle_mj_per_image"),
    }
    for name, value in intervals.items():
        interval = Interval.from_json(value)
        if interval is not None:
            recorded.intervals[name], recorded.values[name] = interval, interval.value
        elif energy.get("reason"):
            recorded.why_missing[name] = printable(energy["reason"])
        elif energy.get("status") == "no_sensor":
            recorded.why_missing[name] = "no power sensor"
    fixed = own.get("fixed_rate") or {}
    missed, due = fixed.get("missed_deadlines"), _frames_due(own, fixed)
    numbers = {
        **{f"{stage}_ms": (stages.get(stage) or {}).get("p50") for stage in ("h2d", "compute", "d2h")},
        "duty_cycle_percent": fixed.get("duty_cycle_percent"),
        "min_memory_available_mb": own.get("min_memory_available_mb"),
        "load_ms": own.get("load_ms"),
    }
    recorded.values.update({name: float(value) for name, value in numbers.items() if value is not None})
    if missed is not None and due:
        share = proportion_interval(int(missed), max(due, int(missed))).scaled(100)
        recorded.intervals["missed_deadlines_percent"], recorded.values["missed_deadlines_percent"] = share, share.value
    return recorded


def _frames_due(budget: Mapping[str, Any], fixed_rate: Mapping[str, Any]) -> int | None:
    """How many frames a camera gave: those that ran and those that were dropped, which nothing but the time tells."""
    mean_ms, duty = (budget.get("latency_ms") or {}).get("mean"), fixed_rate.get("duty_cycle_percent")
    if not mean_ms or not duty or not fixed_rate.get("fps"):
        return None
    timed_s = float(budget["inferences"] * mean_ms / 1e3 / (duty / 100))
    return round(float(fixed_rate["fps"]) * timed_s)


def check_units(info: Mapping[str, Any], budgets: Iterable[tuple[str, Mapping[str, float | None], int]]) -> None:
    """Refuses numbers whose unit is not what their name says; a table that mixes them would be worse than none.

    Args:
        info: run.json; its plan may list sensors with the unit of each.
        budgets: per budget its name, its values by metric, and the batch.

    Raises:
        UserError: naming the number.
    """
    for name, unit in _declared(info["plan"].get("sources")):
        expected = _UNITS.get(name.rsplit("_", 1)[-1])
        if expected is not None and unit != expected:
            raise UserError(
                f"mixed units: sensor {printable(name)} says it counts in {printable(unit)}. Measure again with one version"
            )
    for budget, values, batch in budgets:
        for metric, value in values.items():
            if metric in _PERCENTAGES and value is not None and not 0 <= value <= 100:
                raise UserError(f"mixed units: budget {printable(budget)} has a {metric} of {value:g}, which is no percentage")
        power, energy, latency = (values.get(name) for name in ("mean_power_w", "energy_mj_per_image", "mean_ms"))
        if power and energy and latency and "duty_cycle_percent" not in values:
            factor = energy / (power * latency / batch)
            if not 1 / _UNIT_SLIP < factor < _UNIT_SLIP:
                raise UserError(
                    f"mixed units: budget {printable(budget)} has {power:g} W for {latency:g} ms, which is not {energy:g} mJ per image. "
                    "Measure again with one version"
                )


def _declared(sources: Any) -> Iterator[tuple[str, str]]:
    """Names and units of the metrics that the plan lists."""
    for source in sources if isinstance(sources, list) else []:
        metrics = source.get("metrics") if isinstance(source, Mapping) else None
        for metric in metrics if isinstance(metrics, list) else []:
            if isinstance(metric, Mapping) and isinstance(metric.get("name"), str) and isinstance(metric.get("unit"), str):
                yield metric["name"], metric["unit"]


def _worst(run: Any, own: Any) -> Verdict | None:
    """The worse of the run's verdict and a budget's own, with the reasons of both; an unknown status counts as suspect.

    That some budget is in doubt is a reason about the run, but not about its other budgets.
    """
    known = [verdict for verdict in (run, own) if isinstance(verdict, Mapping)]
    if not known:
        return None
    if own is not None and isinstance(run, Mapping) and (reasons := run.get("reasons")):
        others = [reason for reason in reasons if not (isinstance(reason, Mapping) and reason.get("code") == _OF_A_BUDGET)]
        known[0] = {**run, "reasons": others} if others else {"status": "valid", "reasons": []}
    status = max((str(verdict.get("status")) for verdict in known), key=lambda status: _RANK.get(status, 1))
    reasons = [reason for verdict in known for reason in verdict.get("reasons") or ()]
    texts = [printable(reason["text"] if isinstance(reason, Mapping) else reason) for reason in reasons]
    return Verdict(status if status in _RANK else "suspect", tuple(dict.fromkeys(texts)))
