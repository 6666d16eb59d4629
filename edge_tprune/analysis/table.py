"""Profiles as one table: a row per profile and budget, each with what it must share with others to be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.agent.record import RUN, Run, read_run
from edge_tprune.agent.summary import percentile, round_medians, summarize
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval, mean_interval, paired_speedup

UNKNOWN = "unknown"
NOT_EVALUATED = "not evaluated"
QUANTILES = tuple(float(q) for q in np.linspace(0, 1, 201))  #: where `Row.latency_quantiles_ms` samples the distribution


@dataclass(frozen=True)
class Profile:
    """One run: what a report tells about it beyond its rows."""

    path: Path
    info: Mapping[str, Any]  #: run.json
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return clean(self.path.resolve().name)

    @property
    def started_utc(self) -> str:
        """When it began, ISO 8601."""
        return clean(self.info["started_utc"])


@dataclass(frozen=True)
class Row:
    """One budget of one profile."""

    profile: Profile
    model: str
    method: str
    budget: str
    schedule: tuple[int, ...]  #: tokens after each block, class token included
    tokens: int | None  #: of the unpruned model
    unpruned: bool
    values: Mapping[str, float | None]  #: metric name -> value; None where nobody measured it
    intervals: Mapping[str, Interval]  #: metric name -> how sure the value is, where that is known
    by_round: Mapping[str, Mapping[int, float]]  #: metric name -> round -> value: pair budgets of one profile by these
    latency_quantiles_ms: tuple[float, ...]  #: at QUANTILES, nearest rank; empty where nothing was timed
    inferences: int
    rounds: int
    conditions: Mapping[str, str]  #: what must be equal for two rows to be compared: label -> value
    unfit: str | None  #: why this row must not be chosen whatever its numbers, or None

    @property
    def name(self) -> str:
        """Method and budget: 'zero_tprune 0.65'."""
        return f"{self.method} {self.budget}"

    @property
    def tokens_text(self) -> str:
        """The counts that the network passes through: '197→149→112'."""
        counts = ([self.tokens] if self.tokens is not None else []) + list(self.schedule)
        changes = [count for index, count in enumerate(counts) if index == 0 or count != counts[index - 1]]
        return "→".join(map(str, changes))

    def value(self, metric: str) -> float | None:
        """The metric's value, None where it is missing."""
        return self.values.get(metric)


@dataclass(frozen=True)
class Group:
    """Rows that may be compared with each other."""

    conditions: Mapping[str, str]  #: what they share: label -> value
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """All rows that were loaded, and what a person should know before trusting them."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()  #: everything, what was left out first
    left_out: tuple[str, ...] = ()  #: profiles that could not be read, and why

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    @property
    def groups(self) -> list[Group]:
        """The rows by what they share, in order of first appearance."""
        return group(self.rows)


def load_rows(paths: Path | str | Iterable[Path | str]) -> Rows:
    """Reads profiles into rows: by path, then in bundle order.

    A profile that was named must be readable. Where a directory of profiles was named, those that are not are left out, which
    is said in `warnings`, as long as one is.

    Args:
        paths: profile directories, directories of profiles, or a mix; the same profile counts once.

    Raises:
        UserError: nothing at a path, no profile there, a damaged, empty or newer-format one.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not names:
        raise UserError("no profile given. Make one with: edge-tprune profile")
    loaded: dict[Path, list[Row]] = {}
    left_out: list[str] = []
    for path in map(Path, names):
        refused: list[UserError] = []
        found = find_profiles(path)
        for profile in found:
            if profile.resolve() in loaded:
                continue
            try:
                loaded[profile.resolve()] = profile_rows(read_run(profile))
            except UserError as error:
                if profile == path:
                    raise
                refused.append(error)
        if len(refused) == len(found):
            raise refused[0]
        left_out += [f"left out: {error}" for error in refused]
    warnings = list(left_out)
    several = len(loaded) > 1
    for rows in loaded.values():
        profile_of = rows[0].profile
        warnings += [f"{profile_of.name}: {text}" if several else text for text in profile_of.warnings]
    return Rows(tuple(row for rows in loaded.values() for row in rows), tuple(warnings), tuple(left_out))


