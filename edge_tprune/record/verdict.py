"""Whether the numbers of a run are trustworthy. Pure functions over what was recorded; every threshold is named here, with its reason.

`invalid`: the numbers are not what they claim to be (another output, another power mode, other clocks), whatever they are.
`suspect`: they are what happened, but something disturbed the run that may have favoured a budget or may not happen again.
`valid`: nothing of the kind was seen. What is worth knowing and changes nothing is a reason too; it does not change the status.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edge_tprune.record.facts import Facts, Stat
from edge_tprune.record.lines import Check
from edge_tprune.record.meter import Meter
from edge_tprune.record.reader import Run, State, describe_end
from edge_tprune.record.spans import IDLE
from edge_tprune.record.summary import Reason, Status, Verdict
from edge_tprune.telemetry.state import Clocks, PowerMode
from edge_tprune.text import count_of

LEAST_COVERAGE = 0.90  #: of the readings that should have come: below, a mean power may have missed a whole phase
MOST_CV = 0.05  #: between a budget's round medians: beyond it, differences of a few per cent between budgets are chance
MOST_UNSTEADY = 0.20  #: of the turns that began before latency had settled: medians bear a few, not many
#: Of a temperature from the first turn to the last: leakage and clocks follow at about a per cent per 5 degrees.
MOST_RISE_C = 5.0
MOST_OTHER_CPU_CORES = 0.25  #: of one core, used by other programs while timing: the share at which two threads begin to wait
MOST_OTHER_GPU_PERCENT = 5.0  #: of the GPU, busy while this measurement did not use it
MOST_SWAP_GROWTH_BYTES = 16e6  #: while sampling: smaller changes are normal
LOCKED_SHARE = 0.97  #: of a locked clock: below, something else holds the clock down
LEAST_ROUNDS = 3  #: below, the spread between rounds is not known

_ORDER: Sequence[Status] = ("valid", "suspect", "invalid")


@dataclass(frozen=True)
class TurnStatistics:
    """What a budget's turns say of themselves."""

    count: int
    unsteady: int  #: turns whose latency had not settled when timing began
    round_median_ms: Sequence[float]


def conclude(reasons: Iterable[Reason]) -> Verdict:
    """The worst status, and all reasons, the worst first."""
    ordered = sorted(reasons, key=lambda reason: -_ORDER.index(reason.status or "suspect"))
    return Verdict(ordered[0].status or "suspect" if ordered else "valid", tuple(ordered))


def judge_budget(name: str, check: Check | None, turns: TurnStatistics, facts: Facts, *, on_gpu: bool = False) -> list[Reason]:
    """Reasons that concern one budget; `on_gpu` where its runtime computes on a GPU of NVIDIA's."""
    if check is not None and not check.golden_ok:
        code = "golden_mismatch" if check.error is None else "cannot_run"
        return [_invalid(code, f"budget {name} was not timed: {check.describe_failure()}")]
    if not turns.count:
        return [_invalid("not_timed", f"budget {name} was not timed")]
    found: list[Reason] = []
    if check is not None and check.fallback is not None:
        found.append(_suspect("precision_fallback", f"budget {name}: {check.fallback.describe()}"))
    if turns.count < LEAST_ROUNDS:
        found.append(_suspect("few_rounds", f"{count_of(turns.count, 'turn')} only: give --rounds {LEAST_ROUNDS} or more"))
    if len(turns.round_median_ms) > 1:
        spread = statistics.stdev(turns.round_median_ms) / statistics.mean(turns.round_median_ms)
        if spread > MOST_CV:
            text = f"median latency differs by {spread:.0%} from round to round (coefficient of variation)"
            found.append(_suspect("latency_unstable", text))
    if turns.unsteady > MOST_UNSTEADY * turns.count:
        text = f"latency had not settled when timing began in {turns.unsteady} of {turns.count} turns"
        found.append(_suspect("warmup_unsteady", text))
    if (missing := facts.missing.get(name, 0.0)) > 1 - LEAST_COVERAGE:
        found.append(_suspect("coverage", f"{missing:.0%} of the power readings are missing"))
    return found + _throttle_reasons(facts.stats.get(name, {}), on_gpu)


