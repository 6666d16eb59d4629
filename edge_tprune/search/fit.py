"""What `fit` has to do, as data: which step comes next, from what is there. Knows nothing of how steps are done.

A fit measures probes once, then in rounds: searches under the latency model, and measures the best candidates beside the unpruned network. Where the
measurement misses what was predicted, the next round aims at another limit. Whatever was done is kept and used again, also for other limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_tprune.documents import Count, DocumentKind, FileName, Name, OptionValue, RelativePath
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import LATENCY, SLICE, CostModel, Latency
from edge_tprune.search.configuration import Found
from edge_tprune.statistics import Interval

MOST_ROUNDS = 3
STATE = "fit.json"
FULL = "1.0"
FAR_BELOW = 0.95  #: of a bound: what is faster gives tokens away
MARGIN = 0.99  #: of a bound, at which another round aims

_Bound = Annotated[float, Meta(gt=0)]
Step = Literal["probe", "search", "measure", "tune", "answer"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A network that a search proposes."""

    name: FileName  #: in the bundle
    method: Name
    options: dict[str, OptionValue]
    tokens: tuple[Count, ...]  #: after each block
    precision: Name  #: that it was searched for
    predicted: Interval | None  #: in that precision


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The searches in all precisions, and what was measured of their candidates."""

    aims: dict[str, _Bound]  #: precision -> the limit that its search was given
    candidates: tuple[Candidate, ...]
    bundle: RelativePath  #: relative to the fit's directory
    profile: RelativePath | None = None  #: likewise; None until it was measured
    again: dict[str, _Bound] = {}  #: precision -> the limit to aim at in another round; none where none is needed
    trials: Count | None = None  #: of each of its searches; not known of older fits


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen network, fine-tuned. Paths are relative to the fit's directory."""

    candidate: Name
    verdict: str  #: of the fine-tuning, in words
    seconds: float | None = None  #: that it was given; None: as long as `finetune` takes by default
    photos: str = ""  #: fingerprint of those that it was trained on; not known of older fits
    too_short: bool = False  #: the time was, for what else the machine did then: another call tries again
    bundle: RelativePath | None = None  #: None where it brought nothing
    profile: RelativePath | None = None


class FitState(msgspec.Struct, frozen=True, kw_only=True):
    """fit.json: what is there. Paths are relative to its directory."""

    key: str  #: hash of what all of it depends on: model, weights, images, methods, runtime, batch
    machine: str = ""  #: that it is measured on, and its power mode; not known of a board and of older fits
    probes: dict[str, RelativePath] = {}  #: precision -> profile of the probe bundle, with its latency.json
    rounds: dict[str, Annotated[tuple[Round, ...], Meta(min_length=1)]] = {}  #: by the limits and precisions, as words
    tuned: dict[str, Tuned] = {}  #: likewise

    def next_step(self, limits: str, precisions: Sequence[str], tune: bool = False) -> Step:
        """What is to be done next for these limits."""
        if any(precision not in self.probes for precision in precisions):
            return "probe"
        rounds = self.rounds.get(limits, ())
        if not rounds:
            return "search"
        if rounds[-1].profile is None:
            return "measure"
        if rounds[-1].again and len(rounds) < MOST_ROUNDS:
            return "search"
        return "tune" if tune and limits not in self.tuned else "answer"

    def without_shorter_searches(self, limits: str, trials: int) -> FitState:
        """Without the rounds for these limits, if their searches had fewer trials than are asked for now."""
        if all(each.trials is None or each.trials >= trials for each in self.rounds.get(limits, ())):
            return self
        rounds = {name: found for name, found in self.rounds.items() if name != limits}
        tuned = {name: found for name, found in self.tuned.items() if name != limits}
        return msgspec.structs.replace(self, rounds=rounds, tuned=tuned)

    def without_other_tuning(self, limits: str, seconds: float | None, photos: str) -> FitState:
        """Without the fine-tuning for these limits, if it was given another time or other photos, or was not done for want of time."""
        asked = seconds, photos, False
        tuned = {
            name: found
            for name, found in self.tuned.items()
            if name != limits or (found.seconds, found.photos, found.too_short) == asked
        }
        return msgspec.structs.replace(self, tuned=tuned)

    def without_probes(self, precisions: Collection[str]) -> FitState:
        """Without the probes of these precisions, and what was found with them."""
        rounds = {limits: found for limits, found in self.rounds.items() if found[-1].aims.keys().isdisjoint(precisions)}
        return msgspec.structs.replace(
            self,
            probes={precision: path for precision, path in self.probes.items() if precision not in precisions},
            rounds=rounds,
            tuned={limits: found for limits, found in self.tuned.items() if limits in rounds},
        )

    def without_removed(self, exists: Callable[[str], bool]) -> FitState:
        """What of it is still there: a step whose output somebody removed is to be done again.

        Args:
            exists: whether there is something at a path relative to the fit's directory.
        """
        rounds, again = {}, set[str]()
        for limits, found in self.rounds.items():
            *before, latest = found
            if latest.profile is not None and not (exists(latest.profile) and exists(latest.bundle)):
                latest = msgspec.structs.replace(latest, profile=None, again={})
                again.add(limits)  # and perhaps another network is chosen then
            rounds[limits] = (*before, latest)
        return msgspec.structs.replace(
            self,
            probes={precision: path for precision, path in self.probes.items() if exists(f"{path}/{LATENCY}")},
            rounds=rounds,
            tuned={
                limits: tuned
                for limits, tuned in self.tuned.items()
                if limits not in again and all(path is None or exists(path) for path in (tuned.bundle, tuned.profile))
            },
        )

    def with_round(self, limits: str, latest: Round) -> FitState:
        """With a new round, or the last one as it is now."""
        before = self.rounds.get(limits, ())
        kept = before[:-1] if before and before[-1].bundle == latest.bundle else before
        return msgspec.structs.replace(self, rounds={**self.rounds, limits: (*kept, latest)})

    def aim(self, limits: str, precision: str, bound: float) -> float:
        """What the next search in a precision is to aim at."""
        rounds = self.rounds.get(limits, ())
        return rounds[-1].again.get(precision, bound) if rounds else bound

    def settled(self, limits: str, precision: str) -> Sequence[Candidate] | None:
        """The candidates of the last round, where another round has nothing to search for in this precision; else None."""
        rounds = self.rounds.get(limits, ())
        if not rounds or precision in rounds[-1].again:
            return None
        return [candidate for candidate in rounds[-1].candidates if candidate.precision == precision]


