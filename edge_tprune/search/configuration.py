"""Finds configurations for a model on a person's images: which method, where it removes how many tokens, and its options.

At a budget of MACs one method is searched; under a latency model of a board several may compete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.documents import LARGEST_BYTES, MethodOptions
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, exclusive, read_regular, refuse_special, sha256_json
from edge_tprune.models.data import Dataset
from edge_tprune.models.families import adapt
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.code import method_code_sha256
from edge_tprune.reduction.host import check_method, check_output, network_shape
from edge_tprune.reduction.plugins import plugin_files
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import Latency, NetworkRecord
from edge_tprune.search.cost import Cost, MacsCost, MeasuredCost
from edge_tprune.search.schedule_file import KIND, FoundSchedule, ScheduleFile, SearchRecord
from edge_tprune.search.score import ERROR, MOST, SCORES, FixedOptions, Scorer, read_images
from edge_tprune.search.space import Configuration, MethodSpace, SearchSpace
from edge_tprune.search.starts import Tables, own_pattern, planned
from edge_tprune.search.study import Result, open_storage, open_study, search
from edge_tprune.search.workers import Here, Workers
from edge_tprune.statistics import mean_interval, paired_difference, required_count

Progress = Callable[[str, int, int], None]
Warn = Callable[[str], None]
TABLES = "sensitivity.json"  #: beside the schedule file
WORTH_TABLES = 20  #: a table costs as much as about so many trials: shorter searches do without


@dataclass(frozen=True)
class SearchSettings:
    """Everything that is decided about a search before it begins."""

    cost: Cost
    limits: tuple[float, ...]  #: of the cost: shares of MACs, ms or mJ
    methods: tuple[MethodSpace, ...]
    fixed: MethodOptions  #: options that are not searched
    trials: int  #: per limit
    record: SearchRecord

    def space(self, limit: float, chosen: MethodOptions | None = None) -> SearchSpace:
        """What may be tried at a limit; options that were chosen before are tried no more."""
        methods = self.methods
        if chosen is not None:
            methods = tuple(
                _with_options(method, {name: (chosen[name],) for name in method.options if name in chosen})
                for method in methods
            )
        return SearchSpace(self.cost, limit, methods, *self.record.stages)

    def header(self, limit: float) -> dict[str, object]:
        """What must be equal for trials to be ones of this search."""
        record = msgspec.json.decode(msgspec.json.encode(self.record))  # as it is read back
        record.pop("trials", None)  # a finished search may go on with more
        methods = {
            method.name: [method_code_sha256(registry.method(method.name)), {k: list(v) for k, v in method.options.items()}]
            for method in self.methods
        }
        return {**record, "limit": limit, "cost": self.cost.unit, "options": dict(self.fixed), "methods": methods}


@dataclass(frozen=True)
class Found:
    """What a search found at one limit."""

    space: SearchSpace
    results: list[Result]  #: the best first
    patterns: Mapping[str, Configuration] = field(default_factory=dict)  #: method -> its own pattern, where that fits the space

    @property
    def best(self) -> Result:
        """The least loss."""
        return self.results[0]

    @property
    def default(self) -> Result | None:
        """The first method's own pattern, where it was scored on all images."""
        own = self.patterns.get(self.space.methods[0].name)
        return next((result for result in self.results if result.configuration == own), None)