def find_profiles(path: Path | str) -> list[Path]:
    """The profiles at `path`, which is one or a directory that holds some (up to two levels down); the newest first.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist" if not path.exists() else f"{path} is a file; a profile is a directory")
    if (path / RUN).is_file():
        return [path]
    found = [file.parent for pattern in (f"*/{RUN}", f"*/*/{RUN}") for file in path.glob(pattern) if _visible(file, path)]
    if not found:
        raise UserError(f"{path} is neither a profile nor a directory of profiles: no {RUN} in it. Run: edge-tprune profile")
    return sorted(found, key=lambda profile: (_started(profile), profile.name), reverse=True)


def profile_rows(run: Run) -> list[Row]:
    """One row per budget of `run`, in bundle order.

    Raises:
        UserError: the run timed nothing, or what it recorded makes no sense.
    """
    if not run.rounds:
        raise UserError(f"profile {run.path} holds no measurement: the run ended before its first round. Profile again")
    try:
        return _rows(run)
    except (KeyError, TypeError, ValueError) as error:  # beyond what the schema of run.json can promise
        raise UserError(f"profile {run.path} holds values that make no sense ({error!r}). Copy the profile again") from error


def group(rows: Iterable[Row]) -> list[Group]:
    """Rows with equal conditions together, in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.conditions.items()), []).append(row)
    return [Group(dict(key), tuple(members)) for key, members in groups.items()]