KIND = DocumentKind(
    noun="fit",
    format="edge-tprune-fit",
    version=2,
    make="Make one with: edge-tprune fit",
    remedy="Delete it: what was built and measured is found again",
    schema=FitState,
    file=STATE,
)


def tightest(latency: Latency, bounds: Mapping[str, float]) -> tuple[str, float]:
    """The bound that leaves least, of those that the model knows: (metric, bound).

    Raises:
        UserError: the model knows none of the metrics.
    """
    shares = {metric: bound / latency.cost(metric).full for metric, bound in bounds.items()}
    metric = min(shares, key=lambda name: (shares[name], name))
    return metric, bounds[metric]


def needs_no_pruning(model: CostModel, shape: NetworkShape, bound: float) -> bool:
    """Whether the network with nothing but exact savings keeps the bound for sure, as far as the model knows."""
    known = model.predict(shape, SLICE, shape.exact_schedule())
    return known is not None and known.high is not None and known.high <= bound


def pick_candidates(found: Found, model: CostModel, fixed: Mapping[str, OptionValue], precision: str) -> list[Candidate]:
    """Three or four networks to measure, not named yet: the best at the limit, the best of another method, the best method's own pattern, and
    the best with its whole interval below the limit.

    What a method's step costs is the least certain part of a prediction: the search prefers methods whose step was measured too cheap, and only
    another method can show that. Where one method was searched, the second best takes its place. Of many trials the best one suits the search's
    images by chance, too: a method's own pattern, which was not chosen on them, can show that on others, even if the search dropped it.
    """
    space, shape, best = found.space, found.space.cost.shape, found.best.configuration
    others = [result for result in found.results if result.configuration != best]
    second = next((result for result in others if result.configuration.method != best.method), [*others, found.best][0])
    safe = _at_limit(found, space.limit / (1 + model.reach))
    own = found.patterns.get(best.method)
    own_schedule = None if own is None else space.schedule(own)
    chosen = [
        (best, found.best.schedule.tokens),
        (second.configuration, second.schedule.tokens),
        (own, None if own_schedule is None else own_schedule.tokens),
        (best, safe),
    ]
    networks = dict.fromkeys(
        (one.method, one.options, tokens) for one, tokens in chosen if one is not None and tokens is not None
    )
    return [
        Candidate(
            name="candidate",
            method=method,
            options={**fixed, **dict(options)},
            tokens=tokens,
            precision=precision,
            predicted=model.predict(shape, method, tokens),
        )
        for method, options, tokens in networks
    ]


def with_best_so_far(candidates: Sequence[Candidate], best: Candidate | None) -> list[Candidate]:
    """The candidates of a round, and the one that the round before would have chosen: another round never ends worse than the one before."""
    known = [(each.method, each.options, each.tokens) for each in candidates]
    if best is None or (best.method, best.options, best.tokens) in known:
        return list(candidates)
    return [*candidates, best]


def name_candidates(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Names that are unique in a bundle."""
    return tuple(msgspec.structs.replace(candidate, name=f"fit-{number}") for number, candidate in enumerate(candidates, 1))


def _at_limit(found: Found, limit: float) -> tuple[int, ...] | None:
    """The best configuration at another limit."""
    schedule = replace(found.space, limit=limit).schedule(found.best.configuration)
    return None if schedule is None else schedule.tokens


def next_aim(
    aim: float, bound: float, predicted: Sequence[Interval | None], measured: Sequence[float | None], met: bool
) -> float | None:
    """What another round should aim at; None where none is needed.

    The first of `measured` are those of which something was predicted, in the same order; the others are of other networks in this precision.

    One is needed where no candidate keeps the bound; and where tokens were given away: all predictions were too high by more than their interval, or
    the best candidate missed the bound and those that keep it are far below. The new aim is the bound, corrected by how far the best candidate was
    off, and a little less: of networks right at the bound every second one misses it.
    """
    pairs = [(p, m) for p, m in zip(predicted, measured) if p is not None and p.value > 0 and m is not None]
    if not pairs:
        return None
    ratios = [m / p.value for p, m in pairs]
    keep = [m for m in measured if m is not None and m <= bound]
    given_away = all(p.low is not None and m < p.low for p, m in pairs) or (
        pairs[0][1] > bound and bool(keep) and max(keep) < FAR_BELOW * bound
    )
    if met and not given_away:
        return None
    again = MARGIN * bound / ratios[0]
    return None if abs(again / aim - 1) < 1e-3 else again