def decide(
    loaded: LoadedModel,
    methods: Sequence[str],
    dataset: Dataset,
    *,
    budgets: Sequence[float] | None = None,
    latency: Latency | None = None,
    metric: str = "p50_ms",
    limits: Sequence[float] = (),
    trials: int = 60,
    stages: tuple[int, int] | None = None,
    score: str | None = None,
    seed: int = 0,
    options: MethodOptions | None = None,
    output: str | None = None,
) -> SearchSettings:
    """Refuses what cannot be before an image is read.

    Args:
        loaded: the model.
        methods: names; at budgets of MACs one.
        dataset: images; labels are used for `score="top1"` only.
        budgets: shares of MACs below 1.
        latency: instead: the cost models of a board.
        metric: which of them.
        limits: of that metric.
        trials: per limit.
        stages: fewest and most blocks that remove tokens. By default up to one more than the method's own number at a budget, any number
            under a latency model, in which every stage has its price.
        score: "kl" (divergence from the unpruned model, no labels) or "top1" (errors); of outputs other than logits "cosine" (distance from the
            unpruned model's vectors). By default what needs no labels.
        seed: of the search.
        options: of the method, fixed; the others that it declares worth searching are searched.
        output: what the networks give, one of `edge_tprune.models.adapter.OUTPUTS`; the network's own by default.

    Raises:
        UserError: an output that the network cannot give, an unknown method or one that the model cannot have, no labels, a limit that no
            schedule meets or that is none, a latency model of another network.
    """
    reducers = [registry.method(name) for name in dict.fromkeys(methods)]
    for reducer in reducers:
        check_method(reducer, loaded.model, loaded.name)
    adapter = adapt(loaded.model, loaded.name)
    output = output or adapter.default_output
    check_output(adapter, output, False)
    shape = network_shape(loaded.model, loaded.name, output, reducers[0], options)
    score = SCORES[output][0] if score is None else score
    if score not in SCORES[output]:
        raise UserError(f"no score {score!r} for {output}: choose {' or '.join(SCORES[output])}")
    if score == ERROR and not dataset.labelled:
        raise UserError(f"{dataset.name} has no labels: score by kl, or give one sub-directory per class")
    if trials < 1:
        raise UserError(f"a search needs at least one trial, not {trials}")
    fixed = dict(options or {})
    if fixed and len(reducers) > 1:
        raise UserError("options are of one method: name one, or leave --option out")
    cost: Cost
    if latency is None:
        if len(reducers) != 1:
            raise UserError("at a budget of MACs one method is searched: name one, or give --latency")
        cost, wanted = MacsCost(shape, exact=shape.read_tokens is not None), _check_budgets(budgets or ())
    else:
        latency.check(network_record(loaded, shape))
        model = latency.cost(metric)
        if model.exact and shape.read_tokens is None:
            raise UserError(
                f"the latency model is of graphs whose last block computes only what the head reads, and {output} needs all tokens: build the probes "
                f"with --output {output}"
            )
        reducers = _measured(reducers, latency, metric)
        cost, wanted = MeasuredCost(shape, model), tuple(limits)
        for limit in wanted:
            if not limit > 0:
                raise UserError(f"{limit:g} is no limit of {metric}: give a number above 0")
    most = min(shape.blocks, len(reducers[0].default_blocks) + 1) if latency is None else shape.blocks
    low, high = stages or (1, most)
    if not 1 <= low <= high <= shape.blocks:
        raise UserError(f"{low} to {high} stages do not fit a model of {shape.blocks} blocks")
    record = SearchRecord(
        model=loaded.name,
        weights_sha256=loaded.weights_sha256,
        images=len(dataset),
        data=dataset.name,
        data_sha256=dataset.fingerprint,
        settings_sha256=sha256_json(loaded.settings),
        score=score,
        stages=(low, high),
        seed=seed,
        trials=trials,
        output=output,
        profile=None if latency is None else latency.run_id,
    )
    spaces = tuple(_method_space(reducer, shape, fixed) for reducer in reducers)
    return SearchSettings(cost, wanted, spaces, fixed, trials, record)