def differences(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """What keeps `rows` from being compared: label -> its distinct values. Empty where all may be compared."""
    rows = list(rows)
    labels = dict.fromkeys(label for row in rows for label in row.conditions)
    found = {label: tuple(dict.fromkeys(row.conditions.get(label, UNKNOWN) for row in rows)) for label in labels}
    return {label: values for label, values in found.items() if len(values) > 1}


def clean(value: Any) -> str:
    """Text from a file, safe to show: what could steer a terminal or a layout becomes '�'."""
    return "".join(letter if letter.isprintable() else "�" for letter in str(value))


def _rows(run: Run) -> list[Row]:
    info, model = run.info, run.info["bundle"]["model"]
    summary = summarize(run)["budgets"]
    profile = Profile(run.path, info, (*run.warnings, *_unsteady(run)), tuple(map(clean, run.notes)))
    shared, data = _conditions(info), _eval_data(info["budgets"])
    tokens = model.get("tokens")
    p50 = round_medians(run)
    baseline = next((entry["name"] for entry in info["budgets"] if _is_unpruned(entry, tokens) and p50[entry["name"]]), None)
    rows = []
    for entry in info["budgets"]:
        name, summarized = entry["name"], summary[entry["name"]]
        unpruned = _is_unpruned(entry, tokens)
        values, intervals = _accuracy(entry["accuracy"], unpruned)
        values |= _measured(summarized)
        schedule = tuple(entry["schedule"])
        values |= {
            "final_tokens": schedule[-1] if schedule else tokens,
            "macs_g": entry["macs"] / 1e9,
            "macs_share_percent": 100 * entry["macs_share"],
        }
        speedup = None if baseline is None else paired_speedup(p50[baseline], p50[name])
        if name == baseline:
            speedup = Interval(1.0, 1.0, 1.0)
        values["speedup"] = None if speedup is None else speedup.value
        if speedup is not None:
            intervals["speedup"] = speedup
        by_round = {
            "p50_ms": p50[name],
            "p95_ms": _p95_by_round(run, name),
            "throughput_images_per_s": _rate_by_round(run, name),
        }
        intervals |= {metric: mean_interval(list(of.values())) for metric, of in by_round.items() if of}
        check = run.checks.get(name)
        rows.append(
            Row(
                profile=profile,
                model=clean(model.get("name", UNKNOWN)),
                method=clean(info["bundle"]["method"].get("name", UNKNOWN)),
                budget=clean(name),
                schedule=schedule,
                tokens=tokens,
                unpruned=unpruned,
                values=values,
                intervals=intervals,
                by_round=by_round,
                latency_quantiles_ms=_quantiles(run, name),
                inferences=summarized["inferences"],
                rounds=summarized["rounds"],
                conditions={**shared, "precision": clean(entry["artifact"]["precision"]), **data[name]},
                unfit="its outputs failed the check on that machine" if check is not None and not check.golden_ok else None,
            )
        )
    return rows


def _conditions(info: Mapping[str, Any]) -> dict[str, str]:
    """What all rows of a run must share with the rows they are compared with."""
    environment, bundle, plan = info["environment"], info["bundle"], info["plan"]
    versions = environment.get("versions") or {}
    runtime = plan["runtime"]
    version = versions.get(runtime) or versions.get(f"{runtime}-gpu") or UNKNOWN
    model = bundle["model"]
    known = {
        "host": environment.get("hostname"),
        "board": environment.get("board_model"),
        "L4T": environment.get("l4t_release"),
        "CPU": environment.get("cpu_model") or environment.get("machine"),
        "CPUs": environment.get("cpu_count"),
        "CPU governor": environment.get("cpu_governor"),
        "runtime": f"{runtime} {version}",
        "threads": plan["threads"],
        "isolation": plan["isolation"],
        "batch": bundle["batch"],
        "model": model.get("name"),
        "weights": (model.get("weights_sha256") or "")[:12] or None,
    }
    return {label: UNKNOWN if value is None else clean(value) for label, value in known.items()}


def _eval_data(budgets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Per budget: the images its accuracy comes from. A budget that was not evaluated goes along with the others of its run."""
    own = {entry["name"]: _describe_data(entry["accuracy"]) for entry in budgets}
    evaluated = [data for data in own.values() if data is not None]
    agreed = bool(evaluated) and all(data == evaluated[0] for data in evaluated)
    default = evaluated[0] if agreed else {"eval data": NOT_EVALUATED, "eval data hash": NOT_EVALUATED}
    return {name: data or default for name, data in own.items()}


def _describe_data(accuracy: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Its name with the number of images, and its hash where that was recorded."""
    if accuracy is None:
        return None
    data = accuracy.get("data")
    record: Mapping[str, Any] = data if isinstance(data, Mapping) else {"name": data}
    name, images = record.get("name") or UNKNOWN, record.get("images", accuracy.get("images"))
    return {
        "eval data": clean(name if images is None else f"{name}, {images} images"),
        "eval data hash": clean(record.get("sha256") or UNKNOWN)[:12],
    }


def _accuracy(accuracy: Mapping[str, Any] | None, unpruned: bool) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Values and intervals of the accuracy metrics."""
    accuracy = accuracy or {}
    intervals = {
        name: interval
        for name in ("top1_change_points", "top5_change_points", "agreement_percent", "kl_nats")
        if (interval := Interval.from_json(accuracy.get(name))) is not None
    }
    for top in ("top1", "top5"):
        if unpruned and accuracy.get(f"{top}_percent") is not None:  # the reference itself: no change by definition
            intervals.setdefault(f"{top}_change_points", Interval(0.0, 0.0, 0.0))
    values: dict[str, float | None] = {name: interval.value for name, interval in intervals.items()}
    for name in ("top1_percent", "top5_percent", "kl_nats"):
        number = accuracy.get(name)
        if isinstance(number, (int, float)):
            values[name] = float(number)
    change = intervals.get("top1_change_points")
    if change is not None:
        low, high = change.low, change.high
        drop = Interval(-change.value, None if high is None else -high, None if low is None else -low, change.confidence)
        intervals["top1_drop_points"] = drop
        values["top1_drop_points"] = drop.value
    return values, intervals


def _measured(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics that come straight from a budget's summary."""
    latency = summary["latency_ms"]
    return {
        **{f"{key}_ms": latency[key] for key in ("p50", "p95", "p99", "mean")},
        "throughput_images_per_s": summary["throughput_images_per_s"],
        "peak_memory_mb": summary["peak_memory_mb"],
    }


def _p95_by_round(run: Run, budget: str) -> dict[int, float]:
    return {turn.round: percentile(turn.latency_ms, 95) for turn in run.of(budget)}


def _rate_by_round(run: Run, budget: str) -> dict[int, float]:
    batch = run.info["bundle"]["batch"]
    return {turn.round: 1e3 * batch / float(turn.latency_ms.mean()) for turn in run.of(budget)}


def _quantiles(run: Run, budget: str) -> tuple[float, ...]:
    turns = run.of(budget)
    if not turns:
        return ()
    values = np.concatenate([turn.latency_ms for turn in turns])
    return tuple(map(float, np.quantile(values, QUANTILES, method="inverted_cdf")))


def _unsteady(run: Run) -> list[str]:
    """Says so where latency had not settled when timing began."""
    restless = sum(turn.warmup_steady is False for turn in run.rounds)
    if not restless:
        return []
    return [f"latency had not settled when timing began in {restless} of {len(run.rounds)} turns: other programs were running"]


def _is_unpruned(entry: Mapping[str, Any], tokens: int | None) -> bool:
    return tokens is not None and all(count >= tokens for count in entry["schedule"])


def _visible(file: Path, root: Path) -> bool:
    """Not in a directory whose name begins with a dot, where runs lie that are just being created."""
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _started(profile: Path) -> str:
    """When the run began, for sorting; '' where its run.json does not tell (reading it will say why)."""
    try:
        info = json.loads((profile / RUN).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(info.get("started_utc", "")) if isinstance(info, dict) else ""
