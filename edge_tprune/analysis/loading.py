"""Profiles on a disk become rows."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_tprune.analysis.conditions import data_conditions, run_conditions
from edge_tprune.analysis.recorded import Recorded, check_units, read_recorded
from edge_tprune.analysis.samples import Samples, read_samples
from edge_tprune.analysis.table import QUANTILES, Profile, Row, Rows
from edge_tprune.bundle.manifest import Accuracy
from edge_tprune.documents import LARGEST_BYTES, InvalidDocument, decode
from edge_tprune.errors import UserError
from edge_tprune.files import read_regular
from edge_tprune.record.document import RUN, BudgetRecord
from edge_tprune.record.lines import SAMPLES, Check
from edge_tprune.record.log import is_being_written
from edge_tprune.record.turn import Turn
from edge_tprune.statistics import Interval, nearest_rank, paired_speedup, percentile_intervals, ratio_interval
from edge_tprune.text import printable


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
                loaded[profile.resolve()] = profile_rows(read_samples(profile))
            except UserError as error:
                if profile == path:
                    raise
                refused.append(error)
        if len(refused) == len(found):
            raise refused[0]
        left_out += [f"left out: {error}" for error in refused]
    loaded = _tell_apart(loaded)
    warnings = list(left_out)
    several = len(loaded) > 1
    for rows in loaded.values():
        profile_of = rows[0].profile
        warnings += [f"{profile_of.name}: {text}" if several else text for text in profile_of.warnings]
    return Rows(tuple(row for rows in loaded.values() for row in rows), tuple(warnings), tuple(left_out))


def _tell_apart(loaded: Mapping[Path, list[Row]]) -> dict[Path, list[Row]]:
    """The same rows by path, with profiles that are named by as many parts of their paths as no other one has."""
    found = {}
    for path, rows in loaded.items():
        parts = 1
        while parts < len(path.parts) and any(
            other != path and other.parts[-parts:] == path.parts[-parts:] for other in loaded
        ):
            parts += 1
        profile = replace(rows[0].profile, parts=parts)
        found[path] = rows if parts == 1 else [replace(row, profile=profile) for row in rows]
    return found


def find_profiles(path: Path | str) -> list[Path]:
    """The profiles at `path`, which is one or a directory that holds some, at any depth; the newest first.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist" if not path.exists() else f"{path} is a file; a profile is a directory")
    if (path / RUN).is_file():
        return [path]
    found = []

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): what it holds would be left out") from error

    seen: set[tuple[int, int]] = set()  # links are followed, but never twice into one directory
    for directory, inside, files in os.walk(path, onerror=refuse, followlinks=True):
        try:
            status = Path(directory).stat()
        except OSError as error:
            refuse(error)
        if (identity := (status.st_dev, status.st_ino)) in seen:
            inside.clear()
            continue
        seen.add(identity)
        if RUN in files:
            found.append(Path(directory))
            inside.clear()  # a profile holds no profiles
        else:  # a directory whose name begins with a dot holds runs that are just being created
            inside[:] = sorted(name for name in inside if not name.startswith("."))
    if not found:
        raise UserError(f"{path} is neither a profile nor a directory of profiles: no {RUN} in it. Run: edge-tprune profile")
    return sorted(found, key=lambda profile: (_started(profile), profile.name), reverse=True)


def profile_rows(samples: Samples) -> list[Row]:
    """One row per budget of a run, in bundle order.

    Raises:
        UserError: the run timed nothing, or what it recorded makes no sense.
    """
    if not samples.count:
        if is_being_written(samples.path / SAMPLES):
            raise UserError(
                f"profile {samples.path} holds no measurement yet: the run is still going on. Wait for its first round"
            )
        raise UserError(f"profile {samples.path} holds no measurement: the run ended before its first round. Profile again")
    try:
        return _make_rows(samples)
    except UserError as error:
        raise UserError(f"profile {samples.path}: {error}") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
    ) as error:  # in what the bundle wrote, which the types of a run do not cover
        if any(frame.f_code.co_name == "<module>" for frame, _ in walk_tb(error.__traceback__)):
            raise  # a package that reads the environment could not be imported
        raise UserError(
            f"profile {samples.path} holds values that make no sense ({error!r}). Copy the profile again"
        ) from error


