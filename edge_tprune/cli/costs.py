"""The options that say what a search may spend: budgets of MACs, or limits under the latency model of a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_tprune.cli.parsing import parse_list
from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import LATENCY, Latency

ENERGY = "energy_mj_per_image"
OPTIONS = {"p50_ms": "--max-ms", "p95_ms": "--max-p95-ms", ENERGY: "--max-mj"}
_FRONT = 8  # limits of a front


@dataclass(frozen=True)
class Goal:
    """What a search is asked for."""

    budgets: tuple[float, ...] | None = None
    latency: Latency | None = None
    metric: str = "p50_ms"
    limits: tuple[float, ...] = ()
    methods: tuple[str, ...] = ()


def read_goal(
    profile: Path | None, budgets: str | None, methods: str | None, limits: Mapping[str, float | None], front: bool
) -> Goal:
    """Reads the options.

    Args:
        profile: with a latency model, or of a probe bundle that becomes one.
        budgets: shares of MACs, with commas.
        methods: names with commas, or "all".
        limits: metric -> bound, None where not given.
        front: instead of a limit, several over the whole range.

    Raises:
        UserError: options that exclude each other or need each other.
    """
    given = {metric: bound for metric, bound in limits.items() if bound is not None}
    if profile is None:
        unwanted = [OPTIONS[metric] for metric in given] + ["--front"] * front + ["--methods"] * (methods is not None)
        if unwanted:
            raise UserError(f"{unwanted[0]} needs --latency PROFILE: the profile of a probe bundle (edge-tprune build --probe)")
        return Goal(budgets=tuple(parse_list("0.65" if budgets is None else budgets, float, "--budgets")))
    if budgets is not None:
        raise UserError("--budgets are shares of MACs: with --latency give a limit such as --max-ms 8 instead")
    if len(given) + front != 1:
        raise UserError("--latency takes one of --max-ms, --max-p95-ms, --max-mj and --front")
    latency = read_latency(profile)
    metric, bound = next(iter(given.items()), ("p50_ms", None))
    model = latency.cost(metric)
    names = tuple(model.steps) if methods in (None, "all") else tuple(parse_list(str(methods), str, "--methods"))
    if not names:
        raise UserError(f"the latency model in {profile} knows no method: build the probes with --method, and profile them")
    if bound is not None:
        return Goal(latency=latency, metric=metric, limits=(bound,), methods=names)
    # Evenly from a tenth of what blocks cost to all of it, both ends left out.
    least = model.base + 0.1 * (model.full - model.base)
    found = tuple(round(least + (model.full - least) * step / (_FRONT + 1), 4) for step in range(1, _FRONT + 1))
    return Goal(latency=latency, metric=metric, limits=found, methods=names)


def read_latency(profile: Path) -> Latency:
    """The latency model of a profile; made now where the profile has none.

    Raises:
        UserError: no such profile, or one that does not make a model.
    """
    from edge_tprune.analysis.latency import read_latency as read_kept
    from edge_tprune.analysis.latency import write_latency
    from edge_tprune.analysis.loading import find_profiles

    found = find_profiles(profile)
    if len(found) == 1 and (found[0] / LATENCY).is_file():
        return read_kept(found[0])
    return write_latency(profile)
