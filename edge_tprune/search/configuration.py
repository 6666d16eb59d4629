"""Finds a method's configuration for a model on a person's images: where it removes how many tokens, and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, exclusive
from edge_tprune.models.data import Dataset, batches
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import pattern, registry
from edge_tprune.reduction.host import check_method, network_shape
from edge_tprune.reduction.plugins import method_code_sha256
from edge_tprune.schedule import NetworkShape
from edge_tprune.search.schedule_file import KIND, FoundSchedule, ScheduleFile, SearchRecord
from edge_tprune.search.score import DIVERGENCE, ERROR, Scorer
from edge_tprune.search.trials import SearchSpace, Trial, TrialLog, TrialResult, search
from edge_tprune.statistics import mean_interval

SCORES = (DIVERGENCE, ERROR)
_BATCH = 25

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SearchSettings:
    """Everything that is decided about a search before it begins."""

    method: str
    shape: NetworkShape
    budgets: tuple[float, ...]
    fixed: Mapping[str, Any]  #: options that are not searched
    free: Mapping[str, tuple[Any, ...]]  #: option -> values worth trying
    trials: int  #: per budget
    record: SearchRecord

    @property
    def reducer(self) -> type[registry.Reducer]:
        """The method's module."""
        return registry.method(self.method)

    def space(self, budget: float, free: Mapping[str, Sequence[Any]]) -> SearchSpace:
        """What may be tried at a budget."""
        low, high = self.record.stages
        reducer, prefix = self.reducer, self.shape.prefix_tokens
        return SearchSpace(self.shape, budget, low, high, free, reducer.removal, lambda tokens: reducer.fewest(tokens, prefix))

    @property
    def log_header(self) -> dict[str, Any]:
        """What must be equal for a log to be one of this search."""
        record = msgspec.json.decode(msgspec.json.encode(self.record))  # as the log is read back
        del record["trials"]  # a finished search may go on with more
        searched = {name: list(values) for name, values in self.free.items()}
        return {
            **record,
            "method": self.method,
            "options": dict(self.fixed),
            "searched": searched,
            "code": method_code_sha256(self.reducer),
        }


def find(
    loaded: LoadedModel,
    method: str,
    budgets: Sequence[float],
    dataset: Dataset,
    out: Path,
    *,
    trials: int = 60,
    stages: tuple[int, int] | None = None,
    score: str = DIVERGENCE,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> ScheduleFile:
    """Searches at every budget and writes the schedule file; trials are logged beside it and need not be run again.

    Asked for more trials, a finished search goes on. Options are searched at the first budget and kept for the others, so that one
    file describes one method.

    Args:
        loaded: the model.
        method: its name.
        budgets: shares of MACs below 1.
        dataset: images; labels are used for `score="top1"` only.
        out: the file.
        trials: per budget.
        stages: fewest and most blocks that remove tokens; up to one more than the method's own number by default.
        score: "kl" (divergence from the unpruned model, no labels) or "top1" (errors).
        seed: of the search.
        options: of the method, fixed; the others that it declares worth searching are searched.
        progress: called as (what, done, of).
        warn: called with what a person should know.

    Returns:
        What was written.

    Raises:
        UserError: no images or labels, a budget that no schedule meets, a log of another search, another search at work on the file.
    """
    settings = _decide(loaded, method, budgets, dataset, trials, stages, score, seed, options or {})
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out}: a schedule file is a file whose name ends in .json")
    report = progress or (lambda what, done, of: None)
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out, "search"):
        scorer = _read_images(loaded, method, dataset, score, report)
        entries: dict[str, FoundSchedule] = {}
        free: Mapping[str, Sequence[Any]] = settings.free
        for number, budget in enumerate(settings.budgets):
            best, default = _search_budget(settings, number, free, scorer, out, report, warn)
            # The other budgets keep what the first one chose, as part of every trial: if more trials choose otherwise, their logs still hold.
            free = {name: (value,) for name, value in best.trial.options}
            entries[f"{budget:g}"] = _describe(best, default, score)
        chosen = {**settings.fixed, **{name: values[0] for name, values in free.items()}}
        document = ScheduleFile(method=method, options=chosen, budgets=entries, found=settings.record)
        KIND.write(out, document)
    return document