def find(
    loaded: LoadedModel,
    settings: SearchSettings,
    dataset: Dataset,
    out: Path,
    *,
    storage: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> ScheduleFile:
    """Searches at every limit and writes the schedule file; trials are kept beside it and need not be run again.

    Asked for more trials, a finished search goes on. At budgets of MACs options are searched at the first and kept for the others, so
    that the file describes one method.

    Args:
        loaded: the model.
        settings: from `decide`.
        dataset: the images that `decide` was given.
        out: the file.
        storage: of the trials: a database's URL; by default a journal beside the file.
        workers: processes that score at once, each with a copy of network and images. Only with one does the same seed give the same trials.
        progress: called as (what, done, of).
        warn: called with what a person should know.

    Returns:
        What was written.

    Raises:
        UserError: a limit that no schedule meets, trials of another search there, another search at work on the file.
    """
    _check_place(out)
    found = search_limits(loaded, settings, dataset, out, storage=storage, workers=workers, progress=progress, warn=warn)
    entries: dict[str, FoundSchedule] = {}
    first = found[0].best.configuration
    by_budget = isinstance(settings.cost, MacsCost)
    for limit, each in zip(settings.limits, found):
        name = limit if by_budget else round(each.best.schedule.share, 4)
        if warn is not None and f"{name:g}" in entries:
            warn(f"limit {limit:g} comes to the same share as the one before, {name:g}: both have one entry")
        entries[f"{name:g}"] = _describe(each, settings, first)
    document = ScheduleFile(
        method=first.method, options={**settings.fixed, **dict(first.options)}, budgets=entries, found=settings.record
    )
    _check_place(out)  # which something else may have taken meanwhile; the trials are kept
    KIND.write(out, document)
    return document


def _check_place(out: Path) -> None:
    """Refuses a place where a file of another kind is: it would be lost.

    Raises:
        UserError: naming it.
    """
    refuse_special(out)
    said = b""
    with suppress(OSError):
        said = read_regular(out, LARGEST_BYTES)
    if out.is_file() and not KIND.begins.match(said):
        raise UserError(f"{out} exists and is not a schedule file: choose another --out, or remove it")


def search_limits(
    loaded: LoadedModel,
    settings: SearchSettings,
    dataset: Dataset,
    out: Path,
    *,
    storage: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    warn: Warn | None = None,
    scorer: Scorer | None = None,
) -> list[Found]:
    """The search at every limit, without the file. Arguments and errors as `find`; `scorer` where the images were read before."""
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out}: a schedule file is a file whose name ends in .json")
    if out.name == TABLES:
        raise UserError(f"--out {out}: sensitivity tables are kept under that name: choose another")
    if workers < 1:
        raise UserError(f"{workers} workers are too few: give 1 or more")
    plugins = plugin_files(method.name for method in settings.methods) if workers > 1 else []
    report = progress or (lambda what, done, of: None)
    database = None if storage is None else open_storage(out, storage)
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out, "search"), ExitStack() as stack:
        for limit in settings.limits:
            if not settings.space(limit).reachable:
                raise _too_low(settings, limit)
            _check_removes(settings, limit)
        trials_at = database or open_storage(out, None)
        scorer = scorer or read_images(loaded, dataset, settings.record.score, report, settings.record.output)
        score, place = FixedOptions(scorer, settings.fixed), None
        if workers > 1:
            place = stack.enter_context(Workers(score, workers, torch.get_num_threads(), plugins, warn))
        identity = {"weights": loaded.weights_sha256, "data": dataset.fingerprint, "score": settings.record.score}
        identity["settings"] = settings.record.settings_sha256 or ""
        if settings.record.output != LOGITS:
            identity["output"] = settings.record.output
        tables = Tables(
            out.with_name(TABLES), settings.cost.shape, settings.cost.exact, place or Here(score), identity, settings.fixed
        )
        found: list[Found] = []
        for number, limit in enumerate(settings.limits):
            # Other budgets keep what the first one chose, as part of every trial: one file describes one method.
            chosen = dict(found[0].best.configuration.options) if found and isinstance(settings.cost, MacsCost) else None
            space = settings.space(limit, chosen)
            starts = _starts(space, tables if settings.trials >= WORTH_TABLES else None, report)
            # Trials under other options are of another study: more trials of the first budget may change what it chose.
            kept = "".join(f" {name}={value}" for name, value in sorted((chosen or {}).items()))
            study = open_study(trials_at, f"{out.stem} {limit:g}{kept}", settings.header(limit))

            def show(done: int, of: int, best: Result | None, number: int = number, limit: float = limit) -> None:
                so_far = f", best {best.loss:.4f}" if best else ""
                report(f"{_limit_text(settings, limit)}{so_far}", number * of + done, of * len(settings.limits))

            results = search(
                study, space, place or score, trials=settings.trials, seed=settings.record.seed, first=starts, images=len(dataset),
                report=show, alone=storage is None,
            )  # fmt: skip
            patterns = {method.name: pattern for method in space.methods if (pattern := own_pattern(space, method)) is not None}
            found.append(Found(space, results, patterns))
            if warn is not None and (text := few_images(results)):
                warn(text)
    return found


def few_images(results: Sequence[Result]) -> str:
    """Says so where the images cannot tell the best configuration from the next, and how many would; '' where they can."""
    others = [result for result in results[1:] if result.schedule != results[0].schedule]
    if not others or len(results[0].losses) < 2:
        return ""
    difference = paired_difference(others[0].losses, results[0].losses)
    if difference.low is None or difference.low > 0 or difference.value <= 0 or difference.high is None:
        return ""
    count = len(results[0].losses)
    needed = required_count(count, (difference.high - difference.low) / 2, difference.value)
    more = f"{needed} images would" if needed is not None else "no reasonable number of images would: they are equally good"
    return f"{count} images do not tell the two best configurations apart; {more}"