def _make_rows(samples: Samples) -> list[Row]:
    document = samples.document
    profile = Profile(
        samples.path,
        document,
        (*samples.warnings, *_unsteady(samples)),
        tuple(map(printable, samples.notes)),
        samples.summary,
    )
    engine = next((check.engine for check in samples.checks.values() if check.engine), {})
    shared = run_conditions(document, samples.state, engine, samples.summary)
    data = data_conditions(document.budgets)
    batch, tokens = document.bundle.batch, document.bundle.model.tokens
    timed = {name: _summarize_latencies(turns, batch) for name, turns in samples.turns.items()}
    unpruned = (budget.name for budget in document.budgets if _is_unpruned(budget, tokens))
    baseline = next((timed[name] for name in unpruned if timed[name] is not None), None)

    def conditions(budget: BudgetRecord) -> dict[str, str]:
        return {**shared, "precision": printable(budget.artifact.precision), **data[budget.name]}

    rows = [
        _make_row(profile, budget, samples, timed[budget.name], baseline, conditions(budget)) for budget in document.budgets
    ]
    check_units(document, [(row.budget, row.values, batch) for row in rows])
    return rows


def _make_row(
    profile: Profile,
    budget: BudgetRecord,
    samples: Samples,
    latency: _Latencies | None,
    baseline: _Latencies | None,
    conditions: Mapping[str, str],
) -> Row:
    """The row of one budget; `latency` and `baseline` are what was timed of it and of the unpruned one."""
    model, check = profile.document.bundle.model, samples.checks.get(budget.name)
    recorded = read_recorded(samples.summary, budget.name)
    tokens = model.tokens
    values, intervals = _accuracy(budget.accuracy, _is_unpruned(budget, tokens))
    values |= recorded.values
    intervals |= recorded.intervals
    values |= {
        "final_tokens": budget.schedule[-1] if budget.schedule else tokens,
        "macs_g": budget.macs / 1e9,
        "macs_share_percent": 100 * budget.macs_share,
        "peak_memory_mb": None if check is None or check.peak_memory_bytes is None else check.peak_memory_bytes / 1e6,
    }
    if latency is not None:
        intervals |= latency.intervals
        values |= {metric: interval.value for metric, interval in latency.intervals.items()}
        if baseline is not None and (speedup := _speedup(baseline, latency)) is not None:
            intervals["speedup"], values["speedup"] = speedup, speedup.value
    return Row(
        profile=profile,
        model=printable(model.name),
        method=printable((budget.method or profile.document.bundle.method).name),
        budget=printable(budget.name),
        schedule=budget.schedule,
        tokens=tokens,
        unpruned=_is_unpruned(budget, tokens),
        values=values,
        intervals=intervals,
        by_round={} if latency is None else latency.by_round,
        latency_quantiles_ms=() if latency is None else latency.quantiles_ms,
        inferences=0 if latency is None else latency.inferences,
        rounds=len(samples.turns[budget.name]),
        conditions=conditions,
        unfit=_why_unfit(check, recorded),
        failed_check=check is not None and not check.golden_ok and check.error is None,
        verdict=recorded.verdict,
        why_missing=recorded.why_missing,
        per_image=_per_image(budget.accuracy),
    )


def _why_unfit(check: Check | None, recorded: Recorded) -> str | None:
    """Why a budget must not be chosen whatever its numbers, or None."""
    if check is not None and not check.golden_ok:
        return (
            "its outputs failed the check on that machine"
            if check.error is None
            else f"it could not be run there: {printable(check.error)}"
        )
    if recorded.verdict is not None and recorded.verdict.status == "invalid":
        return f"its run is invalid: {'; '.join(recorded.verdict.reasons) or 'not said why'}"
    return None


@dataclass(frozen=True)
class _Latencies:
    """What one budget's latencies come to."""

    intervals: dict[str, Interval]  #: metric name -> value, and how sure it is
    by_round: dict[str, dict[int, float]]
    quantiles_ms: tuple[float, ...]
    inferences: int