def _decide(
    loaded: LoadedModel,
    method: str,
    budgets: Sequence[float],
    dataset: Dataset,
    trials: int,
    stages: tuple[int, int] | None,
    score: str,
    seed: int,
    options: Mapping[str, Any],
) -> SearchSettings:
    """Refuses what cannot be before an image is read. Arguments and errors as `find`."""
    reducer = registry.method(method)
    check_method(reducer, loaded.model, loaded.name)
    shape = network_shape(loaded.model, loaded.name, method=reducer, options=options)
    if score not in SCORES:
        raise UserError(f"no score {score!r}: choose {' or '.join(SCORES)}")
    if score == ERROR and not dataset.labelled:
        raise UserError(f"{dataset.name} has no labels: score by kl, or give one sub-directory per class")
    if trials < 1:
        raise UserError(f"a search needs at least one trial, not {trials}")
    if len({f"{budget:g}" for budget in budgets}) != len(budgets):
        raise UserError(f"a budget is given twice: {', '.join(f'{budget:g}' for budget in budgets)}")
    for budget in budgets:
        if not 0 < budget < 1:
            raise UserError(f"budget {budget:g} is out of range: a search needs a share of MACs above 0 and below 1")
    low, high = stages or (1, min(shape.blocks, len(reducer.default_blocks) + 1))
    if not 1 <= low <= high <= shape.blocks:
        raise UserError(f"{low} to {high} stages do not fit a model of {shape.blocks} blocks")
    free = {name: tuple(values) for name, values in reducer.worth_searching.items() if name not in options}
    record = SearchRecord(
        model=loaded.name,
        weights_sha256=loaded.weights_sha256,
        images=len(dataset),
        data=dataset.name,
        data_sha256=dataset.fingerprint,
        score=score,
        stages=(low, high),
        seed=seed,
        trials=trials,
    )
    return SearchSettings(method, shape, tuple(budgets), dict(options), free, trials, record)


def _search_budget(
    settings: SearchSettings,
    number: int,
    free: Mapping[str, Sequence[Any]],
    scorer: Scorer,
    out: Path,
    report: Progress,
    warn: Callable[[str], None] | None,
) -> tuple[TrialResult, TrialResult | None]:
    """The best trial at one of the budgets, and the method's defaults where they were among the trials."""
    budget, trials = settings.budgets[number], settings.trials
    space = settings.space(budget, free)
    start = _defaults(settings.reducer, budget, space)
    with clear_write_errors(out):
        log = TrialLog(out.with_name(f"{out.name}.{budget:g}.jsonl"), {**settings.log_header, "budget": budget})
    if log.damaged and warn is not None:
        warn(f"{log.path}: line {', '.join(map(str, log.damaged))} cannot be read: what it says is tried again")

    def losses(schedule: Any, tried: Mapping[str, Any]) -> Any:
        return scorer(schedule, {**settings.fixed, **tried})

    def show(done: int, of: int, best: TrialResult | None) -> None:
        so_far = f", best {best.loss:.4f}" if best else ""
        report(f"budget {budget:g}{so_far}", number * trials + done, trials * len(settings.budgets))

    try:
        results = search(space, losses, log, trials=trials, seed=settings.record.seed, first=start, progress=show)
    finally:
        log.close()
    default = next(result for result in results if result.trial.key == start[0].key) if start else None
    return results[0], default


def _describe(best: TrialResult, default: TrialResult | None, score: str) -> FoundSchedule:
    found = mean_interval(best.losses)
    before = None if default is None else mean_interval(default.losses)
    by_kl = score == DIVERGENCE
    return FoundSchedule(
        tokens=best.schedule.tokens,
        share=best.schedule.share,
        blocks=best.trial.blocks,
        weights=best.trial.weights,
        kl=found if by_kl else None,
        default_kl=before if by_kl else None,
        top1=None if by_kl else found,
        default_top1=None if by_kl else before,
    )


def _read_images(loaded: LoadedModel, method: str, dataset: Dataset, score: str, report: Progress) -> Scorer:
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for pixels, truth in batches(dataset, loaded.transform(), _BATCH):
        report("reading images", len(images) * _BATCH, len(dataset))
        images.append(torch.from_numpy(pixels))
        labels.append(torch.from_numpy(truth))
    return Scorer(loaded.model, method, images, labels if score == ERROR else None)


def _defaults(method: type[registry.Reducer], budget: float, space: SearchSpace) -> list[Trial]:
    """The method's defaults as the first trial, so that a search never ends worse than it began; none where they miss the budget."""
    blocks, weights = pattern(method, space.shape.blocks, budget)
    known = {name: parameter.default for name, parameter in registry.options(method).items()}
    options = {name: known[name] if known[name] in values else values[0] for name, values in space.options.items()}
    trial = Trial(blocks, weights, tuple(sorted(options.items())))
    fits = space.fewest_stages <= len(blocks) <= space.most_stages
    return [trial] if fits and space.schedule(trial) else []