def network_record(loaded: LoadedModel, shape: NetworkShape) -> NetworkRecord:
    """What a latency model must be of to be this network's."""
    return NetworkRecord(name=loaded.name, weights_sha256=loaded.weights_sha256, tokens=shape.tokens, blocks=shape.blocks)


def _starts(space: SearchSpace, tables: Tables | None, report: Progress) -> list[Configuration]:
    """What is known to be good: patterns that come with the methods, and what a sensitivity table leads to. The patterns first."""
    starts = []
    for method in space.methods:
        starts.append(own_pattern(space, method))
        if tables is not None:
            starts.append(planned(space, tables.table(method, report)))
    return list(dict.fromkeys(start for start in starts if start is not None))


def _with_options(method: MethodSpace, options: Mapping[str, Sequence[Any]]) -> MethodSpace:
    return MethodSpace(method.name, method.fewest, method.removal, options)


def _describe(found: Found, settings: SearchSettings, first: Configuration) -> FoundSchedule:
    best, default, score = found.best, found.default, settings.record.score
    most = MOST[score]
    interval = mean_interval(best.losses).within(0.0, most)
    before = None if default is None else mean_interval(default.losses).within(0.0, most)
    configuration = best.configuration
    own = (configuration.method, configuration.options) != (first.method, first.options)
    predicted = None
    if isinstance(settings.cost, MeasuredCost):
        model = settings.cost.model
        known = model.predict(settings.cost.shape, configuration.method, best.schedule.tokens)
        predicted = None if known is None else {model.metric: known}
    return FoundSchedule(
        tokens=best.schedule.tokens,
        share=best.schedule.share,
        blocks=configuration.blocks,
        weights=configuration.weights,
        method=configuration.method if own else None,
        options={**settings.fixed, **dict(configuration.options)} if own else None,
        predicted=predicted,
        **{score: interval, f"default_{score}": before},
    )


def _check_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    if not budgets:
        raise UserError("a search needs a budget")
    if len({f"{budget:g}" for budget in budgets}) != len(budgets):
        raise UserError(f"a budget is given twice: {', '.join(f'{budget:g}' for budget in budgets)}")
    for budget in budgets:
        if not 0 < budget < 1:
            raise UserError(f"budget {budget:g} is out of range: a search needs a share of MACs above 0 and below 1")
    return tuple(budgets)


def _measured(reducers: Sequence[type[registry.Reducer]], latency: Latency, metric: str) -> list[type[registry.Reducer]]:
    """The methods, all of which must have been among the probes."""
    steps = latency.cost(metric).steps
    missing = [reducer.name for reducer in reducers if reducer.name not in steps]
    if missing:
        raise UserError(
            f"the latency model does not know {', '.join(missing)} (it knows {', '.join(steps) or 'no method'}): "
            "build the probes with that method, profile them, or choose from what is known with --methods"
        )
    return list(reducers)


def _method_space(reducer: type[registry.Reducer], shape: NetworkShape, fixed: MethodOptions) -> MethodSpace:
    free = {name: tuple(values) for name, values in reducer.worth_searching.items() if name not in fixed}
    return MethodSpace(
        reducer.name, lambda tokens: registry.fewest(reducer, tokens, shape.prefix_tokens), reducer.removal, free
    )


def _limit_text(settings: SearchSettings, limit: float) -> str:
    return f"budget {limit:g}" if isinstance(settings.cost, MacsCost) else f"{settings.cost.unit} {limit:g}"


def _check_removes(settings: SearchSettings, limit: float) -> None:
    """Refuses a budget that a network keeps without removing any token: there is nothing to search."""
    shape = settings.cost.shape
    if not isinstance(settings.cost, MacsCost) or not settings.cost.exact or limit >= 1:
        return
    if limit >= (share := shape.share(shape.exact_schedule())):
        raise UserError(
            f"budget {limit:g}: without removing any token, exact savings alone reach {share:.3f}. Give less than that: there is nothing to search"
        )


def _too_low(settings: SearchSettings, limit: float) -> UserError:
    if isinstance(settings.cost, MacsCost):
        low, high = settings.record.stages
        return UserError(f"no schedule with {low} to {high} stages meets budget {limit:g}")
    lowest = min(
        (spent for method in settings.methods if (spent := settings.space(limit).cheapest(method)) is not None), default=None
    )
    fastest = "no schedule is known" if lowest is None else f"the least that the model knows is {lowest:.3g}"
    return UserError(f"{settings.cost.unit} {limit:g} cannot be met: {fastest}")