def judge_run(run: Run, facts: Facts, budgets: Mapping[str, Sequence[Reason]], meter: Meter | None = None) -> list[Reason]:
    """Reasons that concern the whole run, those of its budgets included where they are bad."""
    found: list[Reason] = []
    for name, reasons in budgets.items():
        worst = conclude(reasons).status
        if worst != "valid":
            codes = ", ".join(dict.fromkeys(reason.code for reason in reasons if reason.status != "valid"))
            found.append(_suspect("budget", f"budget {name} is {worst} ({codes})"))
    if run.end != "complete":
        found.append(_suspect("incomplete", f"the run {describe_end(run.end)}: not every round was measured"))
    found += _throttle_reasons(facts.whole, runs_on_gpu(run))
    found += _change_reasons(run.states)
    found += _lock_reasons(run.states, facts)
    found += _other_program_reasons(run, facts)
    rises = {key: trend.rise for key, trend in facts.trends.items()}
    if rises and abs(rises[hottest := max(rises, key=lambda key: abs(rises[key]))]) > MOST_RISE_C:
        text = f"{hottest[1].removesuffix('_temp_c')} went {rises[hottest]:+.1f} degrees from the first turn to the last: let it settle"
        found.append(_suspect("temperature", text))
    if (swap := facts.whole.get("swap_used_bytes")) and swap.greatest - swap.least > MOST_SWAP_GROWTH_BYTES:
        text = f"swap in use changed by {(swap.greatest - swap.least) / 1e6:.0f} MB: memory is too small"
        found.append(_suspect("swap", text))
    if meter is not None and meter.guess:
        found.append(_note("meter_guessed", f"power and energy come from {meter.made_of}"))
    return found + _sensor_reasons(run, facts)


def runs_on_gpu(run: Run) -> bool:
    """Whether the runtime computes on a GPU of NVIDIA's."""
    return run.document.settings.runtime.startswith("tensorrt")


def _throttle_reasons(stats: Mapping[str, Stat], on_gpu: bool) -> list[Reason]:
    """What the machine did against heat and too much current."""
    found: list[Reason] = []
    events = sum(stat.increase for metric, stat in stats.items() if metric.startswith("over_current_"))
    if events:
        found.append(_suspect("over_current", f"{events:.0f} over-current events: the board cut its clocks"))
    if (throttled := stats.get("cpu_throttle_count")) and throttled.increase:
        text = f"the CPU was slowed down for heat {throttled.increase:.0f} times"
        found.append(_suspect("throttled", text))
    if on_gpu and (slowed := stats.get("gpu_throttled_count")) and slowed.greatest > 0:
        found.append(
            _suspect("gpu_throttled", f"the GPU's clock was lowered for heat or power in {slowed.mean:.0%} of the readings")
        )
    if (cooling := stats.get("throttling_devices_count")) and cooling.greatest > 0:
        text = f"up to {cooling.greatest:.0f} cooling devices held clocks down for heat"
        found.append(_suspect("cooling", text))
    if (alarms := stats.get("current_alarms_count")) and alarms.greatest > 0:
        found.append(_suspect("current_alarm", f"up to {alarms.greatest:.0f} current limits were exceeded"))
    return found


def _change_reasons(states: Sequence[State]) -> list[Reason]:
    """What must not change while measuring: power mode and clock limits."""
    found: list[Reason] = []
    modes = list(dict.fromkeys(_describe_mode(state.values.power_mode) for state in states))
    if len(modes) > 1:
        found.append(_invalid("power_mode_changed", f"the power mode changed: {' to '.join(modes)}"))
    limits = list(dict.fromkeys(str(_limits(state.values.clocks)) for state in states))
    if len(limits) > 1 and len(modes) == 1:
        found.append(_invalid("clock_limits_changed", f"clock limits changed: {' to '.join(limits)}"))
    return found


def _describe_mode(mode: PowerMode | None) -> str:
    return "unknown" if mode is None else f"{mode.name} ({mode.id})"


