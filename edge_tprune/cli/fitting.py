"""The steps of `fit`, done with what the other commands are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_tprune.agent.profile import profile as start_run
from edge_tprune.agent.profile import resume as resume_run
from edge_tprune.agent.progress import TerminalProgress
from edge_tprune.analysis.choice import Answer, Choice, choose
from edge_tprune.analysis.latency import write_latency
from edge_tprune.analysis.loading import find_profiles, load_rows
from edge_tprune.analysis.table import Row
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.cli.terminal import open_stderr, print_note, print_warning
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.builder import build
from edge_tprune.export.probes import decide_probes
from edge_tprune.export.settings import BudgetRequest, BuildSettings
from edge_tprune.export.settings import decide as decide_build
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.reduction.host import network_shape
from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.schedule.latency import SLICE, Latency
from edge_tprune.search.configuration import decide as decide_search
from edge_tprune.search.configuration import search_limits
from edge_tprune.search.fit import (
    EXACT,
    FULL,
    KIND,
    STATE,
    Candidate,
    FitState,
    Round,
    needs_no_pruning,
    next_aim,
    pick_candidates,
    tightest,
)

if TYPE_CHECKING:
    from edge_tprune.models.data import Dataset
    from edge_tprune.models.loading import LoadedModel

Advance = Callable[[str, int, int], None]

#: limit -> the metric of the latency model that a search bounds for it
METRICS = {"max_p50_ms": "p50_ms", "max_p95_ms": "p95_ms", "max_energy_mj": "energy_mj_per_image"}


@dataclass(frozen=True)
class FitRequest:
    """What is asked of a fit."""

    out: Path
    methods: tuple[str, ...]
    limits: Mapping[str, float]  #: names from `analysis.limits.LIMITS` -> bound
    run: RunRequest
    batch: int
    trials: int
    seed: int
    force: bool  #: take runs that were disturbed

    @property
    def words(self) -> str:
        """The limits: what rounds are kept under."""
        return " ".join(f"{name}={bound:g}" for name, bound in sorted(self.limits.items()))

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that the latency model can search under, by its metric. A rate becomes a median latency."""
        found = {METRICS[name]: bound for name, bound in self.limits.items() if name in METRICS}
        if "min_fps" in self.limits:
            rate = 1e3 * self.batch / self.limits["min_fps"]
            found["p50_ms"] = min(rate, found.get("p50_ms", rate))
        return found