def _summarize_latencies(turns: Sequence[Turn], batch: int) -> _Latencies | None:
    """Everything that is computed from raw latencies; None where nothing was timed."""
    if not turns:
        return None
    rounds = [turn.latency_ns for turn in turns]
    totals_ms, counts = [float(values.sum()) / 1e6 for values in rounds], [values.size for values in rounds]
    ordered = np.sort(np.concatenate(rounds))
    percents = {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}
    found = percentile_intervals(rounds, list(percents.values()), ordered=ordered)
    intervals = {metric: interval.scaled(1e-6) for metric, interval in zip(percents, found)}
    intervals["mean_ms"] = ratio_interval(totals_ms, counts)
    intervals["throughput_images_per_s"] = ratio_interval([batch * 1e3 * count for count in counts], totals_ms)
    own = {turn.round: np.sort(turn.latency_ns) for turn in turns}
    return _Latencies(
        intervals=intervals,
        by_round={
            **{
                metric: {index: _nearest_rank(values, percents[metric] / 100) / 1e6 for index, values in own.items()}
                for metric in ("p50_ms", "p95_ms")
            },
            "throughput_images_per_s": {index: 1e9 * batch / float(values.mean()) for index, values in own.items()},
        },
        quantiles_ms=tuple(_nearest_rank(ordered, quantile) / 1e6 for quantile in QUANTILES),
        inferences=ordered.size,
    )


def _nearest_rank(ordered: NDArray[np.int64], share: float) -> float:
    return float(ordered[nearest_rank(ordered.size, share)])


def _speedup(baseline: _Latencies, own: _Latencies) -> Interval | None:
    if baseline is own:
        return Interval(1.0, 1.0, 1.0)
    return paired_speedup(baseline.by_round["p50_ms"], own.by_round["p50_ms"])


def _per_image(accuracy: Accuracy | None) -> dict[str, NDArray[np.bool_]]:
    """Metric name -> whether it counts each image, where the evaluation kept that."""
    if accuracy is None or accuracy.per_image is None:
        return {}
    bits = {"top1_percent": accuracy.per_image.top1_right, "agreement_percent": accuracy.per_image.agrees}
    return {
        metric: np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=accuracy.images).astype(np.bool_)
        for metric, text in bits.items()
        if text is not None
    }


def _accuracy(accuracy: Accuracy | None, unpruned: bool) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Values and intervals of the accuracy metrics."""
    if accuracy is None:
        return {}, {}
    names = ("top1_change_points", "top5_change_points", "agreement_percent", "kl_nats", "cosine_distance")
    intervals: dict[str, Interval] = {name: found for name in names if (found := getattr(accuracy, name)) is not None}
    shares = {"top1": accuracy.top1_percent, "top5": accuracy.top5_percent}
    for top, share in shares.items():
        if unpruned and share is not None:  # the reference itself: no change by definition
            intervals.setdefault(f"{top}_change_points", Interval(0.0, 0.0, 0.0))
    values: dict[str, float | None] = {name: interval.value for name, interval in intervals.items()}
    values |= {f"{top}_percent": share for top, share in shares.items() if share is not None}
    change = intervals.get("top1_change_points")
    if change is not None:
        low, high = change.low, change.high
        drop = Interval(-change.value, None if high is None else -high, None if low is None else -low, change.confidence)
        intervals["top1_drop_points"] = drop
        values["top1_drop_points"] = drop.value
    return values, intervals


def _unsteady(samples: Samples) -> list[str]:
    """Says so where latency had not settled when timing began."""
    if not samples.unsteady:
        return []
    return [
        f"latency had not settled when timing began in {samples.unsteady} of {samples.count} turns: other programs were running"
    ]


def _is_unpruned(budget: BudgetRecord, tokens: int | None) -> bool:
    return tokens is not None and all(count >= tokens for count in budget.schedule)


def _started(profile: Path) -> str:
    """When the run began, for sorting; '' where its run.json does not tell (reading it will say why)."""
    try:
        return decode(read_regular(profile / RUN, LARGEST_BYTES), _Started).started_utc
    except (OSError, InvalidDocument):
        return ""


class _Started(msgspec.Struct):
    started_utc: str = ""