def _limits(clocks: Clocks) -> dict[str, tuple[float | None, float | None]]:
    """Clock -> (lowest, highest) in MHz."""
    limits = {f"CPU {clock.name}": (clock.min_mhz, clock.max_mhz) for clock in clocks.cpu}
    return limits | ({"GPU": (clocks.gpu.min_mhz, clocks.gpu.max_mhz)} if clocks.gpu else {})


def _lock_reasons(states: Sequence[State], facts: Facts) -> list[Reason]:
    """A clock whose lowest and highest value are the same, and which ran slower all the same."""
    if not states:
        return []
    clocks = states[0].values.clocks
    locked: dict[str, float] = {}
    if clocks.cpu and all(clock.locked and clock.max_mhz for clock in clocks.cpu):
        cores = [len(clock.name.split()) or 1 for clock in clocks.cpu]
        mhz = sum(count * (clock.max_mhz or 0.0) for count, clock in zip(cores, clocks.cpu))
        locked["cpu_frequency_mhz"] = mhz / sum(cores)
    if clocks.gpu is not None and clocks.gpu.locked and clocks.gpu.max_mhz:
        locked["gpu_frequency_mhz"] = clocks.gpu.max_mhz
    found: list[Reason] = []
    for metric, lock in locked.items():
        stats = [of[metric] for budget, of in facts.stats.items() if budget is not IDLE and metric in of]
        lowest = min((stat.mean for stat in stats if stat.greatest > 0), default=lock)  # a GPU that is off reads 0
        if lowest < LOCKED_SHARE * lock:
            text = f"{metric.split('_')[0].upper()} clock was {lowest:.0f} MHz on average for a budget, and is locked at {lock:.0f} MHz"
            found.append(_invalid("clock_below_lock", text))
    return found


def _other_program_reasons(run: Run, facts: Facts) -> list[Reason]:
    """Other programs."""
    found: list[Reason] = []
    cores = run.document.environment.cpu_count
    loads = [of["cpu_load_others_percent"] for budget, of in facts.stats.items() if budget and "cpu_load_others_percent" in of]
    if loads and cores:
        used = sum(stat.total for stat in loads) / sum(stat.count for stat in loads) / 100 * cores
        if used > MOST_OTHER_CPU_CORES:
            text = f"other programs used {used:.2g} CPU cores on average while timing: end them"
            found.append(_suspect("other_cpu", text))
    idle_gpu = facts.stat(IDLE, "gpu_load_percent")
    if idle_gpu is not None and idle_gpu.mean > MOST_OTHER_GPU_PERCENT:
        text = f"the GPU was busy for {idle_gpu.mean:.0f} % of the time when nothing of this run used it: end the other program"
        found.append(_suspect("other_gpu", text))
    return found


def _sensor_reasons(run: Run, facts: Facts) -> list[Reason]:
    """Readings that did not come, or came late."""
    found: list[Reason] = []
    for source, missing in facts.missing_sources.items():
        if missing > 1 - LEAST_COVERAGE:
            text = f"{missing:.0%} of the readings of {source} are missing while timing"
            found.append(_suspect("coverage", text))
    for metric, reasons in sorted(facts.gaps.items()):
        lost = sum(reasons.values())
        share = lost / (lost + facts.whole[metric].count)
        why = ", ".join(reason for reason, _ in reasons.most_common(2))
        text = f"{metric}: {lost} readings missing ({why})"
        found.append(Reason("sensor_gaps", text, "suspect" if share > 1 - LEAST_COVERAGE else "valid"))
    for source, count in sorted(facts.slow.items()):
        found.append(_note("sensor_slow", f"{count} reads of {source} took longer than the time between two"))
    leaps = sum(power.leaps for power in facts.powers if power is not None)
    if leaps:
        found.append(_note("counter_leaps", f"the energy counter leapt or ran backwards {leaps} times; left out"))
    if facts.whole and facts.elapsed_s is None and run.document.version > 1:
        found.append(_note("observer_unknown", "what sampling cost is not known: the sampler did not end by itself"))
    return found


def _invalid(code: str, text: str) -> Reason:
    return Reason(code, text, "invalid")


def _suspect(code: str, text: str) -> Reason:
    return Reason(code, text, "suspect")


def _note(code: str, text: str) -> Reason:
    return Reason(code, text, "valid")