@dataclass(frozen=True)
class Fit:
    """One fit at work in its directory."""

    request: FitRequest
    loaded: LoadedModel
    photos: Dataset  #: that the search looks at
    judged: Dataset  #: that accuracy is judged on
    key: str
    advance: Advance

    def run(self) -> tuple[Round, Answer]:
        """Does everything that is not done yet, and answers.

        Raises:
            NegativeAnswer: a limit below what any schedule is predicted to reach.
            UserError: as the commands whose steps these are.
        """
        out, words = self.request.out, self.request.words
        out.mkdir(parents=True, exist_ok=True)
        state = self._read()
        while (step := state.next_step(words)) != "answer":
            if step == "probe":
                state = msgspec.structs.replace(state, probes=self._probe())
            elif step == "search":
                state = state.with_round(words, self._search(state))
            else:
                state = state.with_round(words, self._measure(state.rounds[words][-1]))
            KIND.write(out, state)
        latest = state.rounds[words][-1]
        return latest, self._choose(latest)

    def latency(self, state: FitState | None = None) -> Latency:
        """The latency model."""
        found = (state or self._read()).probes
        assert found is not None
        return LATENCY_KIND.read(self.request.out / found)

    def rows(self, of: Round) -> list[Row]:
        """What was measured in a round."""
        assert of.profile is not None
        return list(load_rows(self.request.out / of.profile))

    def _read(self) -> FitState:
        if not (self.request.out / STATE).exists():
            return FitState(key=self.key)
        state = KIND.read(self.request.out)
        if state.key != self.key:
            raise UserError(
                f"{self.request.out} holds a fit of another model, other photos, methods or settings: choose another --out, or remove it"
            )
        if state.probes is not None and not (self.request.out / state.probes).is_dir():
            state = msgspec.structs.replace(state, probes=None)
        return state

    def _probe(self) -> str:
        request = self.request
        runtime, precision = request.run.runtime or "onnxruntime", request.run.precision or "fp32"
        settings = decide_probes(
            self.loaded, request.methods, batch=request.batch, runtimes=self._runtimes(runtime), precisions=[precision]
        )
        print_note("fit: building the probes")
        profile = self._profile(self._build(settings, "probe"))
        write_latency(profile, force=request.force)
        return str(profile.relative_to(request.out))

    def _search(self, state: FitState) -> Round:
        request, latency = self.request, self.latency(state)
        metric, bound = tightest(latency, request.bounds)
        model, number = latency.cost(metric), len(state.rounds.get(request.words, ())) + 1
        aim = state.aim(request.words, bound)
        bundle = f"candidates-{'-'.join(request.words.split())}-{number}"
        if needs_no_pruning(model, network_shape(self.loaded.model), aim):
            print_note("fit: the network meets this without pruning")
            return Round(aim=aim, candidates=(), bundle=bundle)
        print_note(f"fit: searching at {metric} {aim:.4g}")
        settings = decide_search(
            self.loaded, request.methods, self.photos, latency=latency, metric=metric, limits=[aim],
            trials=request.trials, seed=request.seed,
        )  # fmt: skip
        space = settings.space(aim)
        if not space.reachable:
            lowest = min(cost for method in space.methods if (cost := space.cheapest(method)) is not None)
            raise NegativeAnswer(
                f"no schedule of this network meets {metric} {aim:.4g} here: the least that is known is {lowest:.4g}, of {model.full:.4g} unpruned. "
                "A smaller network, another precision or another power mode would be needed"
            )
        (found,) = search_limits(
            self.loaded,
            settings,
            self.photos,
            request.out / "search" / f"{metric}.json",
            progress=self.advance,
            warn=print_note,
        )
        return Round(aim=aim, candidates=pick_candidates(found, model, settings.fixed), bundle=bundle)

    def _measure(self, latest: Round) -> Round:
        request = self.request
        runtime, precision = request.run.runtime or "onnxruntime", request.run.precision or "fp32"
        shape = network_shape(self.loaded.model)
        requests = [BudgetRequest(1.0, shape.full_schedule(), name=FULL)]
        if shape.exact_schedule() != shape.full_schedule():
            requests.append(BudgetRequest(None, shape.exact_schedule(), name=EXACT))
        requests += [
            BudgetRequest(None, candidate.tokens, candidate.method, candidate.options, candidate.name)
            for candidate in latest.candidates
        ]
        settings = decide_build(
            self.loaded, SLICE, budgets=requests, batch=request.batch, runtimes=self._runtimes(runtime),
            precisions=[precision], exact_savings=False, label="fit",
        )  # fmt: skip
        print_note("fit: building the candidates")
        bundle = self._build(settings, latest.bundle)
        if any(budget.accuracy is None for budget in bundle.budgets):
            bundle, _ = evaluate(
                bundle, self.judged, progress=lambda done, of: self.advance("accuracy", done, of), warn=print_warning
            )
        profile = self._profile(bundle)
        measured = msgspec.structs.replace(latest, profile=str(profile.relative_to(request.out)))
        metric, bound = tightest(self.latency(), request.bounds)
        values = {row.budget: row.value(metric) for row in self.rows(measured)}
        met = isinstance(self._choose(measured), Choice)
        again = next_aim(
            latest.aim, bound, [c.predicted for c in latest.candidates], [values.get(c.name) for c in latest.candidates], met
        )
        if again is not None and needs_no_pruning(self.latency().cost(metric), shape, again):
            again = None  # there is nothing between these candidates and the network without pruning, measured beside them
        return msgspec.structs.replace(measured, again=again)

    def _choose(self, of: Round) -> Answer:
        return choose(self.rows(of), dict(self.request.limits), "accuracy")

    def _build(self, settings: BuildSettings, name: str) -> Bundle:
        return build(self.loaded, settings, self.request.out / name, progress=self.advance).bundle

    def _profile(self, bundle: Bundle) -> Path:
        """A complete profile of a bundle: one that is there, one that was cut off and goes on, or a new one."""
        place = self.request.out / "profiles"
        with TerminalProgress(open_stderr()) as progress:
            for path in _profiles_of(place, bundle.manifest.fingerprint):
                if read_run(path, keep=False).end == "complete":
                    return path
                try:
                    return resume_run(bundle, path, progress=progress)
                except UserError as error:
                    print_note(f"fit: measuring again, because {error}")
            print_note(f"fit: measuring {len(bundle.budgets)} graphs")
            return start_run(bundle, place, self.request.run, progress=progress)

    @staticmethod
    def _runtimes(runtime: str) -> Sequence[str]:
        return list(dict.fromkeys(["onnxruntime", runtime]))  # the first judges accuracy here


def _profiles_of(place: Path, fingerprint: str) -> list[Path]:
    try:
        found = find_profiles(place)
    except UserError:
        return []
    return [path for path in found if read_run(path, keep=False).document.bundle.fingerprint == fingerprint]


def candidates_of(of: Round) -> dict[str, Candidate]:
    """By name."""
    return {candidate.name: candidate for candidate in of.candidates}
