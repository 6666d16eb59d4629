"""The steps of `fit`, done with what the other commands are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_tprune.analysis.choice import Answer, Choice, choose
from edge_tprune.analysis.latency import model_latency, read_latency, write_latency
from edge_tprune.analysis.limits import LIMITS
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.table import Row
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.bundle.manifest import EXACT
from edge_tprune.bundle.manifest import KIND as BUNDLE
from edge_tprune.cli.fit_runs import Runs
from edge_tprune.cli.terminal import print_note, print_warning
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.builder import build
from edge_tprune.export.probes import decide_probes
from edge_tprune.export.settings import BudgetRequest, BuildSettings
from edge_tprune.export.settings import decide as decide_build
from edge_tprune.files import clear_write_errors, exclusive, sha256_json
from edge_tprune.record.document import KIND as PROFILE
from edge_tprune.record.reader import read_run
from edge_tprune.reduction.host import network_shape
from edge_tprune.reduction.precision import DEFAULT, INTEGERS
from edge_tprune.schedule.latency import SLICE, Latency
from edge_tprune.search.configuration import decide as decide_search
from edge_tprune.search.configuration import search_limits
from edge_tprune.search.fit import (
    FULL,
    KIND,
    STATE,
    Candidate,
    FitState,
    Round,
    Tuned,
    name_candidates,
    needs_no_pruning,
    next_aim,
    pick_candidates,
    tightest,
    with_best_so_far,
)
from edge_tprune.telemetry.environment import describe_machine

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
    precisions: tuple[str, ...]  #: float32 among them, where there are several
    batch: int
    trials: int
    seed: int
    force: bool  #: take runs that were disturbed
    workers: int = 1  #: processes that score at once in a search

    @property
    def words(self) -> str:
        """The limits and precisions: what rounds are kept under."""
        return " ".join([*(f"{name}={bound:.12g}" for name, bound in sorted(self.limits.items())), ",".join(self.precisions)])

    def bounds(self, unpruned_ms: float) -> dict[str, float]:
        """The bounds that the latency model can search under, by its metric. A rate and a speed-up become a median latency.

        Args:
            unpruned_ms: median latency of the unpruned network, in float32 where that is among the precisions.
        """
        found = {METRICS[name]: bound for name, bound in self.limits.items() if name in METRICS}
        medians = [found["p50_ms"]] if "p50_ms" in found else []
        if "min_fps" in self.limits:
            medians.append(1e3 * self.batch / self.limits["min_fps"])
        if "min_speedup" in self.limits:
            medians.append(unpruned_ms / self.limits["min_speedup"])
        return {**found, "p50_ms": min(medians)} if medians else found


def _machine_of(profile: Path) -> str:
    return describe_machine(read_run(profile, keep=False).document.environment)


@dataclass(frozen=True)
class Tuning:
    """How the chosen network is fine-tuned."""

    photos: Dataset  #: none of which accuracy is judged on
    seconds: float | None  #: in all; None: as long as `finetune` takes by default
    reload: Callable[[Path], LoadedModel]  #: the same network with the weights of a file


@dataclass(frozen=True)
class Fit:
    """One fit at work in its directory."""

    request: FitRequest
    loaded: LoadedModel
    photos: Dataset  #: that the search looks at
    judged: Dataset  #: that accuracy is judged on
    key: str
    runs: Runs
    advance: Advance
    calibration: Dataset | None = None  #: for int8
    tuning: Tuning | None = None
    machine: str = ""  #: that measures, and its power mode; "" where that is a board elsewhere

    def run(self) -> tuple[Round, Answer]:
        """Does everything that is not done yet, and answers.

        Raises:
            NegativeAnswer: a limit below what any schedule is predicted to reach.
            UserError: another fit is at work in the directory; or as the commands whose steps these are.
        """
        out = self.request.out
        for kind in (BUNDLE, PROFILE):
            if (out / str(kind.file)).exists():
                raise UserError(f"--out {out} is a {kind.noun}: give a directory of the fit's own")
        with clear_write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        with exclusive(out / STATE, "fit"):
            return self._run()

    def _run(self) -> tuple[Round, Answer]:
        out, words, state = self.request.out, self.request.words, self.state()
        state = state.without_shorter_searches(words, self.request.trials)
        if self.tuning is not None:
            state = state.without_other_tuning(words, self.tuning.seconds, self.tuning.photos.fingerprint)
        while (step := state.next_step(words, self.request.precisions, self.tuning is not None)) != "answer":
            if step == "probe":
                state = msgspec.structs.replace(state, probes={**state.probes, **self._probe(state)})
            elif step == "search":
                state = state.with_round(words, self._search(state))
            elif step == "measure":
                state = state.with_round(words, self._measure(state, state.rounds[words][-1]))
            else:
                state = msgspec.structs.replace(state, tuned={**state.tuned, words: self._tune(state, state.rounds[words][-1])})
            KIND.write(out, state)
        latest = state.rounds[words][-1]
        tuned = state.tuned.get(words)
        if self.tuning is not None and tuned is not None and tuned.bundle is not None and tuned.profile is not None:
            better = msgspec.structs.replace(latest, bundle=tuned.bundle, profile=tuned.profile)
            answer = self._choose(better)
            if isinstance(answer, Choice):
                return better, answer
            print_note("fit: the fine-tuned network missed the limit when it was measured; this is the answer without it")
        elif self.tuning is not None and tuned is not None:
            print_note(f"fit: this is the answer without fine-tuning: {tuned.verdict}")
        return latest, self._choose(latest)

    def latency(self, state: FitState, precision: str) -> Latency:
        """The latency model of a precision."""
        return read_latency(self.request.out / state.probes[precision])

    def bound(self, state: FitState, precision: str) -> tuple[str, float]:
        """The metric that leaves least in a precision, and its bound, as the probes tell."""
        unpruned = self.latency(state, self.request.precisions[0]).cost("p50_ms").full
        return tightest(self.latency(state, precision), self.request.bounds(unpruned))

    def rows(self, of: Round) -> list[Row]:
        """What was measured in a round."""
        assert of.profile is not None
        profile, bundle = self.request.out / of.profile, self.request.out / of.bundle
        rows = list(load_rows(profile))
        try:
            made_of = Bundle.open(bundle).manifest.fingerprint
        except UserError as error:
            raise UserError(f"{bundle} is damaged: remove it, and run the command again to build and measure it") from error
        if any(row.profile.document.bundle.fingerprint != made_of for row in rows):
            raise UserError(f"{profile} is not of {bundle}: remove it, and run the command again to measure it")
        return rows

    def state(self) -> FitState:
        """What is there.

        Raises:
            UserError: the directory holds a fit of something else.
        """
        if not (self.request.out / STATE).exists():
            return FitState(key=self.key, machine=self.machine)
        state = KIND.read(self.request.out)
        if state.key != self.key:
            raise UserError(
                f"{self.request.out} holds a fit of another model, other photos, methods or settings (such as --seed or --calibration): "
                "choose another --out, or remove it"
            )
        if state.machine and self.machine and state.machine != self.machine:
            raise UserError(
                f"{self.request.out} was measured on {state.machine}, and this is {self.machine}: choose another --out, or "
                "measure there"
            )
        state = state.without_removed(lambda path: (self.request.out / path).exists())
        for precision, path in state.probes.items():
            profile, bundle = self.request.out / path, self.request.out / f"probe-{precision}"
            if bundle.exists() and not self.runs.is_of(profile, Bundle.open(bundle, verify=False), precision):
                raise UserError(
                    f"{profile} is not of {bundle}, or not as this fit measures: remove it, and run the command again to measure it"
                )
        if self.request.force:
            return state
        # What --force took before is not taken without it.
        known = [precision for precision in self.request.precisions if precision in state.probes]
        disturbed = {precision for precision in known if self.latency(state, precision).status != "valid"}
        return state.without_probes(disturbed)

    def _probe(self, state: FitState) -> dict[str, str]:
        """Profiles of probes in every precision that has none. One run for each: a graph's neighbours in a run should be of its kind."""
        request, found = self.request, dict[str, str]()
        for precision in request.precisions:
            if precision in state.probes:
                continue
            settings = decide_probes(
                self.loaded, request.methods, batch=request.batch, runtimes=self._runtimes(), precisions=[precision],
                calibration=self.calibration if precision == INTEGERS else None,
            )  # fmt: skip
            stepless = set(request.methods) - {
                budget.module.method for budget in settings.budgets if budget.module.method != SLICE
            }
            if stepless:
                raise UserError(
                    f"method {sorted(stepless)[0]} chooses no tokens: `fit` has nothing to search there. Give others with --methods"
                )
            print_note(f"fit: building the probes in {precision}")
            profile = self.runs.profile(self._build(settings, f"probe-{precision}"), precision, self._makes_model)
            write_latency(profile, force=request.force)
            found[precision] = str(profile.relative_to(request.out))
        return found

    def _makes_model(self, profile: Path) -> bool:
        """Whether probes that were measured before can be used: not if they were disturbed, except by force."""
        try:
            model_latency(profile, force=self.request.force)
        except UserError as error:
            print_note(f"fit: measuring the probes again, because {error}")
            return False
        return True

    def _search(self, state: FitState) -> Round:
        request = self.request
        number = len(state.rounds.get(request.words, ())) + 1
        aims, candidates, misses = dict[str, float](), list[Candidate](), list[str]()
        for precision in request.precisions:
            latency = self.latency(state, precision)
            metric, bound = self.bound(state, precision)
            aims[precision] = aim = state.aim(request.words, precision, bound)
            settled = state.settled(request.words, precision)
            if settled is not None:
                candidates += settled
            elif needs_no_pruning(latency.cost(metric), network_shape(self.loaded.model), aim):
                print_note(f"fit: in {precision} the network meets this without pruning")
            else:
                found = self._search_in(precision, latency, metric, aim)
                misses += [found] if isinstance(found, str) else []
                candidates += [] if isinstance(found, str) else found
        before = state.rounds.get(request.words, ())
        if len(misses) == len(request.precisions) and not before:
            hint = "" if INTEGERS in request.precisions else "int8 (--precision fp32,int8), "
            raise NegativeAnswer(
                f"{'; '.join(misses)}. A smaller network, {hint}another power mode or more methods may reach it"
            )
        for miss in misses:
            print_note(f"fit: {miss}")
        if not candidates and before:  # what was measured before may meet the limit all the same
            return msgspec.structs.replace(before[-1], again={})
        bundle = f"candidates-{'-'.join(request.words.split())}-{number}"
        candidates = with_best_so_far(candidates, self._chosen(before[-1])[1] if before else None)
        return Round(aims=aims, candidates=name_candidates(candidates), bundle=bundle, trials=request.trials)

    def _search_in(self, precision: str, latency: Latency, metric: str, aim: float) -> list[Candidate] | str:
        """The candidates of one precision, or why there are none."""
        request, model = self.request, latency.cost(metric)
        aim = float(f"{aim:.6g}")  # as the study's name says it: two limits of one name would be two searches in one study
        settings = decide_search(
            self.loaded, request.methods, self.photos, latency=latency, metric=metric, limits=[aim],
            trials=request.trials, seed=request.seed,
        )  # fmt: skip
        space = settings.space(aim)
        if not space.reachable:
            lowest = min((cost for each in space.methods if (cost := space.cheapest(each)) is not None), default=model.full)
            return (
                f"no schedule of this network meets {metric} {aim:.4g} in {precision} here: the least that is known is {lowest:.4g}, "
                f"of {model.full:.4g} unpruned"
            )
        print_note(f"fit: searching at {metric} {aim:.4g} in {precision}")
        name = f"{metric}-{precision}-{sha256_json(latency.run_id)[:8]}"  # trials are of one latency model
        (found,) = search_limits(
            self.loaded, settings, self.photos, request.out / "search" / f"{name}.json", workers=request.workers,
            progress=self.advance, warn=print_note,
        )  # fmt: skip
        return pick_candidates(found, model, settings.fixed, precision)

    def _measure(self, state: FitState, latest: Round) -> Round:
        shape = network_shape(self.loaded.model)
        print_note("fit: building the candidates")
        bundle, precisions = self._build_networks(self.loaded, latest.candidates, latest.bundle)
        bundle = self._judge(bundle, precisions)
        profile = self._profile(bundle, precisions, state)
        measured = msgspec.structs.replace(latest, profile=str(profile.relative_to(self.request.out)))
        rows, again = self.rows(measured), dict[str, float]()
        unpruned = next((row.value("p50_ms") for row in rows if row.unpruned and row.precision == precisions[0]), None)
        for precision in precisions:
            latency = self.latency(state, precision)
            metric, expected = self.bound(state, precision)
            bound = expected if unpruned is None else self.request.bounds(unpruned)[metric]
            pace = bound / expected  # of this run against the probes', where a speed-up is what bounds; else 1
            own = [candidate for candidate in latest.candidates if candidate.precision == precision]
            judged = {row.budget.partition("@")[0]: row for row in rows if row.precision == precision}
            values = {name: self._bounded(row, metric, bound) for name, row in judged.items()}
            met = isinstance(self._choose_among([row for row in rows if row.precision == precision]), Choice)
            pairs = [(candidate.predicted, values.get(candidate.name)) for candidate in own]
            if not pairs:  # nothing seemed to need pruning: the network without it stands for the candidates
                without = latency.cost(metric).predict(shape, SLICE, shape.exact_schedule())
                pairs = [(without, values.get(EXACT, values.get(FULL)))]
            predictions = [None if predicted is None else predicted.scaled(pace) for predicted, _ in pairs]
            names = {candidate.name for candidate in own} | {FULL, EXACT}
            others = [value for name, value in values.items() if name not in names]  # networks that another precision found
            aim = next_aim(
                pace * latest.aims.get(precision, expected), bound, predictions, [*(m for _, m in pairs), *others], met
            )
            aim = None if aim is None else aim / pace
            # Between these candidates and the network without pruning, measured beside them, there may be nothing.
            if aim is not None and not needs_no_pruning(latency.cost(metric), shape, aim):
                again[precision] = aim
        return msgspec.structs.replace(measured, again=again)

    def _profile(self, bundle: Bundle, precisions: Sequence[str], state: FitState) -> Path:
        """What was measured of these networks: one run, neither invalid nor made on another machine than the probes.

        Raises:
            UserError: it was.
        """
        path = self.runs.profile(bundle, ",".join(precisions), lambda path: self._why_invalid(path) is None)
        if (why := self._why_invalid(path)) is not None:
            raise UserError(f"{path}: {why}: run the same command again to measure it again")
        here = _machine_of(path)
        for precision in precisions:
            probes = self.request.out / state.probes[precision]
            if (there := _machine_of(probes)) != here:
                raise UserError(
                    f"{path} was measured on {here}, and {probes} on {there}: remove the one that is of the wrong machine or power mode, and run the "
                    "same command again to measure it again"
                )
        return path

    def _why_invalid(self, path: Path) -> str | None:
        """Why nothing that was measured in a run can be used, or None."""
        whys = [row.unfit for row in load_rows(path)]
        return None if None in whys or not whys else whys[0]

    def _bounded(self, row: Row, metric: str, bound: float) -> float | None:
        """What of a row is held against the bound: how far it is over the limit that it is furthest over, as a value of `metric`.

        A rate and a speed-up are judged as they were measured: medians may tell otherwise.
        """
        limits, over = self.request.limits, list[float]()
        for name, wanted in limits.items():
            judged, side = LIMITS[name]
            if (value := row.value(judged)) is not None and value > 0:
                over.append(value / wanted if side == "max" else wanted / value)
        return bound * max(over) if len(over) == len(limits) else row.value(metric)

    def _tune(self, state: FitState, latest: Round) -> Tuned:
        """Fine-tunes the network that was chosen, for the unpruned network and that schedule, and measures it again."""
        assert self.tuning is not None
        seconds, photos = self.tuning.seconds, self.tuning.photos.fingerprint
        name, chosen = self._chosen(latest)
        shape = network_shape(self.loaded.model)
        if chosen is None or chosen.tokens in (shape.full_schedule(), shape.exact_schedule()):
            return Tuned(
                candidate=name, verdict="nothing was pruned: there is nothing to fine-tune", seconds=seconds, photos=photos
            )
        from edge_tprune.finetune.choose import TimeTooShort
        from edge_tprune.finetune.request import Request
        from edge_tprune.finetune.run import finetune

        share = round(shape.share(chosen.tokens), 4)
        network = sha256_json([chosen.method, chosen.options, chosen.tokens])[:8]
        # Other photos and another time are another training.
        made = f"{latest.bundle}-{name}-{network}-{photos[:8]}" + ("" if seconds is None else f"-{seconds:g}s")
        weights = self.request.out / f"{made}.safetensors"
        asked = Request(
            method=chosen.method,
            budgets=(1.0, share),
            schedules={f"{share:g}": chosen.tokens},
            options=dict(chosen.options),
            seconds=seconds,
            seed=self.request.seed,
        )
        print_note(f"fit: fine-tuning {name} on {len(self.tuning.photos)} photos")
        try:
            result = finetune(self.loaded, self.tuning.photos, weights, asked, progress=self.advance, say=print_note)
        except NegativeAnswer as no:
            return Tuned(
                candidate=name, verdict=str(no), seconds=seconds, photos=photos, too_short=isinstance(no, TimeTooShort)
            )
        print_note(f"fit: {result.verdict}")
        bundle, precisions = self._build_networks(self.tuning.reload(weights), [chosen], f"{made}-tuned")
        bundle = self._judge(bundle, precisions)
        profile = self._profile(bundle, precisions, state)
        place = str(profile.relative_to(self.request.out))
        return Tuned(
            candidate=name, verdict=result.verdict, seconds=seconds, photos=photos, bundle=f"{made}-tuned", profile=place
        )

    def _chosen(self, of: Round) -> tuple[str, Candidate | None]:
        """The name of what is chosen in a round, and the candidate that it is; None for the network without pruning, or where nothing is chosen."""
        answer = self._choose(of)
        name = answer.row.budget.partition("@")[0] if isinstance(answer, Choice) else FULL
        return name, next((candidate for candidate in of.candidates if candidate.name == name), None)

    def _choose(self, of: Round) -> Answer:
        return self._choose_among(self.rows(of))

    def _choose_among(self, rows: Sequence[Row]) -> Answer:
        """The most accurate that keeps the limits. Without labels that is the least KL divergence: how many answers stay the same tells less."""
        labelled = any(row.value("top1_percent") is not None for row in rows)
        return choose(rows, dict(self.request.limits), "accuracy" if labelled else "divergence")

    def _build_networks(self, loaded: LoadedModel, candidates: Sequence[Candidate], name: str) -> tuple[Bundle, list[str]]:
        """The bundle of the unpruned network and the candidates, and its precisions: without int8 where its gate refuses one of them."""
        shape = network_shape(loaded.model)
        requests = [BudgetRequest(1.0, shape.full_schedule(), name=FULL)]
        if shape.exact_schedule() != shape.full_schedule():
            requests.append(BudgetRequest(None, shape.exact_schedule(), name=EXACT))
        requests += [BudgetRequest(None, each.tokens, each.method, each.options, each.name) for each in candidates]

        def decide(precisions: Sequence[str]) -> BuildSettings:
            integers = INTEGERS in precisions  # whose accuracy is judged beside float32's
            return decide_build(
                loaded,
                SLICE,
                budgets=requests,
                batch=self.request.batch,
                runtimes=self._runtimes(),
                precisions=[*precisions, *([DEFAULT] if integers and DEFAULT not in precisions else [])],
                exact_savings=False,
                label="fit",
                calibration=self.calibration if integers else None,
            )

        precisions = list(self.request.precisions)
        try:
            return self._build(decide(precisions), name, loaded), precisions
        except NegativeAnswer as refusal:
            if INTEGERS not in precisions or len(precisions) == 1:
                raise
            print_warning(f"fit continues without int8: {refusal}")
            precisions.remove(INTEGERS)
            return self._build(decide(precisions), name, loaded), precisions

    def _build(self, settings: BuildSettings, name: str, loaded: LoadedModel | None = None) -> Bundle:
        return build(loaded or self.loaded, settings, self.request.out / name, progress=self.advance).bundle

    def _judge(self, bundle: Bundle, precisions: Sequence[str]) -> Bundle:
        """The bundle with the accuracy of every network, in float32 and in int8, measured on the CPU of this machine."""
        integers = INTEGERS in precisions
        known = [budget.accuracy_by_precision.get(INTEGERS) if integers else budget.accuracy for budget in bundle.budgets]
        images = self.judged.fingerprint
        if all(record is not None and record.data.sha256 == images for record in known):
            return bundle

        def show(done: int, of: int) -> None:
            self.advance("accuracy", done, of)

        precision = INTEGERS if integers else DEFAULT  # float32 is judged beside integers
        return evaluate(bundle, self.judged, precision=precision, progress=show, warn=print_warning)[0]

    def _runtimes(self) -> Sequence[str]:
        return list(
            dict.fromkeys(["onnxruntime", self.runs.request.runtime or "onnxruntime"])
        )  # the first judges accuracy here
